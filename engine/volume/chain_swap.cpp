// Volume: changes of the chain. Each builds a new chain beside the old one, has it recorded by
// `publish`, and only then lets requests see it; when a step before that fails, the old chain goes
// on as if nothing had been.
#include <algorithm>
#include <string>

#include "engine/volume/volume_impl.h"

namespace snap {

namespace {

/// How often a change looks whether the last reader of an old chain has gone.
constexpr std::chrono::microseconds kDrainPoll{200};

/// Keeps the gate shut until it goes out of scope.
class ShutGate {
 public:
  explicit ShutGate(Gate& gate) : gate_(gate) {}
  ~ShutGate() { gate_.open(); }
  ShutGate(const ShutGate&) = delete;
  ShutGate& operator=(const ShutGate&) = delete;

 private:
  Gate& gate_;
};

Result<void> check_push(const Chain& chain, const Delta* fresh) {
  if (chain.parts().delta == nullptr)
    return Error(ErrorCode::kReadOnly, "the volume is read-only: there is no delta to seal");
  if (chain.parts().sealed.size() >= kMaxSealedDeltas)
    return Error(ErrorCode::kTooLarge,
                 "the volume has " + std::to_string(kMaxSealedDeltas) +
                     " snapshots that are not packed yet, which is the limit; commit it first");
  if (fresh == nullptr || fresh->size() < chain.size())
    return Error(ErrorCode::kInvalidArgument, "the new delta is smaller than the volume of " +
                                                  std::to_string(chain.size()) + " bytes");
  return {};
}

Result<void> check_resize(const Chain& chain, std::uint64_t size) {
  if (chain.parts().delta == nullptr)
    return Error(ErrorCode::kReadOnly, "the volume is read-only and keeps its size");
  if (size % kSectorSize != 0)
    return Error(ErrorCode::kInvalidArgument,
                 "a size of " + std::to_string(size) + " bytes is not a multiple of 512");
  if (size > kMaxVolumeSize)
    return Error(ErrorCode::kTooLarge,
                 "a size of " + std::to_string(size) + " bytes is beyond the limit of 256 TiB");
  return {};
}

/// Readies the delta for a larger size. Whoever dies before the size is published leaves a delta
/// that may address more than the volume shows, which does no harm.
Task<Result<void>> grow_delta(std::shared_ptr<const Chain> chain, std::uint64_t new_size) {
  Delta& delta = *chain->parts().delta;
  if (delta.size() != chain->size()) {
    // A shrink that died half-way may have left bits beyond the size.
    auto cleared = co_await delta.resize(chain->size());
    if (!cleared) co_return cleared.error();
  }
  co_return co_await delta.resize(new_size);
}

}  // namespace

Task<void> Volume::Impl::drained(std::weak_ptr<const Chain> old) {
  while (!old.expired()) {
    Sleep pause(kDrainPoll);
    co_await pause;
    co_await yield_now();  // a sleep ends at once when the loop is stopping
  }
}

Task<Result<Volume::Pause>> Volume::push_delta(std::shared_ptr<Delta> fresh, Publish publish) {
  Impl::Turn turn(*impl_);
  auto mine = turn.check();
  if (!mine) co_return mine.error();
  const std::shared_ptr<const Chain> chain = impl_->chain();
  auto allowed = check_push(*chain, fresh.get());
  if (!allowed) co_return allowed.error();
  // Most of what is dirty is synced before writes wait (docs/durability.md, Snapshot).
  auto flushed = co_await chain->parts().delta->flush_data();
  if (!flushed) co_return flushed.error().with_context("flush before the snapshot");

  const EventLoop::Clock::time_point begin = EventLoop::current()->now();
  {
    co_await impl_->writes.close();
    ShutGate shut(impl_->writes);
    // All that was answered is durable in the sealed delta before a chain names it as sealed.
    auto sealed = co_await chain->parts().delta->seal();
    if (!sealed) co_return sealed.error().with_context("seal the delta");
    auto published = co_await publish();
    if (!published) co_return published.error().with_context("publish the snapshot");
    Parts next = chain->parts();
    next.sealed.insert(next.sealed.begin(), Sealed{next.delta, next.floor});
    next.delta = fresh;
    next.floor = chain->size();
    impl_->replace(std::move(next));
  }
  const auto pause = EventLoop::current()->now() - begin;
  // Gives the journal's space back. The delta is durable since its seal and takes no writes any
  // more, so a failure here loses nothing and must not make the snapshot look as if it had failed.
  static_cast<void>(co_await chain->parts().delta->close());
  co_return Pause{std::chrono::duration_cast<std::chrono::microseconds>(pause)};
}

Task<Result<void>> Volume::replace_base(std::size_t first, std::shared_ptr<LayerStack> layers,
                                        Publish publish) {
  Impl::Turn turn(*impl_);
  auto mine = turn.check();
  if (!mine) co_return mine.error();
  const std::shared_ptr<const Chain> old = impl_->chain();
  if (first > old->parts().sealed.size() || layers == nullptr)
    co_return Error(ErrorCode::kInvalidArgument,
                    "the chain has " + std::to_string(old->parts().sealed.size()) +
                        " sealed deltas; there is none from " + std::to_string(first) + " on");
  auto published = co_await publish();
  if (!published) co_return published.error().with_context("publish the packed chain");

  Parts next = old->parts();
  const auto cut = next.sealed.begin() + static_cast<std::ptrdiff_t>(first);
  next.sealed.erase(cut, next.sealed.end());
  next.layers = std::move(layers);
  // Requests that still use the old chain read the same from it.
  impl_->replace(std::move(next));
  co_return Result<void>();
}

Task<Result<void>> Volume::resize(std::uint64_t size, Publish publish) {
  Impl::Turn turn(*impl_);
  auto mine = turn.check();
  if (!mine) co_return mine.error();
  std::shared_ptr<const Chain> chain = impl_->chain();
  auto allowed = check_resize(*chain, size);
  if (!allowed) co_return allowed.error();
  co_await impl_->writes.close();
  ShutGate shut(impl_->writes);

  const bool shrinks = size < chain->size();
  if (!shrinks) {
    auto grown = co_await grow_delta(chain, size);
    if (!grown) co_return grown.error().with_context("grow the delta");
  }
  auto published = co_await publish();
  if (!published) {
    // Back to the old size, so that the delta knows which block is the volume's last.
    if (!shrinks) {
      auto restored = co_await chain->parts().delta->resize(chain->size());
      if (!restored) co_return restored.error().with_context("undo a growth that failed");
    }
    co_return published.error().with_context("publish the new size");
  }
  Parts next = chain->parts();
  next.size = size;
  next.floor = std::min(next.floor, size);
  const std::shared_ptr<Delta> delta = next.delta;
  impl_->replace(std::move(next));
  if (shrinks) {
    // A reader of the old chain must not see through a bit that is cleared beneath it.
    // Of whatever thread: each shard's readers hold a control block of their own, which holds this.
    std::weak_ptr<const Chain> readers = chain->weak_from_this();
    chain.reset();
    co_await Impl::drained(std::move(readers));
    auto cut = co_await delta->resize(size);
    if (!cut) co_return cut.error().with_context("cut the delta down to the new size");
  }
  co_return Result<void>();
}

}  // namespace snap
