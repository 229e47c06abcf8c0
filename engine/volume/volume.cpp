// Volume: requests. A request copies the present chain and works on that; writes pass the gate
// first. Changes of the chain are in chain_swap.cpp, extents in extents.cpp.
#include "snap/volume.h"

#include <algorithm>
#include <functional>
#include <thread>

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

void Volume::Impl::count(Kind kind, std::uint64_t bytes, const Result<void>& result) noexcept {
  Shard& shard = shards_[shard_of_thread()];
  const auto k = static_cast<std::size_t>(kind);
  shard.requests[k].fetch_add(1, std::memory_order_relaxed);
  if (result) {
    shard.bytes[k].fetch_add(bytes, std::memory_order_relaxed);
  } else {
    shard.errors.fetch_add(1, std::memory_order_relaxed);
  }
}

Volume::Stats Volume::Impl::stats() const noexcept {
  const auto sum = [this](auto member, Kind kind) {
    std::uint64_t total = 0;
    for (const Shard& shard : shards_)
      total += (shard.*member)[static_cast<std::size_t>(kind)].load(std::memory_order_relaxed);
    return total;
  };
  Stats s;
  s.reads = sum(&Shard::requests, Kind::kRead);
  s.writes = sum(&Shard::requests, Kind::kWrite);
  s.flushes = sum(&Shard::requests, Kind::kFlush);
  s.trims = sum(&Shard::requests, Kind::kTrim);
  s.read_bytes = sum(&Shard::bytes, Kind::kRead);
  s.written_bytes = sum(&Shard::bytes, Kind::kWrite);
  for (const Shard& shard : shards_)
    s.errors += shard.errors.load(std::memory_order_relaxed);
  return s;
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
  const std::shared_ptr<const Chain> chain = impl_->chain();
  Result<void> result = chain->check_range(at, out.size());
  if (result) result = co_await chain->read(0, at, out);
  impl_->count(Impl::Kind::kRead, out.size(), result);
  co_return result;
}

Task<Result<void>> Volume::write(ByteOffset at, std::span<const std::byte> bytes,
                                 WriteOptions options) {
  const Gate::Pass pass = co_await impl_->writes.enter();
  const std::shared_ptr<const Chain> chain = impl_->chain();
  Result<void> result = chain->check_range(at, bytes.size());
  Delta* delta = chain->parts().delta.get();
  if (delta == nullptr) result = read_only_error();
  if (result && !bytes.empty()) {
    BelowDelta below(chain);
    result = co_await delta->write(at, bytes, below, durability(options.fua));
  }
  impl_->count(Impl::Kind::kWrite, bytes.size(), result);
  co_return result;
}

Task<Result<void>> Volume::write_zeroes(ByteOffset at, std::uint64_t length, ZeroOptions options) {
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
  impl_->count(Impl::Kind::kWrite, length, result);
  co_return result;
}

Task<Result<void>> Volume::trim(ByteOffset at, std::uint64_t length, WriteOptions options) {
  const Gate::Pass pass = co_await impl_->writes.enter();
  const std::shared_ptr<const Chain> chain = impl_->chain();
  Result<void> result = chain->check_range(at, length);
  Delta* delta = chain->parts().delta.get();
  if (delta == nullptr) result = read_only_error();
  if (result && length != 0) result = co_await delta->trim(at, length, durability(options.fua));
  impl_->count(Impl::Kind::kTrim, length, result);
  co_return result;
}

Task<Result<void>> Volume::flush() {
  // Writes that were answered before a snapshot are durable since the seal, before the new chain
  // was published: the delta on top is all there is to flush (docs/durability.md, Snapshot).
  const std::shared_ptr<const Chain> chain = impl_->chain();
  Result<void> result;
  if (chain->parts().delta != nullptr) result = co_await chain->parts().delta->flush();
  impl_->count(Impl::Kind::kFlush, 0, result);
  co_return result;
}

Task<Result<std::vector<Extent>>> Volume::extents(ByteOffset at, std::uint64_t length,
                                                  std::size_t max) {
  const std::shared_ptr<const Chain> chain = impl_->chain();
  auto checked = chain->check_range(at, length);
  if (!checked) co_return checked.error();
  co_return co_await chain->extents(at, length, max);
}

Task<Result<void>> Volume::prefetch(ByteOffset at, std::uint64_t length) {
  const std::shared_ptr<const Chain> chain = impl_->chain();
  auto checked = chain->check_range(at, length);
  if (!checked) co_return checked.error();
  std::vector<std::byte> scratch(
      static_cast<std::size_t>(std::min<std::uint64_t>(length, kMaxReadPiece)));
  const std::uint64_t end = at.value + length;
  while (at.value < end) {
    const auto piece =
        static_cast<std::size_t>(std::min<std::uint64_t>(scratch.size(), end - at.value));
    auto got = co_await chain->read(0, at, std::span(scratch).first(piece));
    if (!got) co_return got.error();
    at = at + piece;
    co_await yield_now();
  }
  co_return Result<void>();
}

Task<Result<void>> Volume::close() {
  Impl::Turn turn(*impl_);
  auto mine = turn.check();
  if (!mine) co_return mine.error();
  const std::shared_ptr<const Chain> chain = impl_->chain();
  // Sealed deltas were closed when they were sealed, or opened to be read only.
  if (chain->parts().delta == nullptr) co_return Result<void>();
  co_return co_await chain->parts().delta->close();
}

}  // namespace snap
