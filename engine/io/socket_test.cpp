// Sockets and listeners, on both kinds of loop that have them.
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <catch2/catch.hpp>
#include <cstdlib>
#include <string>
#include <vector>

#include "engine/io/socket.h"
#include "engine/io/sync.h"
#include "engine/io/test_rig.h"

using namespace snap;

namespace {

#define BOTH_KINDS GENERATE(as<std::string>{}, "threads", "uring")

/// Sends back what comes until the peer ends; gives the number of bytes.
Task<std::size_t> echo(Listener& listener) {
  Socket s = must(co_await listener.accept());
  std::size_t total = 0;
  std::vector<std::byte> buffer(10000);
  for (;;) {
    auto n = co_await recv_some(s, buffer);
    if (must(std::move(n)) == 0) co_return total;
    must(co_await send_all(s, std::span<const std::byte>(buffer).first(*n)));
    total += *n;
  }
}

Task<void> send_parts(const Socket& s, const std::vector<std::byte>& bytes) {
  // More parts than one sendmsg takes, some of them empty.
  std::vector<iovec> parts;
  for (std::size_t at = 0; at < bytes.size(); at += 100) {
    const std::size_t n = std::min<std::size_t>(100, bytes.size() - at);
    parts.push_back(iovec{const_cast<std::byte*>(bytes.data() + at), n});
    parts.push_back(iovec{nullptr, 0});
  }
  must(co_await send_all(s, std::span<iovec>(parts)));
}

Task<std::size_t> talk(Socket s, std::size_t size) {
  std::vector<std::byte> out(size);
  for (std::size_t i = 0; i < size; ++i)
    out[i] = static_cast<std::byte>(i * 31 >> 3);
  // Both directions at once: each is larger than the socket's buffers.
  EventLoop::current()->spawn(send_parts(s, out));
  std::vector<std::byte> back(size);
  must(co_await recv_exact(s, back));
  CHECK(back == out);
  s.shutdown(SHUT_WR);
  std::byte more;
  auto end = co_await recv_exact(s, std::span(&more, 1));
  REQUIRE_FALSE(end.has_value());
  CHECK(end.error().code() == ErrorCode::kProtocol);
  co_return size;
}

Task<void> echo_over(Listener listener, Socket client) {
  std::vector<Task<std::size_t>> both;
  both.push_back(echo(listener));
  both.push_back(talk(std::move(client), 3'000'000));
  auto done = co_await gather(std::move(both));
  CHECK(done[0] == done[1]);
}

Task<void> over_unix(std::string path) {
  Listener listener = must(co_await Listener::listen_unix(path, 0660));
  struct stat s {};
  REQUIRE(::stat(path.c_str(), &s) == 0);
  CHECK((s.st_mode & 07777) == 0660);
  Socket client = must(co_await connect_unix(path));
  co_await echo_over(std::move(listener), std::move(client));
  CHECK(::stat(path.c_str(), &s) != 0);  // removed with the listener
}

Task<void> over_tcp(std::string host) {
  Listener listener = must(co_await Listener::listen_tcp(host, "0"));
  CHECK(listener.port() != 0);
  Socket client = must(co_await connect_tcp(host, std::to_string(listener.port())));
  int on = 0;
  socklen_t length = sizeof on;
  CHECK(::getsockopt(client.fd(), IPPROTO_TCP, TCP_NODELAY, &on, &length) == 0);
  CHECK(on != 0);
  co_await echo_over(std::move(listener), std::move(client));
}

Task<void> taking_over(std::string path) {
  // A stale file, as a killed server leaves it.
  {
    Listener dead = must(co_await Listener::listen_unix(path));
    REQUIRE(::link(path.c_str(), (path + ".keep").c_str()) == 0);
  }
  REQUIRE(::rename((path + ".keep").c_str(), path.c_str()) == 0);
  Listener live = must(co_await Listener::listen_unix(path));
  auto second = co_await Listener::listen_unix(path);
  REQUIRE_FALSE(second.has_value());
  CHECK(second.error().code() == ErrorCode::kBusy);
  CHECK(second.error().message().find(path) != std::string::npos);
  Socket still = must(co_await connect_unix(path));
  CHECK(still.valid());

  // Not ours any more: closing leaves the successor alone.
  REQUIRE(::rename(path.c_str(), (path + ".moved").c_str()) == 0);
  Listener successor = must(co_await Listener::listen_unix(path));
  live.close();
  struct stat s {};
  CHECK(::stat(path.c_str(), &s) == 0);

  OpenFlags flags = for_write();
  auto file = must(co_await open_file(path + ".file", flags));
  auto on_file = co_await Listener::listen_unix(path + ".file");
  REQUIRE_FALSE(on_file.has_value());
  CHECK(on_file.error().code() == ErrorCode::kExists);
  auto got1 = co_await file->stat();
  CHECK(must(std::move(got1)).type == FileStat::Type::kFile);
  auto nowhere = co_await connect_unix(path + ".none");
  REQUIRE_FALSE(nowhere.has_value());
  CHECK(nowhere.error().code() == ErrorCode::kNotFound);
}

Task<void> count_entries(std::string path, std::size_t expected) {
  auto dir = must(co_await open_directory(path));
  auto got2 = co_await dir->list();
  CHECK(must(std::move(got2)).size() == expected);
}

Task<void> adopted(std::string path) {
  Listener first = must(co_await Listener::listen_unix(path));
  Listener again = must(Listener::adopt(::dup(first.fd())));
  CHECK(again.address().find(path) == 0);
  Socket client = must(co_await connect_unix(path));
  Socket server = must(co_await again.accept());
  CHECK(server.valid());
  auto not_listening = Listener::adopt(client.fd());
  CHECK_FALSE(not_listening.has_value());
}

Task<void> unresolvable() {
  auto bad = co_await connect_tcp("127.0.0.1", "no-such-service");
  REQUIRE_FALSE(bad.has_value());
  CHECK(bad.error().message().find("127.0.0.1:no-such-service") != std::string::npos);
}

}  // namespace

