#include "engine/server/server.h"

#include <netdb.h>
#include <sys/socket.h>

#include <cerrno>
#include <chrono>
#include <utility>

namespace snap::server {

namespace {
// When descriptors or memory run out, accept fails at once, again and again.
constexpr std::chrono::milliseconds kAcceptPause{100};

/// The connection that was to be accepted has gone wrong, not the listener.
bool only_this_connection(int err) {
  return err == ECONNABORTED || err == EPROTO || err == EPERM || err == EINTR;
}

/// Who is on the other side, for the log: "client with pid 4711", "client 127.0.0.1:50000".
std::string peer_name(int fd) {
  sockaddr_storage address{};
  socklen_t length = sizeof address;
  if (::getpeername(fd, reinterpret_cast<sockaddr*>(&address), &length) != 0) return "client";
  if (address.ss_family == AF_UNIX) {
    ucred peer{};
    length = sizeof peer;
    if (::getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length) != 0) return "client";
    return "client with pid " + std::to_string(peer.pid);
  }
  char host[NI_MAXHOST] = "";
  char port[NI_MAXSERV] = "";
  if (::getnameinfo(reinterpret_cast<sockaddr*>(&address), length, host, sizeof host, port,
                    sizeof port, NI_NUMERICHOST | NI_NUMERICSERV) != 0)
    return "client";
  return "client " + std::string(host) + ":" + port;
}
}  // namespace

Result<std::unique_ptr<Server>> Server::start(nbd::ExportTable& exports,
                                              std::vector<Listener> listeners, Options options) {
  auto workers = WorkerPool::start(exports, options.workers);
  if (!workers) return workers.error();
  return std::unique_ptr<Server>(new Server(std::move(*workers), std::move(listeners), options));
}

Task<void> Server::run() {
  for (const Listener& listener : listeners_) {
    acceptors_.add();
    EventLoop::current()->spawn(accept_from(listener.fd()));
  }
  co_await stop_requested_.wait();
  waits_.stop();
  co_await acceptors_.wait();
  listeners_.clear();
  co_await workers_->stop(options_.drain);
}

void Server::request_stop() {
  stop_requested_.set();
}

Task<void> Server::accept_from(int fd) {
  RateLimit complaints(3, 1);
  while (!waits_.stopped()) {
    auto accepted = co_await waits_.accept(fd);
    if (accepted) {
      UniqueFd client(static_cast<int>(*accepted));
      std::string name = peer_name(client.get());
      (void)workers_->give(Socket(std::move(client), std::move(name)));
      continue;
    }
    if (waits_.stopped() || EventLoop::current()->stopping()) break;
    if (only_this_connection(accepted.error().sys_errno())) continue;
    if (complaints.ask(std::chrono::steady_clock::now()).pass)
      log_error(accepted.error().message());
    Sleep pause(kAcceptPause);
    co_await pause;
  }
  acceptors_.done();
}

}  // namespace snap::server
