// ResolvedLeaf: 512 chunks (32 MiB) of a LayerStack, merged into one answer a chunk.
//
// An entry is 8 bytes: 12-bit source, 36-bit offset in blocks, 16-bit mask. The source is a layer,
// or says that the chunk is in no layer, is marked zero by one layer, or is mixed: several layers,
// a compressed chunk, or a block cut by a layer's visible end. Mixed chunks go through a side
// table.
//
// Of a mixed chunk each block has 8 bytes of its own with the same fields (the place), so that a
// read of a raw block looks at one cache line however many layers the chunk is mixed from.
//
// A leaf never changes once built, but for the "verified" bits, which only ever go from false to
// true: they remember that the layer has checked the stored bytes in this process, so that a read
// of a raw block needs nothing but its file offset.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "engine/layer/layer.h"
#include "engine/volume/layer_stack.h"
#include "snap/limits.h"
#include "snap/units.h"

namespace snap {

inline constexpr std::size_t kLeafChunks = 512;

/// The 8 bytes that a leaf has for each chunk.
class LeafEntry {
 public:
  enum class Kind { kNone, kRaw, kZero, kMixed };

  constexpr LeafEntry() = default;
  /// All visible data of the chunk is in one layer, raw, from file block `block`; no zero marks.
  static LeafEntry raw(std::size_t layer, std::uint64_t block, BlockMask data) {
    return LeafEntry(layer + 1, block, data);
  }
  /// One layer marks the blocks in `zero`; no layer has data.
  static LeafEntry zero(std::size_t layer, BlockMask zero) {
    return LeafEntry(kZeroSource, layer, zero);
  }
  /// See the leaf's mixed chunk `index`; for a place: the mixed part `index`.
  static LeafEntry mixed(std::size_t index) { return LeafEntry(kMixedSource, index, 0); }
  static LeafEntry from_bits(std::uint64_t bits) {
    LeafEntry entry;
    entry.bits_ = bits;
    return entry;
  }
  std::uint64_t bits() const { return bits_; }

  /// True if `block` fits into the 36 bits.
  static constexpr bool fits(std::uint64_t block) { return block < std::uint64_t{1} << 36; }

  Kind kind() const {
    const std::uint64_t source = bits_ >> 52;
    if (source == 0) return Kind::kNone;
    if (source == kZeroSource) return Kind::kZero;
    return source == kMixedSource ? Kind::kMixed : Kind::kRaw;
  }
  /// Of kRaw and kZero.
  std::size_t layer() const {
    return kind() == Kind::kZero ? value() : static_cast<std::size_t>(bits_ >> 52) - 1;
  }
  BlockMask mask() const { return static_cast<BlockMask>(bits_); }
  /// Of kRaw: the file block of the first stored block. Of kMixed: the index.
  std::uint64_t value() const { return bits_ >> 16 & 0xf'ffff'ffff; }

 private:
  static constexpr std::uint64_t kZeroSource = 4094;
  static constexpr std::uint64_t kMixedSource = 4095;
  LeafEntry(std::uint64_t source, std::uint64_t value, BlockMask mask)
      : bits_(source << 52 | value << 16 | mask) {}
  std::uint64_t bits_ = 0;
};
static_assert(sizeof(LeafEntry) == 8);
static_assert(kMaxLayersPerImage < 4094);

/// What one layer adds to a mixed chunk.
struct MixedPart {
  ChunkEntry entry;
  std::uint64_t limit = 0;  ///< bytes; the layer is visible below this offset of the volume
  std::uint32_t slice = 0;  ///< where the entry stands in the layer's chunk table
  std::uint16_t index = 0;
  std::uint16_t layer = 0;
  BlockMask data = 0;  ///< the blocks that this layer decides
  BlockMask zero = 0;
};

/// A stretch of bytes that are read in one way.
struct LeafRun {
  enum class Kind : std::uint8_t {
    kZero,
    kRaw,     ///< `length` bytes of the file, from file_offset
    kPacked,  ///< blocks that the layer has to hand out: compressed, or cut by its end
  };
  Kind kind = Kind::kZero;
  bool verified = true;  ///< of kRaw: every chunk that the run touches has been verified
  std::size_t layer = 0;
  std::uint64_t length = 0;
  std::uint64_t file_offset = 0;      ///< of kRaw
  const MixedPart* packed = nullptr;  ///< of kPacked; lives as long as the leaf
};

class ResolvedLeaf {
 public:
  std::uint64_t memory() const noexcept;

