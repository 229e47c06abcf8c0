// ControlServer: takes commands for this process on a unix socket (engine/server/control_protocol.h
// says how they look) and runs their handlers.
//
// Handlers run on the loop where run() does, those of different clients side by side.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>

#include "engine/io/socket.h"
#include "engine/io/sync.h"
#include "engine/server/control_protocol.h"
#include "engine/server/pending_ops.h"
#include "snap/result.h"
#include "snap/store.h"
#include "snap/task.h"

namespace snap::server {

class ControlServer {
 public:
  /// Gets the arguments as a JSON object, gives the result as JSON. `progress` reports to the
  /// client; it is cancelled when the client hangs up or the server stops.
  using Handler = std::function<Task<Result<std::string>>(std::string args, Progress progress)>;

  static constexpr std::size_t kMaxClients = 64;

  explicit ControlServer(Listener listener) : listener_(std::move(listener)) {}

  /// Before run().
  void add(std::string op, Handler handler) { handlers_[std::move(op)] = std::move(handler); }

  /// Serves until stop(), then waits until the handlers that run have ended and their results were
  /// sent, for a few seconds to a client that does not read.
  Task<void> run();
  /// From the loop's thread. Handlers that run are asked to give up.
  void stop();

  const std::string& path() const noexcept { return listener_.address(); }

 private:
  struct Session;
  Task<void> serve(Socket socket);
  Task<Result<void>> talk(Session* session);
  Task<Result<void>> answer(Session* session, std::string line);
  Task<Result<std::string>> dispatch(Session* session, std::string line);
  Task<void> watch_client(Session* session);
  Task<void> send_progress(Session* session);
  Task<Result<void>> send(Session* session, std::string text);
  Task<void> cut_stuck(WaitGroup* done);

  Listener listener_;
  std::map<std::string, Handler> handlers_;
  PendingOps accepting_;
  std::map<Session*, Socket*> sessions_;
  WaitGroup running_;
  bool stopping_ = false;
  Sleep* look_ = nullptr;  ///< of cut_stuck()
};

}  // namespace snap::server
