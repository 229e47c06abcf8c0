// The operations of a FUSE file system that holds one regular file: an Export.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "engine/io/unique_fd.h"
#include "engine/nbd/export.h"
#include "snap/result.h"

struct fuse_session;

namespace snap::attach {

inline constexpr std::uint64_t kDiskInode = 2;
/// "snapctl:web": what the kernel calls the file behind a loop device, so that people and udev
/// rules know whose it is. '/' becomes '!'; at most 255 bytes.
std::string disk_file_name(const nbd::Export& disk);

struct DestroySession {
  void operator()(fuse_session* session) const noexcept;
};

/// A session whose requests come from `fuse` (an open /dev/fuse, mounted), which it owns. They are
/// to be handed to it by a FuseLane. `disk` outlives it.
Result<std::unique_ptr<fuse_session, DestroySession>> make_fuse_session(nbd::Export* disk,
                                                                        UniqueFd fuse);

/// The errno that a caller gets. Never ENOSYS: the kernel would take it for a missing operation,
/// and every fsync from then on for done.
int errno_of(ErrorCode code) noexcept;

}  // namespace snap::attach
