// BlockQuota: how many data blocks may be held, and how many are, counted exactly from any thread:
// a block is taken before it is written, and given back when the write fails or the block is
// zeroed. So what is held never exceeds the bound, unless the bound is set below it.
#pragma once

#include <atomic>
#include <cstdint>
#include <limits>

namespace snap {

class BlockQuota {
 public:
  static constexpr std::int64_t kEndless = std::numeric_limits<std::int64_t>::max();

  /// False, and nothing is taken, if that many more would exceed the bound.
  bool take(unsigned blocks) noexcept {
    std::int64_t now = taken_.load(std::memory_order_relaxed);
    do {
      if (now + blocks > bound_.load(std::memory_order_relaxed)) return false;
    } while (!taken_.compare_exchange_weak(now, now + blocks, std::memory_order_relaxed));
    return true;
  }
  void give(std::uint64_t blocks) noexcept {
    taken_.fetch_sub(static_cast<std::int64_t>(blocks), std::memory_order_relaxed);
  }
  /// What was taken and not given back; below zero for who gives back what he did not take here.
  std::int64_t taken() const noexcept { return taken_.load(std::memory_order_relaxed); }
  void set_taken(std::uint64_t blocks) noexcept {
    taken_.store(static_cast<std::int64_t>(blocks), std::memory_order_relaxed);
  }
  void set_bound(std::int64_t blocks) noexcept { bound_.store(blocks, std::memory_order_relaxed); }
  std::int64_t bound() const noexcept { return bound_.load(std::memory_order_relaxed); }
  bool full() const noexcept { return taken() >= bound(); }

 private:
  std::atomic<std::int64_t> taken_{0};
  std::atomic<std::int64_t> bound_{kEndless};
};

}  // namespace snap
