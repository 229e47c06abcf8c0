#include "engine/io/uring_loop.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "engine/io/cached_io.h"
#include "engine/io/durable_write.h"
#include "engine/io/file_calls.h"

namespace snap {

namespace {

// user_data is the address of the IoOp, its low bit set when the entry is only the poll that comes
// before another try. These two are no addresses.
constexpr std::uint64_t kCancelData = 2;
constexpr std::uint64_t kWakeData = 4;
constexpr std::uint64_t kPollBit = 1;
static_assert(alignof(IoOp) >= 8);

constexpr unsigned kCompletionReserve = 64;
constexpr unsigned kMinQueueDepth = 64;
// Each of them is asked for in turn, and delays the others.
constexpr std::size_t kMostHeldBack = 4;

std::uint64_t data_of(const IoOp& op, bool poll) {
  return reinterpret_cast<std::uintptr_t>(&op) | (poll ? kPollBit : 0);
}

/// 5.11: a wait with a timeout that is no entry of its own; 5.5: completions are never dropped.
constexpr unsigned kNeededFeatures = IORING_FEAT_EXT_ARG | IORING_FEAT_NODROP;
constexpr std::array kNeededOps = {
    IORING_OP_READ,    IORING_OP_WRITE,     IORING_OP_READV,           IORING_OP_WRITEV,
    IORING_OP_FSYNC,   IORING_OP_FALLOCATE, IORING_OP_SYNC_FILE_RANGE, IORING_OP_RECV,
    IORING_OP_SENDMSG, IORING_OP_ACCEPT,    IORING_OP_POLL_ADD,        IORING_OP_ASYNC_CANCEL};

/// Best first; a kernel that does not know a flag answers EINVAL. The ring starts disabled where it
/// will belong to the thread that enables it.
constexpr std::array<unsigned, 3> kSetupFlags = {
    IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG |
        IORING_SETUP_R_DISABLED | IORING_SETUP_SUBMIT_ALL,
    IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_SUBMIT_ALL, 0};

int setup(io_uring& ring, unsigned depth) {
  int err = -EINVAL;
  for (const unsigned flags : kSetupFlags) {
    io_uring_params params{};
    params.flags = flags | IORING_SETUP_CLAMP | IORING_SETUP_CQSIZE;
    params.cq_entries = 4 * depth;
    err = io_uring_queue_init_params(depth, &ring, &params);
    if (err != -EINVAL) break;
  }
  return err;
}

/// Empty if the ring can do all we need, else what is missing.
std::string what_is_missing(io_uring& ring) {
  if ((ring.features & kNeededFeatures) != kNeededFeatures) return "Linux 5.11";
  io_uring_probe* probe = io_uring_get_probe_ring(&ring);
  if (probe == nullptr) return "a probe of its operations";
  std::string missing;
  for (const auto op : kNeededOps) {
    if (!io_uring_opcode_supported(probe, op)) missing = "operation " + std::to_string(op);
  }
  io_uring_free_probe(probe);
  return missing;
}

Error denied(int err) {
  std::string why = std::string("io_uring is not available here");
  if (err == -EPERM || err == -EACCES) why += " (denied by seccomp or kernel.io_uring_disabled)";
  if (err == -ENOMEM) why += " (the limit of locked memory, ulimit -l, is too low)";
  return Error::from_errno(-err, why + "; SNAPCTL_IO=threads does without")
      .with_code(ErrorCode::kUnsupported);
}

/// liburing 2.3 declares io_uring_enable_rings, but its shared library does not export it.
int enable(const io_uring& ring) {
  const long r =
      ::syscall(__NR_io_uring_register, ring.ring_fd, IORING_REGISTER_ENABLE_RINGS, nullptr, 0);
  return r >= 0 ? 0 : -errno;
}

bool may_run_again(const IoOp& op) {
  // A failed sync is never retried: the kernel has marked the lost pages clean.
  return op.opcode != IoOpcode::kDataSync && op.opcode != IoOpcode::kSync && !is_durable_write(op);
}

unsigned poll_events_of(const IoOp& op) {
  const bool out = op.opcode == IoOpcode::kSendMsg || op.opcode == IoOpcode::kWrite ||
                   op.opcode == IoOpcode::kWritev;
  return out ? POLLOUT : POLLIN;
}

void fill(io_uring_sqe* sqe, IoOp& op) {
  const auto n = static_cast<unsigned>(std::min(op.length, kMaxIoBytes));
  switch (op.opcode) {
    case IoOpcode::kRead:
      io_uring_prep_read(sqe, op.fd, op.buffer, n, op.offset);
      if (op.flags == kLongRead) sqe->flags |= IOSQE_ASYNC;
      return;
    case IoOpcode::kWrite:
      io_uring_prep_write(sqe, op.fd, op.buffer, n, op.offset);
      if (is_durable_write(op)) sqe->rw_flags = RWF_DSYNC;
      return;
    case IoOpcode::kReadv:
      return io_uring_prep_readv(sqe, op.fd, op.iov, op.iov_count, op.offset);
    case IoOpcode::kWritev:
      return io_uring_prep_writev(sqe, op.fd, op.iov, op.iov_count, op.offset);
    case IoOpcode::kDataSync:
      return io_uring_prep_fsync(sqe, op.fd, IORING_FSYNC_DATASYNC);
    case IoOpcode::kSync:
      return io_uring_prep_fsync(sqe, op.fd, 0);
    case IoOpcode::kPunch:
      return io_uring_prep_fallocate(sqe, op.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                                     static_cast<off_t>(op.offset), static_cast<off_t>(op.length));
    case IoOpcode::kAllocate:
      return io_uring_prep_fallocate(sqe, op.fd, op.flags != 0 ? FALLOC_FL_KEEP_SIZE : 0,
                                     static_cast<off_t>(op.offset), static_cast<off_t>(op.length));
    case IoOpcode::kWriteback:
      return io_uring_prep_sync_file_range(sqe, op.fd, n, op.offset, SYNC_FILE_RANGE_WRITE);
    case IoOpcode::kRecv:
      return io_uring_prep_recv(sqe, op.fd, op.buffer, n, op.flags);
    case IoOpcode::kSendMsg:
      return io_uring_prep_sendmsg(sqe, op.fd, op.message,
                                   static_cast<unsigned>(op.flags) | MSG_NOSIGNAL);
    case IoOpcode::kAccept:
      return io_uring_prep_accept(sqe, op.fd, nullptr, nullptr, SOCK_CLOEXEC);
    case IoOpcode::kPoll:
      return io_uring_prep_poll_add(sqe, op.fd, static_cast<unsigned>(op.flags));
  }
}

}  // namespace

// ---- Life of the ring

Result<std::unique_ptr<EventLoop>> UringLoop::create(const LoopOptions& options,
                                                     Clock::duration busy_poll) {
  UniqueFd event(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!event) return Error::from_errno(errno, "create an eventfd");
  std::unique_ptr<UringLoop> loop(new UringLoop(options, busy_poll, std::move(event)));
  auto opened = loop->open_ring();
  if (!opened) return opened.error();
  return std::unique_ptr<EventLoop>(std::move(loop));
}

UringLoop::UringLoop(const LoopOptions& options, Clock::duration busy_poll, UniqueFd wake_event)
    : LoopCore(options.offload_threads),
      queue_depth_(std::max(options.queue_depth, kMinQueueDepth)),
      wake_event_(std::move(wake_event)),
      busy_poll_(busy_poll) {}

UringLoop::~UringLoop() {
  close_ring();
}

Result<void> UringLoop::open_ring() {
  // Kernels before 5.12 count rings against RLIMIT_MEMLOCK: a smaller one may fit.
  int err = -ENOMEM;
  for (unsigned depth = queue_depth_; err == -ENOMEM && depth >= kMinQueueDepth; depth /= 2)
    err = setup(ring_, depth);
  if (err != 0) return denied(err);
  ring_open_ = true;
  ring_enabled_ = (ring_.flags & IORING_SETUP_R_DISABLED) == 0;
  in_flight_ = 0;
  max_in_flight_ = ring_.cq.ring_entries - kCompletionReserve;
  wake_armed_ = false;
  if (const std::string missing = what_is_missing(ring_); !missing.empty()) {
    return Error(ErrorCode::kUnsupported,
                 "this kernel's io_uring lacks " + missing + "; SNAPCTL_IO=threads does without");
  }
  return {};
}

void UringLoop::close_ring() {
  if (ring_open_) io_uring_queue_exit(&ring_);
  ring_open_ = false;
}

void UringLoop::begin_run() {
  const std::thread::id me = std::this_thread::get_id();
  const bool moved = owner_ != std::thread::id() && owner_ != me;
  Result<void> ready;
  if (moved) {
    close_ring();
    ready = open_ring();
  }
  owner_ = me;
  if (ready && !ring_enabled_) {
    const int err = enable(ring_);
    if (err != 0) ready = denied(err);
    ring_enabled_ = true;
  }
  if (!ready) {
    // run() has no way to fail, and no task can go on without its loop.
    std::fprintf(stderr, "snapctl: %s\n", ready.error().message().c_str());
    std::abort();
  }
}

// ---- Submission

bool UringLoop::submit(IoOp& op) {
  op.result = 0;
  if (waits_for_peer(op.opcode)) {
    if (stopping()) {
      op.result = -ECANCELED;
      return false;
    }
    link_wait(op);
    if (op.opcode == IoOpcode::kRecv && busy_poll_.enabled() && held_back_.size() < kMostHeldBack) {
      held_back_.push_back(&op);
      return true;
    }
  } else if (op.opcode == IoOpcode::kSendMsg) {
    // A reply mostly finds room in the socket: sent at once, it does not wait for the next turn.
    op.result = try_socket_op(op);
    if (op.result != -EAGAIN) return false;
    op.result = 0;
  }
  start(op, Step::kRun);
  return true;
}

void UringLoop::start(IoOp& op, Step step) {
  // Who came first goes first.
  if (!backlog_.empty() || !prepare(op, step)) backlog_.push_back(Pending{&op, step});
}

bool UringLoop::prepare(IoOp& op, Step step) {
  if (in_flight_ >= max_in_flight_) return false;
  io_uring_sqe* sqe = next_entry();
  if (sqe == nullptr) return false;
  if (step == Step::kPoll) {
    io_uring_prep_poll_add(sqe, op.fd, poll_events_of(op));
  } else {
    fill(sqe, op);
  }
  io_uring_sqe_set_data64(sqe, data_of(op, step == Step::kPoll));
  ++in_flight_;
  return true;
}

io_uring_sqe* UringLoop::next_entry() {
  io_uring_sqe* sqe = io_uring_get_sqe(&ring_);
  if (sqe != nullptr) return sqe;
  // Full: hand over what is there. If the kernel has no memory for it now, it stays in the ring
  // and the next turn tries again.
  (void)io_uring_submit(&ring_);
  return io_uring_get_sqe(&ring_);
}

void UringLoop::flush_backlog() {
  std::size_t done = 0;
  while (done < backlog_.size() && prepare(*backlog_[done].op, backlog_[done].step))
    ++done;
  backlog_.erase(backlog_.begin(), backlog_.begin() + static_cast<std::ptrdiff_t>(done));
}

void UringLoop::cancel(IoOp& op) {
  if (!op.waiter) return;  // it has completed; its result must stay
  if (std::erase(held_back_, &op) != 0) return finish(op, -ECANCELED);
  // result marks it while it is in flight: an op that comes back interrupted is not run again.
  op.result = -ECANCELED;
  const auto waiting = std::find_if(backlog_.begin(), backlog_.end(),
                                    [&op](const Pending& p) { return p.op == &op; });
  if (waiting != backlog_.end()) {
    backlog_.erase(waiting);
    finish(op, -ECANCELED);
    return;
  }
  // It is in one of the two steps; the other cancel finds nothing.
  prepare_cancel(data_of(op, false));
  prepare_cancel(data_of(op, true));
}

void UringLoop::prepare_cancel(std::uint64_t user_data) {
  io_uring_sqe* sqe = next_entry();
  while (sqe == nullptr) {
    reap();
    sqe = next_entry();
  }
  io_uring_prep_cancel64(sqe, user_data, 0);
  io_uring_sqe_set_data64(sqe, kCancelData);
  ++in_flight_;
}

void UringLoop::cancel_waits() {
  for (IoOp* op = first_wait_; op != nullptr;) {
    IoOp* following = op->next;
    cancel(*op);
    op = following;
  }
}

void UringLoop::arm_wake() {
  if (wake_armed_) return;
  io_uring_sqe* sqe = next_entry();
  if (sqe == nullptr) return;
  io_uring_prep_poll_add(sqe, wake_event_.get(), POLLIN);
  io_uring_sqe_set_data64(sqe, kWakeData);
  ++in_flight_;
  wake_armed_ = true;
}

void UringLoop::wake() {
  const std::uint64_t one = 1;
  // EAGAIN means that the counter is full: the loop is being woken already.
  (void)!::write(wake_event_.get(), &one, sizeof one);
}

// ---- Completion

void UringLoop::turn(bool may_wait, std::optional<Clock::time_point> deadline) {
  flush_backlog();
  arm_wake();
  // Without a poll on the eventfd a wait could miss a post.
  enter(may_wait && wake_armed_, deadline);
  reap();
}

/// Completions, or work of the kernel's that would make some.
bool UringLoop::has_events() const noexcept {
  const unsigned flags = IO_URING_READ_ONCE(*ring_.sq.kflags);
  return (flags & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW)) != 0 ||
         io_uring_cq_ready(&ring_) != 0;
}

