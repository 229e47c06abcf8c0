#include "engine/volume/chain.h"

#include <algorithm>
#include <cassert>
#include <cstring>
#include <string>

#include "engine/volume/resolved_leaf.h"

namespace snap {

namespace {
/// A stretch of the layers that is handed down in one go; LayerStack::read yields inside of it.
constexpr std::uint64_t kMaxStackRun = 1u << 20;
}  // namespace

Chain::Chain(Volume::Parts parts) : parts_(std::move(parts)) {
  // Without a delta on top there is room for one more: the delta of a volume that is only read.
  assert(parts_.sealed.size() + (parts_.delta != nullptr ? 1 : 0) <= kMaxLevels);
  if (parts_.layers == nullptr) parts_.layers = LayerStack::make({});
  std::uint64_t limit = parts_.size;
  if (parts_.delta != nullptr) {
    levels_.push_back({parts_.delta.get(), limit});
    limit = std::min(limit, parts_.floor);
  }
  for (const Volume::Sealed& sealed : parts_.sealed) {
    levels_.push_back({sealed.delta.get(), std::min(limit, sealed.delta->size())});
    limit = std::min(limit, sealed.floor);
  }
  stack_limit_ = limit;
}

Result<void> Chain::check_range(ByteOffset at, std::uint64_t length) const {
  if (contains(at, length)) return {};
  return Error(ErrorCode::kInvalidArgument,
               "the range of " + std::to_string(length) + " bytes at " + std::to_string(at.value) +
                   " is not within the volume of " + std::to_string(size()) + " bytes");
}

Chain::Words Chain::words(std::size_t first, ChunkIndex chunk) const noexcept {
  Words w;
  w.chunk = chunk;
  for (std::size_t k = first; k < levels_.size(); ++k) {
    if (offset_of(chunk).value >= levels_[k].limit) continue;
    w.state[k] = levels_[k].delta->lookup(chunk);
    w.empty = w.empty && (w.state[k].data | w.state[k].zero) == 0;
  }
  return w;
}

/// How the rest of one block is read, from `at`. Each step down the chain may end earlier, where
/// the lower level ceases to be visible.
Chain::Run Chain::run_in_block(std::size_t first, const Words& words,
                               ByteOffset at) const noexcept {
  const std::uint64_t block_end = round_down(at.value, kBlockSize) + kBlockSize;
  const BlockMask bit = block_range(block_in_chunk(at), 1);
  if (!words.empty) {
    for (std::size_t k = first; k < levels_.size(); ++k) {
      // Hidden here: but a deeper level may be visible no further, for limits fall.
      if (at.value >= levels_[k].limit) continue;
      const std::uint64_t length = std::min(block_end, levels_[k].limit) - at.value;
      if ((words.state[k].data & bit) != 0) return {k, length};
      if ((words.state[k].zero & bit) != 0) return {kZeroLevel, length};
    }
  }
  if (at.value >= stack_limit_) return {kZeroLevel, block_end - at.value};
  return {stack_level(), std::min(block_end, stack_limit_) - at.value};
}

Chain::Run Chain::run_at(std::size_t first, ByteOffset at, std::uint64_t max) const noexcept {
  Words w = words(first, chunk_of(at));
  Run run = run_in_block(first, w, at);
  max = std::min(max, run.level == stack_level() ? kMaxStackRun : std::uint64_t{kMaxReadPiece});
  while (run.length < max) {
    const ByteOffset next_at = at + run.length;
    if (chunk_of(next_at) != w.chunk) w = words(first, chunk_of(next_at));
    const Run next = run_in_block(first, w, next_at);
    if (next.level != run.level) break;
    run.length += next.length;
  }
  run.length = std::min(run.length, max);
  return run;
}

Task<Result<void>> Chain::read(std::size_t first, ByteOffset at, std::span<std::byte> out) const {
  std::size_t since_yield = 0;
  while (!out.empty()) {
    // The word is read before the data: a block that gains a data bit later was not yet answered
    // when this request came, and what lies below is the value before it.
    const Run run = run_at(first, at, out.size());
    const std::span<std::byte> piece = out.first(static_cast<std::size_t>(run.length));
    if (run.level == kZeroLevel) {
      std::memset(piece.data(), 0, piece.size());
    } else {
      Result<void> got;
      if (run.level == stack_level()) {
        got = co_await parts_.layers->read(at, piece);
      } else {
        got = co_await levels_[run.level].delta->read(at, piece);
      }
      if (!got) co_return got.error();
    }
    at = at + run.length;
    out = out.subspan(piece.size());
    since_yield += piece.size();
    if (since_yield >= kMaxReadPiece && !out.empty()) {
      co_await yield_now();
      since_yield = 0;
    }
  }
  co_return Result<void>();
}

bool Chain::read_now(ByteOffset at, std::span<std::byte> out) const noexcept {
  while (!out.empty()) {
    const Run run = run_at(0, at, out.size());
    const std::span<std::byte> piece = out.first(static_cast<std::size_t>(run.length));
    if (run.level == kZeroLevel) {
      std::memset(piece.data(), 0, piece.size());
    } else if (run.level == stack_level()) {
      if (!parts_.layers->read_now(at, piece)) return false;
    } else {
      if (!levels_[run.level].delta->read_now(at, piece)) return false;
    }
    at = at + run.length;
    out = out.subspan(piece.size());
  }
  return true;
}

Task<Result<Chain::ChunkView>> Chain::view(std::size_t first, ChunkIndex chunk) const {
  ChunkView view;
  view.depth.fill(-1);
  const Words w = words(first, chunk);
  BlockMask open = kAllBlocks;
  for (std::size_t k = first; k < levels_.size(); ++k) {
    const auto visible = static_cast<BlockMask>(open & blocks_below(chunk, levels_[k].limit));
    const auto data = static_cast<BlockMask>(w.state[k].data & visible);
    const auto zero = static_cast<BlockMask>(w.state[k].zero & visible);
    view.data = static_cast<BlockMask>(view.data | data);
    view.zero = static_cast<BlockMask>(view.zero | zero);
    open = static_cast<BlockMask>(open & ~(data | zero));
    for (unsigned b = 0; b < kBlocksPerChunk; ++b)
      if (((data | zero) >> b & 1) != 0) view.depth[b] = static_cast<int>(k);
  }
  open = static_cast<BlockMask>(open & blocks_below(chunk, stack_limit_));
  if (open == 0) co_return view;
  auto state = co_await parts_.layers->state(chunk);
  if (!state) co_return state.error();
  const auto found = static_cast<BlockMask>((state->data | state->known_zero) & open);
  if (found == 0) co_return view;
  auto owners = co_await parts_.layers->owners(chunk);
  if (!owners) co_return owners.error();
  view.data = static_cast<BlockMask>(view.data | (state->data & open));
  view.zero = static_cast<BlockMask>(view.zero | (state->known_zero & open));
  const int bottom = static_cast<int>(stack_level() + parts_.layers->layers().size()) - 1;
  for (unsigned b = 0; b < kBlocksPerChunk; ++b)
    if ((found >> b & 1) != 0) view.depth[b] = bottom - (*owners)[b];
  co_return view;
}

Task<Result<ChunkIndex>> Chain::next_mentioned(std::size_t first, ChunkIndex from) const {
  ChunkIndex next(chunk_count(size()));
  for (std::size_t k = first; k < levels_.size(); ++k) {
    if (offset_of(from).value >= levels_[k].limit) continue;
    const std::optional<ChunkIndex> found = levels_[k].delta->next_present(from);
    if (found && offset_of(*found).value < levels_[k].limit) next = std::min(next, *found);
  }
  if (next <= from || offset_of(from).value >= stack_limit_) co_return next;
  auto found = co_await parts_.layers->next_mentioned(from);
  if (!found) co_return found.error();
  const bool there = found->value < chunk_count(parts_.layers->size());
  if (there && offset_of(*found).value < stack_limit_) next = std::min(next, *found);
  co_return next;
}

}  // namespace snap
