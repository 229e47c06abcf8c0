// The memory reserve: what small allocations are made from once there is no memory, so that the
// requests in flight end as they should and only new ones are refused.
//
// A server's large buffers are asked for without exceptions, and answer ENOMEM. All else that a
// request allocates (frames of coroutines, vectors, words of errors) is small, and everywhere: none
// of it is prepared to fail halfway through a change. So it does not fail: when operator new finds
// no memory the reserve is given up, which is many times what the requests in flight can ask for,
// and while it is gone memory_is_short() refuses each new request before it begins. Beyond the
// reserve the process ends with bad_alloc; a server that dies loses nothing that it answered
// (docs/durability.md, rule Live).
//
// Process-wide, for operator new is. Thread-safe.
#pragma once

#include "snap/result.h"

namespace snap {

/// Sets kMemoryReserve aside and has operator new give it up when there is no memory. Again: does
/// nothing. OutOfMemory.
Result<void> keep_memory_reserve();

/// Whether the reserve is gone. Sets it aside again first, if there is memory for it by now (tried
/// every few milliseconds). Without a reserve: no.
bool memory_is_short() noexcept;

}  // namespace snap
