// Checks a delta without changing anything of it: what opening would find, and refuse.
#pragma once

#include <cstdint>
#include <memory>

#include "engine/base/uuid.h"
#include "engine/delta/block_map.h"
#include "snap/file.h"
#include "snap/result.h"
#include "snap/task.h"

namespace snap {

/// Who uses the delta while it is looked at.
enum class DeltaUse {
  kSealed,   ///< it takes no more writes; others may read it
  kAtRest,   ///< a writable one that nobody has open
  kServing,  ///< a writable one that a process writes to: only the map can be looked at, and what a
             ///< read meets half written there may pass for damage: look again
};

struct VerifiedDelta {
  Uuid id;
  std::uint64_t size = 0;            ///< bytes that it may address
  std::unique_ptr<BlockMap> blocks;  ///< what it holds; kServing: what its map says
};

/// Reads map, and at rest the journal, of the delta in `dir`, and compares the data file's size
/// with them (docs/format.md, Delta). Corrupt names file, offset and what was found. The data has
/// no checksums.
Task<Result<VerifiedDelta>> verify_delta(std::unique_ptr<Directory> dir, DeltaUse use);

}  // namespace snap
