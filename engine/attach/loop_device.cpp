#include "engine/attach/loop_device.h"

#include <fcntl.h>
#include <linux/loop.h>
#include <sys/ioctl.h>

#include <cerrno>
#include <fstream>

#include "engine/io/unique_fd.h"

namespace snap::attach {

namespace {

// Another process may take the free device first.
constexpr int kTries = 64;

Result<UniqueFd> open_device(const std::string& device) {
  UniqueFd fd(::open(device.c_str(), O_RDWR | O_CLOEXEC));
  // A device of which the file is read-only opens to read alone.
  if (!fd && errno == EROFS) fd = UniqueFd(::open(device.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) return Error::from_errno(errno, "open " + device);
  return fd;
}

Result<std::string> free_device() {
  const UniqueFd control(::open("/dev/loop-control", O_RDWR | O_CLOEXEC));
  if (!control) return Error::from_errno(errno, "open /dev/loop-control");
  const int number = ::ioctl(control.get(), LOOP_CTL_GET_FREE);
  if (number < 0) return Error::from_errno(errno, "find a free loop device");
  return "/dev/loop" + std::to_string(number);
}

Result<void> configure(const std::string& device, int fd, bool read_only) {
  auto loop = open_device(device);
  if (!loop) return loop.error();
  loop_config config{};
  config.fd = static_cast<__u32>(fd);
  config.block_size = 512;
  config.info.lo_flags = LO_FLAGS_DIRECT_IO | LO_FLAGS_PARTSCAN;
  if (read_only) config.info.lo_flags |= LO_FLAGS_READ_ONLY;
  if (::ioctl(loop->get(), LOOP_CONFIGURE, &config) == 0) return {};
  if (errno == EBUSY) return Error(ErrorCode::kBusy, device + " is in use", EBUSY);
  return Error::from_errno(errno, "make " + device + " of a file");
}

}  // namespace

Result<std::string> make_loop_device(int fd, const std::string& device, bool read_only) {
  for (int left = kTries;; --left) {
    auto chosen = device.empty() ? free_device() : Result<std::string>(device);
    if (!chosen) return chosen.error();
    auto done = configure(*chosen, fd, read_only);
    if (done) return chosen;
    const bool taken = done.error().code() == ErrorCode::kBusy && device.empty();
    if (!taken || left == 0) return done.error();
  }
}

Result<void> refresh_loop_size(const std::string& device) {
  auto loop = open_device(device);
  if (!loop) return loop.error();
  if (::ioctl(loop->get(), LOOP_SET_CAPACITY) != 0)
    return Error::from_errno(errno, "tell " + device + " its new size");
  return {};
}

Result<void> release_loop_device(const std::string& device) {
  auto loop = open_device(device);
  if (!loop) return loop.error();
  if (::ioctl(loop->get(), LOOP_CLR_FD) != 0 && errno != ENXIO)
    return Error::from_errno(errno, "release " + device);
  return {};
}

std::string loop_file(const std::string& device) {
  // Not LOOP_GET_STATUS64, which asks the file: whoever serves that may be dead.
  const std::string name = device.substr(device.rfind('/') + 1);
  std::ifstream in("/sys/block/" + name + "/loop/backing_file");
  std::string path;
  std::getline(in, path);
  return path;
}

}  // namespace snap::attach
