#include "engine/io/cached_io.h"

#include <sys/resource.h>

#include "engine/io/file_calls.h"

namespace snap {

namespace {
/// What no copy of 64 KiB takes.
constexpr std::chrono::milliseconds kLong{2};
/// Nor does the processor go to others for that long.
constexpr std::chrono::milliseconds kTooLong{50};
/// A loop is held up for at most this share of the time.
constexpr int kShare = 20;
constexpr std::chrono::seconds kWatched{1};

/// How often this thread has given up the processor, rather than lost it.
long waits_of_thread() noexcept {
  rusage usage{};
  return ::getrusage(RUSAGE_THREAD, &usage) == 0 ? usage.ru_nvcsw : 0;
}

}  // namespace

std::optional<std::int64_t> BriefWrites::run(const IoOp& op) noexcept {
  const Clock::time_point begin = Clock::now();
  const Clock::rep now = begin.time_since_epoch().count();
  if (now < again_.load(std::memory_order_relaxed)) return std::nullopt;
  const bool watched = now < watched_until_.load(std::memory_order_relaxed);
  const long waits_before = watched ? waits_of_thread() : 0;
  const std::int64_t result = run_file_op(op);
  const Clock::time_point end = Clock::now();
  const Clock::duration took = end - begin;
  if (took <= kLong) return result;
  const auto instant = [](Clock::time_point at) { return at.time_since_epoch().count(); };
  const bool waited = took > kTooLong || (watched && waits_of_thread() != waits_before);
  if (waited) again_.store(instant(end + kShare * took), std::memory_order_relaxed);
  watched_until_.store(instant(end + kShare * took + kWatched), std::memory_order_relaxed);
  return result;
}

}  // namespace snap
