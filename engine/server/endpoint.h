// Where a server listens, from what a person wrote: unix socket or TCP address.
#pragma once

#include <string>
#include <string_view>

#include "engine/io/socket.h"
#include "snap/result.h"
#include "snap/task.h"

namespace snap::server {

struct UnixEndpoint {
  std::string path;
  unsigned mode = 0600;
  std::string group;  ///< of the socket file; empty: as the process has it
};

struct TcpEndpoint {
  std::string host = "127.0.0.1";
  std::string port = "10809";  ///< "0": any that is free
  /// Clients can do nothing without TLS.
  bool tls = false;
  /// Take an address that other machines reach, although clients need no TLS.
  bool insecure = false;
};

/// "HOST:PORT", "[V6]:PORT", "HOST" or ":PORT"; what is left out is as in TcpEndpoint.
Result<TcpEndpoint> parse_tcp_endpoint(std::string_view text);

/// Busy if another process serves there; NotFound for an unknown group.
Task<Result<Listener>> listen_on(UnixEndpoint endpoint);
/// Permission for an address that is not loopback, without `tls` or `insecure`.
Task<Result<Listener>> listen_on(TcpEndpoint endpoint);

/// Whether only this machine reaches it: a unix socket, or a loopback address.
bool is_local(const Listener& listener);
/// Permission, for an address that is not local, where neither TLS nor anything else allows it.
Error not_safe(const std::string& address);

/// How a client names the export called `name` of `listener`: "nbd+unix:///NAME?socket=PATH" or
/// "nbd://HOST:PORT/NAME"; "nbds" in place of "nbd" with TLS.
std::string nbd_uri(const Listener& listener, std::string_view name, bool tls = false);

/// The directory for sockets: $SNAPCTL_RUNTIME_DIR, /run/snapctl for root, else
/// $XDG_RUNTIME_DIR/snapctl, else /tmp/snapctl-<uid>. Made with mode 0700; Permission if it is
/// someone else's.
Task<Result<std::string>> runtime_dir();

}  // namespace snap::server
