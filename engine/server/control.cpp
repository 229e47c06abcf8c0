#include "engine/server/control.h"

#include <poll.h>
#include <unistd.h>

#include <chrono>
#include <optional>
#include <span>
#include <utility>

#include "engine/nbd/wakeup.h"
#include "engine/server/log.h"

namespace snap::server {

namespace {
// Progress is for eyes: more often than this, only the latest is sent.
constexpr std::chrono::milliseconds kProgressEvery{100};
constexpr std::chrono::milliseconds kAcceptPause{100};
/// For how long a server that stops lets a client take nothing of what is sent to it.
constexpr std::chrono::seconds kSendPatience{3};
constexpr std::chrono::milliseconds kSendLook{200};

std::span<const std::byte> bytes_of(const std::string& text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}
}  // namespace

/// One client. While a handler runs there are two more tasks: one looks whether the client is still
/// there, one sends progress, so that a client that does not read holds up no one.
struct ControlServer::Session {
  explicit Session(Socket s) : socket(std::move(s)), lines(socket) {}

  Socket socket;
  LineReader lines;
  bool hung_up = false;
  std::optional<EventLoop::Clock::time_point> sending_since;

  // Of the request that runs.
  std::optional<ControlProgress> latest;  ///< not sent yet
  bool finished = false;
  nbd::Wakeup progress_changed;
  PendingOps* client_watch = nullptr;
  WaitGroup helpers;

  void report(std::string_view stage, std::uint64_t done, std::uint64_t total) {
    latest = ControlProgress{std::string(stage), done, total};
    progress_changed.notify();
  }
};

Task<void> ControlServer::run() {
  while (!accepting_.stopped()) {
    auto accepted = co_await accepting_.accept(listener_.fd());
    if (accepted) {
      Socket socket(UniqueFd(static_cast<int>(*accepted)), "control client");
      if (sessions_.size() >= kMaxClients) continue;  // closes it
      running_.add();
      EventLoop::current()->spawn(serve(std::move(socket)));
      co_await yield_now();  // it registers itself
      continue;
    }
    if (accepting_.stopped() || EventLoop::current()->stopping()) break;
    log_error(accepted.error().message());
    Sleep pause(kAcceptPause);
    co_await pause;
  }
  WaitGroup cutting;
  cutting.add();
  EventLoop::current()->spawn(cut_stuck(&cutting));
  co_await running_.wait();
  if (look_ != nullptr) look_->wake();
  co_await cutting.wait();
}

/// One that was stopped by job control, say, must not hold up the end of the server.
Task<void> ControlServer::cut_stuck(WaitGroup* done) {
  while (!sessions_.empty()) {
    Sleep look(kSendLook);
    look_ = &look;
    co_await look;
    look_ = nullptr;
    EventLoop* loop = EventLoop::current();
    for (auto& [session, socket] : sessions_) {
      const auto since = session->sending_since;
      if (since && (loop->stopping() || loop->now() - *since > kSendPatience))
        socket->shutdown(SHUT_RDWR);
    }
    if (loop->stopping()) break;
  }
  done->done();
}

Task<Result<void>> ControlServer::send(Session* session, std::string text) {
  session->sending_since = EventLoop::current()->now();
  auto sent = co_await send_all(session->socket, bytes_of(text));
  session->sending_since.reset();
  co_return sent;
}

void ControlServer::stop() {
  if (std::exchange(stopping_, true)) return;
  accepting_.stop();
  // Who waits for a request sees the end; who waits for a result still gets it.
  for (auto& [session, socket] : sessions_)
    socket->shutdown(SHUT_RD);
}

Task<void> ControlServer::serve(Socket socket) {
  {
    Session session(std::move(socket));
    sessions_[&session] = &session.socket;
    if (stopping_) session.socket.shutdown(SHUT_RD);
    auto ended = co_await talk(&session);
    if (!ended && ended.error().code() != ErrorCode::kCancelled)
      log_warning("control connection ended: " + ended.error().message());
    sessions_.erase(&session);
  }
  running_.done();
}

Task<Result<void>> ControlServer::talk(Session* session) {
  auto sent = co_await send(session, encode_hello(::getpid()));
  while (sent) {
    auto line = co_await session->lines.next();
    if (!line) co_return line.error();
    sent = co_await answer(session, std::move(*line));
  }
  co_return sent;
}

Task<Result<void>> ControlServer::answer(Session* session, std::string line) {
  PendingOps client_watch;
  session->client_watch = &client_watch;
  session->finished = false;
  session->latest.reset();
  session->helpers.add(2);
  EventLoop::current()->spawn(watch_client(session));
  EventLoop::current()->spawn(send_progress(session));

  auto result = co_await dispatch(session, std::move(line));

  session->finished = true;
  session->progress_changed.notify();
  client_watch.stop();
  co_await session->helpers.wait();
  session->client_watch = nullptr;
  std::string reply = result ? encode_result(*result) : encode_error(result.error());
  co_return co_await send(session, std::move(reply));
}

Task<Result<std::string>> ControlServer::dispatch(Session* session, std::string line) {
  auto request = decode_request_line(line);
  if (!request) co_return request.error();
  const auto handler = handlers_.find(request->op);
  if (handler == handlers_.end())
    co_return Error(ErrorCode::kUnsupported, "this server has no command " + request->op);
  Progress progress;
  progress.report = [session](std::string_view stage, std::uint64_t done, std::uint64_t total) {
    session->report(stage, done, total);
  };
  progress.cancelled = [this, session] { return session->hung_up || stopping_; };
  auto task = handler->second(std::move(request->args), std::move(progress));
  co_return co_await std::move(task);
}

Task<void> ControlServer::watch_client(Session* session) {
  // POLLHUP is reported unasked, and only when the client has closed altogether: one that merely
  // has nothing more to say still wants its result.
  auto event = co_await session->client_watch->poll(session->socket.fd(), POLLERR);
  if (event) session->hung_up = true;
  session->helpers.done();
}

Task<void> ControlServer::send_progress(Session* session) {
  bool client_reads = true;
  while (!session->finished) {
    if (!session->latest || !client_reads) {
      co_await session->progress_changed.wait();
      continue;
    }
    auto sent =
        co_await send(session, encode_progress(*std::exchange(session->latest, std::nullopt)));
    client_reads = sent.has_value();
    if (!session->finished && client_reads) {
      Sleep pause(kProgressEvery);
      co_await pause;
    }
  }
  session->helpers.done();
}

}  // namespace snap::server