bool UringLoop::poll_busily(std::optional<Clock::time_point> deadline) {
  if (io_uring_sq_ready(&ring_) != 0) (void)io_uring_submit(&ring_);
  Clock::time_point until = Clock::now() + busy_poll_.limit();
  if (deadline) until = std::min(until, *deadline);
  while (!has_events() && !try_held_back()) {
    if (Clock::now() >= until) return false;
  }
  return true;
}

/// Whether one of the receives that were held back has come to its end.
bool UringLoop::try_held_back() {
  for (auto op = held_back_.begin(); op != held_back_.end(); ++op) {
    const std::int64_t result = try_socket_op(**op);
    if (result == -EAGAIN) continue;
    IoOp& ended = **op;
    held_back_.erase(op);
    finish(ended, result);
    return true;
  }
  return false;
}

void UringLoop::hand_over_held_back() {
  for (IoOp* op : held_back_)
    start(*op, Step::kRun);
  held_back_.clear();
}

void UringLoop::sleep(std::optional<Clock::time_point> deadline) {
  hand_over_held_back();
  if (!deadline) {
    (void)io_uring_submit_and_wait(&ring_, 1);
    return;
  }
  const auto left = std::max(*deadline - now(), Clock::duration::zero());
  const auto ns = std::chrono::duration_cast<std::chrono::nanoseconds>(left).count();
  __kernel_timespec timeout{ns / 1'000'000'000, ns % 1'000'000'000};
  io_uring_cqe* cqe = nullptr;
  // ETIME, EINTR: just another turn. EAGAIN, EBUSY: entries stay in the ring for the next one.
  (void)io_uring_submit_and_wait_timeout(&ring_, &cqe, 1, &timeout, nullptr);
}

