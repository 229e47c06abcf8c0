// Tasks, and what every kind of loop promises about them: timers, posts, cancellation, shutdown.
#include "engine/io/test_rig.h"

#include <poll.h>
#include <sys/socket.h>

#include <atomic>
#include <catch2/catch.hpp>
#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

#include "engine/io/socket.h"
#include "engine/io/sync.h"

using namespace snap;
using namespace std::chrono_literals;

namespace {

#define EVERY_KIND GENERATE(as<std::string>{}, "threads", "uring", "simulated")
#define BOTH_KINDS GENERATE(as<std::string>{}, "threads", "uring")

// ---- Tasks

Task<int> number(int n, int* started) {
  ++*started;
  co_return n;
}
Task<int> sum_of(int depth, int* started) {
  if (depth == 0) co_return 0;
  if (depth % 3 == 0) co_await yield_now();
  auto below = co_await sum_of(depth - 1, started);
  auto own = co_await number(depth, started);
  co_return below + own;
}
Task<void> laziness() {
  int started = 0;
  Task<int> never = number(1, &started);
  Task<int> later = number(2, &started);
  CHECK(started == 0);
  const int value = co_await std::move(later);
  CHECK(value == 2);
  CHECK(started == 1);
  Task<int> moved = std::move(never);
  CHECK_FALSE(never.valid());
}  // `moved` is destroyed without having run

Task<std::uint64_t> await_many(std::uint64_t count, bool suspend) {
  int started = 0;
  std::uint64_t sum = 0;
  for (std::uint64_t i = 0; i < count; ++i) {
    if (suspend) co_await yield_now();
    auto one = co_await number(1, &started);
    sum += static_cast<std::uint64_t>(one);
  }
  co_return sum;
}

struct Counted {
  explicit Counted(int* n) : count(n) { ++*count; }
  Counted(Counted&& o) noexcept : count(std::exchange(o.count, nullptr)) {}
  Counted& operator=(Counted&&) = delete;
  ~Counted() {
    if (count != nullptr) --*count;
  }
  int* count;
};
Task<std::unique_ptr<int>> own(Counted held, int value) {
  co_await yield_now();
  CHECK(held.count != nullptr);
  co_return std::make_unique<int>(value);
}
Task<void> ownership(int* alive) {
  auto result = co_await own(Counted(alive), 5);
  CHECK(*result == 5);
  CHECK(*alive == 0);
  std::vector<Task<std::unique_ptr<int>>> tasks;
  for (int i = 0; i < 10; ++i)
    tasks.push_back(own(Counted(alive), i));
  auto results = co_await gather(std::move(tasks));
  for (int i = 0; i < 10; ++i)
    CHECK(*results[static_cast<std::size_t>(i)] == i);
}

// ---- Timers

Task<void> sleep_and_note(std::chrono::milliseconds time, int id, std::vector<int>* order) {
  co_await Sleep(time);
  order->push_back(id);
}
Task<void> three_sleeps(std::vector<int>* order) {
  const auto before = EventLoop::current()->now();
  EventLoop::current()->spawn(sleep_and_note(30ms, 3, order));
  EventLoop::current()->spawn(sleep_and_note(10ms, 1, order));
  EventLoop::current()->spawn(sleep_and_note(20ms, 2, order));
  co_await Sleep(40ms);
  CHECK(EventLoop::current()->now() - before >= 40ms);
}
Task<void> wait_on(Sleep& sleep, bool* ended) {
  co_await sleep;
  *ended = true;
}
Task<void> wake_up() {
  Sleep long_sleep(1h);
  bool ended = false;
  EventLoop::current()->spawn(wait_on(long_sleep, &ended));
  co_await yield_now();
  co_await yield_now();
  CHECK_FALSE(ended);
  long_sleep.wake();
  long_sleep.wake();  // once more is nothing
  co_await yield_now();
  co_await yield_now();
  CHECK(ended);
  Sleep woken_before(1h);
  woken_before.wake();
  co_await woken_before;
}

// ---- Helper threads

Task<void> offload_work() {
  const std::thread::id here = std::this_thread::get_id();
  std::vector<int> seen;
  auto work = [] { return std::this_thread::get_id(); };
  auto void_work = [&seen] { seen.push_back(1); };
  const std::thread::id there = co_await offload(work);
  CHECK(there != here);
  CHECK(std::this_thread::get_id() == here);
  co_await offload(void_work);
  CHECK(seen.size() == 1);
}
Task<int> offload_square(int i) {
  auto work = [i] { return i * i; };
  const int result = co_await offload(work);
  co_return result;
}
Task<void> offload_many() {
  std::vector<Task<int>> tasks;
  for (int i = 0; i < 1000; ++i)
    tasks.push_back(offload_square(i));
  auto results = co_await gather(std::move(tasks));
  for (int i = 0; i < 1000; ++i)
    CHECK(results[static_cast<std::size_t>(i)] == i * i);
}

Task<bool> blocks_here() {
  auto work = [] { return std::this_thread::get_id(); };
  const std::thread::id by = co_await run_blocking(work);
  co_return by == std::this_thread::get_id();
}

// ---- Cancellation and shutdown

struct Pair {
  Pair() {
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) != 0) std::abort();
    a = Socket(UniqueFd(fds[0]), "a");
    b = Socket(UniqueFd(fds[1]), "b");
  }
  int fds[2];
  Socket a;
  Socket b;
};

