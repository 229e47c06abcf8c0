#include "engine/volume/layer_stack.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <string>

#include "engine/io/sync.h"
#include "engine/volume/leaf_cache.h"
#include "engine/volume/resolved_leaf.h"
#include "snap/limits.h"

namespace snap {

namespace {

constexpr std::uint64_t kLeafBytes = kLeafChunks * kChunkSize;
/// Slices that one fill reads at once. After as many, it looks whether the leaf is complete.
constexpr std::size_t kSlicesInFlight = 64;

std::size_t leaf_of(ChunkIndex chunk) {
  return static_cast<std::size_t>(chunk.value / kLeafChunks);
}
ChunkIndex leaf_first(std::size_t leaf) {
  return ChunkIndex(leaf * kLeafChunks);
}

class ResolvedStack final : public LayerStack {
 public:
  ResolvedStack(std::vector<std::shared_ptr<Layer>> layers, Options options)
      : layers_(std::move(layers)),
        size_(layers_.empty() ? 0 : layers_.back()->info().virtual_size),
        limits_(visible_limits(layers_)),
        cache_(static_cast<std::size_t>((size_ + kLeafBytes - 1) / kLeafBytes),
               options.leaf_memory) {}

  const std::vector<std::shared_ptr<Layer>>& layers() const noexcept override { return layers_; }
  std::uint64_t size() const noexcept override { return size_; }

  Task<Result<void>> read(ByteOffset at, std::span<std::byte> out) override;
  bool read_now(ByteOffset at, std::span<std::byte> out) noexcept override;
  Task<Result<void>> read_chunk(ChunkIndex chunk, BlockMask which,
                                std::span<std::byte> out) override;
  Task<Result<StackState>> state(ChunkIndex chunk) override;
  Task<Result<std::array<int, kBlocksPerChunk>>> owners(ChunkIndex chunk) override;
  Task<Result<ChunkIndex>> next_mentioned(ChunkIndex from) override;
  Stats stats() const override { return {cache_.filled(), cache_.bytes()}; }

 private:
  struct SliceRef {
    std::size_t layer = 0;
    std::size_t slice = 0;
  };

  static std::vector<std::uint64_t> visible_limits(
      const std::vector<std::shared_ptr<Layer>>& layers);
  bool beyond(ChunkIndex chunk) const noexcept { return offset_of(chunk).value >= size_; }

  Task<Result<LeafCache::Leaf>> leaf(std::size_t index);
  Task<Result<LeafCache::Leaf>> fill(std::size_t index);
  void collect_slices(std::size_t layer, ChunkIndex first, const LeafBuilder& builder,
                      std::vector<SliceRef>& out) const;
  Task<Result<void>> merge(LeafBuilder& builder, std::vector<SliceRef> refs);
  Task<Result<std::optional<ChunkIndex>>> next_in_layer(std::size_t layer, ChunkIndex from);

  Task<Result<void>> verify(LeafCache::Leaf leaf, ByteOffset at, std::span<const std::byte> piece,
                            LeafRun run);
  Task<Result<void>> verify_part(LeafCache::Leaf leaf, ChunkIndex chunk,
                                 ResolvedLeaf::Unverified part, Layer::Known known);
  Task<Result<void>> read_packed(const MixedPart& part, ByteOffset at, std::span<std::byte> out);
  Task<Result<void>> read_rest(Layer& layer, std::span<std::byte> out, std::uint64_t file_offset);