void UringLoop::enter(bool may_wait, std::optional<Clock::time_point> deadline) {
  if (may_wait && io_uring_cq_ready(&ring_) == 0) {
    if (!busy_poll_.enabled()) return sleep(deadline);
    const auto begun = Clock::now();
    const bool polls = busy_poll_.polls();
    const bool found = polls && poll_busily(deadline);
    if (!found) sleep(deadline);
    busy_poll_.waited(polls, Clock::now() - begun);
    if (!found) return;
  } else {
    hand_over_held_back();
  }
  const unsigned flags = IO_URING_READ_ONCE(*ring_.sq.kflags);
  if ((flags & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW)) != 0) {
    (void)io_uring_submit_and_get_events(&ring_);
  } else if (io_uring_sq_ready(&ring_) != 0) {
    (void)io_uring_submit(&ring_);
  }
}

void UringLoop::reap() {
  std::array<io_uring_cqe*, 128> batch;
  for (;;) {
    const unsigned n =
        io_uring_peek_batch_cqe(&ring_, batch.data(), static_cast<unsigned>(batch.size()));
    if (n == 0) return;
    for (unsigned i = 0; i < n; ++i)
      handle(batch[i]->user_data, batch[i]->res);
    io_uring_cq_advance(&ring_, n);
  }
}

