// Which kind of event loop a program gets.
#include <cstdlib>
#include <string>
#include <string_view>

#include "engine/io/thread_loop.h"
#include "engine/io/uring_loop.h"
#include "snap/event_loop.h"

namespace snap {

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
  auto uring = UringLoop::create(options);
  // Container runtimes deny io_uring by default: then, and only where no one asked for it by name,
  // threads do the same work.
  if (!uring && kind == Kind::kAuto && uring.error().code() == ErrorCode::kUnsupported)
    return ThreadLoop::create(options);
  return uring;
}

}  // namespace snap
