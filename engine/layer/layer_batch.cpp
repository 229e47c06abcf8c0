#include "engine/layer/layer_batch.h"

#include <bit>
#include <cstring>

#include "engine/base/checksum.h"
#include "engine/layer/layer_format.h"
#include "snap/limits.h"

namespace snap {

namespace format = layer_format;

namespace {
// Chunks without data take no room in the buffer, but memory all the same.
constexpr std::size_t kMaxBatchChunks = 4096;
constexpr std::array<std::byte, kBlockSize> kZeros{};
}  // namespace

const ChunkEntry* ShareTable::find(const Sha256& content) const {
  auto found = by_content_.find(content);
  return found == by_content_.end() ? nullptr : &found->second;
}

void ShareTable::add(const ChunkEntry& stored) {
  oldest_first_.push_back(by_content_.emplace(stored.content, stored).first);
  if (oldest_first_.size() <= kShareWindow) return;
  by_content_.erase(oldest_first_.front());
  oldest_first_.pop_front();
}

LayerBatch::LayerBatch(const LayerWriter::Options& options)
    : options_(options), raw_(std::make_unique_for_overwrite<std::byte[]>(kLayerBatchBytes)) {
  if (options_.encoding != Encoding::kZstd) return;
  for (auto& buffer : compressed_)
    buffer =
        std::make_unique_for_overwrite<std::byte[]>(kLayerBatchBytes + format::compress_bound());
}

void LayerBatch::clear() {
  raw_used_ = 0;
  chunks_.clear();
  pieces_.clear();
}

bool LayerBatch::has_room(std::size_t bytes) const noexcept {
  return bytes <= kLayerBatchBytes - raw_used_ && chunks_.size() < kMaxBatchChunks;
}

void LayerBatch::append(ChunkIndex chunk, BlockMask data, BlockMask zero,
                        std::span<const std::byte> blocks, std::uint64_t virtual_size) {
  ChunkEntry entry;
  entry.chunk = chunk;
  const std::size_t begin = raw_used_;
  std::size_t from = 0;
  for (unsigned b = 0; b < kBlocksPerChunk; ++b) {
    const auto bit = static_cast<BlockMask>(1u << b);
    const std::size_t within = format::bytes_within(chunk, b, virtual_size);
    if ((zero & bit) != 0 && within != 0) entry.zero |= bit;
    if ((data & bit) == 0) continue;
    auto block = blocks.subspan(from, kBlockSize);
    from += kBlockSize;
    if (within == 0) continue;
    if (is_zero(block.first(within))) {
      entry.zero |= bit;
      continue;
    }
    std::byte* to = raw_.get() + raw_used_;
    // memmove: trim_last() passes this very buffer, and never from behind.
    std::memmove(to, block.data(), within);
    std::memset(to + within, 0, kBlockSize - within);
    raw_used_ += kBlockSize;
    entry.data |= bit;
  }
  if (options_.bottom) entry.zero = 0;
  if ((entry.data | entry.zero) == 0) return;
  chunks_.push_back({entry, std::span(raw_.get() + begin, raw_used_ - begin), {}});
}

void LayerBatch::trim_last(std::uint64_t virtual_size) {
  if (chunks_.empty()) return;
  Chunk last = chunks_.back();
  chunks_.pop_back();
  raw_used_ -= last.raw.size();
  append(last.entry.chunk, last.entry.data, last.entry.zero, last.raw, virtual_size);
}

void LayerBatch::hash(std::size_t lane) {
  std::byte* free_space = compressed_[lane].get();
  const std::size_t end = chunks_.size() * (lane + 1) / kLanes;
  for (std::size_t i = chunks_.size() * lane / kLanes; i < end; ++i) {
    Chunk& c = chunks_[i];
    if (c.entry.data == 0) continue;
    c.entry.content = sha256(c.raw);
    c.stored = c.raw;
    if (options_.encoding == Encoding::kZstd) {
      // What was used so far is less than the raw bytes before, so that a bound is always left.
      std::size_t n = format::compress_chunk(c.raw, options_.zstd_level,
                                             std::span(free_space, format::compress_bound()));
      if (n != 0) {
        c.entry.encoding = Encoding::kZstd;
        c.stored = std::span(free_space, n);
        free_space += n;
      }
    }
    c.entry.stored_length = static_cast<std::uint32_t>(c.stored.size());
    c.entry.checksum = xxh3(c.stored);
  }
}

void LayerBatch::lay_out(std::uint64_t& end, ShareTable& shared) {
  for (Chunk& c : chunks_) {
    if (c.entry.data == 0) continue;
    if (const ChunkEntry* same = shared.find(c.entry.content)) {
      c.entry.offset = same->offset;
      c.entry.encoding = same->encoding;
      c.entry.stored_length = same->stored_length;
      c.entry.checksum = same->checksum;
      continue;
    }
    if (c.entry.encoding == Encoding::kRaw) {
      std::uint64_t start = round_up(end, kBlockSize);
      add_piece(std::span(kZeros).first(start - end));
      end = start;
    }
    c.entry.offset = end;
    end += c.stored.size();
    add_piece(c.stored);
    shared.add(c.entry);
  }
}

void LayerBatch::add_piece(std::span<const std::byte> piece) {
  if (piece.empty()) return;
  if (!pieces_.empty()) {
    auto& last = pieces_.back();
    if (last.data() + last.size() == piece.data()) {
      last = std::span(last.data(), last.size() + piece.size());
      return;
    }
  }
  pieces_.push_back(piece);
}

}  // namespace snap
