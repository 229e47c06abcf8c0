#include "engine/delta/identity.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <string_view>

#include "engine/io/unique_fd.h"

namespace snap {

std::optional<Uuid> boot_id() {
  const UniqueFd fd(::open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC));
  std::array<char, 36> text;
  if (!fd || ::read(fd.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size()))
    return std::nullopt;
  return Uuid::parse(std::string_view(text.data(), text.size()));
}

Result<FileIdentity> identity_of(const File& file) {
  FileIdentity out;
  if (file.native_handle() < 0) return out;
  struct statx st {};
  if (::statx(file.native_handle(), "", AT_EMPTY_PATH, STATX_INO | STATX_BTIME, &st) != 0)
    return Error::from_errno(errno, "look at " + file.path());
  out.device_major = st.stx_dev_major;
  out.device_minor = st.stx_dev_minor;
  out.inode = st.stx_ino;
  out.birth_seconds = st.stx_btime.tv_sec;
  out.birth_nanoseconds = st.stx_btime.tv_nsec;
  return out;
}

}  // namespace snap
