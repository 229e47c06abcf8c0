// Listener: a socket that takes connections: unix, TCP, or inherited from who started us.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/io/unique_fd.h"
#include "snap/result.h"

namespace snap::server {

struct UnixAddress {
  std::string path;
  unsigned mode = 0600;
  std::string group;  ///< of the socket file; empty: as the process has it
};

struct TcpAddress {
  std::string host = "127.0.0.1";
  std::string port = "10809";
  /// Take an address that other machines reach, although there is no TLS.
  bool insecure = false;
};

/// "HOST:PORT", "[V6]:PORT", "HOST" or ":PORT".
Result<TcpAddress> parse_tcp_address(std::string_view text);

class Listener {
 public:
  /// Binds and listens. A socket file that no one serves any more is replaced; Busy if someone
  /// does. InvalidArgument if the path is longer than a socket path can be (107 bytes).
  static Result<Listener> on_unix(UnixAddress address);
  /// Binds and listens. Permission for an address that is not loopback, without `insecure`.
  static Result<Listener> on_tcp(TcpAddress address);
  /// The sockets that systemd or an NBD client has opened for us (sd_listen_fds(3): LISTEN_PID,
  /// LISTEN_FDS). Empty if there are none. Takes the variables out of the environment.
  static Result<std::vector<Listener>> inherited();

  Listener(Listener&& other) noexcept;
  Listener& operator=(Listener&&) = delete;
  /// Removes the socket file that it made, if it is still the same.
  ~Listener();

  int fd() const noexcept { return fd_.get(); }
  bool is_tcp() const noexcept { return is_tcp_; }
  /// As a client writes it, for the export called `name`: "nbd+unix:///NAME?socket=PATH" or
  /// "nbd://HOST:PORT/NAME".
  std::string uri(std::string_view name) const;

 private:
  Listener(UniqueFd fd, bool is_tcp, std::string address)
      : fd_(std::move(fd)), is_tcp_(is_tcp), address_(std::move(address)) {}
  static Result<Listener> adopt(UniqueFd fd);

  UniqueFd fd_;
  bool is_tcp_ = false;
  std::string address_;  ///< path, or host:port
  /// Device and inode of a socket file that is ours to remove.
  std::optional<std::pair<std::uint64_t, std::uint64_t>> made_;
};

/// Text with everything but unreserved characters and "/" as %XX (RFC 3986).
std::string percent_encoded(std::string_view text);

}  // namespace snap::server
