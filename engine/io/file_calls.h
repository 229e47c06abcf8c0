// The system calls behind file IoOps, as plain blocking functions, for the loops that have no
// io_uring.
#pragma once

#include <sys/uio.h>

#include <cstdint>

#include "snap/event_loop.h"

namespace snap {

/// Linux moves at most this many bytes a call; a larger read or write is shortened.
inline constexpr std::size_t kMaxIoBytes = 0x7ffff000;

/// read, write, sync, punch, allocate and writeback; the rest are for sockets.
bool is_file_op(IoOpcode opcode) noexcept;

/// Runs a file op, waiting for the disk: bytes, or -errno. EINTR is retried.
std::int64_t run_file_op(const IoOp& op) noexcept;

/// Reads from a file that is not open for direct I/O what the page cache can answer at once: bytes,
/// or -EAGAIN, whatever the reason: the call that waits finds it again.
std::int64_t read_without_waiting(int fd, const iovec& piece, std::uint64_t offset) noexcept;
/// The same for any small kRead or kReadv of any file.
std::int64_t read_if_cached(const IoOp& op) noexcept;

/// Runs a socket op without waiting: its result, or -EAGAIN where it would wait. EINTR is retried.
std::int64_t try_socket_op(const IoOp& op) noexcept;

}  // namespace snap
