// settings.json: what is set for the store as a whole (docs/format.md, settings.json). A store
// without the file has no limits.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "engine/store/feature_masks.h"
#include "snap/file.h"
#include "snap/result.h"
#include "snap/store.h"
#include "snap/task.h"

namespace snap {

struct StoredSettings {
  Features features = own_features();
  Store::Limits limits;
  std::optional<Error> read_only;  ///< why this release must not write it, if so
};

/// InvalidArgument for limits that no store may have: 0 bytes or more than 2^60, or a low-water
/// mark that is not below the limit.
Result<void> check_limits(const Store::Limits& limits);

std::string encode_settings(const StoredSettings& settings);
/// Corrupt names the field that is wrong.
Result<StoredSettings> decode_settings(std::string_view json);

/// Those of the store at `root`.
Task<Result<StoredSettings>> read_settings(Directory& root);
/// Replaces the file, durably. The caller holds the index lock.
Task<Result<void>> write_settings(Directory& root, const StoredSettings& settings);

}  // namespace snap
