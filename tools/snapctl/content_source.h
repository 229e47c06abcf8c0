// Content of an OBJ to read: an image, a volume at rest, or a snapshot (VOL@SNAP) of a volume.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "snap/result.h"
#include "snap/store.h"
#include "snap/task.h"
#include "snap/volume.h"

namespace snap::cli {

struct ContentSource {
  std::string name;                ///< as it was asked for
  std::shared_ptr<Volume> volume;  ///< read-only
  /// What each link of the chain is, by Extent::depth: "delta <uuid>" or "sha256:<hex>" of a layer
  /// file, top first.
  std::vector<std::string> links;
};

/// Opens it for reading. Busy, saying to take a snapshot, for a volume that is being served.
Task<Result<ContentSource>> open_content(Store& store, std::string text);

/// The image that a volume (or a snapshot of one) or a name stands on, for diff without a second
/// object. NotFound if the volume was made without an image.
Task<Result<ContentSource>> open_image_below(Store& store, std::string text);

}  // namespace snap::cli
