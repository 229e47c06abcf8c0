// Waiting between tasks, on one loop or across loops: Mutex, Event, Gate, WaitGroup, gather.
//
// A waiter remembers the loop it waits on and is resumed there by post(), so every primitive here
// may be shared by worker threads. None blocks a thread.
#pragma once

#include <atomic>
#include <coroutine>
#include <cstddef>
#include <deque>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "snap/event_loop.h"
#include "snap/task.h"

namespace snap {

/// A suspended coroutine and the loop to resume it on.
struct Waiter {
  EventLoop* loop = nullptr;
  std::coroutine_handle<> handle;
  static Waiter here(std::coroutine_handle<> h) { return {EventLoop::current(), h}; }
  void resume() const {
    if (loop == EventLoop::current()) {
      loop->schedule(handle);
    } else {
      loop->post(handle);
    }
  }
};

/// First come, first served lock that is held across awaits.
class AsyncMutex {
 public:
  class [[nodiscard]] Guard {
   public:
    Guard() = default;
    explicit Guard(AsyncMutex* m) : mutex_(m) {}
    Guard(Guard&& o) noexcept : mutex_(std::exchange(o.mutex_, nullptr)) {}
    Guard& operator=(Guard&& o) noexcept {
      if (this != &o) {
        release();
        mutex_ = std::exchange(o.mutex_, nullptr);
      }
      return *this;
    }
    ~Guard() { release(); }
    void release() {
      if (mutex_ != nullptr) std::exchange(mutex_, nullptr)->unlock();
    }

   private:
    AsyncMutex* mutex_ = nullptr;
  };

  /// `auto guard = co_await mutex.lock();`
  auto lock() {
    struct Awaiter {
      AsyncMutex* mutex;
      bool await_ready() const noexcept { return false; }
      bool await_suspend(std::coroutine_handle<> h) {
        std::lock_guard guard(mutex->lock_);
        if (!mutex->held_) {
          mutex->held_ = true;
          return false;
        }
        mutex->waiters_.push_back(Waiter::here(h));
        return true;
      }
      Guard await_resume() const noexcept { return Guard(mutex); }
    };
    return Awaiter{this};
  }

 private:
  void unlock() {
    Waiter next;
    {
      std::lock_guard guard(lock_);
      if (waiters_.empty()) {
        held_ = false;
        return;
      }
      next = waiters_.front();  // held_ stays true: the lock is handed over
      waiters_.pop_front();
    }
    next.resume();
  }

  std::mutex lock_;
  bool held_ = false;
  std::deque<Waiter> waiters_;
};

/// Starts unset; set() releases all waiters, now and later, until reset().
class AsyncEvent {
 public:
  void set() {
    std::vector<Waiter> ready;
    {
      std::lock_guard guard(lock_);
      set_ = true;
      ready.swap(waiters_);
    }
    for (const Waiter& w : ready)
      w.resume();
  }
  void reset() {
    std::lock_guard guard(lock_);
    set_ = false;
  }
  bool is_set() {
    std::lock_guard guard(lock_);
    return set_;
  }
  auto wait() {
    struct Awaiter {
      AsyncEvent* event;
      bool await_ready() const noexcept { return false; }
      bool await_suspend(std::coroutine_handle<> h) {
        std::lock_guard guard(event->lock_);
        if (event->set_) return false;
        event->waiters_.push_back(Waiter::here(h));
        return true;
      }
      void await_resume() const noexcept {}
    };
    return Awaiter{this};
  }

 private:
  std::mutex lock_;
  bool set_ = false;
  std::vector<Waiter> waiters_;
};

/// Counts what is in flight; wait() returns once the count is 0.
class WaitGroup {
 public:
  void add(std::size_t n = 1) {
    std::lock_guard guard(lock_);
    count_ += n;
  }
  void done() {
    std::vector<Waiter> ready;
    {
      std::lock_guard guard(lock_);
      if (--count_ == 0) ready.swap(waiters_);
    }
    for (const Waiter& w : ready)
      w.resume();
  }
  std::size_t count() {
    std::lock_guard guard(lock_);
    return count_;
  }
  auto wait() {
    struct Awaiter {
      WaitGroup* group;
      bool await_ready() const noexcept { return false; }
      bool await_suspend(std::coroutine_handle<> h) {
        std::lock_guard guard(group->lock_);
        if (group->count_ == 0) return false;
        group->waiters_.push_back(Waiter::here(h));
        return true;
      }
      void await_resume() const noexcept {}
    };
    return Awaiter{this};
  }

