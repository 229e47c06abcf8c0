#include "engine/volume/pack.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "engine/base/checksum.h"
#include "engine/io/sync.h"
#include "engine/volume/chain.h"
#include "engine/volume/resolved_leaf.h"

namespace snap {

namespace {

/// 1 MiB a batch; so many batches are read at once.
constexpr std::size_t kBatchChunks = 16;
constexpr std::size_t kBatchesInFlight = 4;
/// Chunks whose words are looked at before others get their turn on the loop.
constexpr std::size_t kChunksBeforeYield = 4096;
/// Time that was not used under a rate limit and may be made up for.
constexpr std::chrono::milliseconds kPaceCredit{100};

/// A chunk on its way into the layer.
struct PackChunk {
  ChunkIndex chunk;
  BlockMask wanted = 0;   ///< blocks that the layer may have to mention
  BlockMask compare = 0;  ///< of these, blocks that are data below
  BlockMask data = 0;     ///< the verdict
  BlockMask zero = 0;
};

/// What is read and judged in one go. The blocks of chunk i stand at i * 64 KiB in `upper` as the
/// packed volume has them, and in `lower` as what lies below has them.
///
/// Batches go round: 1 MiB of fresh memory each time would cost more in page faults than the copy
/// into it.
struct Batch {
  std::vector<PackChunk> chunks;
  std::uint64_t delta_bytes = 0;  ///< what this batch adds to the progress
  std::unique_ptr<std::byte[]> upper =
      std::make_unique_for_overwrite<std::byte[]>(kBatchChunks * kChunkSize);
  std::unique_ptr<std::byte[]> lower;  ///< made when first needed
  AsyncEvent ready;
  Result<void> result;

  void clear() {
    chunks.clear();
    delta_bytes = 0;
    ready.reset();
    result = {};
  }
};

BlockMask held_by(const Chain& chain, std::size_t levels, ChunkIndex chunk) {
  BlockMask held = 0;
  for (std::size_t k = 0; k < levels; ++k) {
    const BlockState s = chain.levels()[k].delta->lookup(chunk);
    held = static_cast<BlockMask>(held | s.data | s.zero);
  }
  return static_cast<BlockMask>(held & blocks_below(chunk, chain.size()));
}

/// Reads `which` of a chunk of `chain` into their places, in runs.
Task<Result<void>> read_blocks(const Chain& chain, ChunkIndex chunk, BlockMask which,
                               std::span<std::byte> out) {
  unsigned block = 0;
  while (which >> block != 0) {
    block += static_cast<unsigned>(std::countr_zero(static_cast<unsigned>(which) >> block));
    const auto run = static_cast<unsigned>(std::countr_one(static_cast<unsigned>(which) >> block));
    auto got = co_await chain.read(0, offset_of(chunk) + block * kBlockSize,
                                   out.subspan(block * kBlockSize, run * kBlockSize));
    if (!got) co_return got.error();
    block += run;
  }
  co_return Result<void>();
}

/// Reads of each chunk the blocks that its mask `which` names, each into its place. Whole
/// neighbours are read as one.
Task<Result<void>> read_chunks(const Chain& chain, std::span<const PackChunk> chunks,
                               BlockMask PackChunk::*which, std::byte* out) {
  for (std::size_t i = 0; i < chunks.size();) {
    std::size_t run = 1;
    while (chunks[i].*which == kAllBlocks && i + run < chunks.size() &&
           chunks[i + run].*which == kAllBlocks && chunks[i + run].chunk == chunks[i].chunk + run)
      ++run;
    const std::span<std::byte> place(out + i * kChunkSize, run * kChunkSize);
    Result<void> got;
    if (run > 1) {
      got = co_await chain.read(0, offset_of(chunks[i].chunk), place);
    } else if (chunks[i].*which != 0) {
      got = co_await read_blocks(chain, chunks[i].chunk, chunks[i].*which, place);
    }
    if (!got) co_return got.error();
    i += run;
  }
  co_return Result<void>();
}

/// Decides for each wanted block whether the layer must hold it. On a helper thread.
void judge(Batch& batch) {
  for (std::size_t i = 0; i < batch.chunks.size(); ++i) {
    PackChunk& c = batch.chunks[i];
    for (unsigned b = 0; b < kBlocksPerChunk; ++b) {
      const BlockMask bit = block_range(b, 1);
      if ((c.wanted & bit) == 0) continue;
      const std::size_t at = i * kChunkSize + b * kBlockSize;
      const std::span<const std::byte> now(&batch.upper[at], kBlockSize);
      const bool below = (c.compare & bit) != 0;
      if (below && std::memcmp(now.data(), &batch.lower[at], kBlockSize) == 0) continue;
      if (!is_zero(now)) {
        c.data = static_cast<BlockMask>(c.data | bit);
      } else if (below) {
        c.zero = static_cast<BlockMask>(c.zero | bit);
      }
    }
  }
}

class Packer {
 public:
  Packer(PackSource& source, std::shared_ptr<File> out, PackOptions options)
      : levels_(source.last - source.first + 1),
        upper_(upper_parts(source)),
        lower_(lower_parts(source)),
        floor_(upper_floor(source)),
        options_(std::move(options)),
        writer_(std::move(out), writer_options(source, options_)) {}

