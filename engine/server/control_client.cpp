#include "engine/server/control_client.h"

#include <sys/socket.h>

#include <cerrno>
#include <chrono>
#include <span>
#include <utility>
#include <variant>

#include "engine/io/sync.h"
#include "snap/event_loop.h"

namespace snap::server {

namespace {

constexpr std::chrono::milliseconds kLookForCancel{50};

/// Looks now and then whether the caller has given up, and hangs up then.
struct CancelWatch {
  bool ended = false;
  bool cancelled = false;
  AsyncEvent done;
  Sleep* pause = nullptr;
};

Task<void> watch_for_cancel(Socket* socket, const Progress* progress, CancelWatch* watch) {
  while (!watch->ended) {
    if (progress->is_cancelled()) {
      watch->cancelled = true;
      socket->shutdown(SHUT_RDWR);
      break;
    }
    if (EventLoop::current()->stopping()) break;
    Sleep pause(kLookForCancel);
    watch->pause = &pause;
    co_await pause;
    watch->pause = nullptr;
  }
  watch->done.set();
}

/// What `error` means to one who has not given up: that the other side has, if it is a
/// cancellation. As of a connection that broke: there may be no server any more.
Error lost_server(const Error& error, const std::string& server) {
  if (error.code() != ErrorCode::kCancelled) return error;
  return Error(ErrorCode::kIo, server + " has given up: " + error.message(), ECONNRESET);
}

Task<Result<std::string>> receive_result(LineReader* lines, const Progress* progress) {
  for (;;) {
    auto line = co_await lines->next();
    if (!line) co_return line.error();
    auto reply = decode_reply(*line);
    if (!reply) co_return reply.error();
    if (auto* error = std::get_if<Error>(&*reply)) co_return *error;
    if (auto* result = std::get_if<ControlResult>(&*reply)) co_return std::move(result->json);
    const auto& p = std::get<ControlProgress>(*reply);
    progress->tell(p.stage, p.done, p.total);
  }
}

/// Ends the wait for a hello when its time is over.
struct HelloWatch {
  explicit HelloWatch(std::chrono::seconds patience) : limit(patience) {}
  Sleep limit;
  bool said = false;
  bool too_late = false;
  AsyncEvent done;
};

Task<void> limit_hello(Socket* socket, HelloWatch* watch) {
  co_await watch->limit;
  if (!watch->said) {
    watch->too_late = true;
    socket->shutdown(SHUT_RDWR);
  }
  watch->done.set();
}

}  // namespace

bool nobody_listens(const Error& error) noexcept {
  return error.sys_errno() == ECONNREFUSED || error.sys_errno() == ENOENT;
}

Task<Result<std::unique_ptr<ControlClient>>> ControlClient::connect(std::string path,
                                                                    std::chrono::seconds patience) {
  auto socket = co_await connect_unix(path);
  if (!socket) co_return socket.error();
  std::unique_ptr<ControlClient> client(new ControlClient(std::move(*socket)));
  HelloWatch watch(patience);
  EventLoop::current()->spawn(limit_hello(&client->socket_, &watch));
  auto line = co_await client->lines_.next();
  watch.said = true;
  watch.limit.wake();
  co_await watch.done.wait();
  if (watch.too_late) {
    co_return Error(ErrorCode::kBusy, "the server at " + path + " has said nothing for " +
                                          std::to_string(patience.count()) +
                                          " s; is it stopped or stuck?");
  }
  if (!line) co_return lost_server(line.error(), "the server at " + path);
  auto hello = decode_hello(*line);
  if (!hello) co_return hello.error().with_context("talk to the server at " + path);
  if (hello->protocol != kControlProtocol) {
    co_return Error(ErrorCode::kUnsupported,
                    "the server with pid " + std::to_string(hello->pid) + " is snapctl " +
                        hello->version + " with control protocol " +
                        std::to_string(hello->protocol) + ", this is " +
                        std::string(kControlVersion) + " with protocol " +
                        std::to_string(kControlProtocol) + ": restart the older one");
  }
  client->hello_ = std::move(*hello);
  co_return client;
}

Task<Result<std::string>> ControlClient::call(std::string op, std::string args, Progress progress) {
  const std::string request = encode_request({op, std::move(args)});
  auto sent = co_await send_all(socket_, std::as_bytes(std::span(request.data(), request.size())));
  if (!sent) co_return sent.error().with_context("send a command to the server");
  CancelWatch watch;
  EventLoop::current()->spawn(watch_for_cancel(&socket_, &progress, &watch));
  auto result = co_await receive_result(&lines_, &progress);
  watch.ended = true;
  if (watch.pause != nullptr) watch.pause->wake();
  co_await watch.done.wait();
  if (watch.cancelled) co_return Error(ErrorCode::kCancelled, op + " was cancelled");
  if (!result && !progress.is_cancelled()) {
    co_return lost_server(result.error(),
                          op + ": the server with pid " + std::to_string(hello_.pid));
  }
  co_return result;
}

}  // namespace snap::server
