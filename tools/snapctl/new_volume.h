// Making volumes: of an image, and under names that are made up.
#pragma once

#include <string>

#include "snap/result.h"
#include "snap/store.h"
#include "snap/task.h"

namespace snap::cli {

/// Creates it; a name that was made up is made up anew while someone else takes it first.
Task<Result<VolumeRecord>> create_named(Store& store, Store::CreateOptions options);

/// Finds the image that `text` means and makes it what the volume is made of.
Task<Result<void>> take_image(Store& store, std::string text, Store::CreateOptions* options);

}  // namespace snap::cli
