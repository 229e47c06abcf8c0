// VolumeServer: a process's serving of volumes, images and snapshots of a store: opened, exported
// over NBD, commanded over a control socket, until a signal or a command stops it.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/nbd/tls_credentials.h"
#include "engine/server/endpoint.h"
#include "snap/result.h"
#include "snap/store.h"
#include "snap/task.h"

namespace snap::server {

/// One export. The first is the default one.
struct ServeItem {
  enum class Kind { kVolume, kImage, kSnapshot };
  Kind kind = Kind::kVolume;
  std::string name;         ///< of the volume, or the image's reference or id
  std::string snapshot;     ///< of that volume
  std::string export_name;  ///< empty: `name`, or "volume@snapshot"
};

class VolumeServer {
 public:
  struct Options {
    std::string store;  ///< path
    Store::OpenOptions open;
    std::vector<ServeItem> items;
    bool read_only = false;
    /// Where to listen. Nothing at all: a unix socket in the runtime directory.
    std::optional<UnixEndpoint> socket;
    std::optional<TcpEndpoint> tcp;
    nbd::TlsPolicy tls;
    std::vector<Listener> inherited;  ///< of inherited_listeners(), which main() calls early
    std::size_t threads = 0;          ///< 0: one a core, at most 4
  };
  /// How clients reach what is served.
  struct Ready {
    std::vector<std::string> uris;  ///< one an item, in order
    std::string control_socket;     ///< path
  };

  explicit VolumeServer(Options options);
  ~VolumeServer();

  /// Serves until SIGTERM, SIGINT or the command `stop`; calls `ready` once clients can connect.
  /// Then drains, flushes and closes every volume; an error of that is returned. A second signal
  /// cuts the clients that are still there. The signals must be blocked (block_stop_signals())
  /// since before the loop was made. Busy, with the pid, for a volume that another process serves.
  Task<Result<void>> run(std::function<void(const Ready&)> ready);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace snap::server
