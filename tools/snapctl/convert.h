// Writes a volume as a disk image in a format of qemu's: served read-only on a socket of our own,
// read from there by qemu-img convert.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "snap/result.h"
#include "snap/task.h"
#include "snap/volume.h"

namespace snap::cli {

/// The formats that dump -O takes beside raw.
const std::vector<std::string>& convert_formats();

struct ConvertTarget {
  std::string format;
  std::string file;
  /// What the file is to be called later, without folders, as a vmdk has it in itself; empty: as it
  /// is called.
  std::string name;
};

/// Writes `volume` to a file. NotFound if qemu-img is not installed.
Task<Result<void>> convert_volume(std::shared_ptr<Volume> volume, ConvertTarget target);

}  // namespace snap::cli
