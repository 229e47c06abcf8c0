// EventLoop: one thread that runs tasks, and the I/O they wait for.
//
// Three kinds behind one interface: io_uring; a pread/pwrite thread pool with epoll, for where
// io_uring is denied (container runtimes forbid it by default); and the simulated loop of the crash
// tests (engine/io/sim_loop.h), deterministic from a seed. Code that runs on a loop never blocks
// its thread: what may block goes through an IoOp or through offload().
//
// A turn of the loop: reap completions, resume every coroutine that became ready, submit all I/O
// that they started with one system call.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <chrono>
#include <coroutine>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>

#include "snap/result.h"
#include "snap/task.h"

struct iovec;
struct msghdr;

namespace snap {

class File;

enum class IoOpcode : std::uint8_t {
  kRead,       ///< pread into buffer/length at offset
  kWrite,      ///< pwrite from buffer/length at offset
  kReadv,      ///< preadv, iov/iov_count at offset
  kWritev,     ///< pwritev, iov/iov_count at offset
  kDataSync,   ///< fdatasync
  kSync,       ///< fsync
  kPunch,      ///< fallocate(PUNCH_HOLE|KEEP_SIZE), length at offset
  kAllocate,   ///< fallocate(0 or KEEP_SIZE by `flags`), length at offset
  kWriteback,  ///< sync_file_range(SYNC_FILE_RANGE_WRITE), length at offset
  kRecv,       ///< recv into buffer/length
  kSendMsg,    ///< sendmsg of `message` with MSG_NOSIGNAL | flags; may send in part
  kAccept,     ///< accept4 with SOCK_CLOEXEC; the result is the new descriptor
  kPoll,       ///< wait for the poll(2) events in `flags`; the result is the events
};

/// One I/O in flight. It lives in the frame of the coroutine that awaits it and is never moved or
/// destroyed before it completes. `co_await` gives the kernel's result: bytes (or descriptor, or
/// events) or the Error with operation, file and offset in its message. Bytes may be fewer than
/// asked.
class IoOp {
 public:
  IoOpcode opcode{};
  int fd = -1;
  void* buffer = nullptr;
  std::size_t length = 0;
  std::uint64_t offset = 0;
  const iovec* iov = nullptr;
  unsigned iov_count = 0;
  msghdr* message = nullptr;
  int flags = 0;
  /// The file it is for; null for sockets.
  File* file = nullptr;

  // State of the loop that runs it.
  std::int64_t result = 0;  ///< >= 0, or -errno
  std::coroutine_handle<> waiter;
  IoOp* next = nullptr;
  void* loop_data = nullptr;

  IoOp() = default;
  IoOp(const IoOp&) = delete;
  IoOp& operator=(const IoOp&) = delete;

  bool await_ready() const noexcept { return false; }
  /// False if it completed at once.
  bool await_suspend(std::coroutine_handle<> h);
  Result<std::size_t> await_resume();
};

struct LoopOptions {
  enum class Kind {
    kAuto,  ///< io_uring, or threads where it is denied; SNAPCTL_IO=uring|threads overrides
    kUring,
    kThreads,
  };
  Kind kind = Kind::kAuto;
  unsigned queue_depth = 1024;   ///< submission entries of the ring
  unsigned offload_threads = 2;  ///< threads for offload() and, without io_uring, for file I/O
};

class EventLoop {
 public:
  using Clock = std::chrono::steady_clock;

  EventLoop() = default;
  EventLoop(const EventLoop&) = delete;
  EventLoop& operator=(const EventLoop&) = delete;
  virtual ~EventLoop() = default;

  /// The loop that is running on this thread; null outside of run().
  static EventLoop* current() noexcept;

  /// "io_uring", "threads" or "simulated".
  virtual const char* name() const noexcept = 0;

  // ---- From the loop's thread

  /// Starts `op`. True: it is in flight and resumes op.waiter from the run queue when done. False:
  /// it completed at once and op.result is set.
  virtual bool submit(IoOp& op) = 0;
  /// Asks that an op in flight completes soon, with -ECANCELED if it can still be stopped.
  virtual void cancel(IoOp& op) = 0;
  /// Resumes `h` in this turn or the next, after what is queued already.
  virtual void schedule(std::coroutine_handle<> h) = 0;
  /// Time of the loop; simulated loops have their own.
  virtual Clock::time_point now() = 0;
  /// Resumes `h` at `when`; gives a ticket to cancel it by.
  virtual std::uint64_t add_timer(Clock::time_point when, std::coroutine_handle<> h) = 0;
  /// Fires a timer early: its waiter is resumed in this turn. Nothing if it has fired.
  virtual void fire_timer(std::uint64_t ticket) = 0;
  /// Runs `task` beside everything else; run() does not return before it has ended.
  void spawn(Task<void> task);

