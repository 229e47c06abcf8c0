// FileSystemPause: the file systems on a volume that is attached to this machine, frozen
// (fsfreeze(8)) for the moment in which its content is taken: what was written is on the volume,
// and nothing is half done, so that what is taken needs no replay of a journal.
#pragma once

#include <chrono>
#include <string>
#include <utility>
#include <vector>

#include "snap/result.h"
#include "snap/task.h"
#include "tools/snapctl/context.h"
#include "tools/snapctl/volume_access.h"

namespace snap::cli {

class FileSystemPause {
 public:
  /// If it is `wanted`, freezes what is mounted of the volume; where nothing is, says so and pauses
  /// nothing. First the volume's older snapshots are packed, if they have to be, as `packing` says,
  /// so that no one waits for that. Until it ends the program cannot be interrupted, which would
  /// leave the file systems frozen. Busy if the device has no server: to freeze means to flush,
  /// which would wait for one.
  static Task<Result<FileSystemPause>> begin(Context& context, VolumeAccess& volume, bool wanted,
                                             Store::CommitOptions packing);
  /// For what packs as it is: not compressed.
  static Task<Result<FileSystemPause>> begin(Context& context, VolumeAccess& volume, bool wanted) {
    Store::CommitOptions packing;
    return begin(context, volume, wanted, std::move(packing));
  }
  FileSystemPause() = default;
  FileSystemPause(FileSystemPause&& other) noexcept { swap(other); }
  FileSystemPause& operator=(FileSystemPause&& other) noexcept {
    swap(other);
    return *this;
  }
  ~FileSystemPause() { end(); }

  /// Lets them go on; again does nothing.
  void end() noexcept;
  /// They have been frozen for longer than who writes to them should wait: what they wait for is
  /// itself kept waiting, by another commit perhaps.
  bool too_long() const noexcept;

 private:
  Result<void> freeze(const std::vector<std::string>& paths);

  void swap(FileSystemPause& other) noexcept {
    std::swap(mounts_, other.mounts_);
    std::swap(begin_, other.begin_);
  }

  std::vector<std::string> mounts_;  ///< that are frozen
  std::chrono::steady_clock::time_point begin_;
};

}  // namespace snap::cli
