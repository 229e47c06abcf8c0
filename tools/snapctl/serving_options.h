// What the commands that serve (export, serve) share: where to listen and as whom, the log, going
// to the background; and running the server with it.
//
// Forking, the blocking of signals and the taking over of passed sockets come before the first
// thread, so they are in prepare_serving(), which runs before the event loop is made.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/server/daemonize.h"
#include "engine/server/volume_server.h"
#include "snap/result.h"
#include "snap/task.h"
#include "tools/snapctl/tls_options.h"

namespace CLI {
class App;
}

namespace snap::cli {

class Context;

struct ServingOptions {
  std::string command;  ///< "export" or "serve", for messages
  std::string socket, socket_mode, socket_group, tcp, metrics, log;
  bool read_only = false;
  bool detach = false;
  bool insecure = false;
  std::size_t threads = 0;
  TlsOptions tls;

  // Of prepare_serving()
  std::shared_ptr<server::Readiness> background;  ///< of the detached process
  std::shared_ptr<std::vector<Listener>> inherited;
  server::ServiceManager manager;
  bool stop_on_hangup = false;
};

/// Adds them to a command; `options` outlives the parsing.
void add_serving_options(CLI::App& app, ServingOptions& options);

/// Goes to the background, or stays; gives an exit code where this process has nothing more to do.
std::optional<int> prepare_serving(Context& context, ServingOptions& options);

/// The server's options as far as these say; InvalidArgument names the flag that makes no sense.
Result<server::VolumeServer::Options> server_options(const ServingOptions& options);

/// Serves until stopped. `ready_text` makes what is printed once clients can connect; with passed
/// sockets nothing is, for whoever passed them knows (and `nbdcopy -- [ ... ] -` has data there).
using ReadyText = std::function<std::string(const server::VolumeServer::Ready&)>;
Task<Result<int>> run_server(Context& context, ServingOptions options,
                             server::VolumeServer::Options server, ReadyText ready_text);

/// Reports to whoever waits for a detached process what kept it from serving.
void report_failure(const ServingOptions& options, const Error& error);

}  // namespace snap::cli
