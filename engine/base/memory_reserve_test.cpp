// The memory reserve, in processes of their own whose memory is limited.
#include "engine/base/memory_reserve.h"

#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <catch2/catch.hpp>
#include <chrono>
#include <fstream>
#include <memory>
#include <thread>
#include <vector>

#include "snap/limits.h"

using namespace snap;

namespace {

constexpr std::size_t kPiece = 64u << 10;
using Pieces = std::vector<std::unique_ptr<char[]>>;

/// Runs `work` in a child; its exit code, or -1 if it died.
int in_child(int (*work)()) {
  const pid_t child = ::fork();
  if (child == 0) ::_exit(work());
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/// From now on this process gets at most `more` bytes of address space more than it has.
void limit_memory(std::size_t more) {
  std::ifstream statm("/proc/self/statm");
  std::size_t pages = 0;
  statm >> pages;
  const rlim_t bytes = pages * static_cast<std::size_t>(::sysconf(_SC_PAGESIZE)) + more;
  const rlimit limit{bytes, RLIM_INFINITY};
  if (::setrlimit(RLIMIT_AS, &limit) != 0) ::_exit(100);
}

void wait_for_next_try() {
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
}

int use_up_reserve() {
  if (!keep_memory_reserve()) return 1;
  limit_memory(1u << 20);
  Pieces pieces;
  pieces.reserve(4096);
  while (!memory_is_short())
    pieces.push_back(std::make_unique<char[]>(kPiece));
  // Short, and yet there is most of the reserve.
  for (std::size_t bytes = 0; bytes < kMemoryReserve / 2; bytes += kPiece)
    pieces.push_back(std::make_unique<char[]>(kPiece));
  wait_for_next_try();
  if (!memory_is_short()) return 2;
  pieces.clear();
  wait_for_next_try();
  if (memory_is_short()) return 3;
  // It is there a second time.
  while (!memory_is_short())
    pieces.push_back(std::make_unique<char[]>(kPiece));
  for (std::size_t bytes = 0; bytes < kMemoryReserve / 2; bytes += kPiece)
    pieces.push_back(std::make_unique<char[]>(kPiece));
  return 0;
}

int go_beyond_reserve() {
  if (!keep_memory_reserve()) return 1;
  limit_memory(1u << 20);
  Pieces pieces;
  pieces.reserve(4096);
  try {
    while (pieces.size() < 4096)
      pieces.push_back(std::make_unique<char[]>(kPiece));
  } catch (const std::bad_alloc&) {
    return memory_is_short() ? 0 : 2;
  }
  return 3;
}

/// Threads that find no memory at the same time: the reserve is given up once, and all of them go
/// on.
int share_reserve() {
  if (!keep_memory_reserve()) return 1;
  constexpr int kThreads = 8;
  constexpr std::size_t kEach = kMemoryReserve / 4 / kThreads;
  std::atomic<int> ready{0};
  std::atomic<bool> failed{false};
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&] {
      Pieces pieces;
      pieces.reserve(kEach / kPiece + 1);
      pieces.push_back(std::make_unique<char[]>(kPiece));
      ++ready;
      while (ready <= kThreads)
        std::this_thread::yield();
      try {
        for (std::size_t bytes = 0; bytes < kEach; bytes += kPiece)
          pieces.push_back(std::make_unique<char[]>(kPiece));
      } catch (const std::bad_alloc&) {
        failed = true;
      }
    });
  }
  while (ready < kThreads)
    std::this_thread::yield();
  limit_memory(0);
  ++ready;
  for (std::thread& thread : threads)
    thread.join();
  return failed ? 2 : 0;
}

}  // namespace

TEST_CASE("without memory allocations are made from the reserve, which is set aside again later") {
  CHECK(in_child(use_up_reserve) == 0);
}

TEST_CASE("beyond the reserve an allocation fails") {
  CHECK(in_child(go_beyond_reserve) == 0);
}

TEST_CASE("threads that run out of memory together share the reserve") {
  for (int i = 0; i < 20; ++i)
    CHECK(in_child(share_reserve) == 0);
}

TEST_CASE("a process without a reserve is not short of memory") {
  CHECK_FALSE(memory_is_short());
}
