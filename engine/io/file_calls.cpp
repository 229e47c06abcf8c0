#include "engine/io/file_calls.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>

#include "engine/io/durable_write.h"

namespace snap {

namespace {

// Larger reads are copied by a helper thread: 128 KiB from the page cache take about 20 us.
constexpr std::size_t kMaxInlineRead = 128u << 10;

template <class Call>
std::int64_t retry(Call call) noexcept {
  for (;;) {
    const std::int64_t result = call();
    if (result >= 0) return result;
    if (errno != EINTR) return -errno;
  }
}

off_t signed_offset(const IoOp& op) {
  return static_cast<off_t>(op.offset);
}

// A pipe has no offset: it is read from and written to where it stands.
std::int64_t read_or_write(const IoOp& op) noexcept {
  const std::size_t n = std::min(op.length, kMaxIoBytes);
  const int count = static_cast<int>(op.iov_count);
  switch (op.opcode) {
    case IoOpcode::kRead: {
      const auto r = retry([&] { return ::pread(op.fd, op.buffer, n, signed_offset(op)); });
      return r != -ESPIPE ? r : retry([&] { return ::read(op.fd, op.buffer, n); });
    }
    case IoOpcode::kWrite: {
      if (is_durable_write(op)) {
        // Not retried, whatever it says: a sync is part of it.
        const iovec one{op.buffer, n};
        const ssize_t wrote = ::pwritev2(op.fd, &one, 1, signed_offset(op), RWF_DSYNC);
        return wrote >= 0 ? wrote : -errno;
      }
      const auto r = retry([&] { return ::pwrite(op.fd, op.buffer, n, signed_offset(op)); });
      return r != -ESPIPE ? r : retry([&] { return ::write(op.fd, op.buffer, n); });
    }
    case IoOpcode::kReadv: {
      const auto r = retry([&] { return ::preadv(op.fd, op.iov, count, signed_offset(op)); });
      return r != -ESPIPE ? r : retry([&] { return ::readv(op.fd, op.iov, count); });
    }
    default: {
      const auto r = retry([&] { return ::pwritev(op.fd, op.iov, count, signed_offset(op)); });
      return r != -ESPIPE ? r : retry([&] { return ::writev(op.fd, op.iov, count); });
    }
  }
}

}  // namespace

bool is_file_op(IoOpcode opcode) noexcept {
  return opcode <= IoOpcode::kWriteback;
}

std::int64_t run_file_op(const IoOp& op) noexcept {
  const off_t length = static_cast<off_t>(op.length);
  switch (op.opcode) {
    case IoOpcode::kRead:
    case IoOpcode::kWrite:
    case IoOpcode::kReadv:
    case IoOpcode::kWritev:
      return read_or_write(op);
    case IoOpcode::kDataSync:
      // Not retried, whatever it says: after a failed sync the kernel calls the lost pages clean.
      return ::fdatasync(op.fd) == 0 ? 0 : -errno;
    case IoOpcode::kSync:
      return ::fsync(op.fd) == 0 ? 0 : -errno;
    case IoOpcode::kPunch:
      return retry([&] {
        return ::fallocate(op.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, signed_offset(op),
                           length);
      });
    case IoOpcode::kAllocate:
      return retry([&] {
        return ::fallocate(op.fd, op.flags != 0 ? FALLOC_FL_KEEP_SIZE : 0, signed_offset(op),
                           length);
      });
    case IoOpcode::kWriteback:
      return ::sync_file_range(op.fd, signed_offset(op), length, SYNC_FILE_RANGE_WRITE) == 0
                 ? 0
                 : -errno;
    default:
      return -EINVAL;
  }
}

std::int64_t read_without_waiting(int fd, const iovec& piece, std::uint64_t offset) noexcept {
  const ssize_t n = ::preadv2(fd, &piece, 1, static_cast<off_t>(offset), RWF_NOWAIT);
  return n >= 0 ? n : -EAGAIN;
}

std::int64_t read_if_cached(const IoOp& op) noexcept {
  iovec one{op.buffer, op.length};
  const iovec* iov = &one;
  unsigned count = 1;
  if (op.opcode == IoOpcode::kReadv) {
    iov = op.iov;
    count = op.iov_count;
  } else if (op.opcode != IoOpcode::kRead) {
    return -EAGAIN;
  }
  std::size_t total = 0;
  for (unsigned i = 0; i < count; ++i)
    total += iov[i].iov_len;
  if (total > kMaxInlineRead) return -EAGAIN;
  // A direct read would wait for the disk, NOWAIT or not.
  const int mode = ::fcntl(op.fd, F_GETFL);
  if (mode < 0 || (mode & O_DIRECT) != 0) return -EAGAIN;
  const std::int64_t n =
      ::preadv2(op.fd, iov, static_cast<int>(count), signed_offset(op), RWF_NOWAIT);
  // Whatever the reason, the helper's call finds it again and reports it.
  return n >= 0 ? n : -EAGAIN;
}

std::int64_t try_socket_op(const IoOp& op) noexcept {
  switch (op.opcode) {
    case IoOpcode::kRecv:
      return retry([&] { return ::recv(op.fd, op.buffer, op.length, op.flags | MSG_DONTWAIT); });
    case IoOpcode::kSendMsg:
      return retry(
          [&] { return ::sendmsg(op.fd, op.message, op.flags | MSG_NOSIGNAL | MSG_DONTWAIT); });
    case IoOpcode::kAccept: {
      // A listener may be in blocking mode (an inherited one): ask before.
      pollfd p{op.fd, POLLIN, 0};
      const std::int64_t ready = retry([&] { return ::poll(&p, 1, 0); });
      if (ready <= 0) return ready == 0 ? -EAGAIN : ready;
      return retry([&] { return ::accept4(op.fd, nullptr, nullptr, SOCK_CLOEXEC); });
    }
    case IoOpcode::kPoll: {
      pollfd p{op.fd, static_cast<short>(op.flags), 0};
      const std::int64_t ready = retry([&] { return ::poll(&p, 1, 0); });
      if (ready <= 0) return ready == 0 ? -EAGAIN : ready;
      return static_cast<unsigned short>(p.revents);
    }
    default:
      return -EINVAL;
  }
}

}  // namespace snap
