#include "engine/base/memory_reserve.h"

#include <sys/mman.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <mutex>
#include <new>

#include "snap/limits.h"

namespace snap {

namespace {

constexpr std::chrono::milliseconds kTryPause{5};

/// A mapping of its own: given up it is there for any size, in any arena of malloc.
void* map_reserve() noexcept {
  void* const at =
      ::mmap(nullptr, kMemoryReserve, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return at == MAP_FAILED ? nullptr : at;
}

struct Reserve {
  std::mutex lock;
  void* held = nullptr;
  std::uint64_t given_up = 0;  ///< how often
  std::chrono::steady_clock::time_point next_try{};
  std::atomic<bool> gone{false};
};

Reserve& reserve() noexcept {
  static Reserve instance;
  return instance;
}

/// The new-handler: returns if operator new may find memory now.
void give_up_reserve() {
  // What this thread has seen given up: what others gave up since, it may find as well.
  thread_local std::uint64_t seen = 0;
  Reserve& r = reserve();
  std::lock_guard guard(r.lock);
  if (r.held != nullptr) {
    ::munmap(r.held, kMemoryReserve);
    r.held = nullptr;
    ++r.given_up;
    r.gone.store(true, std::memory_order_relaxed);
  } else if (seen == r.given_up) {
    throw std::bad_alloc();
  }
  seen = r.given_up;
}

}  // namespace

Result<void> keep_memory_reserve() {
  Reserve& r = reserve();
  std::lock_guard guard(r.lock);
  if (r.held != nullptr || r.gone.load(std::memory_order_relaxed)) return {};
  r.held = map_reserve();
  if (r.held == nullptr) return Error::from_errno(errno, "set memory aside for when there is none");
  std::set_new_handler(give_up_reserve);
  return {};
}

bool memory_is_short() noexcept {
  Reserve& r = reserve();
  if (!r.gone.load(std::memory_order_relaxed)) return false;
  std::lock_guard guard(r.lock);
  const auto now = std::chrono::steady_clock::now();
  if (r.held == nullptr && now >= r.next_try) {
    r.next_try = now + kTryPause;
    r.held = map_reserve();
    if (r.held != nullptr) r.gone.store(false, std::memory_order_relaxed);
  }
  return r.held == nullptr;
}

}  // namespace snap
