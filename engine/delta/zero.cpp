// TRIM and WRITE_ZEROES: zero bits first, then the hole, both before the reply. Pieces of at most
// kMaxPunchBytes yield to other work between them, for a punch of a fragmented range is slow.
#include <algorithm>
#include <array>
#include <bit>

#include "engine/delta/delta_impl.h"

namespace snap {

namespace {

BlockMask blocks_between(ChunkIndex chunk, std::uint64_t begin, std::uint64_t end) {
  const std::uint64_t base = offset_of(chunk).value;
  const std::uint64_t first = std::max(begin, base) - base;
  const std::uint64_t last = std::min(end, base + kChunkSize) - base;
  return block_range(static_cast<unsigned>(first / kBlockSize),
                     static_cast<unsigned>((last - first) / kBlockSize));
}

constexpr std::array<std::byte, kMaxWritePiece> kZeros{};

}  // namespace

std::uint64_t DeltaImpl::end_of_blocks(std::uint64_t end) const {
  // The volume's last block is whole even if the volume ends inside it.
  return end == size() ? round_up(end, kBlockSize) : round_down(end, kBlockSize);
}

Task<Result<void>> DeltaImpl::trim(ByteOffset at, std::uint64_t length, Durability durability) {
  auto allowed = check_change(at, length);
  SNAP_CO_RETURN_IF_ERROR(allowed);
  auto zeroed =
      co_await zero_blocks(round_up(at.value, kBlockSize), end_of_blocks(at.value + length));
  SNAP_CO_RETURN_IF_ERROR(zeroed);
  auto flushed = co_await flush_if(durability);
  SNAP_CO_RETURN_IF_ERROR(flushed);
  co_return Result<void>();
}

Task<Result<void>> DeltaImpl::write_zeroes(ByteOffset at, std::uint64_t length, BlockSource& below,
                                           bool keep_allocated, Durability durability) {
  auto allowed = check_change(at, length);
  SNAP_CO_RETURN_IF_ERROR(allowed);
  const std::uint64_t end = at.value + length;
  const std::uint64_t first = round_up(at.value, kBlockSize);
  const std::uint64_t last = end_of_blocks(end);
  if (keep_allocated || first >= last) {
    auto written = co_await write_zero_bytes(at.value, end, below);
    SNAP_CO_RETURN_IF_ERROR(written);
  } else {
    auto head = co_await write_zero_bytes(at.value, first, below);
    SNAP_CO_RETURN_IF_ERROR(head);
    auto middle = co_await zero_blocks(first, last);
    SNAP_CO_RETURN_IF_ERROR(middle);
    auto tail = co_await write_zero_bytes(last, end, below);
    SNAP_CO_RETURN_IF_ERROR(tail);
  }
  auto flushed = co_await flush_if(durability);
  SNAP_CO_RETURN_IF_ERROR(flushed);
  co_return Result<void>();
}

Task<Result<void>> DeltaImpl::write_zero_bytes(std::uint64_t begin, std::uint64_t end,
                                               BlockSource& below) {
  while (begin < end) {
    const std::uint64_t room = kChunkSize - begin % kChunkSize;
    const auto piece = std::span(kZeros).first(std::min(end - begin, room));
    auto written = co_await write_piece(ByteOffset(begin), piece, below, true);
    SNAP_CO_RETURN_IF_ERROR(written);
    begin += piece.size();
  }
  co_return Result<void>();
}

Task<Result<void>> DeltaImpl::zero_blocks(std::uint64_t begin, std::uint64_t end) {
  while (begin < end) {
    const std::uint64_t stop = std::min(end, round_down(begin + kMaxPunchBytes, kChunkSize));
    auto zeroed = co_await zero_piece(begin, stop);
    SNAP_CO_RETURN_IF_ERROR(zeroed);
    begin = stop;
    if (begin < end) co_await yield_now();
  }
  co_return Result<void>();
}

Task<Result<void>> DeltaImpl::hold_for_zero(std::uint64_t begin, std::uint64_t end,
                                            bool* any_data) {
  // Chunks are held in ascending order and a write holds one only, so no two wait for each other.
  for (std::uint64_t at = begin; at < end; at = round_down(at, kChunkSize) + kChunkSize) {
    const ChunkIndex chunk = chunk_of(ByteOffset(at));
    const BlockMask mask = blocks_between(chunk, begin, end);
    auto ready = blocks_->touch(chunk);
    if (ready) {
      const MapWord before = co_await blocks_->hold(chunk, mask);
      if ((data_of(before) & mask) != 0) *any_data = true;
      const bool claims = (data_of(before) | zero_of(before)) == 0;
      if ((mask & ~zero_of(before)) != 0 && !has_space(before)) {
        ready = co_await reserve_more();
        if (!ready && claims) claimed_.fetch_sub(1);
        if (!ready) blocks_->release(chunk, mask);
        if (!ready) ready = counted(ready.error());
      }
      // Rule Bits: the zero bit first, the hole after it. A reader never sees a hole behind a data
      // bit that the trim has not been asked to clear.
      if (ready && !blocks_->publish_zero(chunk, mask) && claims) claimed_.fetch_sub(1);
      if (ready)
        give_blocks(static_cast<unsigned>(std::popcount(std::uint32_t{data_of(before)} & mask)));
    }
    if (!ready) {
      for (std::uint64_t held = begin; held < at; held = round_down(held, kChunkSize) + kChunkSize)
        blocks_->release(chunk_of(ByteOffset(held)),
                         blocks_between(chunk_of(ByteOffset(held)), begin, end));
      co_return ready.error();
    }
  }
  co_return Result<void>();
}

Task<Result<void>> DeltaImpl::zero_piece(std::uint64_t begin, std::uint64_t end) {
  bool any_data = false;
  auto held = co_await hold_for_zero(begin, end, &any_data);
  mark(zeroed_);
  SNAP_CO_RETURN_IF_ERROR(held);
  std::optional<Error> error;
  if (any_data) {
    ++punching_;
    auto punched = co_await punch_hole(*data_, ByteOffset(begin), end - begin);
    --punching_;
    // Where the file system has no holes the blocks read zero all the same.
    if (!punched && punched.error().code() != ErrorCode::kUnsupported) error = punched.error();
  }
  for (std::uint64_t at = begin; at < end; at = round_down(at, kChunkSize) + kChunkSize) {
    const ChunkIndex chunk = chunk_of(ByteOffset(at));
    blocks_->release(chunk, blocks_between(chunk, begin, end));
  }
  if (error) co_return std::move(*error);
  co_return Result<void>();
}

}  // namespace snap
