// LayerStack: the layers of one image resolved into one view (docs/design.md, Life of a read).
//
// For each chunk one 8-byte entry says where its blocks are: 12-bit source, 36-bit offset in
// blocks, 16-bit mask; what mixes sources or is compressed goes through a side table. Leaves of 512
// chunks (32 MiB) are filled on first touch by merging the layers' chunk tables: single-flight,
// from many threads, evictable. So a read costs the same through 1 layer or 1,000 once its leaf is
// filled, an open costs the slice indexes only, and memory is 8 bytes a touched chunk.
//
// A layer is visible only below the smallest virtual size of any layer above it, so that a volume
// that shrank and grew again shows zeros. Beyond the top layer's size everything reads zero.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "engine/layer/layer.h"
#include "snap/result.h"
#include "snap/task.h"
#include "snap/units.h"

namespace snap {

/// What the stack holds of one chunk: blocks with data in some layer; every other block reads zero.
/// `known_zero` are those that a layer marks zero, as against those that no layer mentions.
struct StackState {
  BlockMask data = 0;
  BlockMask known_zero = 0;
};

/// Immutable and thread-safe. Shared by every volume of the process that has the same layers.
class LayerStack {
 public:
  struct Options {
    std::size_t leaf_memory = 64u << 20;  ///< bytes of leaves kept; the oldest are evicted
  };
  /// `layers` bottom first; may be empty (everything reads zero); at most kMaxLayersPerImage.
  static std::shared_ptr<LayerStack> make(std::vector<std::shared_ptr<Layer>> layers,
                                          Options options);
  static std::shared_ptr<LayerStack> make(std::vector<std::shared_ptr<Layer>> layers) {
    return make(std::move(layers), Options{});
  }
  virtual ~LayerStack() = default;

  /// Bottom first.
  virtual const std::vector<std::shared_ptr<Layer>>& layers() const noexcept = 0;
  /// Virtual size of the top layer; 0 without layers.
  virtual std::uint64_t size() const noexcept = 0;

  /// Fills `out` from `at`, any alignment; bytes past size() read zero.
  virtual Task<Result<void>> read(ByteOffset at, std::span<std::byte> out) = 0;
  /// The same, if it takes no waiting: all leaves are filled, all chunks raw and verified, all
  /// bytes in the page cache. False: not done.
  virtual bool read_now(ByteOffset at, std::span<std::byte> out) noexcept = 0;
  /// Fills the blocks in `which` of `chunk` into the places that they have in `out` (65536 bytes,
  /// block b at b * 4096); other places are left alone. Blocks without data are filled with zeros.
  virtual Task<Result<void>> read_chunk(ChunkIndex chunk, BlockMask which,
                                        std::span<std::byte> out) = 0;
  virtual Task<Result<StackState>> state(ChunkIndex chunk) = 0;
  /// The index in layers() of the layer that decides each block of `chunk`, or -1 if none does.
  virtual Task<Result<std::array<int, kBlocksPerChunk>>> owners(ChunkIndex chunk) = 0;
  /// The first chunk at or after `from` that any layer mentions; size() / 65536 rounded up if none.
  virtual Task<Result<ChunkIndex>> next_mentioned(ChunkIndex from) = 0;

  struct Stats {
    std::uint64_t leaves_filled = 0;
    std::uint64_t leaf_bytes = 0;
  };
  virtual Stats stats() const = 0;
};

}  // namespace snap
