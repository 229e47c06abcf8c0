#include "engine/io/real_calls.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include <algorithm>
#include <array>

#include "engine/io/unique_fd.h"

namespace snap::real {

namespace {

// Not in linux/magic.h of Debian 12's kernel headers, or only under other names.
constexpr std::array<std::pair<std::uint32_t, const char*>, 20> kFileSystems{{
    {EXT4_SUPER_MAGIC, "ext4"},
    {XFS_SUPER_MAGIC, "xfs"},
    {BTRFS_SUPER_MAGIC, "btrfs"},
    {TMPFS_MAGIC, "tmpfs"},
    {RAMFS_MAGIC, "ramfs"},
    {NFS_SUPER_MAGIC, "nfs"},
    {OVERLAYFS_SUPER_MAGIC, "overlayfs"},
    {F2FS_SUPER_MAGIC, "f2fs"},
    {FUSE_SUPER_MAGIC, "fuse"},
    {MSDOS_SUPER_MAGIC, "vfat"},
    {V9FS_MAGIC, "9p"},
    {CEPH_SUPER_MAGIC, "ceph"},
    {SMB_SUPER_MAGIC, "smb"},
    {CIFS_SUPER_MAGIC, "cifs"},
    {SMB2_SUPER_MAGIC, "smb2"},
    {AFS_SUPER_MAGIC, "afs"},
    {0x2fc12fc1, "zfs"},
    {0xca451a4e, "bcachefs"},
    {0x00c0ffee, "hostfs"},
    {EXFAT_SUPER_MAGIC, "exfat"},
}};

template <class Call>
int retry(Call call) {
  for (;;) {
    const auto result = call();
    if (result >= 0) return static_cast<int>(result);
    if (errno != EINTR) return -errno;
  }
}

FileStat::Type type_of(mode_t mode) {
  if (S_ISREG(mode)) return FileStat::Type::kFile;
  if (S_ISDIR(mode)) return FileStat::Type::kDirectory;
  if (S_ISBLK(mode)) return FileStat::Type::kBlockDevice;
  return FileStat::Type::kOther;
}

FileStat convert(const struct stat& s) {
  FileStat out;
  out.type = type_of(s.st_mode);
  out.size = static_cast<std::uint64_t>(s.st_size);
  out.allocated = static_cast<std::uint64_t>(s.st_blocks) * 512;
  out.mode = s.st_mode & 07777;
  out.mtime = s.st_mtim.tv_sec;
  return out;
}

int open_once(int dir, const std::string& name, int flags, unsigned mode) {
  return retry([&] { return ::openat(dir, name.c_str(), flags, mode); });
}

/// Opened without waiting for a peer (O_NONBLOCK); keeps only what has offsets.
int keep_if_seekable(int fd, int flags) {
  UniqueFd owned(fd);
  struct stat s {};
  if (::fstat(fd, &s) != 0) return -errno;
  if (!S_ISREG(s.st_mode) && !S_ISBLK(s.st_mode)) return S_ISDIR(s.st_mode) ? -EISDIR : -EINVAL;
  // Nothing may see O_NONBLOCK: io_uring would give EAGAIN instead of waiting for the disk.
  if (::fcntl(fd, F_SETFL, flags & ~(O_NONBLOCK | O_CREAT | O_EXCL | O_TRUNC)) != 0) return -errno;
  return owned.release();
}

}  // namespace

StatResult stat_fd(int fd) {
  struct stat s {};
  StatResult out;
  out.err = retry([&] { return ::fstat(fd, &s); });
  if (out.err != 0) return out;
  out.stat = convert(s);
  if (S_ISBLK(s.st_mode)) {
    std::uint64_t bytes = 0;
    out.err = retry([&] { return ::ioctl(fd, BLKGETSIZE64, &bytes); });
    out.stat.size = out.stat.allocated = bytes;
  }
  return out;
}

StatResult stat_at(int dir, const std::string& name) {
  struct stat s {};
  StatResult out;
  out.err = retry([&] { return ::fstatat(dir, name.c_str(), &s, AT_SYMLINK_NOFOLLOW); });
  if (out.err == 0) out.stat = convert(s);
  return out;
}

/// Of a file that comes and goes while it is opened.
constexpr int kOpenTries = 100;

int open_at(int dir, const std::string& name, const OpenFlags& flags, bool regular_only) {
  int bits = O_CLOEXEC | O_NOCTTY | (flags.write ? O_RDWR : O_RDONLY);
  if (flags.direct) bits |= O_DIRECT;
  if (flags.truncate) bits |= O_TRUNC;
  const int wait = regular_only ? O_NONBLOCK : 0;
  for (int tries = 1;; ++tries) {
    int fd = -ENOENT;
    if (!(flags.create && flags.exclusive)) fd = open_once(dir, name, bits | wait, 0);
    if (fd == -ENOENT && flags.create) {
      fd = open_once(dir, name, bits | wait | O_CREAT | O_EXCL, flags.mode);
      if (fd == -EEXIST && !flags.exclusive) {
        // Someone made it just now; or it is a link that leads nowhere, which stays so.
        if (tries == kOpenTries) return -ELOOP;
        continue;
      }
      if (fd < 0) return fd;
      // The umask took bits from the mode; the caller means the mode that it gave.
      UniqueFd owned(fd);
      const int err = retry([&] { return ::fchmod(fd, flags.mode); });
      if (err != 0) return err;
      fd = owned.release();
    }
    if (fd < 0) return fd;
    return regular_only ? keep_if_seekable(fd, bits) : fd;
  }
}

int open_dir_at(int dir, const std::string& name) {
  return open_once(dir, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
}

int make_dir_at(int dir, const std::string& name, unsigned mode) {
  const int err = retry([&] { return ::mkdirat(dir, name.c_str(), mode); });
  if (err != 0) return err;
  return retry([&] { return ::fchmodat(dir, name.c_str(), mode, 0); });
}

int make_dirs(const std::string& path) {
  std::size_t end = 0;
  while (end != std::string::npos) {
    end = path.find('/', end + 1);
    const std::string prefix = path.substr(0, end);
    const int err = make_dir_at(AT_FDCWD, prefix, 0700);
    if (err == -EEXIST || err == -EISDIR) continue;
    if (err != 0) {
      // A parent on a read-only or foreign file system is fine as long as it is there.
      const StatResult there = stat_at(AT_FDCWD, prefix);
      if (there.err == 0) continue;
      return err;
    }
    const std::size_t slash = prefix.rfind('/');
    const std::string parent = slash == std::string::npos ? "." : prefix.substr(0, slash + 1);
    UniqueFd fd(open_dir_at(AT_FDCWD, parent));
    if (fd.get() < 0) return fd.get();
    const int synced = ::fsync(fd.get()) == 0 ? 0 : -errno;
    if (synced != 0) return synced;
  }
  return 0;
}

int rename_by_link(int from_dir, const std::string& from, int to_dir, const std::string& to) {
  const int err = retry([&] { return ::linkat(from_dir, from.c_str(), to_dir, to.c_str(), 0); });
  if (err != 0) return err;
  return retry([&] { return ::unlinkat(from_dir, from.c_str(), 0); });
}

int rename_at(int from_dir, const std::string& from, int to_dir, const std::string& to,
              bool no_replace) {
  const unsigned flags = no_replace ? RENAME_NOREPLACE : 0;
  const int err =
      retry([&] { return ::renameat2(from_dir, from.c_str(), to_dir, to.c_str(), flags); });
  if (no_replace && (err == -EINVAL || err == -ENOSYS))
    return rename_by_link(from_dir, from, to_dir, to);
  return err;
}

int list_entries(int dir, std::vector<DirEntry>& out) {
  // A descriptor of its own: the position of the directory stream is shared by duplicates.
  const int fd = open_dir_at(dir, ".");
  if (fd < 0) return fd;
  DIR* stream = ::fdopendir(fd);
  if (stream == nullptr) {
    const int err = -errno;
    ::close(fd);
    return err;
  }
  int err = 0;
  for (;;) {
    errno = 0;
    const dirent* entry = ::readdir(stream);
    if (entry == nullptr) {
      err = -errno;
      break;
    }
    std::string name = entry->d_name;
    if (name == "." || name == "..") continue;
    const StatResult s = stat_at(dir, name);
    if (s.err == -ENOENT) continue;  // removed meanwhile
    if (s.err != 0) {
      err = s.err;
      break;
    }
    out.push_back(DirEntry{std::move(name), s.stat.type});
  }
  ::closedir(stream);
  std::sort(out.begin(), out.end(),
            [](const DirEntry& a, const DirEntry& b) { return a.name < b.name; });
  return err;
}

DataExtent next_data(int fd, std::uint64_t from) {
  // lseek moves the descriptor's position, which nothing of ours uses.
  DataExtent out;
  const off_t begin = ::lseek(fd, static_cast<off_t>(from), SEEK_DATA);
  if (begin >= 0) {
    const off_t end = ::lseek(fd, begin, SEEK_HOLE);
    if (end < 0) {
      out.err = -errno;
      return out;
    }
    out.found = true;
    out.extent = {static_cast<std::uint64_t>(begin), static_cast<std::uint64_t>(end)};
    return out;
  }
  if (errno == ENXIO) return out;
  if (errno != EINVAL && errno != EOPNOTSUPP) {
    out.err = -errno;
    return out;
  }
  const StatResult s = stat_fd(fd);
  out.err = s.err;
  out.found = s.err == 0 && from < s.stat.size;
  if (out.found) out.extent = {from, s.stat.size};
  return out;
}

SpaceResult space_of(int fd) {
  struct statfs s {};
  SpaceResult out;
  out.err = retry([&] { return ::fstatfs(fd, &s); });
  if (out.err != 0) return out;
  const auto unit = static_cast<std::uint64_t>(s.f_bsize);
  out.space.total = s.f_blocks * unit;
  out.space.available = s.f_bavail * unit;
  const auto magic = static_cast<std::uint32_t>(s.f_type);
  for (const auto& [known, type] : kFileSystems) {
    if (known == magic) out.space.type = type;
  }
  if (out.space.type.empty()) {
    char text[16];
    ::snprintf(text, sizeof text, "0x%x", magic);
    out.space.type = text;
  }
  return out;
}

}  // namespace snap::real
