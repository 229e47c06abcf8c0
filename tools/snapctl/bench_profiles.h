// Profiles: the fio job files that bench runs, by the names that a person gives them.
//
// They are looked for in $SNAPCTL_PROFILES if that is set; else in the source's fio-profiles/ by a
// program that runs from its build tree, and where they were installed by every other.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "snap/result.h"

namespace snap::cli {

struct Profile {
  std::string name;  ///< "randread-4k-qd1"
  std::string file;
};

class Profiles {
 public:
  /// Those that are run over NBD, or on a device. Blocks, as find() does. NotFound if the folder is
  /// not there, saying where it was looked for.
  static Result<Profiles> open(bool device);

  /// All, ascending.
  const std::vector<Profile>& all() const noexcept { return all_; }
  /// "randread-4k-qd1", "nbd-randread-4k-qd1.fio", or the path of any job file. NotFound names
  /// those that there are.
  Result<Profile> find(const std::string& text) const;

 private:
  bool device_ = false;
  std::string folder_;
  std::vector<Profile> all_;
};

/// What bench runs if it is told nothing.
std::vector<std::string> default_profiles();

}  // namespace snap::cli
