// Copying one blob or sealed delta from a store to another, whole or not at all. A copy that is
// there is made anew if it is seen to be damaged without reading it all: a blob by its size, a
// delta by its map and the size of its data.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "engine/store/store_impl.h"
#include "snap/digest.h"

namespace snap {

struct Copied {
  enum class Outcome {
    kCopied,
    kThere,     ///< the target has it, as far as was looked
    kVanished,  ///< the source does not have it any more
    kDamaged,   ///< the source's is not what was written, or cannot be read: `why`
  };
  Outcome outcome = Outcome::kCopied;
  std::uint64_t bytes = 0;
  std::optional<Error> why;
};

/// Told the bytes copied; false stops the copy (Cancelled).
using CopyStep = std::function<bool(std::uint64_t bytes)>;

/// Errors are of the target, or Cancelled. The copy is durable, its name too.
Task<Result<Copied>> copy_blob(Store::Impl& source, Store::Impl& target, BlobDigest digest,
                               CopyStep step);
Task<Result<Copied>> copy_delta(Store::Impl& source, Store::Impl& target, std::string uuid,
                                CopyStep step);

}  // namespace snap
