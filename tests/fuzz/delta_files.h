// What the targets of a delta's files share: the files on a simulated disk, their checksums, and
// what an opened delta must be like. For fuzzing only.
#pragma once

#include <map>
#include <memory>
#include <string>

#include "engine/delta/delta.h"
#include "engine/delta/delta_format.h"
#include "engine/io/sim_disk.h"
#include "fuzz.h"

namespace snap::fuzz {

Uuid delta_id();
ChecksumSecret delta_secret();

struct FrameFixes {
  bool checksums = false;
  bool chain = false;  ///< numbers, and what a frame says of the one before it
};
/// Corrects the frames of a map or journal, in the order of the file.
void fix_frames(Bytes& file, FrameFixes fixes);

/// Appends a frame at the end of `file`; each of its blocks begins with `fill`.
void append_frame(Bytes& file, FrameHead& head, const std::vector<Change>& changes,
                  std::byte fill = {});

struct DeltaFiles {
  Bytes map;
  Bytes journal;
  std::uint64_t journal_size = 0;  ///< with the zeros behind `journal`
  std::uint64_t data_size = 0;
  Delta::Mode mode = Delta::Mode::kReadWrite;
  bool used = false;  ///< it is written to, closed, and opened again, which must show the same
};
/// Opens the delta of these files. If that works its contents must make sense and be readable.
void open_delta(const DeltaFiles& files);

}  // namespace snap::fuzz
