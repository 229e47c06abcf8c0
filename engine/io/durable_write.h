// A write that is stable when it ends: one operation where a write and a sync would be two, each
// with a wake-up of its own.
#pragma once

#include <cstddef>
#include <span>

#include "snap/file.h"

namespace snap {

/// In the flags of a kWrite: RWF_DSYNC, what O_DSYNC is for a file. Like a sync, it is not tried
/// again when it fails.
inline constexpr int kDurableWrite = 2;

inline bool is_durable_write(const IoOp& op) noexcept {
  return op.opcode == IoOpcode::kWrite && op.flags == kDurableWrite;
}

/// Whether the file is on a file system that is known to keep what RWF_DSYNC says. Others may pass
/// it on to who ignores it (FUSE), or not look at it (9p). Blocks: for offload().
bool takes_durable_writes(const File& f) noexcept;

/// Writes as write_some() does; the bytes that it tells of are stable, as after a data_sync(). What
/// else was written to the file need not be. Without `at_once`, which takes_durable_writes() says,
/// and on the simulated disk a write and a sync, one after the other: so a power cut between them
/// is one of those that are looked at. There the sync is one of the range alone.
Task<Result<std::size_t>> write_durably(File& f, std::span<const std::byte> in, ByteOffset at,
                                        bool at_once);

}  // namespace snap
