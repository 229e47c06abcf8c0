#include "engine/attach/fuse_requests.h"

#include <fcntl.h>
#include <linux/falloc.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <mutex>
#include <span>
#include <string>
#include <string_view>

#define FUSE_USE_VERSION 312
#include <fuse3/fuse_lowlevel.h>

#include "engine/attach/fuse_lane.h"
#include "engine/nbd/protocol.h"
#include "snap/event_loop.h"
#include "snap/task.h"
#include "snap/units.h"

namespace snap::attach {

static constexpr std::size_t kLongestName = 255;  // of a file

std::string disk_file_name(const nbd::Export& disk) {
  std::string name = "snapctl:" + disk.name();
  std::replace(name.begin(), name.end(), '/', '!');
  return name.substr(0, kLongestName);
}

int errno_of(ErrorCode code) noexcept {
  // The protocol's numbers are Linux's; it has none for what is read-only.
  return code == ErrorCode::kReadOnly ? EROFS : static_cast<int>(nbd::wire_error(code));
}

namespace {

nbd::Export& disk_of(fuse_req_t req) {
  return *static_cast<nbd::Export*>(fuse_req_userdata(req));
}

// What a reply returns is not looked at anywhere: it fails only if no one waits for it any more.

void reply_result(fuse_req_t req, const Result<void>& result) {
  fuse_reply_err(req, result ? 0 : errno_of(result.error().code()));
}

struct stat attributes(const nbd::Export& disk, fuse_ino_t inode) {
  struct stat st {};
  st.st_ino = inode;
  st.st_uid = ::geteuid();
  st.st_gid = ::getegid();
  st.st_nlink = 1;
  st.st_blksize = kBlockSize;
  if (inode == FUSE_ROOT_ID) {
    st.st_mode = S_IFDIR | 0500;
  } else {
    st.st_mode = S_IFREG | (disk.read_only() ? 0400 : 0600);
    st.st_size = static_cast<off_t>(disk.size());
    st.st_blocks = static_cast<blkcnt_t>(disk.size() / kSectorSize);
  }
  return st;
}

// ---- The file system

void begin(void*, fuse_conn_info* connection) {
  // A large or asynchronous request is passed on in many at once. No splice: requests and answers
  // are in memory. No writeback cache and nothing that keeps attributes: the Export is the truth.
  connection->want = connection->capable & (FUSE_CAP_ASYNC_READ | FUSE_CAP_ASYNC_DIO);
  connection->max_write = kMaxFusePayload;
  connection->max_background = 128;
  connection->congestion_threshold = 96;
}

void lookup(fuse_req_t req, fuse_ino_t parent, const char* name) {
  if (parent != FUSE_ROOT_ID || name != disk_file_name(disk_of(req))) {
    fuse_reply_err(req, ENOENT);
    return;
  }
  fuse_entry_param entry{};
  entry.ino = kDiskInode;
  entry.attr = attributes(disk_of(req), kDiskInode);
  fuse_reply_entry(req, &entry);
}

void get_attributes(fuse_req_t req, fuse_ino_t inode, fuse_file_info*) {
  const struct stat st = attributes(disk_of(req), inode);
  fuse_reply_attr(req, &st, 0);
}

void set_attributes(fuse_req_t req, fuse_ino_t, struct stat*, int, fuse_file_info*) {
  fuse_reply_err(req, EPERM);
}

void read_directory(fuse_req_t req, fuse_ino_t inode, std::size_t size, off_t from,
                    fuse_file_info*) {
  if (inode != FUSE_ROOT_ID) {
    fuse_reply_err(req, ENOTDIR);
    return;
  }
  struct Entry {
    const char* name;
    fuse_ino_t inode;
  };
  const std::string file = disk_file_name(disk_of(req));
  const Entry entries[] = {{".", FUSE_ROOT_ID}, {"..", FUSE_ROOT_ID}, {file.c_str(), kDiskInode}};
  char bytes[1024];
  std::size_t used = 0;
  for (std::size_t i = static_cast<std::size_t>(from); i < std::size(entries); ++i) {
    const struct stat st = attributes(disk_of(req), entries[i].inode);
    const std::size_t room = std::min(sizeof bytes, size) - used;
    const std::size_t needs =
        fuse_add_direntry(req, bytes + used, room, entries[i].name, &st, static_cast<off_t>(i + 1));
    if (needs > room) break;
    used += needs;
  }
  fuse_reply_buf(req, bytes, used);
}

void stat_file_system(fuse_req_t req, fuse_ino_t) {
  struct statvfs st {};
  st.f_bsize = st.f_frsize = kBlockSize;  // a loop device discards in units of it
  st.f_blocks = disk_of(req).size() / kBlockSize;
  st.f_files = 1;
  st.f_namemax = kLongestName;
  fuse_reply_statfs(req, &st);
}

void open(fuse_req_t req, fuse_ino_t inode, fuse_file_info* file) {
  if (inode != kDiskInode) {
    fuse_reply_err(req, EISDIR);
    return;
  }
  if (disk_of(req).read_only() && (file->flags & O_ACCMODE) != O_RDONLY) {
    fuse_reply_err(req, EROFS);
    return;
  }
  file->direct_io = 1;  // the Export has caches of its own
#if FUSE_VERSION >= FUSE_MAKE_VERSION(3, 15)
  file->parallel_direct_writes = 1;
#endif
  fuse_reply_open(req, file);
}

// There is no flush, as it is called at each close(): libfuse says so to the kernel, which calls it
// no more.

// ---- Data: each becomes a task of the lane's loop

Task<void> run_read(FuseLane::Ticket ticket, fuse_req_t req, ByteOffset at, std::size_t length) {
  nbd::Export& disk = disk_of(req);
  const std::uint64_t size = disk.size();
  const std::span out(ticket.room(), std::min(length, size - std::min(at.value, size)));
  Result<void> result;
  if (!out.empty()) result = co_await disk.read(at, out);
  if (result) {
    fuse_reply_buf(req, reinterpret_cast<const char*>(out.data()), out.size());
  } else {
    reply_result(req, result);
  }
}

Task<void> run_write([[maybe_unused]] FuseLane::Ticket ticket, fuse_req_t req, ByteOffset at,
                     std::span<const std::byte> bytes) {
  const Volume::WriteOptions options{};
  const auto result = co_await disk_of(req).write(at, bytes, options);
  if (result) {
    fuse_reply_write(req, bytes.size());
  } else {
    reply_result(req, result);
  }
}

Task<void> run_zero([[maybe_unused]] FuseLane::Ticket ticket, fuse_req_t req, ByteOffset at,
                    std::uint64_t length, bool no_hole) {
  Volume::ZeroOptions options;
  options.no_hole = no_hole;
  const auto result = co_await disk_of(req).write_zeroes(at, length, options);
  reply_result(req, result);
}

Task<void> run_flush([[maybe_unused]] FuseLane::Ticket ticket, fuse_req_t req) {
  const auto result = co_await disk_of(req).flush();
  reply_result(req, result);
}

bool within(const nbd::Export& disk, ByteOffset at, std::uint64_t length) {
  return at.value <= disk.size() && length <= disk.size() - at.value;
}

void read(fuse_req_t req, fuse_ino_t, std::size_t size, off_t offset, fuse_file_info*) {
  if (size > kMaxFusePayload) {
    fuse_reply_err(req, EINVAL);
    return;
  }
  const ByteOffset at(static_cast<std::uint64_t>(offset));
  EventLoop::current()->spawn(run_read(FuseLane::receiving().take(), req, at, size));
}

void write(fuse_req_t req, fuse_ino_t, const char* data, std::size_t size, off_t offset,
           fuse_file_info*) {
  const ByteOffset at(static_cast<std::uint64_t>(offset));
  if (disk_of(req).read_only()) {
    fuse_reply_err(req, EROFS);
  } else if (!within(disk_of(req), at, size)) {
    fuse_reply_err(req, ENOSPC);
  } else {
    // They stay where they are: in the buffer that the ticket holds.
    const auto bytes = std::as_bytes(std::span(data, size));
    EventLoop::current()->spawn(run_write(FuseLane::receiving().take(), req, at, bytes));
  }
}

void fallocate(fuse_req_t req, fuse_ino_t, int mode, off_t offset, off_t length, fuse_file_info*) {
  const ByteOffset at(static_cast<std::uint64_t>(offset));
  auto bytes = static_cast<std::uint64_t>(length);
  const bool punch = mode == (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE);
  const bool zero = (mode & ~FALLOC_FL_KEEP_SIZE) == FALLOC_FL_ZERO_RANGE;
  if (punch) {  // beyond the end is nothing that a hole could be made in
    const std::uint64_t size = disk_of(req).size();
    bytes = std::min(bytes, size - std::min(at.value, size));
  }
  if (!punch && !zero) {
    fuse_reply_err(req, EOPNOTSUPP);
  } else if (disk_of(req).read_only()) {
    fuse_reply_err(req, EROFS);
  } else if (!within(disk_of(req), at, bytes)) {
    fuse_reply_err(req, bytes == 0 ? 0 : ENOSPC);
  } else {
    // Not trim(): a hole reads zero to its last byte, and trim leaves the edges as they are.
    // Zeros as such (a loop device's WRITE_ZEROES that must not unmap) keep their space.
    EventLoop::current()->spawn(run_zero(FuseLane::receiving().take(), req, at, bytes, zero));
  }
}

void sync(fuse_req_t req, fuse_ino_t, int, fuse_file_info*) {
  EventLoop::current()->spawn(run_flush(FuseLane::receiving().take(), req));
}

fuse_lowlevel_ops operations() {
  fuse_lowlevel_ops ops{};
  ops.init = begin;
  ops.lookup = lookup;
  ops.getattr = get_attributes;
  ops.setattr = set_attributes;
  ops.readdir = read_directory;
  ops.statfs = stat_file_system;
  ops.open = open;
  ops.read = read;
  ops.write = write;
  ops.fallocate = fallocate;
  ops.fsync = sync;
  return ops;
}

// ---- The connection

void say_nothing(fuse_log_level, const char*, va_list) {}

ssize_t send(int fd, iovec* iov, int count, void*) {
  const ssize_t sent = ::writev(fd, iov, count);
  // ENOENT is what the kernel says when no one waits for the answer; anything else libfuse would
  // print.
  if (sent < 0) errno = ENOENT;
  return sent;
}

ssize_t receive(int fd, void* bytes, std::size_t size, void*) {
  return ::read(fd, bytes, size);  // a FuseLane does that itself
}

}  // namespace

void DestroySession::operator()(fuse_session* session) const noexcept {
  fuse_session_destroy(session);
}

Result<std::unique_ptr<fuse_session, DestroySession>> make_fuse_session(nbd::Export* disk,
                                                                        UniqueFd fuse) {
  static std::once_flag once;
  std::call_once(once, [] { fuse_set_log_func(say_nothing); });
  std::string program = "snapctl";
  char* arguments[] = {program.data(), nullptr};
  fuse_args args = FUSE_ARGS_INIT(1, arguments);
  const fuse_lowlevel_ops ops = operations();
  std::unique_ptr<fuse_session, DestroySession> session(
      fuse_session_new(&args, &ops, sizeof ops, disk));
  fuse_opt_free_args(&args);
  if (!session) return Error(ErrorCode::kOutOfMemory, "begin a FUSE session: out of memory");
  fuse_custom_io io{};
  io.writev = send;
  io.read = receive;
  const int err = fuse_session_custom_io(session.get(), &io, fuse.get());
  if (err != 0) return Error::from_errno(-err, "begin a FUSE session");
  (void)fuse.release();  // the session closes it
  return session;
}

}  // namespace snap::attach
