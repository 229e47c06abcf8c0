// Block devices as their users see them: whether one can be used yet, and who uses it.
//
// Everything here reads the device, sysfs or procfs, and may block for as long as the device does:
// never on the loop of the server that is behind it.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include "snap/result.h"

namespace snap::attach {

/// Waits until the device is there with `size` bytes, drops what the page cache holds of its
/// predecessor, raises the size of its requests to the server's liking, and has udev look at it. Io
/// after `patience`.
Result<void> make_usable(const std::string& device, std::uint64_t size,
                         std::chrono::milliseconds patience);
/// Brings everything that was written to it, and to what is mounted of it, to its server, durably.
Result<void> sync_device(const std::string& device);
/// Cuts it off from its server: users of an nbd device get I/O errors, those of a loop device keep
/// it until they close it.
Result<void> cut_off(const std::string& device);
/// Waits until nothing is behind it any more. Busy after `patience`.
Result<void> wait_until_gone(const std::string& device, std::chrono::milliseconds patience);

/// A place where the device, or a partition of it, is mounted.
struct MountPoint {
  std::string path;
  std::string type;  ///< "ext4"
  bool read_only = false;
};
/// Of this process's mount namespace, the newest last.
Result<std::vector<MountPoint>> mounts_of(const std::string& device);
/// The device that is mounted there, topmost; NotFound if `path` is no mount point of a block
/// device.
Result<std::string> mounted_device(const std::string& path);

/// The devices of which a file system of this type is mounted: "/dev/sda1".
Result<std::vector<std::string>> mounted_sources(const std::string& type);

/// Who uses the device or a partition of it, in words: "mounted on /mnt", "swap", "in use by dm-0",
/// "open in fio (pid 7)". Empty: nobody. Another mount namespace's mounts are told as "held by the
/// kernel".
Result<std::vector<std::string>> users_of(const std::string& device);

}  // namespace snap::attach
