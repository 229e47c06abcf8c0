// Scratch: a folder store/tmp/<uuid>/ for what is being written, held by a flock on its file
// "lock". Opening a store removes the folders that no one holds (docs/format.md, Store, tmp).
//
// Invariant: a folder under tmp/ belongs to whoever holds the flock of its file "lock"; only that
// one writes or removes anything in it. Nothing in tmp/ is ever named from outside of it.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "engine/base/uuid.h"
#include "snap/file.h"
#include "snap/result.h"
#include "snap/task.h"

namespace snap {

/// The file in each of them whose flock says that it is held.
inline constexpr const char* kScratchLock = "lock";

/// A folder of our own under tmp/. `co_await scratch.remove()` when done, on success and on
/// failure; without it (a crash, or a forgotten path) the next opening of the store removes it.
class Scratch {
 public:
  /// Makes and locks tmp/<uuid>/. Borrows `tmp`, which outlives it.
  static Task<Result<Scratch>> make(Directory& tmp, Random& random);

  Scratch(Scratch&&) noexcept = default;
  Scratch& operator=(Scratch&&) noexcept = default;

  Directory& dir() noexcept { return *dir_; }
  const std::string& name() const noexcept { return name_; }

  /// Removes the folder with all that is left in it, then gives the lock back. Call it last.
  Task<Result<void>> remove();

 private:
  Scratch(Directory* tmp, std::string name, std::unique_ptr<Directory> dir,
          std::unique_ptr<File> lock)
      : tmp_(tmp), name_(std::move(name)), dir_(std::move(dir)), lock_(std::move(lock)) {}

  Directory* tmp_;
  std::string name_;
  std::unique_ptr<Directory> dir_;
  std::unique_ptr<File> lock_;
};

/// The folders of `tmp` that no one holds.
Task<Result<std::vector<std::string>>> find_abandoned(Directory& tmp);
/// Removes every folder of `tmp` that no one holds, and gives their number. What cannot be removed
/// is left for the next time.
Task<Result<std::size_t>> sweep_scratch(Directory& tmp);

}  // namespace snap