TEST_CASE("3 MB there and back over a unix socket arrive as they were") {
  TestRig rig(BOTH_KINDS);
  rig.loop->run(over_unix(rig.temp.path() + "/s"));
}

TEST_CASE("a path longer than a socket address holds works") {
  TestRig rig(BOTH_KINDS);
  const std::string deep = rig.temp.path() + "/" + std::string(150, 'x');
  must(rig.loop->run(open_directory(deep, true)));
  rig.loop->run(over_unix(deep + "/s"));
}

TEST_CASE("3 MB there and back over TCP arrive as they were, without Nagle's delay") {
  TestRig rig(BOTH_KINDS);
  rig.loop->run(over_tcp("127.0.0.1"));
  rig.loop->run(over_tcp("localhost"));
}

TEST_CASE("a stale socket file is replaced, a live one is Busy, another file stays") {
  TestRig rig(BOTH_KINDS);
  rig.loop->run(taking_over(rig.temp.path() + "/s"));
  rig.loop->run(count_entries(rig.temp.path(), 2));  // s.moved and s.file: nothing temporary
}

TEST_CASE("a listening descriptor is adopted, another one is refused") {
  TestRig rig(BOTH_KINDS);
  rig.loop->run(adopted(rig.temp.path() + "/s"));
}

TEST_CASE("the service manager's sockets are for the process they name and only once") {
  ::setenv("LISTEN_PID", "1", 1);
  ::setenv("LISTEN_FDS", "1", 1);
  CHECK(must(inherited_listeners()).empty());
  CHECK(std::getenv("LISTEN_FDS") == nullptr);
  ::setenv("LISTEN_PID", std::to_string(::getpid()).c_str(), 1);
  ::setenv("LISTEN_FDS", "100000", 1);
  CHECK_FALSE(inherited_listeners().has_value());
  CHECK(must(inherited_listeners()).empty());
}

TEST_CASE("an address that does not resolve is named in the error") {
  TestRig rig(BOTH_KINDS);
  rig.loop->run(unresolvable());
}
