// pack: sealed deltas become a layer (docs/design.md, Life of a commit).
//
// The layer says what the deltas change of what lies below them, and nothing else: blocks equal to
// what lies below are dropped, all-zero blocks become zero marks or, where nothing lies below,
// nothing. Reading runs ahead of writing, a few MiB at a time; comparing runs on helper threads.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "engine/layer/layer.h"
#include "snap/result.h"
#include "snap/task.h"
#include "snap/volume.h"

namespace snap {

/// What is packed: the sealed deltas first..last of `chain.sealed`, over those after `last` and the
/// layers. `size` is the size that the volume had when `first` was sealed, and is that of the
/// layer. The chain's own delta and size do not matter.
struct PackSource {
  Volume::Parts chain;
  std::size_t first = 0;
  std::size_t last = 0;
  std::uint64_t size = 0;
};

struct PackOptions {
  Encoding encoding = Encoding::kRaw;
  int zstd_level = 3;
  std::uint64_t bytes_per_second = 0;  ///< limit of what is read from the deltas; 0: none
  /// Told, on the caller's loop, the bytes of the deltas that are done, and of how many.
  std::function<void(std::uint64_t done, std::uint64_t total)> progress;
  /// Waited for after every few MiB, told how many: an error ends the packing with it.
  std::function<Task<Result<void>>(std::uint64_t bytes)> wrote;
  /// Asked every few MiB; true ends the packing with Cancelled.
  std::function<bool()> cancelled;
};

/// Writes the layer to `out` (empty, open for writing). InvalidArgument if the source makes no
/// sense; what Delta, LayerStack and LayerWriter fail with; Cancelled. After an error `out` holds
/// part of a layer, to be removed.
Task<Result<LayerWriter::Written>> pack(PackSource source, std::shared_ptr<File> out,
                                        PackOptions options);

}  // namespace snap
