// Names of things on the command line: how an OBJ is looked up, what is suggested for a name that
// does not exist, and names that are made up.
//
// An OBJ is an exact volume name, an exact reference, or a unique prefix of an id, tried in this
// order; "volume:" and "image:" in front force a kind. VOL@SNAP is a snapshot of a volume.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "snap/result.h"
#include "snap/store.h"
#include "snap/task.h"

namespace snap::cli {

struct ObjectName {
  enum class Kind { kAny, kVolume, kImage };
  Kind kind = Kind::kAny;
  std::string name;
  std::string snapshot;  ///< of VOL@SNAP; empty: none
};
/// Splits "volume:NAME", "image:NAME", "VOL@SNAP" and plain names.
ObjectName parse_object_name(std::string_view text);

/// What an OBJ turned out to be: a volume (perhaps at a snapshot), or an image.
struct Object {
  std::optional<VolumeSummary> volume;
  std::string snapshot;
  std::optional<Image> image;
};
Task<Result<Object>> find_object(Store& store, std::string text);
/// The same where only one kind will do. NotFound suggests the nearest name.
Task<Result<VolumeSummary>> find_volume(Store& store, std::string text);
Task<Result<Image>> find_image(Store& store, std::string text);

/// A name such as "quiet-lake" that is not in `taken`.
std::string made_up_name(const std::vector<std::string>& taken);
/// "20261124-052332": a name for a snapshot that was given none.
std::string name_of_now();

/// "KEY=VALUE" pairs as --label gives them; InvalidArgument if one has no key.
Result<Labels> parse_labels(const std::vector<std::string>& pairs);

}  // namespace snap::cli
