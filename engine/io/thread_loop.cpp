#include "engine/io/thread_loop.h"

#include <errno.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <array>

#include "engine/io/cached_io.h"
#include "engine/io/file_calls.h"

namespace snap {

namespace {

// Writes and syncs wait for the disk side by side; more threads than offload() needs pay off.
constexpr unsigned kMinFileThreads = 4;

unsigned events_of(const IoOp& op) {
  switch (op.opcode) {
    case IoOpcode::kSendMsg:
      return EPOLLOUT;
    case IoOpcode::kPoll:
      return static_cast<unsigned>(op.flags) & 0xffffu;  // poll and epoll share these bits
    default:
      return EPOLLIN;
  }
}

int timeout_until(EventLoop::Clock::time_point deadline, EventLoop::Clock::time_point now) {
  if (deadline <= now) return 0;
  // Rounded up: a wake-up before the deadline would only be another turn.
  const auto ms = std::chrono::ceil<std::chrono::milliseconds>(deadline - now).count();
  return static_cast<int>(std::min<std::int64_t>(ms, 3'600'000));
}

}  // namespace

Result<std::unique_ptr<EventLoop>> ThreadLoop::create(const LoopOptions& options) {
  UniqueFd epoll(::epoll_create1(EPOLL_CLOEXEC));
  if (!epoll) return Error::from_errno(errno, "create an epoll instance");
  UniqueFd event(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!event) return Error::from_errno(errno, "create an eventfd");
  epoll_event interest{};
  interest.events = EPOLLIN;
  interest.data.fd = event.get();
  if (::epoll_ctl(epoll.get(), EPOLL_CTL_ADD, event.get(), &interest) != 0)
    return Error::from_errno(errno, "watch an eventfd");
  return std::unique_ptr<EventLoop>(new ThreadLoop(options, std::move(epoll), std::move(event)));
}

ThreadLoop::ThreadLoop(const LoopOptions& options, UniqueFd epoll, UniqueFd wake_event)
    : LoopCore(options.offload_threads),
      epoll_(std::move(epoll)),
      wake_event_(std::move(wake_event)),
      file_threads_(std::max(options.offload_threads, kMinFileThreads)) {}

bool ThreadLoop::submit(IoOp& op) {
  if (is_file_op(op.opcode)) {
    // Whoever hopes for the page cache has asked it already (RealFile).
    const bool asked = op.opcode == IoOpcode::kRead && op.flags == kCachedRead;
    op.result = asked ? -EAGAIN : read_if_cached(op);
    if (op.result >= 0) return false;
    file_threads_.add([this, &op] {
      op.result = run_file_op(op);
      post(op.waiter);
    });
    return true;
  }
  if (stopping() && waits_for_peer(op.opcode)) {
    op.result = -ECANCELED;
    return false;
  }
  if (!has_waiting(op.fd, op.opcode)) {
    op.result = try_socket_op(op);
    if (op.result != -EAGAIN) return false;
  }
  enqueue(op);
  if (const int err = arm(op.fd); err != 0) {
    cancel(op);
    ready_.pop_back();
    op.result = err;
    return false;
  }
  return true;
}

bool ThreadLoop::has_waiting(int fd, IoOpcode opcode) const {
  auto found = waiting_.find(fd);
  if (found == waiting_.end()) return false;
  for (const IoOp* op = found->second; op != nullptr; op = op->next) {
    if (op->opcode == opcode && opcode != IoOpcode::kPoll) return true;
  }
  return false;
}

void ThreadLoop::enqueue(IoOp& op) {
  op.next = nullptr;
  IoOp** slot = &waiting_[op.fd];
  while (*slot != nullptr)
    slot = &(*slot)->next;
  *slot = &op;
}

int ThreadLoop::arm(int fd) {
  auto found = waiting_.find(fd);
  epoll_event interest{};
  interest.events = EPOLLONESHOT;
  interest.data.fd = fd;
  for (const IoOp* op = found->second; op != nullptr; op = op->next)
    interest.events |= events_of(*op);
  if (::epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, fd, &interest) == 0) return 0;
  if (errno != ENOENT) return -errno;
  return ::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &interest) == 0 ? 0 : -errno;
}

void ThreadLoop::cancel(IoOp& op) {
  auto found = waiting_.find(op.fd);
  if (found == waiting_.end()) return;
  IoOp** slot = &found->second;
  while (*slot != nullptr && *slot != &op)
    slot = &(*slot)->next;
  if (*slot == nullptr) return;
  *slot = op.next;
  complete(op, -ECANCELED);
  if (found->second == nullptr) {
    // The descriptor may be closed next; its registration must not outlive it in a duplicate.
    ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, op.fd, nullptr);
    waiting_.erase(found);
  }
}

void ThreadLoop::cancel_waits() {
  std::vector<IoOp*> stopped;
  for (auto& [fd, first] : waiting_) {
    for (IoOp* op = first; op != nullptr; op = op->next) {
      if (waits_for_peer(op->opcode)) stopped.push_back(op);
    }
  }
  for (IoOp* op : stopped)
    cancel(*op);
}

void ThreadLoop::wake() {
  const std::uint64_t one = 1;
  // EAGAIN means that the counter is full: the loop is being woken already.
  (void)!::write(wake_event_.get(), &one, sizeof one);
}

void ThreadLoop::turn(bool may_wait, std::optional<Clock::time_point> deadline) {
  std::array<epoll_event, 64> events;
  int timeout = may_wait ? -1 : 0;
  if (may_wait && deadline) timeout = timeout_until(*deadline, now());
  // Nothing to wait for and nothing to look at: spare the call.
  if (!may_wait && waiting_.empty()) return;
  const int n = ::epoll_wait(epoll_.get(), events.data(), static_cast<int>(events.size()), timeout);
  for (int i = 0; i < n; ++i) {  // n < 0 is EINTR: just another turn
    const epoll_event& e = events[static_cast<std::size_t>(i)];
    if (e.data.fd == wake_event_.get()) {
      std::uint64_t count = 0;
      (void)!::read(wake_event_.get(), &count, sizeof count);
    } else {
      handle_event(e.data.fd, e.events);
    }
  }
}

void ThreadLoop::handle_event(int fd, unsigned events) {
  auto found = waiting_.find(fd);
  if (found == waiting_.end()) return;
  IoOp** slot = &found->second;
  while (*slot != nullptr) {
    IoOp& op = **slot;
    const std::int64_t result =
        (events & (events_of(op) | EPOLLERR | EPOLLHUP)) != 0 ? try_socket_op(op) : -EAGAIN;
    if (result == -EAGAIN) {
      slot = &op.next;
    } else {
      *slot = op.next;
      complete(op, result);
    }
  }
  if (found->second == nullptr) {
    waiting_.erase(found);
  } else if (const int err = arm(fd); err != 0) {
    while (found->second != nullptr) {
      IoOp* op = std::exchange(found->second, found->second->next);
      complete(*op, err);
    }
    waiting_.erase(found);
  }
}

}  // namespace snap
