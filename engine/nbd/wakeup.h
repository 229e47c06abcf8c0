// Wakeup: one coroutine waits, others on the same loop tell it that something has changed.
#pragma once

#include <coroutine>
#include <utility>

#include "snap/event_loop.h"

namespace snap::nbd {

/// Not thread-safe: waiter and notifiers share one loop. The waiter looks at its condition again
/// when it wakes; a notify() while no one waits is forgotten, so the condition is tested first.
class Wakeup {
 public:
  void notify() {
    if (waiter_) EventLoop::current()->schedule(std::exchange(waiter_, nullptr));
  }
  /// Suspends until notify(). One waiter at a time.
  auto wait() {
    struct Awaiter {
      Wakeup* wakeup;
      bool await_ready() const noexcept { return false; }
      void await_suspend(std::coroutine_handle<> h) noexcept { wakeup->waiter_ = h; }
      void await_resume() const noexcept {}
    };
    return Awaiter{this};
  }

 private:
  std::coroutine_handle<> waiter_;
};

}  // namespace snap::nbd
