// Version and feature masks, with which every file of ours begins (docs/format.md, Features), so
// that a release meets what a later one wrote with a clear answer.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "snap/result.h"

namespace snap {

/// compat: may be ignored. ro_compat: whoever does not know a bit may read, not write. incompat:
/// whoever does not know a bit may do nothing.
struct Features {
  std::uint32_t version = 1;
  std::uint64_t compat = 0;
  std::uint64_t ro_compat = 0;
  std::uint64_t incompat = 0;
  std::string needs;  ///< the first release that knows all of this
};

/// Incompat bit of a store: the first run of a backup into it has not come to its end.
inline constexpr std::uint64_t kUnfinishedBackup = 1;

/// This release's own, for what it writes.
Features own_features();

/// Unsupported, naming the release that is needed, if this release may not read `what`. Otherwise
/// the reason (ReadOnly) why it must not write it, if there is one. `known`: incompat bits that the
/// caller deals with.
Result<std::optional<Error>> check_features(const Features& features, const std::string& what,
                                            std::uint64_t known = 0);

}  // namespace snap
