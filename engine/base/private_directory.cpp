#include "engine/base/private_directory.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

namespace snap {

Result<void> make_private_directory(const std::string& path) {
  if (::mkdir(path.c_str(), 0700) != 0 && errno != EEXIST)
    return Error::from_errno(errno, "make the directory " + path);
  struct stat st {};
  if (::lstat(path.c_str(), &st) != 0) return Error::from_errno(errno, "look at " + path);
  if (!S_ISDIR(st.st_mode) || st.st_uid != ::geteuid() || (st.st_mode & 022) != 0) {
    return Error(ErrorCode::kPermission,
                 path + " must be a directory of this user that no one else can write to");
  }
  return {};
}

}  // namespace snap
