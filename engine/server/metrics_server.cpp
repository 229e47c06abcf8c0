#include "engine/server/metrics_server.h"

#include <sys/socket.h>

#include <array>
#include <chrono>
#include <span>
#include <utility>

#include "engine/server/log.h"
#include "snap/limits.h"

namespace snap::server {

namespace {

constexpr std::chrono::milliseconds kAcceptPause{100};

std::string http_response(std::string_view status, std::string_view type, std::string_view extra,
                          std::string_view body) {
  std::string out = "HTTP/1.1 ";
  out.append(status).append("\r\nContent-Type: ").append(type);
  out.append("\r\nContent-Length: ").append(std::to_string(body.size()));
  out.append("\r\nConnection: close\r\n").append(extra).append("\r\n").append(body);
  return out;
}

std::string http_error(std::string_view status, std::string_view extra = {}) {
  return http_response(status, "text/plain", extra, std::string(status) + "\n");
}

}  // namespace

std::string http_answer(std::string_view request, const MetricsServer::Text& text) {
  const std::string_view line = request.substr(0, request.find("\r\n"));
  const std::size_t first = line.find(' ');
  const std::size_t second = first == line.npos ? line.npos : line.find(' ', first + 1);
  if (second == line.npos || !line.substr(second + 1).starts_with("HTTP/1."))
    return http_error("400 Bad Request");
  if (line.substr(0, first) != "GET") return http_error("405 Method Not Allowed", "Allow: GET\r\n");
  std::string_view path = line.substr(first + 1, second - first - 1);
  path = path.substr(0, path.find('?'));
  if (path != "/metrics") return http_error("404 Not Found");
  return http_response("200 OK", "text/plain; version=0.0.4; charset=utf-8", "", text());
}

/// One client, in a list; a task beside the one that serves it limits its time.
struct MetricsServer::Client {
  Socket socket;
  Sleep limit{kHttpTimeout};
  AsyncEvent watcher_ended;
  bool done = false;
  Client* next = nullptr;
};

Task<void> MetricsServer::run() {
  while (!accepting_.stopped()) {
    auto accepted = co_await accepting_.accept(listener_.fd());
    if (accepted) {
      Socket socket(UniqueFd(static_cast<int>(*accepted)), "metrics client");
      if (clients_ >= kMaxMetricsClients) continue;  // closes it
      ++clients_;
      running_.add();
      EventLoop::current()->spawn(serve(std::move(socket)));
      co_await yield_now();  // it registers itself
      continue;
    }
    if (accepting_.stopped() || EventLoop::current()->stopping()) break;
    Sleep pause(kAcceptPause);
    co_await pause;
  }
  for (Client* client = first_; client != nullptr; client = client->next)
    client->limit.wake();
  co_await running_.wait();
}

void MetricsServer::stop() {
  accepting_.stop();
}

Task<void> MetricsServer::serve(Socket socket) {
  {
    Client client{.socket = std::move(socket)};
    client.next = std::exchange(first_, &client);
    EventLoop::current()->spawn(limit_time(&client));
    co_await talk(&client.socket);
    client.done = true;
    client.limit.wake();
    co_await client.watcher_ended.wait();
    Client** place = &first_;
    while (*place != &client)
      place = &(*place)->next;
    *place = client.next;
  }
  --clients_;
  running_.done();
}

Task<void> MetricsServer::limit_time(Client* client) {
  co_await client->limit;
  if (!client->done) client->socket.shutdown(SHUT_RDWR);
  client->watcher_ended.set();
}

Task<void> MetricsServer::talk(Socket* socket) {
  std::string request;
  std::array<std::byte, 1024> piece;
  std::string answer;
  while (answer.empty()) {
    auto got = co_await recv_some(*socket, piece);
    if (!got || *got == 0) co_return;
    request.append(reinterpret_cast<const char*>(piece.data()), *got);
    const std::size_t end = request.find("\r\n\r\n");
    if (end != std::string::npos) {
      answer = http_answer(std::string_view(request).substr(0, end), text_);
    } else if (request.size() > kMaxHttpRequest) {
      answer = http_error("431 Request Header Fields Too Large");
    }
  }
  auto sent = co_await send_all(*socket, std::as_bytes(std::span(answer.data(), answer.size())));
  (void)sent;  // it has hung up, which is its own affair
  socket->shutdown(SHUT_WR);
}

}  // namespace snap::server
