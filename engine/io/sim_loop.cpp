#include "engine/io/sim_loop.h"

#include <errno.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "engine/io/file_calls.h"

namespace snap {

bool SimLoop::submit(IoOp& op) {
  op.result = is_file_op(op.opcode) ? run_file_op(op) : -ENOSYS;
  return false;
}

void SimLoop::cancel(IoOp& op) {
  // A disk does not stop what it has begun; what has not begun is not predictable either. As on
  // the thread loop, an operation on a file just completes.
  (void)op;
}

void SimLoop::turn(bool may_wait, std::optional<Clock::time_point> deadline) {
  if (!in_flight_.empty()) {
    // While tasks are ready, I/O gets ahead of them sometimes.
    if (!may_wait && random_() % 2 == 0) return;
    const std::size_t pick = random_() % in_flight_.size();
    const Flight chosen = in_flight_[pick];
    if (auto result = chosen.device->step(*chosen.op)) {
      in_flight_.erase(in_flight_.begin() + static_cast<std::ptrdiff_t>(pick));
      complete(*chosen.op, *result);
    }
    return;
  }
  if (!may_wait) return;
  if (!deadline) {
    std::fprintf(stderr, "simulation: every task waits for something that never happens\n");
    std::abort();
  }
  now_ = std::max(now_, *deadline);
}

}  // namespace snap
