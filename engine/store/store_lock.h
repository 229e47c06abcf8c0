// StoreLock: keeps sweeps apart from commands that add (docs/durability.md, Publish).
//
// A command that adds takes it shared before it relies on a blob or delta that exists, or makes one
// that nothing names yet, and keeps it until the name is published. A sweep takes it exclusive from
// its marking to its removing. It is held for moments, never while bulk data is read or packed:
// pack into tmp/ first, then lock, adopt, publish, unlock.
//
// It is the flock of the file store/lock, taken on a new open file each time, so it works between
// the tasks of one process as well. Order, to exclude deadlock: volume lock, store lock, index
// lock. Never take it twice in one task.
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <string>

#include "snap/file.h"
#include "snap/result.h"
#include "snap/task.h"

namespace snap {

/// A lock that is held; destruction gives it back.
class [[nodiscard]] FileLock {
 public:
  FileLock() = default;
  explicit FileLock(std::unique_ptr<File> file) : file_(std::move(file)) {}
  void release() { file_.reset(); }
  bool held() const noexcept { return file_ != nullptr; }

 private:
  std::unique_ptr<File> file_;
};

inline constexpr std::chrono::seconds kLockPatience{30};
inline constexpr const char* kStoreLockName = "lock";

/// Takes the flock of `name` in `dir` (made if missing), polling until `patience` has passed: then
/// Busy, naming the lock file and `purpose`.
Task<Result<FileLock>> lock_file(Directory& dir, std::string name, bool exclusive,
                                 std::string purpose,
                                 std::chrono::milliseconds patience = kLockPatience);

class StoreLock {
 public:
  explicit StoreLock(Directory& root) : root_(&root) {}

  /// For commands that add. `purpose` ends up in messages ("create volume a").
  Task<Result<FileLock>> shared(std::string purpose);
  /// For sweeps.
  Task<Result<FileLock>> exclusive(std::string purpose);
  /// From now on each attempt fails with `why`: the store may only be read.
  void deny(Error why) { denied_ = std::move(why); }

 private:
  Directory* root_;
  std::optional<Error> denied_;
};

}  // namespace snap
