// Trace: one run of a workload, recorded: every change of the disk in its order, and which
// operation began and was answered at which of them.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "tests/crash/rig.h"
#include "tests/crash/workload.h"

namespace snap::crash {

/// A moment: `order` tells any two apart; `boundary` is the number of changes that the disk had
/// taken since the trace began.
struct Moment {
  std::uint64_t order = 0;
  std::uint64_t boundary = 0;
};

struct Done {
  Op op;
  WriteId id = 0;
  Moment start;
  std::optional<Moment> end;
  bool ok = false;
  unsigned process = 0;  ///< grows with each kill
};

struct Trace {
  Workload workload;
  std::uint64_t seed = 0;
  std::unique_ptr<SimDisk> start;  ///< the disk as the trace begins
  std::vector<SimOp> log;          ///< changes only
  std::vector<Done> ops;           ///< in order of their start
  /// What the volume read as before the first operation of `ops`, all of it durable.
  std::vector<WriteId> before;
  /// What it all read as at the end, with nothing lost.
  Content live;
  std::uint64_t final_hash = 0;
  /// Why it could not be recorded: something failed that must not.
  std::string failure;

  /// `event` is "KIND FILE", of the last component of the path.
  bool has_event(const std::string& event) const;
};

Trace record(const Workload& workload, std::uint64_t seed);

/// Opens what is on the disk with a fresh process, reads all, closes.
struct Recovered {
  std::string failure;  ///< empty: it went well
  Content content;
};
Recovered recover(Level level, SimDisk& disk, bool tidy = false);
/// Recovers, writes the block with FUA under kAfterwards, and closes.
std::string recover_and_write(Level level, SimDisk& disk, ByteOffset block);

/// From here on this thread's random bytes (getrandom) follow from the seed.
void seed_system_random(std::uint64_t seed);

}  // namespace snap::crash
