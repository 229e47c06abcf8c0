// Which loop a program gets, and what the io_uring one costs.
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <cerrno>
#include <cstddef>
#include <cstdlib>
#include <new>
#include <string>
#include <thread>
#include <vector>

#include "engine/io/busy_poll.h"
#include "engine/io/socket.h"
#include "engine/io/sync.h"
#include "engine/io/test_rig.h"

using namespace snap;

namespace {
thread_local std::uint64_t allocation_count = 0;
}

// Counts what a thread allocates; the memory is malloc's.
void* operator new(std::size_t size) {
  ++allocation_count;
  if (void* p = std::malloc(size)) return p;
  throw std::bad_alloc();
}
// Catch allocates with this one; it must come from where delete gives it back to.
void* operator new(std::size_t size, const std::nothrow_t&) noexcept {
  ++allocation_count;
  return std::malloc(size);
}
// Inlined, this looks to the compiler like a free of what the standard operator new made.
[[gnu::noinline]] void operator delete(void* p) noexcept {
  std::free(p);
}
[[gnu::noinline]] void operator delete(void* p, std::size_t) noexcept {
  std::free(p);
}

namespace {

Task<void> read_often(Directory& root, std::uint64_t* allocations) {
  auto file = must(co_await root.open("f", for_write()));
  std::vector<std::byte> block(4096, std::byte{1});
  must(co_await write_all(*file, block, ByteOffset(0)));
  for (int round = 0; round < 2; ++round) {
    const std::uint64_t before = allocation_count;
    for (int i = 0; i < 1000; ++i) {
      auto n = co_await read_some(*file, block, ByteOffset(0));
      if (!n) std::abort();
    }
    *allocations = allocation_count - before;  // of the second round: the first warms up
  }
}

/// In a child that may not call io_uring_setup: 0 if the loops are as they should be.
int check_without_io_uring() {
  const sock_filter code[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_io_uring_setup, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  const sock_fprog program{4, const_cast<sock_filter*>(code)};
  if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) return 1;
  if (::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0) return 2;
  ::unsetenv("SNAPCTL_IO");
  auto by_itself = make_event_loop();
  if (!by_itself || (*by_itself)->name() != std::string("threads")) return 3;
  LoopOptions options;
  options.kind = LoopOptions::Kind::kUring;
  auto by_name = make_event_loop(options);
  if (by_name || by_name.error().code() != ErrorCode::kUnsupported) return 4;
  return by_name.error().message().find("seccomp") != std::string::npos ? 0 : 5;
}

}  // namespace

TEST_CASE("a cached read through io_uring allocates nothing") {
  TestRig rig("uring");
  std::uint64_t allocations = 1;
  rig.loop->run(read_often(*rig.root, &allocations));
  CHECK(allocations == 0);
}

TEST_CASE("where io_uring is denied threads take over, unless it was asked for by name") {
  const pid_t child = ::fork();
  if (child == 0) ::_exit(check_without_io_uring());
  int status = -1;
  REQUIRE(::waitpid(child, &status, 0) == child);
  CHECK(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 0);
}

namespace {
/// SNAPCTL_BUSY_POLL, for as long as it lives.
struct BusyPollOf {
  explicit BusyPollOf(const char* microseconds) { ::setenv("SNAPCTL_BUSY_POLL", microseconds, 1); }
  BusyPollOf(const BusyPollOf&) = delete;
  BusyPollOf& operator=(const BusyPollOf&) = delete;
  ~BusyPollOf() { ::unsetenv("SNAPCTL_BUSY_POLL"); }
};

LoopOptions uring() {
  LoopOptions options;
  options.kind = LoopOptions::Kind::kUring;
  return options;
}

std::chrono::nanoseconds cpu_time_of_thread() {
  timespec now{};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return std::chrono::seconds(now.tv_sec) + std::chrono::nanoseconds(now.tv_nsec);
}

/// Waits for a helper `times` times, `each` long.
Task<int> wait_for_helpers(int times, std::chrono::microseconds each) {
  int answers = 0;
  for (int i = 0; i < times; ++i) {
    const int one = co_await offload([each] {
      std::this_thread::sleep_for(each);
      return 1;
    });
    answers += one;
  }
  co_return answers;
}

/// What the loop's thread spends on that.
std::chrono::nanoseconds spent_waiting(int times, std::chrono::microseconds each) {
  auto loop = must(make_event_loop(uring()));
  const auto before = cpu_time_of_thread();
  CHECK(loop->run(wait_for_helpers(times, each)) == times);
  return cpu_time_of_thread() - before;
}
}  // namespace

