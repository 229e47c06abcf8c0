// Units of the engine: blocks, chunks and offsets, as types that do not mix.
//
//   block  4 KiB   the unit of presence: a block is in a layer whole, or not at all
//   chunk  64 KiB  16 blocks: the unit of the index, of compression and of checksums
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <functional>

namespace snap {

inline constexpr std::uint64_t kBlockSize = 4096;
inline constexpr std::uint64_t kChunkSize = 65536;
inline constexpr unsigned kBlocksPerChunk = 16;
inline constexpr std::uint64_t kSectorSize = 512;

/// One bit a block of a chunk; bit 0 is the chunk's first block.
using BlockMask = std::uint16_t;
inline constexpr BlockMask kAllBlocks = 0xffff;

/// A 64-bit number with a meaning. `Tag` keeps the meanings apart.
template <class Tag>
struct Strong {
  std::uint64_t value = 0;

  constexpr Strong() = default;
  constexpr explicit Strong(std::uint64_t v) : value(v) {}
  friend constexpr auto operator<=>(Strong, Strong) = default;
  constexpr Strong& operator++() {
    ++value;
    return *this;
  }
  constexpr Strong operator+(std::uint64_t n) const { return Strong(value + n); }
  constexpr Strong operator-(std::uint64_t n) const { return Strong(value - n); }
  /// The distance from `other` to this.
  constexpr std::uint64_t operator-(Strong other) const { return value - other.value; }
};

/// Bytes from the start of a volume or a file.
using ByteOffset = Strong<struct ByteOffsetTag>;
/// Number of a 4 KiB block in a volume.
using BlockIndex = Strong<struct BlockIndexTag>;
/// Number of a 64 KiB chunk in a volume.
using ChunkIndex = Strong<struct ChunkIndexTag>;

constexpr ChunkIndex chunk_of(ByteOffset o) {
  return ChunkIndex(o.value / kChunkSize);
}
constexpr BlockIndex block_of(ByteOffset o) {
  return BlockIndex(o.value / kBlockSize);
}
constexpr ChunkIndex chunk_of(BlockIndex b) {
  return ChunkIndex(b.value / kBlocksPerChunk);
}
constexpr ByteOffset offset_of(ChunkIndex c) {
  return ByteOffset(c.value * kChunkSize);
}
constexpr ByteOffset offset_of(BlockIndex b) {
  return ByteOffset(b.value * kBlockSize);
}
/// Number of the block inside its chunk, 0 to 15.
constexpr unsigned block_in_chunk(ByteOffset o) {
  return static_cast<unsigned>(o.value % kChunkSize / kBlockSize);
}
/// Chunks that a volume of `bytes` has, the last one perhaps in part.
constexpr std::uint64_t chunk_count(std::uint64_t bytes) {
  return bytes / kChunkSize + (bytes % kChunkSize != 0);
}
/// Blocks first..first+count-1 of a chunk; count may be 0 to 16.
constexpr BlockMask block_range(unsigned first, unsigned count) {
  return static_cast<BlockMask>(((1u << count) - 1u) << first);
}
constexpr std::uint64_t round_up(std::uint64_t n, std::uint64_t align) {
  return (n + align - 1) / align * align;
}
constexpr std::uint64_t round_down(std::uint64_t n, std::uint64_t align) {
  return n / align * align;
}

}  // namespace snap

template <class Tag>
struct std::hash<snap::Strong<Tag>> {
  std::size_t operator()(snap::Strong<Tag> s) const noexcept {
    return std::hash<std::uint64_t>()(s.value);
  }
};
