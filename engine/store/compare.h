// compare: where two volumes differ, by content.
//
// What both read through the same sealed deltas and layers is not read; and what no source of
// either mentions is passed over in great steps. So two clones of a terabyte compare in the time
// that their own changes take.
#pragma once

#include <cstdint>
#include <functional>

#include "snap/result.h"
#include "snap/store.h"
#include "snap/task.h"
#include "snap/units.h"
#include "snap/volume.h"

namespace snap {

struct Difference {
  ByteOffset offset;
  std::uint64_t length = 0;  ///< bytes
};

struct Comparison {
  std::uint64_t extents = 0;  ///< runs of blocks that differ
  std::uint64_t bytes = 0;    ///< in them
  bool same_size = true;
  bool same() const noexcept { return extents == 0 && same_size; }
};

struct CompareOptions {
  /// Told each difference, ascending, neighbours merged; in whole blocks but for the end. False
  /// ends the comparison there.
  std::function<bool(Difference)> on_difference;
};

/// Compares `a` and `b`; the shorter one counts as continued by zeros. Progress: "compare", bytes
/// looked at or passed over.
Task<Result<Comparison>> compare_volumes(Volume& a, Volume& b, CompareOptions options,
                                         Progress progress);

}  // namespace snap
