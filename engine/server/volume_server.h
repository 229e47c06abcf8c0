// VolumeServer: a process's serving of a store, or of some volumes, images and snapshots of it:
// exported over NBD, commanded over a control socket, until a signal or a command stops it.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/nbd/tls_credentials.h"
#include "engine/server/endpoint.h"
#include "engine/server/serve_item.h"
#include "engine/server/service_manager.h"
#include "snap/result.h"
#include "snap/store.h"
#include "snap/task.h"

namespace snap::server {

class VolumeServer {
 public:
  struct Options {
    std::string store;  ///< path
    Store::OpenOptions open;
    /// What is open from start to end; the first is the default export. None: whatever the store
    /// has (engine/server/catalogue.h), opened when clients ask for it.
    std::vector<ServeItem> items;
    bool read_only = false;
    /// Where to listen. Nothing at all: a unix socket in the runtime directory.
    std::optional<UnixEndpoint> socket;
    std::optional<TcpEndpoint> tcp;
    nbd::TlsPolicy tls;
    /// Take inherited listeners that other machines reach, although no one needs TLS.
    bool insecure = false;
    std::vector<Listener> inherited;     ///< of inherited_listeners(), which is called early
    std::optional<TcpEndpoint> metrics;  ///< where HTTP clients get metrics
    std::size_t threads = 0;             ///< 0: one a core, at most 4
    ServiceManager manager;
    /// What SIGHUP does: stop (the terminal has gone), or open the log anew.
    bool stop_on_hangup = false;
  };
  /// How clients reach what is served.
  struct Ready {
    /// One an item, in order; of a whole store one a listener, without an export's name.
    std::vector<std::string> uris;
    std::string control_socket;  ///< path
    std::string metrics;         ///< URL; empty: none
  };

  explicit VolumeServer(Options options);
  ~VolumeServer();

  /// Serves until SIGTERM, SIGINT or the command `stop`; calls `ready` once clients can connect.
  /// Then drains, flushes and closes every volume; an error of that is returned. A second signal
  /// cuts the clients that are still there. The signals must be blocked (block_stop_signals())
  /// since before the loop was made. Busy, with the pid, for a volume that another process serves,
  /// or a store that another server serves as a whole.
  Task<Result<void>> run(std::function<void(const Ready&)> ready);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

/// The control socket of the server of a whole store, whether there is one or not.
Task<Result<std::string>> store_control_socket(std::string store);

}  // namespace snap::server
