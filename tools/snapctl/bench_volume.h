// BenchVolume: the clone that bench works on, so that the volume stays as it is: made, served or
// attached, given more layers, and removed with all that it has put into the store.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <vector>

#include "engine/attach/attachment.h"
#include "engine/base/uuid.h"
#include "snap/result.h"
#include "snap/store.h"
#include "snap/task.h"
#include "tools/snapctl/context.h"
#include "tools/snapctl/device_access.h"

namespace snap::cli {

class BenchVolume {
 public:
  /// Clones the volume, also while it is in use. Whoever gets one calls remove() in the end.
  static Task<Result<BenchVolume>> make(Context& context, std::string volume);

  const std::string& volume() const noexcept { return volume_; }  ///< of which it is a clone
  const std::string& name() const noexcept { return name_; }

  /// One that clients can reach.
  struct Served {
    DeviceServer server;
    std::optional<attach::Attachment> device;
    std::string uri;
    int pid = 0;  ///< of the server
  };
  Task<Result<Served>> serve(bool device);
  Task<Result<void>> stop(Served served);

  /// How many layers it has at least, once what the volume has not committed is one.
  std::size_t least_depth() const noexcept;
  /// Writes a few random blocks and commits, until its image has so many layers. Not while it is
  /// served. Cancelled on an interrupt.
  Task<Result<void>> grow(std::size_t depth);

  /// Removes it and its images. What fails says what is still there.
  Task<Result<void>> remove();

 private:
  BenchVolume(Context& context, VolumeSummary clone, std::string volume);
  Task<Result<void>> wait_for_rest();
  Task<Result<void>> add_layer(OpenVolume& open);
  Task<Result<void>> write_blocks(Volume& volume);

  Context* context_;
  std::string volume_, name_;
  std::size_t layers_ = 0;
  bool uncommitted_ = false;
  std::vector<ImageId> images_;  ///< that were made for it and are still there
  SeededRandom random_{1};       ///< the same blocks in every run
};

}  // namespace snap::cli
