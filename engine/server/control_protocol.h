// The control protocol: how a command reaches the process that serves a volume.
//
// JSON, one object a line, over a unix socket with mode 0600. The server speaks first:
//
//   server  {"snapctl":"0.1.0","protocol":1,"pid":4711}
//   client  {"protocol":1,"op":"commit","args":{...}}
//   server  {"progress":{"stage":"pack","done":1048576,"total":4194304}}      any number of times
//   server  {"result":{...}}   or   {"error":{"code":"busy","message":"..."}}
//
// Then the next request. A client that hangs up cancels the request that runs. Either side refuses
// another protocol than its own: the client after the hello, the server after the request. Lines
// have at most kMaxControlMessage bytes. Operations and their arguments: engine/server/remote.h.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <variant>

#include "snap/result.h"
#include "snap/task.h"

namespace snap {
class Socket;
}

namespace snap::server {

inline constexpr int kControlProtocol = 1;
inline constexpr std::string_view kControlVersion = "0.1.0";

struct ControlHello {
  std::string version;
  int protocol = 0;
  int pid = 0;
};
struct ControlRequest {
  std::string op;
  std::string args;  ///< a JSON object
};
struct ControlProgress {
  std::string stage;
  std::uint64_t done = 0;
  std::uint64_t total = 0;  ///< 0: not known
};
struct ControlResult {
  std::string json;
};
/// What a server sends in answer to a request.
using ControlReply = std::variant<ControlProgress, ControlResult, Error>;

// Each gives a line, with its newline.
std::string encode_hello(int pid);
std::string encode_request(const ControlRequest& request);
std::string encode_progress(const ControlProgress& progress);
std::string encode_result(std::string_view json);
std::string encode_error(const Error& error);

// Each takes a line without its newline. Protocol if it is not what it should be.
Result<ControlHello> decode_hello(std::string_view line);
/// Unsupported if it is of another protocol.
Result<ControlRequest> decode_request_line(std::string_view line);
Result<ControlReply> decode_reply(std::string_view line);

/// Reads lines from a socket.
class LineReader {
 public:
  explicit LineReader(const Socket& socket) : socket_(socket) {}
  /// The next line without its newline; nothing more: Cancelled. TooLarge beyond
  /// kMaxControlMessage.
  Task<Result<std::string>> next();

 private:
  const Socket& socket_;
  std::string buffer_;
};

}  // namespace snap::server
