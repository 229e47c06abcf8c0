// The files that make a directory a store: format, oci-layout, index.json and the folders; and what
// the file system under it can do (docs/format.md, Store).
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "engine/store/feature_masks.h"
#include "snap/file.h"
#include "snap/result.h"
#include "snap/task.h"

namespace snap {

/// What the store's file system can do (found by trying, at open).
struct Probe {
  std::string file_system;
  bool direct_io = false, punch_hole = false, locks = false, rename_noreplace = false;
};

std::string encode_format(const Features& features);
/// Corrupt says which line is wrong. Any version and masks are taken: see check_features.
Result<Features> decode_format(std::string_view text);

/// Makes `root` a store if it is none and `create` is set: nothing else may be in it. A creation
/// that was cut short is finished.
Task<Result<Features>> open_format(Directory& root, bool create);

/// Sets or clears the bit of a backup that is not whole yet; durable when it returns.
Task<Result<void>> mark_unfinished(Directory& root, bool unfinished);

/// Tries it in `scratch`. Unsupported, naming what is missing, if a store cannot live here.
Task<Result<Probe>> probe_file_system(Directory& scratch, std::string file_system);

/// Unsupported for a network file system.
Result<void> refuse_network(const std::string& path, const std::string& file_system);

}  // namespace snap
