// Sockets on the event loop: connections (Socket) and what accepts them (Listener), over unix
// sockets and TCP.
//
// Names, modes and addresses are handled on helper threads; what waits for a peer is an IoOp and
// ends when the loop shuts down. A Socket may be read by one task and written by another at the
// same time; two readers, or two writers, would mix their bytes.
#pragma once

#include <sys/socket.h>
#include <sys/uio.h>

#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "engine/io/unique_fd.h"
#include "snap/event_loop.h"
#include "snap/result.h"
#include "snap/task.h"

namespace snap {

/// A connected stream socket; closed on destruction, which must not happen while an op on it is in
/// flight (cancel or shutdown() it first).
class Socket {
 public:
  Socket() = default;
  /// `name` is for messages: "client of /run/x.sock".
  Socket(UniqueFd fd, std::string name) : fd_(std::move(fd)), name_(std::move(name)) {}

  bool valid() const noexcept { return fd_.get() >= 0; }
  int fd() const noexcept { return fd_.get(); }
  const std::string& name() const noexcept { return name_; }

  /// Ends sending (SHUT_WR), or both directions (SHUT_RDWR), which wakes whoever waits on either.
  /// On a connection that is gone already: nothing. Never blocks.
  void shutdown(int how) noexcept;
  void close() noexcept { fd_.reset(); }

 private:
  UniqueFd fd_;
  std::string name_;
};

/// `co_await recv_some(s, out)`: the bytes that are there, at least 1; 0 if the peer has ended.
/// No allocation: for the data path.
struct RecvOp : IoOp {
  RecvOp(const Socket& s, std::span<std::byte> out) {
    opcode = IoOpcode::kRecv;
    fd = s.fd();
    buffer = out.data();
    length = out.size();
  }
};
inline RecvOp recv_some(const Socket& s, std::span<std::byte> out) {
  return RecvOp(s, out);
}

/// `co_await send_some(s, parts)`: sends a first part of `parts`: bytes sent. No allocation.
struct SendOp : IoOp {
  static constexpr std::size_t kMaxParts = 1024;  ///< IOV_MAX; more are left for the next call
  SendOp(const Socket& s, std::span<iovec> parts, int send_flags) {
    opcode = IoOpcode::kSendMsg;
    fd = s.fd();
    flags = send_flags;
    header.msg_iov = parts.data();
    header.msg_iovlen = parts.size() < kMaxParts ? parts.size() : kMaxParts;
    message = &header;
  }
  msghdr header{};
};
inline SendOp send_some(const Socket& s, std::span<iovec> parts, int flags = 0) {
  return SendOp(s, parts, flags);
}

/// Drops the first `n` bytes from `parts`; gives what is left of them.
std::span<iovec> skip_bytes(std::span<iovec> parts, std::size_t n) noexcept;

/// All of `out`. Protocol ("closed after ...") if the peer ends before.
Task<Result<void>> recv_exact(const Socket& s, std::span<std::byte> out);
/// All of `parts` in order; changes them on the way. They, and what they point at, must outlive
/// the call.
Task<Result<void>> send_all(const Socket& s, std::span<iovec> parts);
Task<Result<void>> send_all(const Socket& s, std::span<const std::byte> bytes);

/// Takes connections. Several loops may accept from one Listener.
class Listener {
 public:
  /// A unix socket at `path` with exactly `mode`. The name appears when the socket already
  /// listens. A socket file that no one listens on is replaced; Busy if someone does, Exists if it
  /// is no socket. Removed when the Listener goes, if it is still this one.
  static Task<Result<Listener>> listen_unix(std::string path, unsigned mode = 0600);
  /// TCP at host and port (numbers or names; port "0": any). An empty host is every address, IPv4
  /// too. Where a host has several addresses: the first that works, IPv4 before IPv6.
  static Task<Result<Listener>> listen_tcp(std::string host, std::string port);
  /// A descriptor that listens already; InvalidArgument if it does not. Owned from now on; its
  /// file is not removed.
  static Result<Listener> adopt(int fd);

  Listener() = default;
  Listener(Listener&& other) noexcept = default;
  Listener& operator=(Listener&& other) noexcept;
  ~Listener() { close(); }

  /// The next connection (TCP_NODELAY on TCP). Cancelled once the loop stops. An error of one
  /// connection is passed over; what it reports concerns all (out of descriptors: wait, try again).
  Task<Result<Socket>> accept();
  /// Closes it and removes its file; no accept may be pending.
  void close() noexcept;

  bool valid() const noexcept { return fd_.get() >= 0; }
  int fd() const noexcept { return fd_.get(); }
  /// "/path" or "host:port" with the port that it got.
  const std::string& address() const noexcept { return address_; }
  unsigned port() const noexcept { return port_; }  ///< 0 for unix sockets

 private:
  struct FileId {
    dev_t device = 0;
    ino_t inode = 0;
  };

  UniqueFd fd_;
  std::string address_;
  std::string path_;  ///< to remove; empty if there is none
  FileId file_;
  unsigned port_ = 0;
  bool tcp_ = false;
};

/// Listeners that the service manager passed on (LISTEN_PID, LISTEN_FDS; sd_listen_fds(3)). Empty
/// if there are none. Takes the variables out of the environment; call it once, before threads.
Result<std::vector<Listener>> inherited_listeners();

/// Connects; at most 10 s.
Task<Result<Socket>> connect_unix(std::string path);
Task<Result<Socket>> connect_tcp(std::string host, std::string port);

}  // namespace snap
