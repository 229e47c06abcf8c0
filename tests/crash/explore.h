// Explore: every power cut of a trace. At each boundary it builds the disks that a cut may leave,
// recovers each, and asks the model.
//
// Of what is pending at a boundary (SimDisk::pending) it takes: nothing, all, each first part, each
// change alone, all but one; every write and punch torn after each 512 bytes, its first or its last
// part kept, alone and with all others; all subsets up to 10 pending changes, 64 seeded ones above.
// Each new disk (of a store: each third) is also cut again inside its recovery, at a seeded place,
// and recovered: it must read the same. On every fourth, life goes on: a block written with FUA
// after the recovery is there after the next cut, and nothing else has changed.
#pragma once

#include <map>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "tests/crash/model.h"
#include "tests/crash/trace.h"

namespace snap::crash {

/// What becomes of one pending change: kept whole, or torn: sectors before `bound` kept (or those
/// from it on). What has no Keep is lost.
struct Keep {
  bool torn = false;
  bool last_part = false;
  std::uint64_t bound = 0;
};
using Choice = std::map<std::uint64_t, Keep>;  ///< by SimPending::id

/// "3,4:2,7:-1": 3 whole, the first 2 sectors of 4, those of 7 from 1 on. "none" and back.
std::string choice_text(const Choice& choice);
Choice parse_choice(const std::string& text);

void cut(SimDisk& disk, const Choice& choice);
/// The disk of a trace at a boundary.
std::unique_ptr<SimDisk> disk_at(const Trace& trace, std::uint64_t boundary);

struct Report {
  std::uint64_t tried = 0;      ///< crash states
  std::uint64_t recovered = 0;  ///< of them, with a disk that was not seen before in this trace
  std::uint64_t cut_again = 0;
  std::uint64_t continued = 0;
  std::uint64_t failures = 0;
  std::vector<std::string> messages;        ///< of the first failures
  std::unordered_set<std::uint64_t> disks;  ///< hashes
};

struct ExploreOptions {
  std::uint64_t stop_after = 3;        ///< failures
  std::string program = "crash_test";  ///< for the command line that repeats a state
};

Report explore(const Trace& trace, const ExploreOptions& options);
/// One state again, talkatively. True if it is right.
bool repeat_state(const Trace& trace, std::uint64_t boundary, const Choice& choice);

}  // namespace snap::crash