Task<void> receive_into(IoOp& op, Result<std::size_t>* out) {
  *out = co_await op;
}
void set_recv(IoOp& op, const Socket& s, std::span<std::byte> out) {
  op.opcode = IoOpcode::kRecv;
  op.fd = s.fd();
  op.buffer = out.data();
  op.length = out.size();
}
Task<void> cancel_a_recv(bool at_once) {
  Pair pair;
  std::byte buffer[16];
  Result<std::size_t> first = std::size_t{99};
  Result<std::size_t> second = std::size_t{99};
  IoOp one;
  IoOp two;
  set_recv(one, pair.a, buffer);
  set_recv(two, pair.b, buffer);
  EventLoop::current()->spawn(receive_into(one, &first));
  EventLoop::current()->spawn(receive_into(two, &second));
  if (at_once) {
    co_await yield_now();  // both have begun, and the loop has not waited yet
  } else {
    co_await Sleep(5ms);
  }
  EventLoop::current()->cancel(one);
  co_await Sleep(20ms);
  REQUIRE_FALSE(first.has_value());
  CHECK(first.error().code() == ErrorCode::kCancelled);
  CHECK(second.has_value());
  CHECK(*second == 99);  // still waiting
  must(co_await send_all(pair.a, bytes_of("hello")));
  co_await Sleep(20ms);
  CHECK(*second == 5);
}

Task<int> turns_until_received() {
  Pair pair;
  must(co_await send_all(pair.b, bytes_of("hello")));
  std::byte buffer[16];
  Result<std::size_t> got = std::size_t{0};
  IoOp op;
  set_recv(op, pair.a, buffer);
  EventLoop::current()->spawn(receive_into(op, &got));
  int turns = 0;
  while (must(got) == 0 && ++turns < 1000)
    co_await yield_now();
  co_return turns;
}

