// The server as a whole, on one loop with workers of its own: many clients, and its end.
#include "engine/server/server.h"

#include <sys/un.h>

#include <catch2/catch.hpp>
#include <filesystem>
#include <thread>

#include "engine/io/test_rig.h"
#include "engine/nbd/memory_export.h"
#include "engine/nbd/test_client.h"
#include "engine/server/endpoint.h"

namespace snap::server {
namespace {

using nbd::Bytes;
using nbd::Command;
using nbd::Wire;

/// A server on a thread of its own, stopped at the end.
class RunningServer {
 public:
  explicit RunningServer(Server::Options options = {}) : options_(options) {
    exports_.add(disk);
    loop_ = must(make_event_loop());
    std::promise<void> up;
    auto ready = up.get_future();
    thread_ = std::thread([this, &up] { loop_->run(serve(this, &up)); });
    ready.wait();
  }
  ~RunningServer() { stop(); }

  UniqueFd connect() {
    UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strncpy(address.sun_path, path().c_str(), sizeof address.sun_path - 1);
    if (::connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0)
      throw std::runtime_error("connect");
    const timeval patience{20, 0};
    ::setsockopt(fd.get(), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    return fd;
  }
  /// Returns when the server has ended.
  void stop() {
    request_stop();
    join();
  }
  void request_stop() {
    if (!stopped_.exchange(true)) stop_event_.set();
  }
  /// As two signals in a row do: clients are cut off before the drain has begun.
  void stop_and_cut() {
    cut_ = true;
    stop();
  }
  void join() {
    if (thread_.joinable()) thread_.join();
  }
  std::string path() const { return dir_.path() + "/s"; }

  std::shared_ptr<nbd::MemoryExport> disk = std::make_shared<nbd::MemoryExport>("disk", 1u << 20);

 private:
  static Task<void> wait_for_stop(RunningServer* self, Server* server) {
    co_await self->stop_event_.wait();
    server->request_stop();
    if (self->cut_) server->cut();
  }
  static Task<void> serve(RunningServer* self, std::promise<void>* up) {
    std::vector<Listener> listeners;
    UnixEndpoint endpoint{.path = self->path()};
    auto listener = co_await listen_on(std::move(endpoint));
    listeners.push_back(must(std::move(listener)));
    auto server = must(Server::start(self->exports_, std::move(listeners), self->options_));
    EventLoop::current()->spawn(wait_for_stop(self, server.get()));
    up->set_value();
    co_await server->run();
  }

  TempDir dir_;
  Server::Options options_;
  nbd::FixedExports exports_;
  std::unique_ptr<EventLoop> loop_;
  AsyncEvent stop_event_;
  std::atomic<bool> stopped_{false};
  std::atomic<bool> cut_{false};
  std::thread thread_;
};

std::size_t open_descriptors() {
  std::size_t count = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator("/proc/self/fd"))
    ++count;
  return count;
}

TEST_CASE("checklist 19: connections on several workers see one device") {
  Server::Options options;
  options.workers.threads = 3;
  RunningServer server(options);
  std::vector<UniqueFd> fds;
  for (int i = 0; i < 9; ++i)
    fds.push_back(server.connect());
  for (std::size_t i = 0; i < fds.size(); ++i) {
    Wire wire(fds[i].get());
    wire.enter("disk", false);
    wire.request(Command::kWrite, i, i * 4096, 4096, 0, Bytes(4096, static_cast<std::byte>(i + 1)));
    CHECK(wire.chunk().error == nbd::WireError::kNone);
  }
  for (std::size_t i = 0; i < fds.size(); ++i) {
    Wire wire(fds[fds.size() - 1 - i].get());
    wire.request(Command::kRead, i, i * 4096, 4096);
    CHECK(wire.chunk().error == nbd::WireError::kNone);
    CHECK(wire.receive(4096) == Bytes(4096, static_cast<std::byte>(i + 1)));
  }
}

TEST_CASE("limits: connecting and leaving 2,000 times loses no descriptor") {
  RunningServer server;
  { Wire(server.connect().get()).receive(nbd::kGreetingBytes); }
  const std::size_t before = open_descriptors();
  for (int i = 0; i < 2000; ++i) {
    const UniqueFd fd = server.connect();
    if (i % 3 == 1) Wire(fd.get()).greet();
    if (i % 3 == 2) Wire(fd.get()).enter("disk");
  }
  // The last ones may still be on their way out.
  for (int i = 0; i < 200 && open_descriptors() > before; ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  CHECK(open_descriptors() <= before);
}

TEST_CASE(
    "limits: a connection beyond the limit is closed, and a place that becomes free is given "
    "again") {
  Server::Options options;
  options.workers.max_connections = 2;
  RunningServer server(options);
  UniqueFd first = server.connect();
  Wire(first.get()).enter("disk");
  const UniqueFd second = server.connect();
  Wire(second.get()).enter("disk");
  const UniqueFd third = server.connect();
  CHECK(Wire(third.get()).closed());
  first.reset();
  bool served = false;
  for (int i = 0; i < 200 && !served; ++i) {
    const UniqueFd again = server.connect();
    std::byte b;
    served = ::recv(again.get(), &b, 1, 0) == 1;
    if (!served) std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  CHECK(served);
}

TEST_CASE("a stop lets idle clients go at once and removes the socket") {
  RunningServer server;
  const UniqueFd idle = server.connect();
  Wire(idle.get()).enter("disk");
  const UniqueFd silent = server.connect();
  Wire(silent.get()).receive(nbd::kGreetingBytes);
  server.stop();
  CHECK(Wire(idle.get()).closed());
  CHECK(Wire(silent.get()).closed());
  CHECK_FALSE(std::filesystem::exists(server.path()));
}

/// A client with more replies under way than its socket holds, of which it has read 16 bytes.
UniqueFd stuck_client(RunningServer& server) {
  UniqueFd stuck = server.connect();
  Wire wire(stuck.get());
  wire.enter("disk", false);
  for (std::uint64_t i = 0; i < 20; ++i)
    wire.request(Command::kRead, i, 0, 1u << 20);
  wire.receive(16);
  return stuck;
}

TEST_CASE("a stop does not wait longer than its limit for a client that does not read") {
  Server::Options options;
  options.drain = std::chrono::milliseconds(200);
  RunningServer server(options);
  const UniqueFd stuck = stuck_client(server);
  const auto begin = std::chrono::steady_clock::now();
  server.stop();
  const auto took = std::chrono::steady_clock::now() - begin;
  CHECK(took >= std::chrono::milliseconds(150));
  CHECK(took < std::chrono::seconds(15));
}

TEST_CASE("a stop that is cut short at once does not wait for its limit") {
  Server::Options options;
  options.drain = std::chrono::hours(24);
  RunningServer server(options);
  const UniqueFd stuck = stuck_client(server);
  server.stop_and_cut();
}

// ---- Endpoints

template <class T>
T run_once(Task<T> task) {
  auto loop = must(make_event_loop());
  return loop->run(std::move(task));
}

TEST_CASE("TCP addresses are taken apart, and incomplete ones completed") {
  const auto parsed = [](std::string_view text) {
    const TcpEndpoint e = must(parse_tcp_endpoint(text));
    return e.host + " " + e.port;
  };
  CHECK(parsed("10.1.2.3:99") == "10.1.2.3 99");
  CHECK(parsed(":99") == "127.0.0.1 99");
  CHECK(parsed("localhost") == "localhost 10809");
  CHECK(parsed("[::1]:5") == "::1 5");
  CHECK(parsed("[::1]") == "::1 10809");
  CHECK_FALSE(parse_tcp_endpoint("[::1"));
  CHECK_FALSE(parse_tcp_endpoint("[::1]x"));
}

TEST_CASE("an address that other machines reach is refused unless allowed by name") {
  for (const char* host : {"0.0.0.0", "", "::"}) {
    auto refused = run_once(listen_on(TcpEndpoint{.host = host, .port = "0"}));
    REQUIRE_FALSE(refused);
    CHECK(refused.error().code() == ErrorCode::kPermission);
  }
  CHECK(run_once(listen_on(TcpEndpoint{.host = "0.0.0.0", .port = "0", .insecure = true})));
  auto loopback = run_once(listen_on(TcpEndpoint{.port = "0"}));
  REQUIRE(loopback);
  CHECK(nbd_uri(*loopback, "a b/c") ==
        "nbd://127.0.0.1:" + std::to_string(loopback->port()) + "/a%20b/c");
}

TEST_CASE("a socket path in a URI is encoded") {
  TempDir dir;
  const std::string path = dir.path() + "/a&b?";
  auto listener = must(run_once(listen_on(UnixEndpoint{.path = path})));
  CHECK(nbd_uri(listener, "v") == "nbd+unix:///v?socket=" + dir.path() + "/a%26b%3F");
}

}  // namespace
}  // namespace snap::server
