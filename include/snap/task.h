// Task<T>: a coroutine that yields one T. Straight-line code for asynchronous paths.
//
// - Lazy: nothing runs before it is awaited (or handed to EventLoop::spawn or run).
// - One awaiter, one thread: a task is awaited on the loop thread where it runs to its end.
// - The awaiter starts the child by a plain call; a child that finishes at once costs no
// suspension,
//   one that does not resumes its awaiter from its final suspend point. No symmetric transfer:
//   under sanitizers and -O0 g++ 12 does not make it a tail call, and the stack would grow with
//   each step. Here it grows with the depth of awaiting alone.
// - An exception that leaves a task ends the process: fallible tasks return Result.
//
// Rules for coroutines under g++ 12 (style.md, 13): named functions, parameters by value or owned
// by the caller until the task ends, no capturing lambda as a coroutine, no co_await in a ternary,
// an initializer list or a macro.
#pragma once

#include <coroutine>
#include <exception>
#include <optional>
#include <utility>

namespace snap {

template <class T>
class Task;

namespace detail {

class TaskPromiseBase {
 public:
  std::suspend_always initial_suspend() noexcept { return {}; }

  struct FinalAwaiter {
    bool await_ready() noexcept { return false; }
    template <class Promise>
    void await_suspend(std::coroutine_handle<Promise> self) noexcept {
      // No continuation yet means that the awaiter is still inside its call to resume() and will
      // see that the task is done. After resume() below *self may be gone.
      if (auto continuation = self.promise().continuation_) continuation.resume();
    }
    void await_resume() noexcept {}
  };
  FinalAwaiter final_suspend() noexcept { return {}; }
  void unhandled_exception() noexcept { std::terminate(); }

  std::coroutine_handle<> continuation_;
};

template <class T>
class TaskPromise final : public TaskPromiseBase {
 public:
  Task<T> get_return_object() noexcept;
  template <class U>
  requires std::is_convertible_v<U&&, T>
  void return_value(U&& value) { value_.emplace(std::forward<U>(value)); }
  T take() { return std::move(*value_); }

 private:
  std::optional<T> value_;
};

template <>
class TaskPromise<void> final : public TaskPromiseBase {
 public:
  Task<void> get_return_object() noexcept;
  void return_void() noexcept {}
  void take() noexcept {}
};

}  // namespace detail

template <class T = void>
class [[nodiscard]] Task {
 public:
  using promise_type = detail::TaskPromise<T>;
  using value_type = T;

  Task() = default;
  explicit Task(std::coroutine_handle<promise_type> h) : handle_(h) {}
  Task(Task&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Task& operator=(Task&& other) noexcept {
    if (this != &other) {
      destroy();
      handle_ = std::exchange(other.handle_, nullptr);
    }
    return *this;
  }
  ~Task() { destroy(); }

  struct Awaiter {
    std::coroutine_handle<promise_type> child;
    bool await_ready() const noexcept { return false; }
    bool await_suspend(std::coroutine_handle<> parent) noexcept {
      child.resume();
      if (child.done()) return false;
      child.promise().continuation_ = parent;
      return true;
    }
    T await_resume() { return child.promise().take(); }
  };
  Awaiter operator co_await() const& noexcept { return Awaiter{handle_}; }
  Awaiter operator co_await() && noexcept { return Awaiter{handle_}; }

  bool valid() const noexcept { return handle_ != nullptr; }

 private:
  void destroy() noexcept {
    if (handle_) handle_.destroy();
    handle_ = nullptr;
  }
  std::coroutine_handle<promise_type> handle_;
};

namespace detail {
template <class T>
Task<T> TaskPromise<T>::get_return_object() noexcept {
  return Task<T>(std::coroutine_handle<TaskPromise<T>>::from_promise(*this));
}
inline Task<void> TaskPromise<void>::get_return_object() noexcept {
  return Task<void>(std::coroutine_handle<TaskPromise<void>>::from_promise(*this));
}
}  // namespace detail

}  // namespace snap
