// Which kind of event loop a program gets.
#include <cstdlib>
#include <string>

#include "engine/io/thread_loop.h"
#include "snap/event_loop.h"

namespace snap {

Result<std::unique_ptr<EventLoop>> make_event_loop(LoopOptions options) {
  return ThreadLoop::create(options);
}

}  // namespace snap
