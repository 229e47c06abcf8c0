// Checking a store: is everything there that something names, and is it what was written?
//
// Works on a store in use. What is damaged is named and left as it is; leaks, which cost space and
// nothing else, can be reclaimed.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "snap/result.h"
#include "snap/store.h"
#include "snap/task.h"

namespace snap {

struct Finding {
  enum class Kind {
    kDamage,     ///< something that is named is missing, cannot be read, or is not what was written
    kLeak,       ///< nothing names it; harmless
    kUnchecked,  ///< it could not be looked at: of a later release, or held by another process
  };
  Kind kind = Kind::kDamage;
  std::string object;              ///< "layer sha256:...", "volume 'web'", a path in the store
  std::string what;                ///< what is wrong, for a person
  std::vector<std::string> users;  ///< "image base:1", "volume web", "snapshot web@one"
  /// Bytes of images, volumes and snapshots that cannot be had any more.
  struct Lost {
    std::string object;  ///< as in `users`
    std::uint64_t offset = 0;
    std::optional<std::uint64_t> length;  ///< none: to the end, and the size is not known any more
  };
  std::vector<Lost> lost;
  std::uint64_t bytes = 0;  ///< of a leak, on disk
  bool reclaimed = false;   ///< a leak that is gone now
};

struct CheckOptions {
  /// Read all stored bytes too and compare them with their checksums (a scrub). The data of deltas
  /// has none: there only what the disk cannot read is found.
  bool data = false;
  bool leaks = true;       ///< look for what nothing names
  bool repair = false;     ///< reclaim leaks; never touches anything that is named, or unknown
  std::uint64_t rate = 0;  ///< bytes a second of reading for `data`; 0: as fast as the disk can
};

struct CheckReport {
  std::vector<Finding> findings;
  std::size_t images = 0, volumes = 0, layers = 0, deltas = 0;  ///< looked at
  std::uint64_t bytes_read = 0;                                 ///< for `data`
  bool leaks_known = false;  ///< false where a root cannot be read: then anything may be in use
  std::size_t count(Finding::Kind kind) const;
  /// Leaks that are still there.
  std::size_t leaks_left() const;
};

/// Checks folders, index, records, images, the tables of layers, maps and journals of deltas, and
/// that they fit each other; with `data` all stored bytes. Fails only where nothing can be checked
/// at all (Cancelled, ...). The store is best opened with OpenOptions::sweep false: then leftovers
/// of dead processes are told as leaks. Of a delta that a process writes to only the map is looked
/// at.
Task<Result<CheckReport>> check_store(Store& store, CheckOptions options, Progress progress);

}  // namespace snap
