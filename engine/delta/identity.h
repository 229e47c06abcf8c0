// Which run of the kernel this is, and which file of it: for what a process leaves in memory for
// the next one, which must not take anything else for it.
#pragma once

#include <cstdint>
#include <optional>

#include "engine/base/uuid.h"
#include "snap/file.h"
#include "snap/result.h"

namespace snap {

/// Of this run of the kernel; nothing where /proc does not tell.
std::optional<Uuid> boot_id();

/// What a copy of the file has not. The time of its birth, too: a file that was restored may be
/// given the inode number of the one before.
struct FileIdentity {
  std::uint32_t device_major = 0;
  std::uint32_t device_minor = 0;
  std::uint64_t inode = 0;
  std::int64_t birth_seconds = 0;  ///< since 1970; 0 where the file system does not keep it
  std::uint32_t birth_nanoseconds = 0;

  bool operator==(const FileIdentity&) const = default;
};
/// All zero for a file of the simulated disk.
Result<FileIdentity> identity_of(const File& file);

}  // namespace snap
