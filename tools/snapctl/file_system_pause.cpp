// See file_system_pause.h.
#include "tools/snapctl/file_system_pause.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <utility>

#include "engine/attach/block_device.h"
#include "engine/io/unique_fd.h"
#include "engine/server/control_client.h"
#include "snap/event_loop.h"
#include "tools/snapctl/device_access.h"
#include "tools/snapctl/interrupt.h"

namespace snap::cli {

namespace {
constexpr std::chrono::seconds kLongest{5};
}  // namespace

bool FileSystemPause::too_long() const noexcept {
  return !mounts_.empty() && std::chrono::steady_clock::now() - begin_ > kLongest;
}

Result<void> FileSystemPause::freeze(const std::vector<std::string>& paths) {
  hold_interrupts(true);
  begin_ = std::chrono::steady_clock::now();
  for (const std::string& path : paths) {
    const UniqueFd dir(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    if (dir && ::ioctl(dir.get(), FIFREEZE, 0) == 0) {
      mounts_.push_back(path);
      continue;
    }
    if (dir && errno == EBUSY) continue;  // mounted twice, or frozen by someone else
    const int err = errno;
    end();
    hold_interrupts(false);
    return Error::from_errno(err, "freeze the file system on " + path);
  }
  if (mounts_.empty()) hold_interrupts(false);
  return {};
}

void FileSystemPause::end() noexcept {
  if (mounts_.empty()) return;
  for (const std::string& path : mounts_) {
    const UniqueFd dir(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    if (!dir || ::ioctl(dir.get(), FITHAW, 0) != 0)
      std::fprintf(stderr,
                   SNAPCTL_PROGRAM_NAME
                   ": the file system on %s is still frozen (%s): run 'fsfreeze -u %s'\n",
                   path.c_str(), std::strerror(errno), path.c_str());
  }
  mounts_.clear();
  hold_interrupts(false);
}

Task<Result<FileSystemPause>> FileSystemPause::begin(Context& context, VolumeAccess& volume,
                                                     bool wanted, Store::CommitOptions packing) {
  FileSystemPause out;
  if (!wanted) co_return out;
  std::vector<std::string> paths;
  auto device = co_await find_attachment(context, "volume:" + volume.name());
  if (device) {
    auto mounts = co_await offload([&device] { return attach::mounts_of(device->device); });
    if (!mounts) co_return mounts.error();
    for (const attach::MountPoint& mount : *mounts)
      paths.push_back(mount.path);
    auto server = co_await server::ControlClient::connect(device->control);
    if (!server)
      co_return Error(ErrorCode::kBusy, device->device +
                                            " has lost its server; '" SNAPCTL_PROGRAM_NAME
                                            " attach --reconnect " +
                                            volume.name() + "' gives it another");
  } else if (device.error().code() != ErrorCode::kNotFound) {
    co_return device.error();
  }
  if (!paths.empty()) {
    auto room = co_await volume.make_room(std::move(packing));
    // A server of an older release packs them later.
    if (!room && room.error().code() != ErrorCode::kUnsupported) co_return room.error();
  } else {
    context.note("--pause: no file system of volume '" + volume.name() +
                 "' is mounted here, so none is paused");
  }
  auto frozen = co_await offload([&] { return out.freeze(paths); });
  if (!frozen) co_return frozen.error();
  co_return out;
}

}  // namespace snap::cli