Task<void> expect_cancelled_recv(Socket& s, int* cancelled) {
  std::byte buffer[16];
  auto n = co_await recv_some(s, buffer);
  if (!n && n.error().code() == ErrorCode::kCancelled) ++*cancelled;
  auto again = co_await recv_some(s, buffer);  // a new one ends at once
  if (!again && again.error().code() == ErrorCode::kCancelled) ++*cancelled;
}
Task<void> expect_cancelled_poll(Socket& s, int* cancelled) {
  IoOp op;
  op.opcode = IoOpcode::kPoll;
  op.fd = s.fd();
  op.flags = POLLIN;
  auto n = co_await op;
  if (!n && n.error().code() == ErrorCode::kCancelled) ++*cancelled;
}
Task<void> expect_cancelled_accept(Listener& listener, int* cancelled) {
  auto s = co_await listener.accept();
  if (!s && s.error().code() == ErrorCode::kCancelled) ++*cancelled;
}
Task<void> expect_short_sleep(int* cancelled) {
  co_await Sleep(1h);
  co_await Sleep(1h);
  ++*cancelled;
}
Task<void> wait_for_everything(std::string path, std::atomic<bool>* waiting, int* cancelled) {
  Listener listener = must(co_await Listener::listen_unix(path));
  Pair pair;
  WaitGroup done;
  std::vector<Task<int>> none;
  EventLoop* loop = EventLoop::current();
  loop->spawn(expect_cancelled_accept(listener, cancelled));
  loop->spawn(expect_cancelled_recv(pair.a, cancelled));
  loop->spawn(expect_cancelled_poll(pair.b, cancelled));
  loop->spawn(expect_short_sleep(cancelled));
  co_await Sleep(10ms);
  waiting->store(true);
  co_await Sleep(1h);
  while (*cancelled < 5)
    co_await yield_now();
  CHECK(loop->stopping());
}

Task<void> stop_sleeping(std::atomic<bool>* waiting) {
  waiting->store(true);
  co_await Sleep(1h);
}

Task<void> poll_for_data() {
  Pair pair;
  IoOp op;
  op.opcode = IoOpcode::kPoll;
  op.fd = pair.a.fd();
  op.flags = POLLIN | POLLOUT;
  auto writable = co_await op;
  CHECK(must(std::move(writable)) == POLLOUT);
  must(co_await send_all(pair.b, bytes_of("x")));
  IoOp again;
  again.opcode = IoOpcode::kPoll;
  again.fd = pair.a.fd();
  again.flags = POLLIN;
  auto readable = co_await again;
  CHECK(must(std::move(readable)) == POLLIN);
  IoOp bad;
  bad.opcode = IoOpcode::kRecv;
  bad.fd = -1;
  auto failed = co_await bad;
  REQUIRE_FALSE(failed.has_value());
  CHECK(failed.error().sys_errno() == EBADF);
}

Task<void> nonblocking_socket() {
  // As an inherited one may be: the loop waits all the same.
  int fds[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds) != 0) std::abort();
  Socket a(UniqueFd{fds[0]}, "a");
  Socket b(UniqueFd{fds[1]}, "b");
  std::byte buffer[16];
  Result<std::size_t> got = std::size_t{99};
  IoOp op;
  set_recv(op, a, buffer);
  EventLoop::current()->spawn(receive_into(op, &got));
  co_await Sleep(10ms);
  CHECK(*got == 99);
  must(co_await send_all(b, bytes_of("hi")));
  co_await Sleep(10ms);
  CHECK(must(std::move(got)) == 2);
}

Task<void> cancel_after_completion() {
  Pair pair;
  std::byte buffer[16];
  Result<std::size_t> got = std::size_t{99};
  IoOp op;
  set_recv(op, pair.a, buffer);
  EventLoop* loop = EventLoop::current();
  loop->spawn(receive_into(op, &got));
  co_await yield_now();
  co_await yield_now();
  must(co_await send_all(pair.b, bytes_of("hello")));
  // Whenever the cancel comes, bytes that left the socket reach the receiver.
  for (int i = 0; i < 5; ++i) {
    loop->cancel(op);
    co_await yield_now();
  }
  co_await Sleep(10ms);
  if (!got) {
    CHECK(got.error().code() == ErrorCode::kCancelled);
    auto later = co_await recv_some(pair.a, buffer);
    got = std::move(later);
  }
  CHECK(must(std::move(got)) == 5);
}

Task<int> give(int value) {
  co_await yield_now();
  co_return value;
}

}  // namespace