TEST_CASE("a loop polls busily for what comes soon, and sleeps where it does not") {
  constexpr int kTimes = 100;
  constexpr std::chrono::microseconds kSoon{200}, kLate{3000};
  std::chrono::nanoseconds asleep{};
  {
    const BusyPollOf never("0");
    asleep = spent_waiting(kTimes, kSoon);
  }
  const BusyPollOf polls("1000");
  CHECK(spent_waiting(kTimes, kSoon) > asleep + kTimes * kSoon / 4);
  // In vain at first, and then no more.
  CHECK(spent_waiting(kTimes, kLate) < kTimes * std::chrono::microseconds(1000) / 2);
}

namespace {
/// Sends a byte and awaits it back, again and again.
Task<int> ask(int fd, int times) {
  const Socket socket(UniqueFd(fd), "asks");
  int answered = 0;
  for (int i = 0; i < times; ++i) {
    const std::byte sent{static_cast<unsigned char>(i)};
    std::byte got{};
    must(co_await send_all(socket, std::span(&sent, 1)));
    must(co_await recv_exact(socket, std::span(&got, 1)));
    if (got == sent) ++answered;
  }
  co_return answered;
}

/// The other ends of several such tasks: a thread that takes its time from the byte `slow_from` on.
void answer(const std::vector<int>& fds, int times, int slow_from) {
  for (int i = 0; i < times; ++i) {
    for (const int fd : fds) {
      unsigned char byte = 0;
      if (::recv(fd, &byte, 1, MSG_WAITALL) != 1) std::abort();
      if (i >= slow_from) std::this_thread::sleep_for(std::chrono::milliseconds(2));
      if (::send(fd, &byte, 1, 0) != 1) std::abort();
    }
  }
  for (const int fd : fds)
    ::close(fd);
}

Task<std::vector<int>> ask_all(const std::vector<int>& fds, int times) {
  std::vector<Task<int>> tasks;
  for (const int fd : fds)
    tasks.push_back(ask(fd, times));
  co_return co_await gather(std::move(tasks));
}
}  // namespace

TEST_CASE("what many sockets receive comes to each, polled for or slept for") {
  constexpr int kTimes = 400, kSlowFrom = 390;
  const BusyPollOf polls("200");
  const int sockets = GENERATE(1, 2, 7);
  CAPTURE(sockets);
  std::vector<int> asking, answering;
  for (int i = 0; i < sockets; ++i) {
    int fds[2];
    REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) == 0);
    asking.push_back(fds[0]);
    answering.push_back(fds[1]);
  }
  std::thread other([&] { answer(answering, kTimes, kSlowFrom); });
  auto loop = must(make_event_loop(uring()));
  const std::vector<int> answered = loop->run(ask_all(asking, kTimes));
  other.join();
  CHECK(answered == std::vector<int>(asking.size(), kTimes));
}

TEST_CASE("which way of waiting is used depends on what both have cost of late") {
  using std::chrono::microseconds;
  BusyPoll poll(microseconds(50));
  CHECK_FALSE(poll.polls());
  const auto wait = [&poll](int times, microseconds asleep, microseconds polling) {
    int polled = 0;
    for (int i = 0; i < times; ++i) {
      const bool polls = poll.polls();
      poll.waited(polls, polls ? polling : asleep);
      polled += polls ? 1 : 0;
    }
    return polled;
  };
  wait(100, microseconds(75), microseconds(12));
  CHECK(wait(640, microseconds(75), microseconds(12)) == 630);  // one in 64 asleep, to know
  wait(640, microseconds(5), microseconds(12));                 // the processor has other work
  CHECK(wait(640, microseconds(5), microseconds(12)) <= 10);
  wait(100, microseconds(75), microseconds(90));  // in vain
  CHECK(wait(640, microseconds(75), microseconds(90)) == 10);
  wait(100, microseconds(5000), microseconds(5000));  // hardly any requests
  CHECK(wait(640, microseconds(5000), microseconds(5000)) == 0);
  BusyPoll never{BusyPoll::Duration::zero()};
  never.waited(false, microseconds(75));
  CHECK_FALSE(never.polls());
}

TEST_CASE("a wrong SNAPCTL_BUSY_POLL is refused") {
  for (const char* wrong : {"", "-1", "1001", "20us"}) {
    const BusyPollOf polls(wrong);
    auto refused = make_event_loop(uring());
    REQUIRE_FALSE(refused.has_value());
    CHECK(refused.error().code() == ErrorCode::kInvalidArgument);
  }
}

TEST_CASE("SNAPCTL_IO chooses the kind of loop, and a wrong value is refused") {
  ::setenv("SNAPCTL_IO", "threads", 1);
  CHECK(must(make_event_loop())->name() == std::string("threads"));
  ::setenv("SNAPCTL_IO", "uring", 1);
  CHECK(must(make_event_loop())->name() == std::string("io_uring"));
  ::setenv("SNAPCTL_IO", "fast", 1);
  auto refused = make_event_loop();
  REQUIRE_FALSE(refused.has_value());
  CHECK(refused.error().code() == ErrorCode::kInvalidArgument);
  ::unsetenv("SNAPCTL_IO");
}