  Task<Result<LayerWriter::Written>> run();

 private:
  static Volume::Parts upper_parts(const PackSource& source);
  static Volume::Parts lower_parts(const PackSource& source);
  static std::uint64_t upper_floor(const PackSource& source);
  static LayerWriter::Options writer_options(const PackSource& source, const PackOptions& options);

  Task<void> count_total();
  ChunkIndex next_held(ChunkIndex from) const;
  std::unique_ptr<Batch> empty_batch();
  Task<Result<std::unique_ptr<Batch>>> next_batch();
  Task<void> read(Batch& batch);
  Task<Result<void>> read_batch(Batch& batch);
  Task<Result<void>> write(Batch& batch);
  Task<Result<void>> pump(std::deque<std::unique_ptr<Batch>>& flying);
  Task<Result<void>> pace(std::uint64_t bytes);

  const std::size_t levels_;   ///< how many deltas are packed: levels 0.. of upper_
  const Chain upper_;          ///< what the volume reads as with the deltas
  const Chain lower_;          ///< and as without them
  const std::uint64_t floor_;  ///< what lies below is hidden from here on
  PackOptions options_;
  LayerWriter writer_;
  std::vector<std::unique_ptr<Batch>> idle_;
  ChunkIndex next_;  ///< where the next batch begins
  std::uint64_t done_ = 0;
  std::uint64_t total_ = 0;
  std::size_t looked_at_ = 0;
  EventLoop::Clock::time_point due_{};
};

Volume::Parts Packer::upper_parts(const PackSource& source) {
  Volume::Parts parts = source.chain;
  parts.sealed.erase(parts.sealed.begin(),
                     parts.sealed.begin() + static_cast<std::ptrdiff_t>(source.first));
  parts.delta = nullptr;
  parts.size = source.size;
  return parts;
}

Volume::Parts Packer::lower_parts(const PackSource& source) {
  Volume::Parts parts = source.chain;
  parts.sealed.erase(parts.sealed.begin(),
                     parts.sealed.begin() + static_cast<std::ptrdiff_t>(source.last) + 1);
  parts.delta = nullptr;
  parts.size = source.size;
  return parts;
}

std::uint64_t Packer::upper_floor(const PackSource& source) {
  std::uint64_t floor = source.size;
  for (std::size_t i = source.first; i <= source.last; ++i)
    floor = std::min(floor, source.chain.sealed[i].floor);
  return floor;
}

LayerWriter::Options Packer::writer_options(const PackSource& source, const PackOptions& options) {
  LayerWriter::Options o;
  o.virtual_size = source.size;
  o.encoding = options.encoding;
  o.zstd_level = options.zstd_level;
  o.bottom = source.last + 1 == source.chain.sealed.size() &&
             (source.chain.layers == nullptr || source.chain.layers->layers().empty());
  return o;
}

/// The first chunk at or after `from` that a packed delta holds; the end if none does.
ChunkIndex Packer::next_held(ChunkIndex from) const {
  ChunkIndex next(chunk_count(upper_.size()));
  for (std::size_t k = 0; k < levels_; ++k) {
    const auto found = upper_.levels()[k].delta->next_present(from);
    if (found) next = std::min(next, *found);
  }
  return next;
}

Task<void> Packer::count_total() {
  const ChunkIndex end(chunk_count(upper_.size()));
  std::size_t chunks = 0;
  for (ChunkIndex c = next_held(ChunkIndex(0)); c < end; c = next_held(c + 1)) {
    total_ += static_cast<std::uint64_t>(std::popcount(held_by(upper_, levels_, c))) * kBlockSize;
    if (++chunks % kChunksBeforeYield == 0) co_await yield_now();
  }
}

std::unique_ptr<Batch> Packer::empty_batch() {
  if (idle_.empty()) return std::make_unique<Batch>();
  auto batch = std::move(idle_.back());
  idle_.pop_back();
  batch->clear();
  return batch;
}

/// The chunks of the next batch, without their blocks; an empty batch at the end. A chunk counts if
/// a packed delta holds something of it, or if a shrink hides what lies below.
Task<Result<std::unique_ptr<Batch>>> Packer::next_batch() {
  auto batch = empty_batch();
  const ChunkIndex end(chunk_count(upper_.size()));
  while (batch->chunks.size() < kBatchChunks && next_ < end) {
    ChunkIndex chunk = next_held(next_);
    if (floor_ < upper_.size()) {
      const ChunkIndex from = std::max(next_, chunk_of(ByteOffset(floor_)));
      auto covered = co_await lower_.next_mentioned(0, from);
      if (!covered) co_return covered.error();
      chunk = std::min(chunk, *covered);
    }
    if (chunk >= end) {
      next_ = end;
      break;
    }
    auto above = co_await upper_.view(0, chunk);
    if (!above) co_return above.error();
    auto below = co_await lower_.view(0, chunk);
    if (!below) co_return below.error();
    const BlockMask held = held_by(upper_, levels_, chunk);
    // The block that the floor cuts is shown in part: looked at as well. Zero over nothing is not.
    const auto hidden =
        static_cast<BlockMask>(below->data & ~blocks_below(chunk, round_down(floor_, kBlockSize)));
    PackChunk c;
    c.chunk = chunk;
    c.wanted = static_cast<BlockMask>((held & (above->data | below->data)) | hidden);
    c.compare = static_cast<BlockMask>(c.wanted & below->data);
    if (c.wanted != 0) batch->chunks.push_back(c);
    batch->delta_bytes += static_cast<std::uint64_t>(std::popcount(held)) * kBlockSize;
    if (++looked_at_ % kChunksBeforeYield == 0) co_await yield_now();
    next_ = chunk + 1;
  }
  co_return batch;
}

Task<Result<void>> Packer::read_batch(Batch& batch) {
  bool compare = false;
  for (const PackChunk& c : batch.chunks)
    compare = compare || c.compare != 0;
  if (compare && batch.lower == nullptr)
    batch.lower = std::make_unique_for_overwrite<std::byte[]>(kBatchChunks * kChunkSize);
  auto upper = co_await read_chunks(upper_, batch.chunks, &PackChunk::wanted, batch.upper.get());
  if (!upper) co_return upper.error();
  if (compare) {
    auto lower = co_await read_chunks(lower_, batch.chunks, &PackChunk::compare, batch.lower.get());
    if (!lower) co_return lower.error();
  }
  auto judging = offload([&batch] { judge(batch); });
  co_await judging;
  co_return Result<void>();
}

Task<void> Packer::read(Batch& batch) {
  batch.result = co_await read_batch(batch);
  batch.ready.set();
}

Task<Result<void>> Packer::write(Batch& batch) {
  for (std::size_t i = 0; i < batch.chunks.size(); ++i) {
    const PackChunk& c = batch.chunks[i];
    if ((c.data | c.zero) == 0) continue;
    // The blocks to store close ranks, in place.
    std::byte* const begin = &batch.upper[i * kChunkSize];
    std::size_t stored = 0;
    for (unsigned b = 0; b < kBlocksPerChunk; ++b) {
      if ((c.data >> b & 1) == 0) continue;
      if (stored != b) std::memcpy(begin + stored * kBlockSize, begin + b * kBlockSize, kBlockSize);
      ++stored;
    }
    auto added = co_await writer_.add(c.chunk, c.data, c.zero, {begin, stored * kBlockSize});
    if (!added) co_return added.error();
  }
  done_ += batch.delta_bytes;
  if (options_.progress) options_.progress(done_, total_);
  co_return Result<void>();
}

/// Waits as long as `bytes` may take, and for whoever has to hear of them.
Task<Result<void>> Packer::pace(std::uint64_t bytes) {
  if (options_.wrote) {
    auto telling = options_.wrote(bytes);
    auto told = co_await std::move(telling);
    if (!told) co_return told.error();
  }
  if (options_.cancelled && options_.cancelled())
    co_return Error(ErrorCode::kCancelled, "packing was cancelled");
  if (options_.bytes_per_second == 0) co_return Result<void>();
  const double seconds =
      static_cast<double>(bytes) / static_cast<double>(options_.bytes_per_second);
  const auto now = EventLoop::current()->now();
  // Little credit for time that was lost elsewhere: a stall must not be followed by a burst.
  due_ = std::max(due_, now - kPaceCredit) + std::chrono::duration_cast<EventLoop::Clock::duration>(
                                                 std::chrono::duration<double>(seconds));
  if (due_ > now) {
    Sleep pause(due_ - now);
    co_await pause;
  }
  co_return Result<void>();
}

/// Reads ahead, writes in order. On an error `flying` still holds what is being read.
Task<Result<void>> Packer::pump(std::deque<std::unique_ptr<Batch>>& flying) {
  const ChunkIndex end(chunk_count(upper_.size()));
  while (next_ < end || !flying.empty()) {
    while (next_ < end && flying.size() < kBatchesInFlight) {
      auto batch = co_await next_batch();
      if (!batch) co_return batch.error();
      flying.push_back(std::move(*batch));
      EventLoop::current()->spawn(read(*flying.back()));
    }
    Batch& batch = *flying.front();
    co_await batch.ready.wait();
    if (!batch.result) co_return batch.result.error();
    auto written = co_await write(batch);
    if (!written) co_return written.error();
    const std::uint64_t bytes = batch.delta_bytes;
    idle_.push_back(std::move(flying.front()));
    flying.pop_front();
    auto allowed = co_await pace(bytes);
    if (!allowed) co_return allowed.error();
  }
  co_return Result<void>();
}

Task<Result<LayerWriter::Written>> Packer::run() {
  co_await count_total();
  std::deque<std::unique_ptr<Batch>> flying;
  Result<void> pumped = co_await pump(flying);
  for (const std::unique_ptr<Batch>& batch : flying)
    co_await batch->ready.wait();  // it reads into memory of ours
  if (!pumped) co_return pumped.error();
  co_return co_await writer_.finish();
}

}  // namespace

Task<Result<LayerWriter::Written>> pack(PackSource source, std::shared_ptr<File> out,
                                        PackOptions options) {
  if (source.first > source.last || source.last >= source.chain.sealed.size())
    co_return Error(ErrorCode::kInvalidArgument,
                    "the chain has " + std::to_string(source.chain.sealed.size()) +
                        " sealed deltas; " + std::to_string(source.first) + " to " +
                        std::to_string(source.last) + " cannot be packed");
  Packer packer(source, std::move(out), std::move(options));
  co_return co_await packer.run();
}

}  // namespace snap