 private:
  std::mutex lock_;
  std::size_t count_ = 0;
  std::vector<Waiter> waiters_;
};

/// Many may be inside; close() keeps newcomers out and waits until all have left. To go in and out
/// of an open gate is one atomic operation each (docs/design.md, Snapshot: writes drain before a
/// seal).
class Gate {
 public:
  class [[nodiscard]] Pass {
   public:
    Pass() = default;
    explicit Pass(Gate* g) : gate_(g) {}
    Pass(Pass&& o) noexcept : gate_(std::exchange(o.gate_, nullptr)) {}
    Pass& operator=(Pass&& o) noexcept {
      if (this != &o) {
        leave();
        gate_ = std::exchange(o.gate_, nullptr);
      }
      return *this;
    }
    ~Pass() { leave(); }
    void leave() {
      if (gate_ != nullptr) std::exchange(gate_, nullptr)->leave();
    }

   private:
    Gate* gate_ = nullptr;
  };

  /// `auto pass = co_await gate.enter();` waits while the gate is closed.
  auto enter() {
    struct Awaiter {
      Gate* gate;
      bool await_ready() const noexcept { return gate->try_enter(); }
      bool await_suspend(std::coroutine_handle<> h) {
        std::lock_guard guard(gate->lock_);
        if (gate->try_enter()) return false;
        gate->entering_.push_back(Waiter::here(h));
        return true;
      }
      Pass await_resume() const noexcept { return Pass(gate); }
    };
    return Awaiter{this};
  }

  /// The same without waiting: nothing if the gate is closed.
  std::optional<Pass> enter_now() {
    if (!try_enter()) return std::nullopt;
    return Pass(this);
  }

  /// Closes the gate and waits until no one is inside. Only one closer at a time.
  auto close() {
    struct Awaiter {
      Gate* gate;
      bool await_ready() const noexcept { return false; }
      bool await_suspend(std::coroutine_handle<> h) {
        std::lock_guard guard(gate->lock_);
        if (gate->state_.fetch_or(kClosed) == 0) return false;
        gate->closer_ = Waiter::here(h);  // the last to leave waits for the lock, and finds it
        return true;
      }
      void await_resume() const noexcept {}
    };
    return Awaiter{this};
  }

  void open() {
    std::vector<Waiter> ready;
    {
      std::lock_guard guard(lock_);
      ready.swap(entering_);
      // They are let in here, not when they run. Nobody goes in or out of a closed, empty gate.
      state_.store(ready.size() * kOneInside);
    }
    for (const Waiter& w : ready)
      w.resume();
  }

 private:
  static constexpr std::size_t kClosed = 1;
  static constexpr std::size_t kOneInside = 2;

  bool try_enter() noexcept {
    std::size_t state = state_.load();
    while ((state & kClosed) == 0) {
      if (state_.compare_exchange_weak(state, state + kOneInside)) return true;
    }
    return false;
  }

  void leave() {
    if (state_.fetch_sub(kOneInside) != (kClosed | kOneInside)) return;
    Waiter closer;
    {
      std::lock_guard guard(lock_);
      closer = std::exchange(closer_, Waiter{});
    }
    closer.resume();
  }

  std::atomic<std::size_t> state_ = 0;  // kClosed, and kOneInside for each that is inside
  std::mutex lock_;                     // over what follows, and over changes of kClosed
  std::vector<Waiter> entering_;
  Waiter closer_;
};

/// Runs tasks side by side on this loop and waits for all; gives their results in order.
template <class T>
Task<std::vector<T>> gather(std::vector<Task<T>> tasks);

namespace detail {
template <class T>
Task<void> run_into(Task<T> task, std::optional<T>* out, WaitGroup* group) {
  out->emplace(co_await std::move(task));
  group->done();
}
}  // namespace detail

template <class T>
Task<std::vector<T>> gather(std::vector<Task<T>> tasks) {
  std::vector<std::optional<T>> results(tasks.size());
  WaitGroup group;
  group.add(tasks.size());
  for (std::size_t i = 0; i < tasks.size(); ++i) {
    EventLoop::current()->spawn(detail::run_into(std::move(tasks[i]), &results[i], &group));
  }
  co_await group.wait();
  std::vector<T> out;
  out.reserve(results.size());
  for (auto& r : results)
    out.push_back(std::move(*r));
  co_return out;
}

}  // namespace snap
