#include "engine/attach/fuse_lane.h"

#include <poll.h>
#include <unistd.h>

#include <cassert>
#include <cerrno>
#include <chrono>

#define FUSE_USE_VERSION 312
#include <fuse3/fuse_lowlevel.h>

#include "snap/units.h"

namespace snap::attach {

namespace {
// libfuse calls the operations without saying on whose behalf.
thread_local FuseLane* receiving_lane = nullptr;
}  // namespace

FuseLane::FuseLane(fuse_session* session) : session_(session) {
  spare_.reserve(kMaxFuseRequests);
}

FuseLane& FuseLane::receiving() noexcept {
  assert(receiving_lane != nullptr);
  return *receiving_lane;
}

FuseLane::Ticket FuseLane::take() {
  in_flight_.add();
  return Ticket(this, std::move(receiving_));
}

void FuseLane::ended(Buffer buffer) {
  spare_.push_back(std::move(buffer));
  freed_.set();
  in_flight_.done();
}

void FuseLane::stop() {
  stopped_ = true;
  if (polling_ != nullptr) EventLoop::current()->cancel(*polling_);
  freed_.set();
}

Task<void> FuseLane::run() {
  unsigned in_a_row = 0;
  while (!stopping()) {
    if (!receiving_) {
      co_await find_buffer();
      continue;
    }
    const ssize_t got = ::read(fuse_session_fd(session_), receiving_.get(), kFuseBufferBytes);
    if (got >= 0) {
      process(static_cast<std::size_t>(got));
      if (++in_a_row < kFuseRequestsInARow) continue;
      co_await yield_now();
    } else if (errno == EAGAIN) {
      co_await wait_until_readable();
    } else if (errno != EINTR && errno != ENOENT) {
      // ENODEV: the file system is gone. (ENOENT: a request that was interrupted before it was
      // received.)
      break;
    }
    in_a_row = 0;
  }
  co_await in_flight_.wait();
}

/// Fills receiving_, or returns without when there is another reason to look around.
Task<void> FuseLane::find_buffer() {
  if (!spare_.empty()) {
    receiving_ = std::move(spare_.back());
    spare_.pop_back();
    co_return;
  }
  if (buffers_ < kMaxFuseRequests) {
    receiving_.reset(static_cast<std::byte*>(std::aligned_alloc(kBlockSize, kFuseBufferBytes)));
    if (receiving_) {
      ++buffers_;
      co_return;
    }
    if (buffers_ == 0) {
      // Nothing will come back: memory has to turn up elsewhere.
      Sleep pause(std::chrono::milliseconds(10));
      co_await pause;
      co_return;
    }
  }
  freed_.reset();
  co_await freed_.wait();
}

Task<void> FuseLane::wait_until_readable() {
  if (in_flight_.count() == 0) {
    while (spare_.size() > kKeptFuseBuffers) {
      spare_.pop_back();
      --buffers_;
    }
  }
  IoOp op;
  op.opcode = IoOpcode::kPoll;
  op.fd = fuse_session_fd(session_);
  op.flags = POLLIN;
  polling_ = &op;
  auto events = co_await op;
  polling_ = nullptr;
  if (!events) stopped_ = true;  // cancelled: by stop() or with the loop
}

void FuseLane::process(std::size_t bytes) {
  fuse_buf request{};
  request.size = bytes;
  request.mem = receiving_.get();
  receiving_lane = this;
  fuse_session_process_buf(session_, &request);
  receiving_lane = nullptr;
}

}  // namespace snap::attach