TEST_CASE("a task runs when it is awaited and not before, and gives its value once") {
  TestRig rig(EVERY_KIND);
  rig.loop->run(laziness());
  int started = 0;
  CHECK(rig.loop->run(sum_of(100, &started)) == 5050);
  CHECK(started == 100);
  CHECK(EventLoop::current() == nullptr);
}

TEST_CASE("a million awaits in a row do not grow the stack") {
  TestRig rig(EVERY_KIND);
  // Frames of a million resumptions would need hundreds of MiB.
  CHECK(rig.loop->run(await_many(1'000'000, false)) == 1'000'000);
  CHECK(rig.loop->run(await_many(300'000, true)) == 300'000);
}

TEST_CASE("what a task holds is destroyed once, and gather keeps the order") {
  TestRig rig(EVERY_KIND);
  int alive = 0;
  rig.loop->run(ownership(&alive));
  CHECK(alive == 0);
}

TEST_CASE("timers fire in order of time, not before it") {
  TestRig rig(EVERY_KIND);
  std::vector<int> order;
  rig.loop->run(three_sleeps(&order));
  CHECK(order == std::vector<int>{1, 2, 3});
}

TEST_CASE("a sleep can be cut short, before and while it lasts") {
  TestRig rig(EVERY_KIND);
  rig.loop->run(wake_up());
}

TEST_CASE("offloaded work runs on another thread and its task goes on on the loop") {
  TestRig rig(BOTH_KINDS);
  rig.loop->run(offload_work());
  rig.loop->run(offload_many());
}

TEST_CASE("what may block runs on another thread, unless the loop has nothing else to do") {
  TestRig rig(BOTH_KINDS);
  CHECK_FALSE(rig.loop->run(blocks_here()));
  rig.loop->set_may_block(true);
  CHECK(rig.loop->run(blocks_here()));
  rig.loop->set_may_block(false);
  CHECK_FALSE(rig.loop->run(blocks_here()));
}

TEST_CASE("cancel ends the op it names and no other") {
  TestRig rig(BOTH_KINDS);
  const bool at_once = GENERATE(false, true);
  rig.loop->run(cancel_a_recv(at_once));
}

TEST_CASE("a loop that always has something to run receives meanwhile") {
  TestRig rig(BOTH_KINDS);
  CHECK(rig.loop->run(turns_until_received()) < 1000);
}

TEST_CASE("a cancel never loses bytes that were received") {
  TestRig rig(BOTH_KINDS);
  for (int i = 0; i < 20; ++i)
    rig.loop->run(cancel_after_completion());
}

TEST_CASE("shutdown from another thread ends accepts, receives, polls and sleeps") {
  TestRig rig(BOTH_KINDS);
  std::atomic<bool> waiting{false};
  int cancelled = 0;
  std::thread stopper([&] {
    while (!waiting.load())
      std::this_thread::sleep_for(1ms);
    rig.loop->shutdown();
  });
  rig.loop->run(wait_for_everything(rig.temp.path() + "/s", &waiting, &cancelled));
  stopper.join();
  CHECK(cancelled == 5);
}

TEST_CASE("a loop that was shut down before it ran does not wait") {
  TestRig rig(EVERY_KIND);
  rig.loop->shutdown();
  std::atomic<bool> waiting{false};
  rig.loop->run(stop_sleeping(&waiting));
  CHECK(waiting.load());
}

TEST_CASE("poll tells what is ready, and a bad descriptor is an error") {
  TestRig rig(BOTH_KINDS);
  rig.loop->run(poll_for_data());
}

TEST_CASE("a receive on a socket in non-blocking mode waits for data") {
  TestRig rig(BOTH_KINDS);
  rig.loop->run(nonblocking_socket());
}

TEST_CASE("a loop may be run again, and by another thread") {
  TestRig rig(EVERY_KIND);
  CHECK(rig.loop->run(give(1)) == 1);
  int second = 0;
  std::thread other([&] { second = rig.loop->run(give(2)); });
  other.join();
  CHECK(second == 2);
  CHECK(rig.loop->run(give(3)) == 3);
}
