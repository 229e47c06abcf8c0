// Rig: runs the operations of a workload on the engine, on a simulated disk, through public
// interfaces only, and reads back what is there.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "engine/io/sim_disk.h"
#include "snap/result.h"
#include "snap/task.h"
#include "tests/crash/workload.h"

namespace snap::crash {

/// What there is: for each object ("v", "v@s", "img:1") the ids of its sectors.
using Content = std::map<std::string, std::vector<WriteId>>;
/// The volume that the operations are on.
inline constexpr const char* kVolume = "v";

class Rig {
 public:
  virtual ~Rig() = default;

  /// Makes the volume on an empty disk; all durable when it returns.
  virtual Task<Result<void>> format(std::uint64_t size) = 0;
  /// Opens what is there, whatever that is (after a crash in `rm` there may be no volume).
  virtual Task<Result<void>> open() = 0;
  virtual Task<Result<void>> run(Op op, WriteId id) = 0;
  virtual Task<Result<void>> close() = 0;
  virtual Task<Result<Content>> read_all() = 0;
  /// Removes what nothing uses.
  virtual Task<Result<void>> tidy() = 0;
  /// The process is gone: everything is dropped as it is.
  virtual void abandon() = 0;
};

std::unique_ptr<Rig> make_rig(Level level, SimDisk& disk);

}  // namespace snap::crash
