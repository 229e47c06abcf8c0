#include "engine/nbd/memory_export.h"

#include <algorithm>
#include <cstring>

#include "snap/event_loop.h"
#include "snap/units.h"

namespace snap::nbd {

namespace {

/// The part of a range that lies in one block.
struct Piece {
  std::uint64_t block;
  std::size_t in_block;
  std::size_t in_range;
  std::size_t length;
};

std::vector<Piece> split(std::uint64_t at, std::uint64_t length) {
  std::vector<Piece> pieces;
  for (std::uint64_t done = 0; done < length;) {
    const std::uint64_t block = (at + done) / kBlockSize;
    const std::uint64_t skip = (at + done) % kBlockSize;
    const std::uint64_t n = std::min(length - done, kBlockSize - skip);
    pieces.push_back({block, skip, done, n});
    done += n;
  }
  return pieces;
}

}  // namespace

void MemoryExport::set_fault(std::optional<Error> fault) {
  std::lock_guard guard(lock_);
  fault_ = std::move(fault);
}

Task<Result<void>> MemoryExport::begin_call() {
  if (slow_) co_await yield_now();
  std::lock_guard guard(lock_);
  if (fault_) co_return *fault_;
  co_return Result<void>();
}

void MemoryExport::copy_out(std::uint64_t at, std::span<std::byte> out) const {
  for (const Piece& p : split(at, out.size())) {
    auto found = blocks_.find(p.block);
    std::byte* target = out.data() + p.in_range;
    if (found == blocks_.end()) {
      std::memset(target, 0, p.length);
    } else {
      std::memcpy(target, found->second.data() + p.in_block, p.length);
    }
  }
}

void MemoryExport::copy_in(std::uint64_t at, std::span<const std::byte> bytes) {
  for (const Piece& p : split(at, bytes.size())) {
    auto& block = blocks_[p.block];
    block.resize(kBlockSize);
    std::memcpy(block.data() + p.in_block, bytes.data() + p.in_range, p.length);
  }
}

bool MemoryExport::read_now(ByteOffset at, std::span<std::byte> out) noexcept {
  std::lock_guard guard(lock_);
  if (!quick_ || fault_) return false;
  ++done_at_once_;
  copy_out(at.value, out);
  return true;
}

std::optional<Result<void>> MemoryExport::write_now(ByteOffset at,
                                                    std::span<const std::byte> bytes) {
  std::lock_guard guard(lock_);
  if (!quick_) return std::nullopt;
  ++done_at_once_;
  if (fault_) return *fault_;
  copy_in(at.value, bytes);
  return Result<void>();
}

Task<Result<void>> MemoryExport::read(ByteOffset at, std::span<std::byte> out) {
  ++reads_;
  ++reading_;
  while (held_) {
    Sleep pause(std::chrono::milliseconds(1));
    co_await pause;
  }
  --reading_;
  auto begun = co_await begin_call();
  if (!begun) co_return begun;
  std::lock_guard guard(lock_);
  copy_out(at.value, out);
  co_return Result<void>();
}

Task<Result<void>> MemoryExport::write(ByteOffset at, std::span<const std::byte> bytes,
                                       Volume::WriteOptions options) {
  auto begun = co_await begin_call();
  if (!begun) co_return begun;
  if (options.fua) ++fua_writes_;
  if (options.others_wait) ++crowded_writes_;
  std::lock_guard guard(lock_);
  copy_in(at.value, bytes);
  co_return Result<void>();
}

void MemoryExport::zero(std::uint64_t at, std::uint64_t length) {
  std::lock_guard guard(lock_);
  auto block = blocks_.lower_bound(at / kBlockSize);
  const std::uint64_t end = at + length;
  while (block != blocks_.end() && block->first * kBlockSize < end) {
    const std::uint64_t base = block->first * kBlockSize;
    const std::uint64_t from = std::max(at, base) - base;
    const std::uint64_t to = std::min(end, base + kBlockSize) - base;
    if (from == 0 && to == kBlockSize) {
      block = blocks_.erase(block);
    } else {
      std::memset(block->second.data() + from, 0, to - from);
      ++block;
    }
  }
}

Task<Result<void>> MemoryExport::write_zeroes(ByteOffset at, std::uint64_t length,
                                              Volume::ZeroOptions options) {
  auto begun = co_await begin_call();
  if (!begun) co_return begun;
  if (options.fast_only && (at.value % kBlockSize != 0 || length % kBlockSize != 0))
    co_return Error(ErrorCode::kUnsupported, "no fast way to zero parts of blocks");
  if (options.fua) ++fua_writes_;
  zero(at.value, length);
  co_return Result<void>();
}

Task<Result<void>> MemoryExport::trim(ByteOffset at, std::uint64_t length,
                                      Volume::WriteOptions options) {
  auto begun = co_await begin_call();
  if (!begun) co_return begun;
  if (options.fua) ++fua_writes_;
  zero(at.value, length);
  co_return Result<void>();
}

Task<Result<void>> MemoryExport::flush() {
  auto begun = co_await begin_call();
  if (!begun) co_return begun;
  ++flushes_;
  co_return Result<void>();
}

Task<Result<std::vector<Extent>>> MemoryExport::extents(ByteOffset at, std::uint64_t length,
                                                        std::size_t max) {
  auto begun = co_await begin_call();
  if (!begun) co_return begun.error();
  std::lock_guard guard(lock_);
  std::vector<Extent> extents;
  const std::uint64_t end = at.value + length;
  std::uint64_t position = at.value;
  auto block = blocks_.lower_bound(at.value / kBlockSize);
  while (position < end && extents.size() < max) {
    std::uint64_t stop = end;
    const bool data = block != blocks_.end() && block->first == position / kBlockSize;
    if (data) {
      std::uint64_t next = block->first;
      while (block != blocks_.end() && block->first == next) {
        ++block;
        ++next;
      }
      stop = std::min(end, next * kBlockSize);
    } else if (block != blocks_.end()) {
      stop = std::min(end, block->first * kBlockSize);
    }
    extents.push_back({ByteOffset(position), stop - position, data, data, data ? 0 : -1, data});
    position = stop;
  }
  co_return extents;
}

Task<Result<void>> MemoryExport::prefetch(ByteOffset, std::uint64_t length) {
  co_await yield_now();
  prefetched_ += length;
  co_return co_await begin_call();
}

}  // namespace snap::nbd
