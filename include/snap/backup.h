// Backup: a copy of a store that is in use, which is a store itself.
//
// Layers, configs, manifests and sealed deltas never change, so a copy is made of each once, and
// the next run copies what is new. A volume is copied as it was when it was frozen (Store::freeze):
// what its delta held is sealed then. The copies of a first run are no store before all is there;
// a later run changes images and volumes at its end, each of them at once.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "snap/result.h"
#include "snap/store.h"
#include "snap/task.h"

namespace snap {

struct BackupOptions {
  /// Freezes a volume of the source, wherever it is open. None given: Store::open_volume and
  /// Store::freeze, so that volumes which are being served are Busy.
  std::function<Task<Result<void>>(std::string volume)> freeze;
  /// Remove images and volumes that the source does not have any more.
  bool remove = false;
};

struct BackupReport {
  std::size_t images = 0, volumes = 0;  ///< that are in the backup as they are in the source
  std::size_t blobs_copied = 0, deltas_copied = 0;
  std::uint64_t bytes_copied = 0;
  std::vector<std::string> removed;  ///< volumes
  /// What could not be backed up, one error each; of these the backup keeps what it had.
  std::vector<Error> failed;
};

/// Opens `dir` to back `source` up to: a new or empty directory, or a backup of `source` made
/// before. InvalidArgument for anything else.
Task<Result<std::unique_ptr<Store>>> open_backup(std::string dir, const Store& source);

/// Copies what `target`, as opened by open_backup(), lacks. Damage in the source is told in
/// `failed`, and what it concerns is left out. Fails if the backup cannot go on; it may be run
/// again, and goes on with what is there. One run at a time: Busy otherwise.
Task<Result<BackupReport>> backup_store(Store& source, Store& target, BackupOptions options,
                                        Progress progress);

}  // namespace snap
