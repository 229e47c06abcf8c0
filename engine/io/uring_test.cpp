// Which loop a program gets, and what the io_uring one costs.
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <cerrno>
#include <cstddef>
#include <cstdlib>
#include <new>
#include <string>
#include <vector>

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

TEST_CASE("a loop that polls busily sleeps, is woken and answers as any other") {
  ::setenv("SNAPCTL_BUSY_POLL", "200", 1);
  auto loop = must(make_event_loop());
  const auto began = EventLoop::Clock::now();
  const int found = loop->run([]() -> Task<int> {
    Sleep longer(std::chrono::milliseconds(5));
    co_await longer;
    const int offloaded = co_await offload([] {
      ::usleep(2000);
      return 7;
    });
    co_return offloaded;
  }());
  CHECK(found == 7);
  CHECK(EventLoop::Clock::now() - began >= std::chrono::milliseconds(7));
  for (const char* wrong : {"", "-1", "1001", "20us"}) {
    ::setenv("SNAPCTL_BUSY_POLL", wrong, 1);
    auto refused = make_event_loop();
    REQUIRE_FALSE(refused.has_value());
    CHECK(refused.error().code() == ErrorCode::kInvalidArgument);
  }
  ::unsetenv("SNAPCTL_BUSY_POLL");
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
