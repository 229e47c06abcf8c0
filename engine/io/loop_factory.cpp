// Which kind of event loop a program gets.
#include <charconv>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <string>
#include <string_view>
#include <thread>

#include "engine/io/thread_loop.h"
#include "engine/io/uring_loop.h"
#include "snap/event_loop.h"

namespace snap {

namespace {

/// Twice what a client takes for its next request, that waits for each answer.
constexpr std::chrono::microseconds kBusyPoll{50};
/// More would be a processor for nothing.
constexpr unsigned kMaxBusyPoll = 1000;

/// SNAPCTL_BUSY_POLL, in microseconds, or what suits the machine.
Result<std::chrono::microseconds> busy_poll() {
  const char* text = std::getenv("SNAPCTL_BUSY_POLL");
  // The only processor is better left to who would bring work.
  if (text == nullptr)
    return std::thread::hardware_concurrency() > 1 ? kBusyPoll : std::chrono::microseconds(0);
  unsigned value = 0;
  const char* end = text + std::strlen(text);
  const auto parsed = std::from_chars(text, end, value);
  if (parsed.ec != std::errc() || parsed.ptr != end || value > kMaxBusyPoll) {
    return Error(ErrorCode::kInvalidArgument, std::string("SNAPCTL_BUSY_POLL=") + text +
                                                  ": it may be 0 to " +
                                                  std::to_string(kMaxBusyPoll) + " microseconds");
  }
  return std::chrono::microseconds(value);
}

}  // namespace

Result<std::unique_ptr<EventLoop>> make_event_loop(LoopOptions options) {
  using Kind = LoopOptions::Kind;
  Kind kind = options.kind;
  const char* wish = std::getenv("SNAPCTL_IO");
  if (kind == Kind::kAuto && wish != nullptr) {
    if (std::string_view(wish) == "uring") {
      kind = Kind::kUring;
    } else if (std::string_view(wish) == "threads") {
      kind = Kind::kThreads;
    } else {
      return Error(ErrorCode::kInvalidArgument,
                   std::string("SNAPCTL_IO=") + wish + ": it may be \"uring\" or \"threads\"");
    }
  }
  if (kind == Kind::kThreads) return ThreadLoop::create(options);
  auto poll = busy_poll();
  if (!poll) return poll.error();
  auto uring = UringLoop::create(options, *poll);
  // Container runtimes deny io_uring by default: then, and only where no one asked for it by name,
  // threads do the same work.
  if (!uring && kind == Kind::kAuto && uring.error().code() == ErrorCode::kUnsupported)
    return ThreadLoop::create(options);
  return uring;
}

}  // namespace snap