void UringLoop::handle(std::uint64_t user_data, std::int32_t result) {
  if (user_data == LIBURING_UDATA_TIMEOUT) return;
  --in_flight_;
  if (user_data == kCancelData) return;
  if (user_data == kWakeData) {
    wake_armed_ = false;
    std::uint64_t count = 0;
    (void)!::read(wake_event_.get(), &count, sizeof count);
    return;
  }
  IoOp& op = *reinterpret_cast<IoOp*>(static_cast<std::uintptr_t>(user_data & ~kPollBit));
  const bool interrupted = result == -EINTR || result == -EAGAIN;
  if (op.result == -ECANCELED && interrupted) return finish(op, -ECANCELED);
  if ((user_data & kPollBit) != 0) {
    // Ready or in error: the op itself finds out which.
    return result < 0 && result != -EINTR ? finish(op, result) : start(op, Step::kRun);
  }
  if (result == -EINTR && may_run_again(op)) return start(op, Step::kRun);
  // A descriptor in non-blocking mode (an inherited socket): wait for it, then try again.
  if (result == -EAGAIN && may_run_again(op)) return start(op, Step::kPoll);
  finish(op, result);
}

void UringLoop::finish(IoOp& op, std::int64_t result) {
  if (waits_for_peer(op.opcode)) unlink_wait(op);
  complete(op, result);
}

void UringLoop::link_wait(IoOp& op) {
  op.loop_data = nullptr;
  op.next = first_wait_;
  if (first_wait_ != nullptr) first_wait_->loop_data = &op;
  first_wait_ = &op;
}

void UringLoop::unlink_wait(IoOp& op) {
  auto* before = static_cast<IoOp*>(op.loop_data);
  (before != nullptr ? before->next : first_wait_) = op.next;
  if (op.next != nullptr) op.next->loop_data = before;
}

}  // namespace snap
