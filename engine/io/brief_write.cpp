#include "engine/io/brief_write.h"

#include "engine/io/file_calls.h"

namespace snap {

namespace {
/// What no copy of 64 KiB takes: the kernel made it wait.
constexpr std::chrono::milliseconds kLong{2};
/// A loop is held up for at most this share of the time.
constexpr int kShare = 20;
}  // namespace

std::optional<std::int64_t> BriefWrites::run(const IoOp& op) noexcept {
  const Clock::time_point begin = Clock::now();
  if (begin.time_since_epoch().count() < again_.load(std::memory_order_relaxed))
    return std::nullopt;
  const std::int64_t result = run_file_op(op);
  const Clock::time_point end = Clock::now();
  if (end - begin > kLong) {
    const Clock::time_point again = end + kShare * (end - begin);
    again_.store(again.time_since_epoch().count(), std::memory_order_relaxed);
  }
  return result;
}

}  // namespace snap
