// Loop devices (loop(4)): a block device of the kernel whose content is a file.
#pragma once

#include <string>

#include "snap/result.h"

namespace snap::attach {

/// Makes a loop device of the open file `fd`, with direct I/O and blocks of 512 bytes, and gives
/// its path. `device` names one ("/dev/loop3"); empty: the first that is free. Its partitions
/// appear. Busy if the named one is in use. Blocks; the kernel reads the file for its partition
/// table.
Result<std::string> make_loop_device(int fd, const std::string& device, bool read_only);
/// Takes its new size from the file.
Result<void> refresh_loop_size(const std::string& device);
/// Gives the file up; users of the device keep it until they close it. Nothing if it has none.
Result<void> release_loop_device(const std::string& device);
/// The path of its file as the kernel tells it; empty: it has none, or is no loop device.
std::string loop_file(const std::string& device);

}  // namespace snap::attach
