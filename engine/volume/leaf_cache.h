// LeafCache: the resolved leaves of one LayerStack that are in memory, within a limit.
//
// A lookup takes one spin lock that belongs to the leaf alone and copies a shared_ptr, so readers
// of different leaves never meet and a reader keeps its leaf when it is evicted meanwhile. Filling
// is single-flight: the first task that misses fills, the others, on whatever loop, wait for it.
// Eviction goes round the leaves and spares those that were read since it last came by.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <unordered_map>
#include <vector>

#include "engine/io/sync.h"
#include "engine/volume/resolved_leaf.h"
#include "engine/volume/spin_lock.h"
#include "snap/result.h"

namespace snap {

/// Thread-safe.
class LeafCache {
 public:
  using Leaf = std::shared_ptr<const ResolvedLeaf>;

  /// A fill that is in flight. `result` is set before `done`.
  struct Fill {
    AsyncEvent done;
    std::optional<Result<Leaf>> result;
  };
  /// What a miss leads to: the leaf after all, or a fill that is the caller's to do (`mine`, ended
  /// by finish()) or to wait for.
  struct Claim {
    Leaf leaf;
    std::shared_ptr<Fill> fill;
    bool mine = false;
  };

  /// For leaves 0..leaf_count-1; keeps about `memory` bytes of them, one leaf at least.
  LeafCache(std::size_t leaf_count, std::size_t memory);
  ~LeafCache();
  LeafCache(const LeafCache&) = delete;
  LeafCache& operator=(const LeafCache&) = delete;

  /// Null if it is not in memory.
  Leaf find(std::size_t index) const noexcept;
  Claim claim(std::size_t index);
  /// Ends a fill: keeps the leaf (an error is not kept: the next miss tries again), releases those
  /// who wait, evicts.
  void finish(std::size_t index, std::shared_ptr<Fill> fill, Result<Leaf> result);

  std::uint64_t filled() const noexcept { return filled_.load(std::memory_order_relaxed); }
  std::uint64_t bytes() const noexcept { return bytes_.load(std::memory_order_relaxed); }

 private:
  static constexpr std::size_t kSlotsPerPage = 256;
  struct Slot {
    SpinLock lock;
    std::atomic<bool> used{false};  ///< read since eviction last came by
    Leaf leaf;
  };
  struct Page {
    std::array<Slot, kSlotsPerPage> slots;
  };

  Slot* slot(std::size_t index) const noexcept;
  Slot& make_slot(std::size_t index);
  void evict(std::vector<Leaf>& dropped);

  /// Pages appear when a leaf of theirs is filled, and stay: 24 bytes a 32 MiB.
  std::vector<std::atomic<Page*>> pages_;
  const std::size_t memory_;
  std::atomic<std::uint64_t> filled_{0};
  std::atomic<std::uint64_t> bytes_{0};

  std::mutex lock_;  ///< guards what follows, and the making of pages
  std::unordered_map<std::size_t, std::shared_ptr<Fill>> fills_;
  std::deque<std::size_t> resident_;  ///< in the order of eviction
};

}  // namespace snap
