// Chain: what a volume reads through at one moment: delta, sealed deltas, layers, top first.
//
// Immutable. A request copies one shared_ptr to it and keeps what it names alive, so the chain can
// be replaced while requests run. Each level is visible below a limit only: the smallest size that
// the volume had while any level above was on top. What lies beyond reads zero, so a volume that
// shrank and grew again shows zeros.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "engine/delta/delta.h"
#include "engine/volume/layer_stack.h"
#include "snap/limits.h"
#include "snap/volume.h"

namespace snap {

class Chain : public std::enable_shared_from_this<Chain> {
 public:
  /// A delta and the bytes up to which it is visible.
  struct Level {
    Delta* delta = nullptr;
    std::uint64_t limit = 0;
  };

  explicit Chain(Volume::Parts parts);

  std::uint64_t size() const noexcept { return parts_.size; }
  const Volume::Parts& parts() const noexcept { return parts_; }
  /// The deltas, top first.
  const std::vector<Level>& levels() const noexcept { return levels_; }
  /// The level number of the layers, below all deltas.
  std::size_t stack_level() const noexcept { return levels_.size(); }
  /// Bytes up to which the layers are visible.
  std::uint64_t stack_limit() const noexcept { return stack_limit_; }

  bool contains(ByteOffset at, std::uint64_t length) const noexcept {
    return at.value <= size() && length <= size() - at.value;
  }
  /// InvalidArgument if [at, at + length) is not within the size.
  Result<void> check_range(ByteOffset at, std::uint64_t length) const;

  // The chain must outlive the tasks below. `first` is the level to begin at: 0 for all, 1 for what
  // lies below the delta.

  /// Fills `out` from `at`, any alignment; bytes beyond every limit read zero.
  Task<Result<void>> read(std::size_t first, ByteOffset at, std::span<std::byte> out) const;
  /// The same from level 0 on, if it takes no waiting. False: not done.
  bool read_now(ByteOffset at, std::span<std::byte> out) const noexcept;

  /// What one chunk is made of.
  struct ChunkView {
    BlockMask data = 0;  ///< decided as data
    BlockMask zero = 0;  ///< marked zero by some source; in neither mask: no source mentions it
    std::array<int, kBlocksPerChunk> depth{};  ///< as Extent::depth, counted from level 0
  };
  Task<Result<ChunkView>> view(std::size_t first, ChunkIndex chunk) const;
  /// The first chunk at or after `from` that some visible source mentions; the number of chunks of
  /// the volume if none does.
  Task<Result<ChunkIndex>> next_mentioned(std::size_t first, ChunkIndex from) const;

  /// See Volume::extents.
  Task<Result<std::vector<Extent>>> extents(ByteOffset at, std::uint64_t length,
                                            std::size_t max) const;

 private:
  static constexpr std::size_t kMaxLevels = kMaxSealedDeltas + 1;
  /// The words of all levels for one chunk.
  struct Words {
    ChunkIndex chunk;
    std::array<BlockState, kMaxLevels> state;
    bool empty = true;
  };
  struct Run {
    std::size_t level = 0;  ///< of levels_, or stack_level(), or kZeroLevel
    std::uint64_t length = 0;
  };
  static constexpr std::size_t kZeroLevel = ~std::size_t{0};

  Words words(std::size_t first, ChunkIndex chunk) const noexcept;
  Run run_in_block(std::size_t first, const Words& words, ByteOffset at) const noexcept;
  Run run_at(std::size_t first, ByteOffset at, std::uint64_t max) const noexcept;

  Volume::Parts parts_;
  std::vector<Level> levels_;
  std::uint64_t stack_limit_ = 0;
};

/// What lies below the top delta of a chain: completes sub-block writes.
class BelowDelta final : public BlockSource {
 public:
  explicit BelowDelta(std::shared_ptr<const Chain> chain) : chain_(std::move(chain)) {}
  Task<Result<void>> read_blocks(ByteOffset at, std::span<std::byte> out) override {
    return chain_->read(1, at, out);
  }

 private:
  std::shared_ptr<const Chain> chain_;
};

}  // namespace snap
