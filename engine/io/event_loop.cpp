#include "snap/event_loop.h"

#include <string>

#include "snap/file.h"

namespace snap {

namespace {
thread_local EventLoop* current_loop = nullptr;

const char* opcode_name(IoOpcode opcode) {
  switch (opcode) {
    case IoOpcode::kRead:
    case IoOpcode::kReadv:
      return "read";
    case IoOpcode::kWrite:
    case IoOpcode::kWritev:
      return "write";
    case IoOpcode::kDataSync:
      return "fdatasync";
    case IoOpcode::kSync:
      return "fsync";
    case IoOpcode::kPunch:
      return "punch hole";
    case IoOpcode::kAllocate:
      return "allocate";
    case IoOpcode::kWriteback:
      return "begin writeback";
    case IoOpcode::kRecv:
      return "receive";
    case IoOpcode::kSendMsg:
      return "send";
    case IoOpcode::kAccept:
      return "accept";
    case IoOpcode::kPoll:
      return "poll";
  }
  return "I/O";
}

std::string describe(const IoOp& op) {
  std::string what = opcode_name(op.opcode);
  if (op.file != nullptr) {
    if (op.opcode != IoOpcode::kDataSync && op.opcode != IoOpcode::kSync) {
      if (op.length != 0) what += " " + std::to_string(op.length) + " bytes";
      what += " at " + std::to_string(op.offset);
    }
    what += " of " + op.file->path();
  }
  return what;
}
}  // namespace

EventLoop* EventLoop::current() noexcept {
  return current_loop;
}
void EventLoop::set_current(EventLoop* loop) noexcept {
  current_loop = loop;
}

bool IoOp::await_suspend(std::coroutine_handle<> h) {
  waiter = h;
  return file != nullptr ? file->start(*this) : EventLoop::current()->submit(*this);
}

Result<std::size_t> IoOp::await_resume() {
  if (result >= 0) return static_cast<std::size_t>(result);
  return Error::from_errno(static_cast<int>(-result), describe(*this));
}

/// The frame that owns a spawned task; it destroys itself when the task has ended.
struct EventLoop::Detached {
  struct promise_type {
    Detached get_return_object() {
      return {std::coroutine_handle<promise_type>::from_promise(*this)};
    }
    std::suspend_always initial_suspend() noexcept { return {}; }
    std::suspend_never final_suspend() noexcept { return {}; }
    void return_void() noexcept {}
    void unhandled_exception() noexcept { std::terminate(); }
  };
  std::coroutine_handle<promise_type> handle;
};

EventLoop::Detached EventLoop::run_detached(EventLoop* loop, Task<void> task) {
  co_await std::move(task);
  --loop->live_tasks_;
}

void EventLoop::spawn(Task<void> task) {
  ++live_tasks_;
  schedule(run_detached(this, std::move(task)).handle);
}

}  // namespace snap
