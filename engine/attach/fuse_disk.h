// FuseDisk: one Export as one regular file, served through FUSE by this process, so that a loop
// device can be made of it where the kernel has no nbd.
//
//   mount()      a file system of its own below a private directory
//   serve()      answers the kernel; on one loop or on several
//   open_file()  the file, for LOOP_CONFIGURE (with LO_FLAGS_DIRECT_IO)
//   hide()       nothing of it can be seen any more; who has the file open keeps it alive
//
// When the last descriptor of the file is closed (the loop device has let go), the kernel ends the
// file system and every serve() returns.
//
// Durability: an fsync of the file, and so a flush of the loop device, is Export::flush().
#pragma once

#include <cstddef>
#include <memory>
#include <mutex>
#include <string>

#include "engine/io/sync.h"
#include "engine/io/unique_fd.h"
#include "engine/nbd/export.h"
#include "snap/result.h"
#include "snap/task.h"

struct fuse_session;

namespace snap::attach {

class FuseLane;

/// Destroyed only when no call of it is running. Those marked "blocking" are for helper threads
/// (offload()), one at a time.
class FuseDisk {
 public:
  /// How the names of its directories begin.
  static constexpr const char* kDirPrefix = "fuse-";

  /// Blocking. Makes a directory (0700) in `dir` and mounts there; nothing is left of both when it
  /// fails. Unsupported where there is no FUSE, Permission where it is denied.
  static Result<std::unique_ptr<FuseDisk>> mount(std::shared_ptr<nbd::Export> disk,
                                                 const std::string& dir);
  FuseDisk(const FuseDisk&) = delete;
  FuseDisk& operator=(const FuseDisk&) = delete;
  /// Cuts off who still uses the file (they get ENOTCONN) and removes the directory.
  ~FuseDisk();

  /// Answers the kernel's requests on the current loop; may run on several at once, of which each
  /// takes what it can. Returns when the file system is gone, after stop(), or when the loop is
  /// shut down, and not before all that it has begun is answered. When one ends, all end; with the
  /// last one who still uses the file is cut off.
  Task<void> serve();
  /// Ends every serve(). Thread-safe.
  void stop();

  /// Blocking. Opens the file with O_DIRECT, for reading alone if the Export is read-only. Before
  /// hide(); serve() must be running.
  Result<UniqueFd> open_file();
  /// Blocking. Takes mount and directory away.
  Result<void> hide();
  /// Makes the kernel know the size of an Export that has grown: at once, whatever is in flight,
  /// and without waiting for serve(). The loop device still has to be told (LOOP_SET_CAPACITY).
  /// Nothing to do when no one has the file open. Thread-safe.
  Result<void> refresh_size();

  /// The directory it is mounted on; empty after hide().
  const std::string& directory() const noexcept { return directory_; }

 private:
  FuseDisk(std::shared_ptr<nbd::Export> disk, std::string directory);
  Result<void> mount_and_begin();
  void leave();

  std::shared_ptr<nbd::Export> disk_;
  std::string directory_;
  bool mounted_ = false;

  AsyncEvent end_;   ///< serve() is to return
  std::mutex lock_;  // guards what follows
  bool ended_ = false;
  std::size_t serving_ = 0;
  UniqueFd notices_;  ///< for what is said to the kernel unasked; open as long as session_
  std::shared_ptr<fuse_session> session_;
};

}  // namespace snap::attach
