// MemoryBudget: what the payload buffers of all connections of a server may take together.
// MemoryAccount: one connection's part in it.
//
// Every connection has a share that it need not ask for, so that clients which take all there is
// and never read their replies leave room for the small requests of the others. Only what goes
// beyond its share comes out of the budget.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>

#include "snap/limits.h"

namespace snap::nbd {

/// Thread-safe.
class MemoryBudget {
 public:
  explicit MemoryBudget(std::size_t bytes = kMaxServerBytes) : bytes_(bytes) {}

  bool claim(std::size_t n) noexcept {
    if (used_.fetch_add(n, std::memory_order_relaxed) + n <= bytes_) return true;
    release(n);
    return false;
  }
  void release(std::size_t n) noexcept { used_.fetch_sub(n, std::memory_order_relaxed); }
  /// More than half is taken: nothing is kept for later.
  bool scarce() const noexcept { return used_.load(std::memory_order_relaxed) > bytes_ / 2; }

 private:
  const std::size_t bytes_;
  std::atomic<std::size_t> used_{0};
};

/// Not thread-safe. Without a budget everything is granted.
class MemoryAccount {
 public:
  explicit MemoryAccount(MemoryBudget* budget, std::size_t share = kConnectionShare)
      : budget_(budget), share_(share) {}
  MemoryAccount(const MemoryAccount&) = delete;
  MemoryAccount& operator=(const MemoryAccount&) = delete;
  ~MemoryAccount() { remove(held_); }

  bool add(std::size_t n) noexcept {
    const std::size_t beyond = beyond_share(held_ + n) - beyond_share(held_);
    if (budget_ != nullptr && beyond != 0 && !budget_->claim(beyond)) return false;
    held_ += n;
    return true;
  }
  void remove(std::size_t n) noexcept {
    const std::size_t beyond = beyond_share(held_) - beyond_share(held_ - n);
    held_ -= n;
    if (budget_ != nullptr && beyond != 0) budget_->release(beyond);
  }
  /// What is not used now had better be given back.
  bool scarce() const noexcept { return budget_ != nullptr && held_ > share_ && budget_->scarce(); }

 private:
  std::size_t beyond_share(std::size_t bytes) const noexcept {
    return bytes - std::min(bytes, share_);
  }

  MemoryBudget* const budget_;
  const std::size_t share_;
  std::size_t held_ = 0;
};

}  // namespace snap::nbd
