// A workload of the crash tests: a few operations on a volume, as data. What it writes says who
// wrote it: every sector's 512 bytes follow from the write's id and the sector's number, so one
// look at a sector tells which write it is of, or that it is of none.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "snap/units.h"

namespace snap::crash {

/// Who wrote a sector.
using WriteId = std::uint32_t;
inline constexpr WriteId kBelow = 0;                 ///< the image, or what lies under the delta
inline constexpr WriteId kZeros = 0xffffffffu;       ///< 512 zero bytes
inline constexpr WriteId kGarbage = 0xfffffffeu;     ///< anything else
inline constexpr WriteId kAfterwards = 0x7fffffffu;  ///< written after the recovery

void fill_sectors(WriteId id, ByteOffset at, std::span<std::byte> out);
/// The ids of whole sectors from `at` on.
std::vector<WriteId> identify_sectors(ByteOffset at, std::span<const std::byte> bytes);

enum class Verb : std::uint8_t {
  kWrite,
  kFuaWrite,
  kTrim,
  kFuaTrim,
  kZero,
  kZeroKeep,  ///< zeros are written, no hole
  kFlush,
  kResize,          ///< to `length`
  kSnapshot,        ///< `name`
  kRemoveSnapshot,  ///< `name`
  kClone,           ///< a volume `name`
  kCommit,          ///< an image `name`
  kRemoveVolume,    ///< closes the volume and removes it
  kPrune,
  kReopen,     ///< close and open
  kKill,       ///< the process dies; another opens the volume
  kFillSpace,  ///< leaves `length` bytes of the disk
  kFreeSpace,
};
const char* verb_name(Verb verb);

struct Op {
  Verb verb{};
  std::uint64_t at = 0;
  std::uint64_t length = 0;
  std::string name;
};

/// Through which interface it goes: Delta, or Store with its volumes.
enum class Level : std::uint8_t { kDelta, kStore };

struct Workload {
  std::string name;
  Level level = Level::kDelta;
  std::uint64_t size = 64u << 10;
  /// Operations of a stage are in flight together; a stage begins when the one before has ended.
  std::vector<std::vector<Op>> stages;
  /// Before the trace: done one after another, `repeat` times.
  std::vector<Op> preamble;
  unsigned repeat = 1;
  /// Not 0: the preamble is repeated until its next round would do the event below, at most this
  /// often. So a workload reaches the round in which the journal or the map is full.
  unsigned repeat_at_most = 0;
  /// What the trace has to hold, or the workload misses what it is for: "rename map.new" and so on,
  /// see Trace::has_event. Empty: nothing in particular.
  std::string event;
};

/// The fixed set of the default run.
std::vector<Workload> fixed_workloads();
/// One made up from a seed.
Workload random_workload(std::uint64_t seed);

}  // namespace snap::crash