  /// How to read from `at`, for at most `max` bytes (which may reach past the leaf: the run then
  /// ends with the leaf). A kPacked run stays inside one chunk.
  LeafRun run_at(ByteOffset at, std::uint64_t max) const noexcept;

  StackState state(ChunkIndex chunk) const noexcept;
  std::array<int, kBlocksPerChunk> owners(ChunkIndex chunk) const noexcept;
  /// The first chunk at or after `from` that a layer mentions, or the end of the leaf.
  ChunkIndex next_mentioned(ChunkIndex from) const noexcept;
  ChunkIndex end() const noexcept { return first_ + kLeafChunks; }

  /// The raw, unverified parts of a chunk: the verifier's work list.
  struct Unverified {
    std::size_t layer = 0;
    std::size_t part = kWholeEntry;  ///< index of the mixed part, or kWholeEntry
    std::uint32_t slice = 0;         ///< known for mixed parts only
    std::uint16_t index = 0;
  };
  static constexpr std::size_t kWholeEntry = ~std::size_t{0};
  std::vector<Unverified> unverified(ChunkIndex chunk) const;
  void mark_verified(ChunkIndex chunk, std::size_t part) const noexcept;

 private:
  friend class LeafBuilder;

  struct MixedChunk {
    std::uint32_t first_part = 0;
    std::uint8_t part_count = 0;
    BlockMask data = 0;
    BlockMask zero = 0;
    std::array<std::uint8_t, kBlocksPerChunk> part_of{};  ///< the part that decides the block
  };

  /// In the mask of a place: its chunk has been verified.
  static constexpr BlockMask kVerified = 1;

  explicit ResolvedLeaf(ChunkIndex first) : first_(first) {}

  LeafRun run_in_block(ByteOffset at) const noexcept;
  LeafRun run_in_mixed(std::size_t mixed, ByteOffset at, LeafRun run) const noexcept;
  LeafRun run_in_part(const MixedPart& part, ByteOffset at, LeafRun run) const noexcept;
  std::size_t slot_of(ChunkIndex chunk) const noexcept { return chunk - first_; }

  ChunkIndex first_;
  std::array<LeafEntry, kLeafChunks> entries_{};
  std::vector<MixedChunk> mixed_;
  std::vector<MixedPart> parts_;
  /// 16 a mixed chunk: none (reads zero), raw with the file block of this very block and kVerified,
  /// or mixed: what only the part can tell.
  mutable std::vector<std::atomic<std::uint64_t>> places_;
  /// Of kRaw entries, by slot.
  mutable std::array<std::atomic<std::uint64_t>, kLeafChunks / 64> verified_{};
};

/// Merges the tables of layers, top layer first, into a leaf.
class LeafBuilder {
 public:
  /// For the leaf that begins with `first`, in a stack of `size` bytes.
  LeafBuilder(ChunkIndex first, std::uint64_t size);

  /// True if a layer further down could still matter to chunks in [from, to).
  bool open(ChunkIndex from, ChunkIndex to) const noexcept;
  /// Adds slice `slice` of `layer`, which is the `layer_index`-th from the bottom and visible below
  /// `limit` bytes. No layer above may follow.
  void add(const Layer& layer, std::size_t layer_index, std::uint64_t limit, std::size_t slice,
           const std::vector<ChunkEntry>& entries);
  std::shared_ptr<const ResolvedLeaf> finish();

 private:
  struct Part {
    std::uint16_t slot = 0;
    bool verified = false;
    MixedPart part;
  };
  void add_mixed(ResolvedLeaf& leaf, std::size_t slot, std::size_t begin, std::size_t end);
  void add_places(const Part& part, std::size_t number, std::size_t mixed);

  ChunkIndex first_;
  std::array<BlockMask, kLeafChunks> decided_{};
  std::vector<Part> parts_;  ///< top first within a chunk; each decides a block at least
  std::vector<std::uint64_t> places_;
};

/// Blocks of `chunk` that begin below `limit` bytes.
BlockMask blocks_below(ChunkIndex chunk, std::uint64_t limit) noexcept;

}  // namespace snap