  const std::vector<std::shared_ptr<Layer>> layers_;  ///< bottom first
  const std::uint64_t size_;
  const std::vector<std::uint64_t> limits_;  ///< bytes up to which each layer is visible
  LeafCache cache_;
};

std::vector<std::uint64_t> ResolvedStack::visible_limits(
    const std::vector<std::shared_ptr<Layer>>& layers) {
  std::vector<std::uint64_t> limits(layers.size());
  std::uint64_t smallest = kMaxVolumeSize;
  for (std::size_t i = layers.size(); i-- > 0;) {
    smallest = std::min(smallest, layers[i]->info().virtual_size);
    limits[i] = smallest;
  }
  return limits;
}

// ---- Leaves

Task<Result<LeafCache::Leaf>> ResolvedStack::leaf(std::size_t index) {
  LeafCache::Claim claim = cache_.claim(index);
  if (claim.leaf != nullptr) co_return claim.leaf;
  if (!claim.mine) {
    co_await claim.fill->done.wait();
    co_return *claim.fill->result;
  }
  Result<LeafCache::Leaf> filled = co_await fill(index);
  cache_.finish(index, claim.fill, filled);
  co_return filled;
}

void ResolvedStack::collect_slices(std::size_t layer, ChunkIndex first, const LeafBuilder& builder,
                                   std::vector<SliceRef>& out) const {
  const Layer& l = *layers_[layer];
  const ChunkIndex end = first + kLeafChunks;
  for (std::size_t s = l.slice_of(first).value_or(0); s < l.slice_count() && l.slice_first(s) < end;
       ++s) {
    const ChunkIndex slice_end = s + 1 < l.slice_count() ? l.slice_first(s + 1) : end;
    if (builder.open(l.slice_first(s), slice_end)) out.push_back({layer, s});
  }
}

Task<Result<void>> ResolvedStack::merge(LeafBuilder& builder, std::vector<SliceRef> refs) {
  std::vector<Task<Result<Layer::Slice>>> reads;
  reads.reserve(refs.size());
  for (const SliceRef& ref : refs)
    reads.push_back(layers_[ref.layer]->read_slice(ref.slice));
  std::vector<Result<Layer::Slice>> slices = co_await gather(std::move(reads));
  for (std::size_t i = 0; i < refs.size(); ++i) {
    if (!slices[i]) co_return slices[i].error();
    const std::size_t layer = refs[i].layer;
    builder.add(*layers_[layer], layer, limits_[layer], refs[i].slice, **slices[i]);
  }
  co_return Result<void>();
}

Task<Result<LeafCache::Leaf>> ResolvedStack::fill(std::size_t index) {
  const ChunkIndex first = leaf_first(index);
  LeafBuilder builder(first, size_);
  std::vector<SliceRef> refs;
  for (std::size_t layer = layers_.size(); layer-- > 0;) {
    if (limits_[layer] <= offset_of(first).value) break;  // and so is every layer below
    collect_slices(layer, first, builder, refs);
    if (layer != 0 && refs.size() < kSlicesInFlight) continue;
    auto merged = co_await merge(builder, std::move(refs));
    if (!merged) co_return merged.error();
    refs.clear();
    if (!builder.open(first, first + kLeafChunks)) break;
  }
  if (!refs.empty()) {
    auto merged = co_await merge(builder, std::move(refs));
    if (!merged) co_return merged.error();
  }
  co_return builder.finish();
}

// ---- Reads

Task<Result<void>> ResolvedStack::read(ByteOffset at, std::span<std::byte> out) {
  std::size_t since_yield = 0;
  while (!out.empty()) {
    if (at.value >= size_) {
      std::memset(out.data(), 0, out.size());
      break;
    }
    const std::size_t index = leaf_of(chunk_of(at));
    LeafCache::Leaf leaf = cache_.find(index);
    if (leaf == nullptr) {
      auto filled = co_await this->leaf(index);
      if (!filled) co_return filled.error();
      leaf = *filled;
    }
    const LeafRun run = leaf->run_at(at, std::min<std::uint64_t>(out.size(), kMaxReadPiece));
    const std::span<std::byte> piece = out.first(static_cast<std::size_t>(run.length));
    if (run.kind == LeafRun::Kind::kRaw) {
      Layer& layer = *layers_[run.layer];
      FileOp op = layer.read_raw(piece, ByteOffset(run.file_offset));
      Result<std::size_t> got = co_await op;
      if (!got) co_return got.error();
      if (*got < piece.size()) {
        auto rest = co_await read_rest(layer, piece.subspan(*got), run.file_offset + *got);
        if (!rest) co_return rest.error();
      }
      if (!run.verified) {
        auto verified = co_await verify(leaf, at, piece, run);
        if (!verified) co_return verified.error();
      }
    } else if (run.kind == LeafRun::Kind::kPacked) {
      auto unpacked = co_await read_packed(*run.packed, at, piece);
      if (!unpacked) co_return unpacked.error();
    } else {
      std::memset(piece.data(), 0, piece.size());
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

bool ResolvedStack::read_now(ByteOffset at, std::span<std::byte> out) noexcept {
  while (!out.empty()) {
    if (at.value >= size_) {
      std::memset(out.data(), 0, out.size());
      return true;
    }
    const LeafCache::Leaf leaf = cache_.find(leaf_of(chunk_of(at)));
    if (leaf == nullptr) return false;
    const LeafRun run = leaf->run_at(at, out.size());
    const std::span<std::byte> piece = out.first(static_cast<std::size_t>(run.length));
    if (run.kind == LeafRun::Kind::kRaw) {
      if (!run.verified) return false;
      if (!layers_[run.layer]->read_raw_now(piece, ByteOffset(run.file_offset))) return false;
    } else if (run.kind == LeafRun::Kind::kPacked) {
      return false;
    } else {
      std::memset(piece.data(), 0, piece.size());
    }
    at = at + run.length;
    out = out.subspan(piece.size());
  }
  return true;
}

/// What a short read left. The end of the file before the end of a chunk is damage.
Task<Result<void>> ResolvedStack::read_rest(Layer& layer, std::span<std::byte> out,
                                            std::uint64_t file_offset) {
  while (!out.empty()) {
    FileOp op = layer.read_raw(out, ByteOffset(file_offset));
    Result<std::size_t> got = co_await op;
    if (!got) co_return got.error();
    if (*got == 0) {
      co_return Error(ErrorCode::kCorrupt,
                      layer.path() + ": the layer ends at byte " + std::to_string(file_offset) +
                          ", inside a chunk; the file was cut after it was opened");
    }
    out = out.subspan(*got);
    file_offset += *got;
  }
  co_return Result<void>();
}

/// A part of a compressed chunk. Whole blocks go straight to `out`; cut ones through a copy.
Task<Result<void>> ResolvedStack::read_packed(const MixedPart& part, ByteOffset at,
                                              std::span<std::byte> out) {
  const unsigned first = block_in_chunk(at);
  const auto head = static_cast<std::size_t>(at.value % kBlockSize);
  const auto blocks = static_cast<unsigned>((head + out.size() + kBlockSize - 1) / kBlockSize);
  const BlockMask which = block_range(first, blocks);
  Layer& layer = *layers_[part.layer];
  if (head == 0 && out.size() % kBlockSize == 0)
    co_return co_await layer.read_blocks(part.entry, which, out);
  std::vector<std::byte> whole(blocks * kBlockSize);
  auto got = co_await layer.read_blocks(part.entry, which, whole);
  if (!got) co_return got.error();
  std::memcpy(out.data(), whole.data() + head, out.size());
  co_return Result<void>();
}

/// Has the layers verify every raw chunk of which `piece`, read as `run` says, has a part; those
/// that it has whole without another read.
Task<Result<void>> ResolvedStack::verify(LeafCache::Leaf leaf, ByteOffset at,
                                         std::span<const std::byte> piece, LeafRun run) {
  std::vector<Task<Result<void>>> checks;
  const Layer::Known here{ByteOffset(run.file_offset), piece};
  const ChunkIndex last = chunk_of(at + (piece.size() - 1));
  for (ChunkIndex chunk = chunk_of(at); chunk <= last; ++chunk)
    for (const ResolvedLeaf::Unverified& part : leaf->unverified(chunk))
      checks.push_back(
          verify_part(leaf, chunk, part, part.layer == run.layer ? here : Layer::Known{}));
  if (checks.size() == 1) co_return co_await std::move(checks.front());
  std::vector<Result<void>> results = co_await gather(std::move(checks));
  for (Result<void>& result : results)
    if (!result) co_return result.error();
  co_return Result<void>();
}

Task<Result<void>> ResolvedStack::verify_part(LeafCache::Leaf leaf, ChunkIndex chunk,
                                              ResolvedLeaf::Unverified part, Layer::Known known) {
  Layer& layer = *layers_[part.layer];
  std::size_t slice = part.slice;
  std::size_t index = part.index;
  if (part.part == ResolvedLeaf::kWholeEntry) {
    // The 8 bytes of a leaf entry have no room for the place in the table: looked up this once.
    slice = layer.slice_of(chunk).value_or(0);
    auto entries = co_await layer.read_slice(slice);
    if (!entries) co_return entries.error();
    const auto found = std::ranges::lower_bound(**entries, chunk, {}, &ChunkEntry::chunk);
    if (found == (*entries)->end() || found->chunk != chunk)
      co_return Error(ErrorCode::kCorrupt, layer.path() + ": slice " + std::to_string(slice) +
                                               " of the chunk table changed while it was open");
    index = static_cast<std::size_t>(found - (*entries)->begin());
  }
  auto verified = co_await layer.verify_entry(slice, index, known);
  if (!verified) co_return verified.error();
  leaf->mark_verified(chunk, part.part);
  co_return Result<void>();
}

Task<Result<void>> ResolvedStack::read_chunk(ChunkIndex chunk, BlockMask which,
                                             std::span<std::byte> out) {
  unsigned block = 0;
  while (block < kBlocksPerChunk && which >> block != 0) {
    block += static_cast<unsigned>(std::countr_zero(static_cast<unsigned>(which) >> block));
    const auto run = static_cast<unsigned>(std::countr_one(static_cast<unsigned>(which) >> block));
    auto got = co_await read(offset_of(chunk) + block * kBlockSize,
                             out.subspan(block * kBlockSize, run * kBlockSize));
    if (!got) co_return got.error();
    block += run;
  }
  co_return Result<void>();
}

// ---- What is where

Task<Result<StackState>> ResolvedStack::state(ChunkIndex chunk) {
  if (beyond(chunk)) co_return StackState{};
  LeafCache::Leaf leaf = cache_.find(leaf_of(chunk));
  if (leaf == nullptr) {
    auto filled = co_await this->leaf(leaf_of(chunk));
    if (!filled) co_return filled.error();
    leaf = *filled;
  }
  co_return leaf->state(chunk);
}

Task<Result<std::array<int, kBlocksPerChunk>>> ResolvedStack::owners(ChunkIndex chunk) {
  if (beyond(chunk)) {
    std::array<int, kBlocksPerChunk> none;
    none.fill(-1);
    co_return none;
  }
  LeafCache::Leaf leaf = cache_.find(leaf_of(chunk));
  if (leaf == nullptr) {
    auto filled = co_await this->leaf(leaf_of(chunk));
    if (!filled) co_return filled.error();
    leaf = *filled;
  }
  co_return leaf->owners(chunk);
}

Task<Result<std::optional<ChunkIndex>>> ResolvedStack::next_in_layer(std::size_t layer,
                                                                     ChunkIndex from) {
  Layer& l = *layers_[layer];
  const std::size_t slice = l.slice_of(from).value_or(0);
  if (slice >= l.slice_count()) co_return std::optional<ChunkIndex>();
  std::optional<ChunkIndex> next;
  if (l.slice_first(slice) >= from) {
    next = l.slice_first(slice);
  } else {
    auto entries = co_await l.read_slice(slice);
    if (!entries) co_return entries.error();
    const auto found = std::ranges::lower_bound(**entries, from, {}, &ChunkEntry::chunk);
    if (found != (*entries)->end()) {
      next = found->chunk;
    } else if (slice + 1 < l.slice_count()) {
      next = l.slice_first(slice + 1);
    }
  }
  if (next && offset_of(*next).value >= limits_[layer]) next.reset();
  co_return next;
}

Task<Result<ChunkIndex>> ResolvedStack::next_mentioned(ChunkIndex from) {
  const ChunkIndex none(chunk_count(size_));
  if (from >= none) co_return none;
  // Most often the answer is in the leaf; else each layer's own table knows.
  LeafCache::Leaf leaf = cache_.find(leaf_of(from));
  if (leaf == nullptr) {
    auto filled = co_await this->leaf(leaf_of(from));
    if (!filled) co_return filled.error();
    leaf = *filled;
  }
  ChunkIndex next = leaf->next_mentioned(from);
  if (next < leaf->end()) co_return std::min(next, none);
  const ChunkIndex after = leaf->end();
  next = none;
  for (std::size_t layer = 0; layer < layers_.size(); ++layer) {
    auto found = co_await next_in_layer(layer, after);
    if (!found) co_return found.error();
    if (*found) next = std::min(next, **found);
  }
  co_return next;
}

}  // namespace

std::shared_ptr<LayerStack> LayerStack::make(std::vector<std::shared_ptr<Layer>> layers,
                                             Options options) {
  return std::make_shared<ResolvedStack>(std::move(layers), options);
}

}  // namespace snap
