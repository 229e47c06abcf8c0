// ControlClient: sends commands to the process that serves a volume.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>

#include "engine/io/socket.h"
#include "engine/server/control_protocol.h"
#include "snap/result.h"
#include "snap/store.h"
#include "snap/task.h"

namespace snap::server {

/// How long a server may take to say hello: one that is stopped, or stuck, would hold its commands
/// up for ever.
inline constexpr std::chrono::seconds kControlPatience{10};

/// Whether connect() failed because there is no server at all. Any other failure may be that of one
/// that is busy, stopped, or of another version, and has what it serves.
bool nobody_listens(const Error& error) noexcept;

/// Used by one task at a time.
class ControlClient {
 public:
  /// Connects and checks that both sides speak the same protocol: Unsupported names the versions
  /// otherwise. Busy if the server says nothing for so long.
  static Task<Result<std::unique_ptr<ControlClient>>> connect(
      std::string path, std::chrono::seconds patience = kControlPatience);

  const ControlHello& server() const noexcept { return hello_; }

  /// Sends a command with `args`, a JSON object, and waits for its result, which is JSON. Reports
  /// go to `progress`; when it is cancelled the connection ends, and with it the command:
  /// Cancelled. Io with ECONNRESET if the server gives up, or ends.
  Task<Result<std::string>> call(std::string op, std::string args, Progress progress);

 private:
  explicit ControlClient(Socket socket) : socket_(std::move(socket)), lines_(socket_) {}

  Socket socket_;
  LineReader lines_;
  ControlHello hello_;
};

}  // namespace snap::server
