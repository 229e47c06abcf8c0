// What makes a store a backup; see backup_target.cpp.
#pragma once

#include "engine/store/store_impl.h"
#include "snap/backup.h"

namespace snap {

inline constexpr const char* kBackupMarker = "backup";
/// Its flock is held by the one run that writes to a backup.
inline constexpr const char* kBackupLock = "backup.lock";

/// Makes sure that `target` is a backup of `source`; an empty store becomes one, which is not
/// whole.
Task<Result<void>> claim_backup(Store& target, const Store& source);
/// The backup is whole from now on, durably.
Task<Result<void>> finish_backup(Store::Impl& target);

}  // namespace snap
