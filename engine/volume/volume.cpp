// Volume: requests. A request copies the present chain and works on that; writes pass the gate
// first. Changes of the chain are in chain_swap.cpp, extents in extents.cpp.
#include "snap/volume.h"

#include <algorithm>
#include <functional>
#include <thread>

#include "engine/io/cached_io.h"
#include "engine/volume/volume_impl.h"

namespace snap {

namespace {

Error read_only_error() {
  return Error(ErrorCode::kReadOnly,
               "the volume is read-only: it has no delta that takes writes; create a volume from "
               "the image to write to it");
}

Delta::Durability durability(bool fua) {
  return fua ? Delta::Durability::kDurable : Delta::Durability::kCached;
}

}  // namespace

// ---- Impl

Volume::Impl::Impl(Parts parts) {
  replace(std::move(parts));
}

std::size_t Volume::Impl::shard_of_thread() noexcept {
  thread_local const std::size_t shard = [] {
    const std::size_t hash = std::hash<std::thread::id>()(std::this_thread::get_id());
    return (hash ^ hash >> 12 ^ hash >> 23) % kShards;
  }();
  return shard;
}

std::shared_ptr<const Chain> Volume::Impl::chain() const noexcept {
  const Shard& shard = shards_[shard_of_thread()];
  std::lock_guard guard(shard.lock);
  return shard.chain;
}

void Volume::Impl::replace(Parts next) {
  const auto chain = std::make_shared<const Chain>(std::move(next));
  for (Shard& shard : shards_) {
    // A control block of the shard's own, which holds one reference to the chain.
    auto holder = std::make_shared<std::shared_ptr<const Chain>>(chain);
    std::shared_ptr<const Chain> alias(holder, chain.get());
    std::lock_guard guard(shard.lock);
    shard.chain.swap(alias);
  }
}

Result<void> Volume::Impl::Turn::check() const {
  if (mine_) return {};
  return Error(ErrorCode::kBusy,
               "another snapshot, commit or resize of this volume is under way; try again when it "
               "has ended");
}

// ---- Volume

Volume::Volume(Parts parts) : impl_(std::make_unique<Impl>(std::move(parts))) {}
Volume::~Volume() = default;

std::uint64_t Volume::size() const noexcept {
  return impl_->chain()->size();
}

bool Volume::read_only() const noexcept {
  return impl_->chain()->parts().delta == nullptr;
}

Volume::Parts Volume::parts() const {
  return impl_->chain()->parts();
}

Volume::Stats Volume::stats() const noexcept {
  return impl_->stats();
}

Task<Result<void>> Volume::read(ByteOffset at, std::span<std::byte> out) {
  Impl::Counted counted(*impl_, RequestKind::kRead);
  const std::shared_ptr<const Chain> chain = impl_->chain();
  Result<void> result = chain->check_range(at, out.size());
  if (result) result = co_await chain->read(0, at, out);
  counted.end(out.size(), result.has_value());
  co_return result;
}

bool Volume::read_now(ByteOffset at, std::span<std::byte> out) noexcept {
  if (out.size() >= kLongBytes) return false;  // better copied by another processor
  const EventLoop::Clock::time_point begun = EventLoop::current()->now();
  const std::shared_ptr<const Chain> chain = impl_->chain();
  if (!chain->contains(at, out.size()) || !chain->read_now(at, out)) return false;
  impl_->count(RequestKind::kRead, begun, out.size(), true);
  return true;
}

Task<Result<void>> Volume::write(ByteOffset at, std::span<const std::byte> bytes,
                                 WriteOptions options) {
  Impl::Counted counted(*impl_, RequestKind::kWrite);
  const Gate::Pass pass = co_await impl_->writes.enter();
  const std::shared_ptr<const Chain> chain = impl_->chain();
  Result<void> result = chain->check_range(at, bytes.size());
  Delta* delta = chain->parts().delta.get();
  if (delta == nullptr) result = read_only_error();
  if (result && !bytes.empty()) {
    BelowDelta below(chain);
    result =
        co_await delta->write(at, bytes, below, {durability(options.fua), options.others_wait});
  }
  counted.end(bytes.size(), result.has_value());
  co_return result;
}

std::optional<Result<void>> Volume::write_now(ByteOffset at, std::span<const std::byte> bytes) {
  const EventLoop::Clock::time_point begun = EventLoop::current()->now();
  const std::optional<Gate::Pass> pass = impl_->writes.enter_now();
  if (!pass) return std::nullopt;
  const std::shared_ptr<const Chain> chain = impl_->chain();
  Delta* delta = chain->parts().delta.get();
  if (delta == nullptr || !chain->contains(at, bytes.size())) return std::nullopt;
  auto written = delta->write_now(at, bytes);
  if (written) impl_->count(RequestKind::kWrite, begun, bytes.size(), written->has_value());
  return written;
}

Task<Result<void>> Volume::write_zeroes(ByteOffset at, std::uint64_t length, ZeroOptions options) {
  Impl::Counted counted(*impl_, RequestKind::kZero);
  const Gate::Pass pass = co_await impl_->writes.enter();
  const std::shared_ptr<const Chain> chain = impl_->chain();
  Result<void> result = chain->check_range(at, length);
  Delta* delta = chain->parts().delta.get();
  if (delta == nullptr) result = read_only_error();
  const std::uint64_t end = at.value + length;
  const bool whole_blocks =
      at.value % kBlockSize == 0 && (end % kBlockSize == 0 || end == chain->size());
  if (result && options.fast_only && (options.no_hole || !whole_blocks)) {
    result = Error(ErrorCode::kUnsupported,
                   "zeros would have to be written: only whole 4096-byte blocks that may become "
                   "holes are zeroed fast");
  }
  if (result && length != 0) {
    BelowDelta below(chain);
    result =
        co_await delta->write_zeroes(at, length, below, options.no_hole, durability(options.fua));
  }
  counted.end(length, result.has_value());
  co_return result;
}

Task<Result<void>> Volume::trim(ByteOffset at, std::uint64_t length, WriteOptions options) {
  Impl::Counted counted(*impl_, RequestKind::kTrim);
  const Gate::Pass pass = co_await impl_->writes.enter();
  const std::shared_ptr<const Chain> chain = impl_->chain();
  Result<void> result = chain->check_range(at, length);
  Delta* delta = chain->parts().delta.get();
  if (delta == nullptr) result = read_only_error();
  if (result && length != 0) result = co_await delta->trim(at, length, durability(options.fua));
  counted.end(length, result.has_value());
  co_return result;
}

Task<Result<void>> Volume::flush() {
  Impl::Counted counted(*impl_, RequestKind::kFlush);
  // Writes that were answered before a snapshot are durable since the seal, before the new chain
  // was published: the delta on top is all there is to flush (docs/durability.md, Snapshot).
  const std::shared_ptr<const Chain> chain = impl_->chain();
  Result<void> result;
  if (chain->parts().delta != nullptr) result = co_await chain->parts().delta->flush();
  counted.end(0, result.has_value());
  co_return result;
}

Task<Result<std::vector<Extent>>> Volume::extents(ByteOffset at, std::uint64_t length,
                                                  std::size_t max) {
  Impl::Counted counted(*impl_, RequestKind::kMap);
  const std::shared_ptr<const Chain> chain = impl_->chain();
  Result<std::vector<Extent>> result = std::vector<Extent>();
  auto checked = chain->check_range(at, length);
  if (checked) {
    result = co_await chain->extents(at, length, max);
  } else {
    result = checked.error();
  }
  counted.end(length, result.has_value());
  co_return result;
}

Task<Result<void>> Volume::prefetch(ByteOffset at, std::uint64_t length) {
  Impl::Counted counted(*impl_, RequestKind::kCache);
  const std::shared_ptr<const Chain> chain = impl_->chain();
  Result<void> result = chain->check_range(at, length);
  std::vector<std::byte> scratch(
      static_cast<std::size_t>(std::min<std::uint64_t>(length, kMaxReadPiece)));
  const std::uint64_t end = at.value + length;
  while (result && at.value < end) {
    const auto piece =
        static_cast<std::size_t>(std::min<std::uint64_t>(scratch.size(), end - at.value));
    result = co_await chain->read(0, at, std::span(scratch).first(piece));
    at = at + piece;
    co_await yield_now();
  }
  counted.end(length, result.has_value());
  co_return result;
}

Task<Result<void>> Volume::close() {
  Impl::Turn turn(*impl_);
  auto mine = turn.check();
  if (!mine) co_return mine.error();
  const std::shared_ptr<const Chain> chain = impl_->chain();
  // Sealed deltas were closed when they were sealed, or opened to be read only.
  if (chain->parts().delta == nullptr) co_return Result<void>();
  // A write that got in beside it would be answered, and in no record. Those that wait are refused.
  co_await impl_->writes.close();
  auto closed = co_await chain->parts().delta->close();
  impl_->writes.open();
  co_return closed;
}

}  // namespace snap
