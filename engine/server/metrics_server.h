// MetricsServer: answers HTTP GET of /metrics with a text, and everything else with an error.
// Bounded: kMaxMetricsClients at a time, kMaxHttpRequest bytes of request, kHttpTimeout for all of
// it; one request a connection.
#pragma once

#include <functional>
#include <string>
#include <string_view>

#include "engine/io/socket.h"
#include "engine/io/sync.h"
#include "engine/server/pending_ops.h"
#include "snap/task.h"

namespace snap::server {

class MetricsServer {
 public:
  using Text = std::function<std::string()>;
  MetricsServer(Listener listener, Text text)
      : listener_(std::move(listener)), text_(std::move(text)) {}

  const std::string& address() const noexcept { return listener_.address(); }
  /// Serves until stop(), then hangs up on who is still there.
  Task<void> run();
  void stop();

 private:
  struct Client;
  Task<void> serve(Socket socket);
  Task<void> limit_time(Client* client);
  Task<void> talk(Socket* socket);

  Listener listener_;
  const Text text_;
  PendingOps accepting_;
  std::size_t clients_ = 0;
  AsyncEvent stopped_;
  WaitGroup running_;
  Client* first_ = nullptr;
};

/// The status line, headers and body of the answer to a request: what came before its first empty
/// line.
std::string http_answer(std::string_view request, const std::function<std::string()>& text);

}  // namespace snap::server
