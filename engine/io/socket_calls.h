// The blocking calls behind socket.h: plain functions, run by offload(). Each returns a descriptor
// or 0, or -errno.
#pragma once

#include <netdb.h>
#include <sys/types.h>

#include <memory>
#include <string>

#include "engine/io/unique_fd.h"

namespace snap::net {

/// Why there is no socket: an errno, or what getaddrinfo said.
struct Failure {
  int err = 0;  ///< -errno
  std::string reason;
};

struct UnixListener {
  UniqueFd fd;
  dev_t device = 0;
  ino_t inode = 0;
  Failure failure;
};
UnixListener listen_unix(const std::string& path, unsigned mode);

/// A connected descriptor or -errno; -EAGAIN if it takes longer than `seconds`.
int connect_unix(const std::string& path, int seconds);

struct TcpSocket {
  UniqueFd fd;
  std::string address;  ///< numeric "host:port" or "[host]:port"
  unsigned port = 0;
  Failure failure;
};
TcpSocket listen_tcp(const std::string& host, const std::string& port);
TcpSocket connect_tcp(const std::string& host, const std::string& port, int seconds);

/// The address that a socket is bound to.
void describe_bound(int fd, std::string& address, unsigned& port);

}  // namespace snap::net
