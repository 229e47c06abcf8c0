// getrandom and time for this program: random bytes from a seed of the thread, and a clock that
// stands still, so that a run's disk images are the same each time.
#include <sys/random.h>

#include <cstring>
#include <ctime>

#include "engine/base/uuid.h"
#include "tests/crash/trace.h"

namespace snap::crash {

namespace {
thread_local SeededRandom system_random(1);
}

void seed_system_random(std::uint64_t seed) {
  system_random = SeededRandom(seed);
}

}  // namespace snap::crash

extern "C" ssize_t getrandom(void* buffer, size_t length, unsigned) {
  snap::crash::system_random.fill(std::span(static_cast<std::byte*>(buffer), length));
  return static_cast<ssize_t>(length);
}

extern "C" time_t time(time_t* out) noexcept {
  constexpr time_t kNow = 1'700'000'000;
  if (out != nullptr) *out = kNow;
  return kNow;
}
