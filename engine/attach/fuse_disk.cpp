#include "engine/attach/fuse_disk.h"

#include <fcntl.h>
#include <linux/fuse.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <sys/uio.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <span>
#include <utility>

#include "engine/attach/fuse_lane.h"
#include "engine/attach/fuse_requests.h"
#include "snap/event_loop.h"

namespace snap::attach {

namespace {

constexpr const char* kDevice = "/dev/fuse";

Result<UniqueFd> open_fuse() {
  UniqueFd fuse(::open(kDevice, O_RDWR | O_NONBLOCK | O_CLOEXEC));
  if (fuse) return fuse;
  const int err = errno;
  const Error error = Error::from_errno(err, std::string("open ") + kDevice);
  if (err == ENOENT || err == ENODEV || err == ENXIO)
    return Error(
        ErrorCode::kUnsupported,
        error.message() +
            " (the kernel has no FUSE, or this container does not show it: load the module "
            "fuse, or start the container with --device /dev/fuse)",
        err);
  if (err == EPERM || err == EACCES)
    return Error(ErrorCode::kPermission,
                 error.message() +
                     " (run as root; in a container allow the device, as with --device /dev/fuse)",
                 err);
  return error;
}

Result<void> mount_fuse(int fuse, const std::string& directory) {
  const std::string options = "fd=" + std::to_string(fuse) +
                              ",rootmode=40000,user_id=" + std::to_string(::geteuid()) +
                              ",group_id=" + std::to_string(::getegid());
  if (::mount("snapctl", directory.c_str(), "fuse.snapctl", MS_NOSUID | MS_NODEV | MS_NOEXEC,
              options.c_str()) == 0)
    return {};
  const int err = errno;
  const Error error = Error::from_errno(err, "mount a FUSE file system on " + directory);
  if (err == EPERM || err == EACCES)
    return Error(ErrorCode::kPermission,
                 error.message() +
                     " (it takes root with CAP_SYS_ADMIN; a container has that with "
                     "--cap-add SYS_ADMIN, and its AppArmor profile must allow mounts)",
                 err);
  if (err == ENODEV) return error.with_code(ErrorCode::kUnsupported);
  return error;
}

/// Tells the kernel something unasked: 0 or the errno.
int notify(int fuse, fuse_notify_code code, std::span<const iovec> body) {
  fuse_out_header header{};
  header.error = code;
  header.len = sizeof header;
  std::array<iovec, 3> all{};
  all[0] = {&header, sizeof header};
  for (std::size_t i = 0; i < body.size(); ++i) {
    all[i + 1] = body[i];
    header.len += static_cast<std::uint32_t>(body[i].iov_len);
  }
  return ::writev(fuse, all.data(), static_cast<int>(body.size() + 1)) < 0 ? errno : 0;
}

/// Says that the file has a byte at `offset`: it ends there or later.
int notify_last_byte(int fuse, std::uint64_t offset) {
  char zero = 0;
  fuse_notify_store_out store{};
  store.nodeid = kDiskInode;
  store.offset = offset;
  store.size = 1;
  const std::array<iovec, 2> body = {iovec{&store, sizeof store}, iovec{&zero, 1}};
  return notify(fuse, FUSE_NOTIFY_STORE, body);
}

int notify_forget_pages(int fuse, std::uint64_t offset) {
  fuse_notify_inval_inode_out range{};
  range.ino = kDiskInode;
  range.off = static_cast<std::int64_t>(offset);
  range.len = 1;
  const std::array<iovec, 1> body = {iovec{&range, sizeof range}};
  return notify(fuse, FUSE_NOTIFY_INVAL_INODE, body);
}

Task<void> stop_lane_at(AsyncEvent* end, FuseLane* lane, AsyncEvent* done) {
  co_await end->wait();
  lane->stop();
  done->set();
}

}  // namespace

FuseDisk::FuseDisk(std::shared_ptr<nbd::Export> disk, std::string directory)
    : disk_(std::move(disk)), directory_(std::move(directory)) {}

FuseDisk::~FuseDisk() {
  // The session first: without it the kernel waits for no answer of ours.
  notices_.reset();
  session_.reset();
  // No one is left to hear of an error, and everything that can be done about it is being done.
  (void)hide();
}

Result<std::unique_ptr<FuseDisk>> FuseDisk::mount(std::shared_ptr<nbd::Export> disk,
                                                  const std::string& dir) {
  std::string directory = dir + "/" + kDirPrefix + "XXXXXX";
  if (::mkdtemp(directory.data()) == nullptr)
    return Error::from_errno(errno, "make a directory in " + dir + " to mount on");
  std::unique_ptr<FuseDisk> made(new FuseDisk(std::move(disk), std::move(directory)));
  auto begun = made->mount_and_begin();
  if (!begun) return begun.error();
  return made;
}

Result<void> FuseDisk::mount_and_begin() {
  auto fuse = open_fuse();
  SNAP_RETURN_IF_ERROR(fuse);
  auto done = mount_fuse(fuse->get(), directory_);
  SNAP_RETURN_IF_ERROR(done);
  mounted_ = true;
  notices_ = UniqueFd(::fcntl(fuse->get(), F_DUPFD_CLOEXEC, 3));
  if (!notices_) return Error::from_errno(errno, std::string("duplicate ") + kDevice);
  auto session = make_fuse_session(disk_.get(), std::move(*fuse));
  SNAP_RETURN_IF_ERROR(session);
  session_ = std::move(*session);
  return {};
}

Task<void> FuseDisk::serve() {
  std::shared_ptr<fuse_session> session;
  {
    std::lock_guard guard(lock_);
    if (ended_) co_return;
    ++serving_;
    session = session_;
  }
  {
    FuseLane lane(session.get());
    AsyncEvent stopped;
    EventLoop::current()->spawn(stop_lane_at(&end_, &lane, &stopped));
    co_await lane.run();
    stop();
    co_await stopped.wait();
  }
  session.reset();
  leave();
}

void FuseDisk::leave() {
  std::lock_guard guard(lock_);
  if (--serving_ != 0) return;
  // Who still waits for an answer gets ENOTCONN instead of none.
  session_.reset();
  notices_.reset();
}

void FuseDisk::stop() {
  {
    std::lock_guard guard(lock_);
    ended_ = true;
    if (serving_ == 0) {
      session_.reset();
      notices_.reset();
    }
  }
  end_.set();
}

Result<UniqueFd> FuseDisk::open_file() {
  const std::string path = directory_ + "/" + disk_file_name(*disk_);
  const int mode = disk_->read_only() ? O_RDONLY : O_RDWR;
  UniqueFd file(::open(path.c_str(), mode | O_DIRECT | O_CLOEXEC | O_NOFOLLOW));
  if (!file) return Error::from_errno(errno, "open " + path);
  return file;
}

Result<void> FuseDisk::hide() {
  // EINVAL: someone else has unmounted it.
  if (mounted_ && ::umount2(directory_.c_str(), MNT_DETACH | UMOUNT_NOFOLLOW) != 0 &&
      errno != EINVAL)
    return Error::from_errno(errno, "unmount " + directory_);
  mounted_ = false;
  if (directory_.empty()) return {};
  if (::rmdir(directory_.c_str()) != 0 && errno != ENOENT)
    return Error::from_errno(errno, "remove the directory " + directory_);
  directory_.clear();
  return {};
}

// Not by making the kernel ask for the attributes: it drops the answer when any read or write
// completes meanwhile, and under load one always does.
Result<void> FuseDisk::refresh_size() {
  UniqueFd fuse;
  {
    std::lock_guard guard(lock_);
    if (!notices_) return {};
    fuse = UniqueFd(::fcntl(notices_.get(), F_DUPFD_CLOEXEC, 3));
    if (!fuse) return Error::from_errno(errno, std::string("duplicate ") + kDevice);
  }
  const std::uint64_t size = disk_->size();
  if (size == 0) return {};
  int err = notify_last_byte(fuse.get(), size - 1);
  if (err == 0) err = notify_forget_pages(fuse.get(), size - 1);
  // The kernel knows no such inode: it is not open. No device: the file system is gone.
  if (err == 0 || err == ENOENT || err == ENODEV || err == ENOTCONN) return {};
  return Error::from_errno(err, "tell the kernel the new size of " + disk_->name());
}

}  // namespace snap::attach
