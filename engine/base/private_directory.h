// A directory at a path that anyone can guess (in /run, /tmp, /dev/shm), for this user alone.
#pragma once

#include <string>

#include "snap/result.h"

namespace snap {

/// Makes it (0700) if it is not there. Permission if what is there belongs to someone else, may be
/// written by others, or is no directory. Waits for no disk where `path` is in memory.
Result<void> make_private_directory(const std::string& path);

}  // namespace snap