  /// Whether its own thread makes the calls of run_blocking(): for a program that does one thing,
  /// and waits for that.
  bool may_block() const noexcept { return may_block_; }
  void set_may_block(bool may) noexcept { may_block_ = may; }

  // ---- From any thread

  /// Resumes `h` on the loop's thread. The loop wakes up for it.
  virtual void post(std::coroutine_handle<> h) = 0;
  /// Runs `work` (blocking or heavy) on a helper thread. `done` must be resumed by post().
  virtual void offload_raw(std::function<void()> work) = 0;

  // ---- Running

  /// Runs the loop on the calling thread until `main` and all that was spawned has ended.
  template <class T>
  T run(Task<T> main);

  /// What shutdown() asked for; long waits look at it. Once stopping, sleeps and pending accepts,
  /// receives and polls complete at once (as cancelled), and so does each new one.
  bool stopping() const noexcept { return stopping_.load(std::memory_order_acquire); }
  /// Begins the shutdown. Thread-safe.
  virtual void shutdown() = 0;

 protected:
  /// Turns the loop until *live is 0.
  virtual void run_until_idle() = 0;
  void set_current(EventLoop* loop) noexcept;

  std::atomic<bool> stopping_{false};
  std::size_t live_tasks_ = 0;  ///< spawned and not yet ended

 private:
  bool may_block_ = false;

  struct Detached;
  static Detached run_detached(EventLoop* loop, Task<void> task);
  template <class T>
  static Task<void> store_result(Task<T> task, std::optional<T>* out) {
    out->emplace(co_await std::move(task));
  }
};

/// The loop that `options` asks for. Unsupported if io_uring was asked for by name and is denied.
Result<std::unique_ptr<EventLoop>> make_event_loop(LoopOptions options = {});

template <class T>
T EventLoop::run(Task<T> main) {
  if constexpr (std::is_void_v<T>) {
    EventLoop* outer = current();
    set_current(this);
    spawn(std::move(main));
    run_until_idle();
    set_current(outer);
  } else {
    std::optional<T> out;
    run(store_result(std::move(main), &out));
    return std::move(*out);
  }
}

/// `co_await yield_now()` lets everything that is ready run first.
struct YieldAwaiter {
  bool await_ready() const noexcept { return false; }
  void await_suspend(std::coroutine_handle<> h) { EventLoop::current()->schedule(h); }
  void await_resume() const noexcept {}
};
inline YieldAwaiter yield_now() {
  return {};
}

/// A sleep that another task on the same loop may cut short.
class Sleep {
 public:
  explicit Sleep(EventLoop::Clock::duration how_long) : how_long_(how_long) {}
  Sleep(const Sleep&) = delete;
  Sleep& operator=(const Sleep&) = delete;

  /// Ends it now (also before it began). From the loop's thread.
  void wake() {
    woken_ = true;
    if (ticket_ != 0) EventLoop::current()->fire_timer(ticket_);
  }
  bool await_ready() const noexcept { return woken_ || EventLoop::current()->stopping(); }
  void await_suspend(std::coroutine_handle<> h) {
    EventLoop* loop = EventLoop::current();
    ticket_ = loop->add_timer(loop->now() + how_long_, h);
  }
  void await_resume() noexcept { ticket_ = 0; }

 private:
  EventLoop::Clock::duration how_long_;
  std::uint64_t ticket_ = 0;  // 0: no timer is set
  bool woken_ = false;
};

namespace detail {
template <class F>
class Offload {
 public:
  using R = std::invoke_result_t<F&>;
  Offload(F work, bool here) : work_(std::move(work)), here_(here) {}
  bool await_ready() {
    if (here_) run();
    return here_;
  }
  void await_suspend(std::coroutine_handle<> h) {
    EventLoop* loop = EventLoop::current();
    loop->offload_raw([this, loop, h] {
      run();
      loop->post(h);
    });
  }
  R await_resume() {
    if constexpr (!std::is_void_v<R>) return std::move(*result_);
  }

 private:
  void run() {
    if constexpr (std::is_void_v<R>) {
      work_();
    } else {
      result_.emplace(work_());
    }
  }

  F work_;
  const bool here_;
  std::conditional_t<std::is_void_v<R>, char, std::optional<R>> result_{};
};
}  // namespace detail

/// `co_await offload(f)`: runs f() on a helper thread, for work that would hold up the loop
/// (hashing, compression). What f refers to must outlive the await. In the simulation f runs at
/// once. f is a plain callable, not a coroutine.
template <class F>
detail::Offload<F> offload(F f) {
  return detail::Offload<F>(std::move(f), false);
}

/// The same for a system call that may block. Where nothing else waits for the loop the call is
/// made at once: the way to a helper thread and back would cost more than most of them.
template <class F>
detail::Offload<F> run_blocking(F f) {
  return detail::Offload<F>(std::move(f), EventLoop::current()->may_block());
}

}  // namespace snap
