// The blocking metadata calls behind RealFile and RealDirectory: plain functions, run by offload().
// Each returns 0 (or a descriptor) or -errno; EINTR is retried.
#pragma once

#include <string>
#include <vector>

#include "snap/file.h"

namespace snap::real {

struct StatResult {
  int err = 0;  ///< -errno
  FileStat stat;
};
StatResult stat_fd(int fd);
StatResult stat_at(int dir, const std::string& name);

/// `dir` may be AT_FDCWD. with regular_only, a pipe or socket under the name gives -EINVAL instead
/// of a wait for its other end.
int open_at(int dir, const std::string& name, const OpenFlags& flags, bool regular_only);
int open_dir_at(int dir, const std::string& name);
int make_dir_at(int dir, const std::string& name, unsigned mode);
/// Makes `path` and its missing parents, mode 0700, each name stable before the next; existing
/// ones stay as they are.
int make_dirs(const std::string& path);
int rename_at(int from_dir, const std::string& from, int to_dir, const std::string& to,
              bool no_replace);
/// The rename without replacing by link and unlink, for file systems without RENAME_NOREPLACE.
int rename_by_link(int from_dir, const std::string& from, int to_dir, const std::string& to);

int list_entries(int dir, std::vector<DirEntry>& out);

struct DataExtent {
  int err = 0;  ///< -errno
  bool found = false;
  File::Extent extent;
};
DataExtent next_data(int fd, std::uint64_t from);

struct SpaceResult {
  int err = 0;  ///< -errno
  Directory::Space space;
};
SpaceResult space_of(int fd);

}  // namespace snap::real
