// The control socket: what both sides say, and what one side does when the other goes.
#include "engine/server/control.h"

#include <fcntl.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <catch2/catch.hpp>
#include <cstdio>
#include <fstream>
#include <sstream>

#include "engine/delta/delta.h"
#include "engine/io/test_rig.h"
#include "engine/server/control_client.h"
#include "engine/server/daemonize.h"
#include "engine/server/endpoint.h"
#include "engine/server/log.h"
#include "engine/server/remote_codec.h"
#include "engine/server/space_monitor.h"
#include "engine/store/event_log.h"
#include "snap/limits.h"

namespace snap::server {
namespace {

// ---- Messages

TEST_CASE("messages survive the way over the wire") {
  auto hello = must(decode_hello(encode_hello(4711)));
  CHECK(hello.pid == 4711);
  CHECK(hello.protocol == kControlProtocol);
  auto request = must(decode_request_line(encode_request({"clone", R"({"volume":"a\nb"})"})));
  CHECK(request.op == "clone");
  CHECK(must(decode_volume_args(request.args)).volume == "a\nb");
  const ControlReply progress = must(decode_reply(encode_progress({"pack", 5, 9})));
  CHECK(std::get<ControlProgress>(progress).stage == "pack");
  CHECK(std::get<ControlProgress>(progress).total == 9);
  const ControlReply failed =
      must(decode_reply(encode_error(Error(ErrorCode::kBusy, "held \xff by 1", 16))));
  CHECK(std::get<Error>(failed).code() == ErrorCode::kBusy);
  CHECK(std::get<Error>(failed).sys_errno() == 16);
  CHECK(encode_result("[1]").find('\n') == encode_result("[1]").size() - 1);
}

TEST_CASE("what is no message is refused, however deep or odd it is") {
  for (const std::string& line :
       {std::string(), std::string("{"), std::string("[]"),
        std::string("{\"protocol\":1,\"op\":7}"),
        std::string("{\"protocol\":1,\"op\":\"x\",\"args\":[]}"), std::string(100000, '['),
        "{\"protocol\":1,\"op\":\"x\",\"args\":{\"a\":" + std::string(1000, '[') +
            std::string(1000, ']') + "}}",
        std::string("{\"op\":\"x\",\"args\":{}}"),
        std::string("{\"protocol\":\"1\",\"op\":\"x\",\"args\":{}}")}) {
    INFO(line.substr(0, 60));
    CHECK_FALSE(decode_request_line(line));
  }
  CHECK_FALSE(decode_hello("{}"));
  CHECK_FALSE(decode_reply("{}"));
  CHECK_FALSE(decode_committed("{}"));
}

TEST_CASE("a commit and its result survive the way over the wire") {
  Store::CommitOptions options;
  options.name = Reference{"registry.example/a/tomcat02", "1.0"};
  options.comment = "add webapps \"app\"";
  options.author = "pakho";
  options.labels = {{"k", "v"}};
  options.compress = true;
  options.zstd_level = 7;
  options.rate_limit = 1u << 30;
  const CommitArgs back = must(decode_commit_args(encode_commit_args("vol", options)));
  CHECK(back.volume == "vol");
  CHECK(back.options.name == options.name);
  CHECK(back.options.comment == options.comment);
  CHECK(back.options.author == "pakho");
  CHECK(back.options.labels == options.labels);
  CHECK(back.options.compress);
  CHECK(back.options.zstd_level == 7);
  CHECK(back.options.rate_limit == options.rate_limit);

  Store::Committed done;
  done.image.id.bytes.fill(1);
  done.image.manifest.bytes.fill(2);
  done.image.size = 1u << 30;
  done.image.tags = {*options.name};
  done.layer.blob.bytes.fill(3);
  done.layer.content.bytes.fill(4);
  done.layer.file_size = 77;
  done.pause = std::chrono::microseconds(1234);
  done.total = std::chrono::seconds(5);
  done.packed = 99;
  const Store::Committed again = must(decode_committed(encode_committed(done)));
  CHECK(again.image.id == done.image.id);
  CHECK(again.image.manifest == done.image.manifest);
  CHECK(again.image.tags == done.image.tags);
  CHECK(again.layer.blob == done.layer.blob);
  CHECK(again.layer.content == done.layer.content);
  CHECK(again.layer.file_size == 77);
  CHECK(again.pause == done.pause);
  CHECK(again.total == done.total);
  CHECK(again.packed == 99);
}

// ---- Dialogue

Task<Result<std::string>> echo(std::string args) {
  co_return args;
}
Task<Result<std::string>> refuse() {
  co_return Error(ErrorCode::kNoSpace, "the disk is full");
}
Task<Result<std::string>> count_to_five(Progress progress) {
  for (std::uint64_t i = 1; i <= 5; ++i) {
    progress.tell("count", i, 5);
    Sleep pause(std::chrono::milliseconds(120));
    co_await pause;
  }
  co_return std::string("{}");
}
/// Until the client, or the server, gives up.
Task<Result<std::string>> wait_for_ever(Progress progress, bool* seen) {
  while (!progress.is_cancelled()) {
    progress.tell("wait", 0, 0);
    Sleep pause(std::chrono::milliseconds(5));
    co_await pause;
  }
  *seen = true;
  co_return Error(ErrorCode::kCancelled, "given up");
}

/// A control server beside the test, on one loop.
struct Rig {
  TempDir dir;
  std::unique_ptr<ControlServer> server;
  WaitGroup running;
  bool cancel_seen = false;
  std::string path() const { return dir.path() + "/c"; }

