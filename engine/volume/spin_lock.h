// SpinLock: for sections of a few instructions that never wait, on the path of every read.
//
// A std::mutex would do the same at the price of a system call whenever two loops meet. The holder
// may be preempted, so a waiter gives up its time slice after a while.
#pragma once

#include <atomic>
#include <thread>

namespace snap {

/// Meets BasicLockable, so std::lock_guard holds it. Never hold it across a co_await.
class SpinLock {
 public:
  void lock() noexcept {
    for (unsigned tries = 0; taken_.exchange(true, std::memory_order_acquire); ++tries) {
      if (tries % kTriesBeforeYield == kTriesBeforeYield - 1) std::this_thread::yield();
    }
  }
  void unlock() noexcept { taken_.store(false, std::memory_order_release); }

 private:
  static constexpr unsigned kTriesBeforeYield = 64;
  std::atomic<bool> taken_{false};
};

}  // namespace snap
