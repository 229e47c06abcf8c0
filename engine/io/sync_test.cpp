// Waiting for each other, on one loop and across loops and threads.
#include "engine/io/sync.h"

#include <atomic>
#include <catch2/catch.hpp>
#include <cstdlib>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "engine/io/test_rig.h"

using namespace snap;
using namespace std::chrono_literals;

namespace {

#define BOTH_KINDS GENERATE(as<std::string>{}, "threads", "uring")

Task<void> hand_over(AsyncMutex& mutex, int* shared, int rounds) {
  for (int i = 0; i < rounds; ++i) {
    auto guard = co_await mutex.lock();
    const int before = *shared;
    co_await yield_now();  // others try to get in here
    *shared = before + 1;
  }
}
Task<void> contend(AsyncMutex& mutex, int* shared) {
  std::vector<Task<int>> none;
  for (int i = 0; i < 4; ++i)
    EventLoop::current()->spawn(hand_over(mutex, shared, 500));
  auto nothing = co_await gather(std::move(none));
  CHECK(nothing.empty());
}

struct PingPong {
  AsyncEvent ping;
  AsyncEvent pong;
};
Task<void> player(AsyncEvent& mine, AsyncEvent& theirs, int rounds) {
  for (int i = 0; i < rounds; ++i) {
    co_await mine.wait();
    mine.reset();
    theirs.set();
  }
}
Task<void> pass_gate(Gate& gate, std::atomic<int>* inside, std::atomic<bool>* closed, int rounds) {
  for (int i = 0; i < rounds; ++i) {
    Gate::Pass pass;
    auto at_once = i % 2 == 0 ? gate.enter_now() : std::nullopt;
    if (at_once) {
      pass = std::move(*at_once);
    } else {
      pass = co_await gate.enter();
    }
    if (closed->load()) std::abort();
    ++*inside;
    co_await yield_now();
    --*inside;
    pass.leave();
    co_await yield_now();
  }
}
Task<void> close_gate(Gate& gate, std::atomic<int>* inside, std::atomic<bool>* closed) {
  for (int i = 0; i < 50; ++i) {
    co_await gate.close();
    closed->store(true);
    if (inside->load() != 0 || gate.enter_now()) std::abort();
    co_await yield_now();
    closed->store(false);
    gate.open();
    co_await yield_now();
  }
}
Task<void> close_once(Gate& gate, bool* closed) {
  co_await gate.close();
  *closed = true;
}
Task<void> enter_once(Gate& gate, std::optional<Gate::Pass>* pass) {
  pass->emplace(co_await gate.enter());
}
/// What waits for what, one step after the other.
Task<void> use_gate() {
  Gate gate;
  EventLoop* loop = EventLoop::current();
  std::optional<Gate::Pass> first = gate.enter_now();
  std::optional<Gate::Pass> second;
  std::optional<Gate::Pass> late;
  bool closed = false;
  CHECK(first);
  loop->spawn(enter_once(gate, &second));
  co_await yield_now();
  CHECK(second);
  loop->spawn(close_once(gate, &closed));
  co_await yield_now();
  loop->spawn(enter_once(gate, &late));
  for (int i = 0; i < 3; ++i) {
    CHECK_FALSE((closed || late || gate.enter_now()));
    co_await yield_now();
  }
  first.reset();
  co_await yield_now();
  CHECK_FALSE((closed || late));  // one is left
  second.reset();
  co_await yield_now();
  CHECK((closed && !late && !gate.enter_now()));
  gate.open();
  CHECK(gate.enter_now());  // and leaves
  closed = false;
  loop->spawn(close_once(gate, &closed));
  CHECK_FALSE(closed);  // who waited is in, though it has not run yet
  co_await yield_now();
  CHECK((late && !closed));
  late.reset();
  co_await yield_now();
  CHECK(closed);
  gate.open();
  closed = false;
  loop->spawn(close_once(gate, &closed));
  co_await yield_now();
  CHECK(closed);  // an empty one is closed at once
}
Task<void> wait_for(WaitGroup& group) {
  co_await group.wait();
}
Task<void> finish_later(WaitGroup& group) {
  co_await Sleep(1ms);
  group.done();
}

/// Runs each task on a loop and thread of its own.
void run_apart(const std::string& kind, std::vector<Task<void>> tasks) {
  std::vector<std::unique_ptr<TestRig>> rigs;
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < tasks.size(); ++i)
    rigs.push_back(std::make_unique<TestRig>(kind));
  for (std::size_t i = 0; i < tasks.size(); ++i)
    threads.emplace_back([&, i] { rigs[i]->loop->run(std::move(tasks[i])); });
  for (std::thread& t : threads)
    t.join();
}

}  // namespace

TEST_CASE("a mutex shared by two loops lets one in at a time") {
  const std::string kind = BOTH_KINDS;
  AsyncMutex mutex;
  int shared = 0;
  std::vector<Task<void>> tasks;
  tasks.push_back(contend(mutex, &shared));
  tasks.push_back(contend(mutex, &shared));
  run_apart(kind, std::move(tasks));
  CHECK(shared == 4000);
}

TEST_CASE("events wake the other loop each time") {
  const std::string kind = BOTH_KINDS;
  PingPong game;
  game.ping.set();
  std::vector<Task<void>> tasks;
  tasks.push_back(player(game.ping, game.pong, 3000));
  tasks.push_back(player(game.pong, game.ping, 3000));
  run_apart(kind, std::move(tasks));
  CHECK(game.ping.is_set());
}

TEST_CASE("a closed gate has no one inside, on any loop") {
  const std::string kind = BOTH_KINDS;
  Gate gate;
  std::atomic<int> inside{0};
  std::atomic<bool> closed{false};
  std::vector<Task<void>> tasks;
  tasks.push_back(pass_gate(gate, &inside, &closed, 2000));
  tasks.push_back(pass_gate(gate, &inside, &closed, 2000));
  tasks.push_back(close_gate(gate, &inside, &closed));
  run_apart(kind, std::move(tasks));
  CHECK(inside.load() == 0);
}

TEST_CASE("a gate closes when the last has left, and lets in whoever waited when it opens") {
  TestRig rig(BOTH_KINDS);
  rig.loop->run(use_gate());
}

TEST_CASE("a wait group waits for what runs on another loop") {
  const std::string kind = BOTH_KINDS;
  WaitGroup group;
  group.add(1);
  std::vector<Task<void>> tasks;
  tasks.push_back(wait_for(group));
  tasks.push_back(finish_later(group));
  run_apart(kind, std::move(tasks));
  CHECK(group.count() == 0);
}