  static Task<void> run_server(Rig* rig) {
    co_await rig->server->run();
    rig->running.done();
  }
  Task<void> start() {
    UnixEndpoint endpoint{.path = path()};
    auto listener = co_await listen_on(std::move(endpoint));
    server = std::make_unique<ControlServer>(must(std::move(listener)));
    server->add("echo", [](std::string args, Progress) { return echo(std::move(args)); });
    server->add("refuse", [](std::string, Progress) { return refuse(); });
    server->add("count", [](std::string, Progress p) { return count_to_five(std::move(p)); });
    server->add("wait", [this](std::string, Progress p) {
      return wait_for_ever(std::move(p), &cancel_seen);
    });
    running.add();
    EventLoop::current()->spawn(run_server(this));
  }
  Task<void> stop() {
    server->stop();
    co_await running.wait();
    server.reset();  // gives the socket's name back
  }
};

Task<std::unique_ptr<ControlClient>> connect_to(Rig* rig) {
  auto client = co_await ControlClient::connect(rig->path());
  co_return must(std::move(client));
}

/// A call whose progress no one looks at.
Task<Result<std::string>> call(ControlClient* client, std::string op, std::string args) {
  const Progress none;
  auto result = co_await client->call(std::move(op), std::move(args), none);
  co_return result;
}

void run(Task<void> task) {
  auto loop = must(make_event_loop());
  loop->run(std::move(task));
}

Task<void> dialogue(Rig* rig, std::vector<std::uint64_t>* steps) {
  co_await rig->start();
  auto client = co_await connect_to(rig);
  CHECK(client->server().pid == ::getpid());
  auto echoed = co_await call(client.get(), "echo", R"({"a":[1,2]})");
  CHECK(must(std::move(echoed)) == R"({"a":[1,2]})");
  auto refused = co_await call(client.get(), "refuse", "{}");
  CHECK(refused.error().code() == ErrorCode::kNoSpace);
  CHECK(refused.error().message() == "the disk is full");
  auto unknown = co_await call(client.get(), "nonsense", "{}");
  CHECK(unknown.error().code() == ErrorCode::kUnsupported);
  Progress progress;
  progress.report = [steps](std::string_view stage, std::uint64_t done, std::uint64_t total) {
    CHECK(stage == "count");
    CHECK(total == 5);
    steps->push_back(done);
  };
  auto counted = co_await client->call("count", "{}", progress);
  CHECK(counted);
  co_await rig->stop();
}

TEST_CASE("results, errors and progress reach the client") {
  Rig rig;
  std::vector<std::uint64_t> steps;
  run(dialogue(&rig, &steps));
  CHECK(steps.size() >= 3);
  CHECK(std::is_sorted(steps.begin(), steps.end()));
  CHECK_FALSE(std::filesystem::exists(rig.path()));
}

Task<void> cancel_by_client(Rig* rig) {
  co_await rig->start();
  auto client = co_await connect_to(rig);
  Progress progress;
  int asked = 0;
  progress.cancelled = [&asked] { return ++asked > 2; };
  auto result = co_await client->call("wait", "{}", progress);
  CHECK(result.error().code() == ErrorCode::kCancelled);
  client.reset();
  for (int i = 0; i < 400 && !rig->cancel_seen; ++i) {
    Sleep pause(std::chrono::milliseconds(5));
    co_await pause;
  }
  CHECK(rig->cancel_seen);
  co_await rig->stop();
}

TEST_CASE("a client that hangs up cancels what it asked for") {
  Rig rig;
  run(cancel_by_client(&rig));
}

Task<void> call_wait(Rig* rig, ErrorCode* code, WaitGroup* done) {
  auto client = co_await connect_to(rig);
  auto result = co_await call(client.get(), "wait", "{}");
  *code = result.error().code();
  done->done();
}

Task<void> cancel_by_server(Rig* rig) {
  co_await rig->start();
  ErrorCode code = ErrorCode::kBusy;
  WaitGroup done;
  done.add();
  EventLoop::current()->spawn(call_wait(rig, &code, &done));
  auto idle = co_await connect_to(rig);
  Sleep pause(std::chrono::milliseconds(100));
  co_await pause;
  co_await rig->stop();
  CHECK(rig->cancel_seen);
  co_await done.wait();
  CHECK(code == ErrorCode::kIo);  // it is not the client that gave up
  auto late = co_await call(idle.get(), "echo", "{}");
  CHECK_FALSE(late);
}

TEST_CASE("a server that stops cancels its commands and lets idle clients go") {
  Rig rig;
  run(cancel_by_server(&rig));
}

/// Reports until the server gives up, more than fits a socket's buffer.
Task<Result<std::string>> report_at_length(Progress progress) {
  const std::string stage(100'000, 's');
  while (!progress.is_cancelled()) {
    progress.tell(stage, 0, 0);
    Sleep pause(std::chrono::milliseconds(5));
    co_await pause;
  }
  co_return std::string("{}");
}

Task<void> stop_beside_a_stopped_client(Rig* rig) {
  co_await rig->start();
  rig->server->add("report",
                   [](std::string, Progress p) { return report_at_length(std::move(p)); });
  auto connected = co_await connect_unix(rig->path());
  const Socket socket = must(std::move(connected));  // which never reads
  const std::string request = encode_request({.op = "report", .args = "{}"});
  auto sent = co_await send_all(socket, std::as_bytes(std::span(request)));
  must(sent);
  Sleep pause(std::chrono::seconds(1));
  co_await pause;
  co_await rig->stop();
}

TEST_CASE("a client that does not read holds up no server that stops") {
  Rig rig;
  run(stop_beside_a_stopped_client(&rig));
}

Task<void> flood(Rig* rig) {
  co_await rig->start();
  auto connected = co_await connect_unix(rig->path());
  const Socket socket = must(std::move(connected));
  const std::string line(kMaxControlMessage + 4096, 'x');
  auto sent = co_await send_all(socket, std::as_bytes(std::span(line.data(), line.size())));
  (void)sent;  // it may hang up on us before all is sent
  // It hangs up on us, and serves the next one.
  auto client = co_await connect_to(rig);
  auto echoed = co_await call(client.get(), "echo", "{}");
  CHECK(must(std::move(echoed)) == "{}");
  co_await rig->stop();
}

TEST_CASE("a line without end is dropped at 1 MiB") {
  Rig rig;
  run(flood(&rig));
}

/// Greets one client as a server of protocol 2 would, and waits until it has gone.
Task<void> greet_as_protocol_2(Listener* listener, WaitGroup* done) {
  auto accepted = co_await listener->accept();
  const Socket socket = must(std::move(accepted));
  const std::string hello = "{\"snapctl\":\"7.0.0\",\"protocol\":2,\"pid\":99}\n";
  auto sent = co_await send_all(socket, bytes_of(hello));
  must(sent);
  std::array<std::byte, 1> none;
  auto got = co_await recv_some(socket, none);
  CHECK((!got || *got == 0));  // it asked for nothing
  done->done();
}

Task<void> meet_protocol_2(Rig* rig) {
  UnixEndpoint endpoint{.path = rig->path()};
  auto listening = co_await listen_on(std::move(endpoint));
  Listener listener = must(std::move(listening));
  WaitGroup done;
  done.add();
  EventLoop::current()->spawn(greet_as_protocol_2(&listener, &done));
  auto client = co_await ControlClient::connect(rig->path());
  REQUIRE_FALSE(client);
  CHECK(client.error().code() == ErrorCode::kUnsupported);
  CHECK(client.error().message() ==
        "the server with pid 99 is snapctl 7.0.0 with control protocol 2, this is 0.1.0 with "
        "protocol 1: restart the older one");
  co_await done.wait();
}

TEST_CASE("a client refuses a server of another protocol, and says which is which") {
  Rig rig;
  run(meet_protocol_2(&rig));
}

Task<void> ask_in_protocol_2(Rig* rig) {
  co_await rig->start();
  auto connected = co_await connect_unix(rig->path());
  const Socket socket = must(std::move(connected));
  LineReader lines(socket);
  auto hello = co_await lines.next();
  CHECK(must(decode_hello(must(std::move(hello)))).protocol == kControlProtocol);
  // Everything but the protocol may have changed.
  for (const std::string request :
       {R"({"protocol":2,"op":"echo","args":{}})", R"({"protocol":2,"do":["echo"]})"}) {
    const std::string line = request + "\n";
    auto sent = co_await send_all(socket, bytes_of(line));
    must(sent);
    auto answer = co_await lines.next();
    const ControlReply reply = must(decode_reply(must(std::move(answer))));
    REQUIRE(std::holds_alternative<Error>(reply));
    CHECK(std::get<Error>(reply).code() == ErrorCode::kUnsupported);
    CHECK(std::get<Error>(reply).message() ==
          "the command speaks control protocol 2, the server is snapctl 0.1.0 with protocol 1: "
          "restart the server, or use its own program");
  }
  co_await rig->stop();
}

TEST_CASE("a server refuses a command of another protocol, and says which is which") {
  Rig rig;
  run(ask_in_protocol_2(&rig));
}

// ---- Background

std::string contents(const std::string& path) {
  std::ostringstream out;
  out << std::ifstream(path).rdbuf();
  return out.str();
}

TEST_CASE("a process in the background reports that it is ready, or why not, or that it died") {
  TempDir dir;
  const std::string log = dir.path() + "/log";
  SECTION("ready") {
    auto outcome = must(detach(log));
    if (auto* child = std::get_if<Readiness>(&outcome)) {
      child->ready("nbd+unix:///v");
      char byte;
      ::dprintf(1, "to the log, and standard input is empty: %zd\n", ::read(0, &byte, 1));
      ::_exit(0);
    }
    CHECK(std::get<std::string>(outcome) == "nbd+unix:///v");
    for (int i = 0; i < 400 && contents(log).empty(); ++i)
      ::usleep(5000);
    CHECK(contents(log) == "to the log, and standard input is empty: 0\n");
  }
  SECTION("failed") {
    auto outcome = detach(log);
    if (outcome) {
      std::get<Readiness>(*outcome).failed(Error(ErrorCode::kBusy, "held by pid 5", 16));
      ::_exit(1);
    }
    CHECK(outcome.error().code() == ErrorCode::kBusy);
    CHECK(outcome.error().sys_errno() == 16);
    CHECK(outcome.error().message() == "held by pid 5");
  }
  SECTION("died") {
    auto outcome = detach(log);
    if (outcome) ::_exit(3);
    CHECK(outcome.error().message().find("ended with status 3") != std::string::npos);
  }
}

TEST_CASE(
    "an event is one line of the log, whatever is in it, also after the file was opened anew") {
  TempDir dir;
  const std::string path = dir.path() + "/log";
  must(log_to_file(path));
  log_warning("a\nb\r\x1b[2J\x7f" + std::string(1, '\0') + " \xc3\xa4");
  const std::string first = contents(path);
  CHECK(first.find(" warning a\\x0ab\\x0d\\x1b[2J\\x7f\\x00 \xc3\xa4\n") != std::string::npos);
  CHECK(std::count(first.begin(), first.end(), '\n') == 1);
  REQUIRE(::rename(path.c_str(), (path + ".1").c_str()) == 0);
  must(reopen_log());
  log_info("second");
  CHECK(contents(path).find(" info second\n") != std::string::npos);
  CHECK(contents(path + ".1") == first);
}

TEST_CASE("complaints are held back once there are many, and counted") {
  RateLimit limit(3, 1);
  const auto start = std::chrono::steady_clock::time_point() + std::chrono::hours(1);
  int passed = 0;
  for (int i = 0; i < 10; ++i)
    passed += limit.ask(start).pass ? 1 : 0;
  CHECK(passed == 3);
  const auto later = limit.ask(start + std::chrono::seconds(1));
  CHECK(later.pass);
  CHECK(later.suppressed == 7);
  CHECK_FALSE(limit.ask(start + std::chrono::seconds(1)).pass);
}

}  // namespace

namespace {

Task<void> run_monitor(SpaceMonitor* monitor, bool* ended) {
  co_await monitor->run();
  *ended = true;
}

/// Serves nothing; has a monitor look at a volume that takes no more writes.
Task<std::vector<StoreEvent>> watch_a_failure(std::string path) {
  Store::OpenOptions options;
  auto store = must(co_await Store::open(path, options));
  Store::CreateOptions create;
  create.name = "web";
  create.size = 1u << 20;
  must(co_await store->create_volume(create));
  const Holder nobody;
  const std::shared_ptr<OpenVolume> web = must(co_await store->open_volume("web", nobody));
  SpaceMonitor monitor(*store, [web] { return std::vector<std::shared_ptr<OpenVolume>>{web}; });
  must(co_await monitor.prepare());
  bool ended = false;
  EventLoop::current()->spawn(run_monitor(&monitor, &ended));
  const Error why(ErrorCode::kIo, "fdatasync of data: EIO");
  web->volume().parts().delta->stop(why);
  EventReader reader(path);
  std::vector<StoreEvent> events;
  while (events.empty()) {
    Sleep pause(std::chrono::milliseconds(50));
    co_await pause;
    auto batch = must(co_await reader.next());
    events = std::move(batch.events);
  }
  Sleep again(std::chrono::milliseconds(1200));
  co_await again;
  auto more = must(co_await reader.next());
  events.insert(events.end(), more.events.begin(), more.events.end());
  monitor.stop();
  while (!ended)
    co_await yield_now();
  auto closed = co_await web->close();
  CHECK_FALSE(closed);
  co_return events;
}

}  // namespace

TEST_CASE("a volume that a failed sync has stopped is told of once") {
  TempDir temp;
  auto loop = must(make_event_loop());
  const auto events = loop->run(watch_a_failure(temp.path() + "/store"));
  REQUIRE(events.size() == 1);
  CHECK(events[0].kind == "volume-read-only");
  CHECK(events[0].volume == "web");
  CHECK(events[0].message.find("fdatasync of data: EIO") != std::string::npos);
}

}  // namespace snap::server
