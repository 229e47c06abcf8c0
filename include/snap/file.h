// File and Directory: all disk access of the engine goes through these two.
//
// The real ones (engine/io/real_file.h) end in system calls on the current EventLoop; the simulated
// ones (engine/io/sim_disk.h) in a disk that forgets what was not synced, directory entries
// included.
//
// Durability, as everywhere on POSIX: a File's bytes are stable after sync or data_sync, a name
// after sync of its Directory. A sync covers a write only if the write had completed before the
// sync began.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "snap/event_loop.h"
#include "snap/result.h"
#include "snap/task.h"
#include "snap/units.h"

namespace snap {

struct FileStat {
  enum class Type { kFile, kDirectory, kBlockDevice, kOther };
  Type type = Type::kOther;
  std::uint64_t size = 0;       ///< bytes
  std::uint64_t allocated = 0;  ///< bytes on disk
  unsigned mode = 0;            ///< permission bits
  std::int64_t mtime = 0;       ///< seconds since 1970
};

/// An open file. Closing it (destruction) loses nothing that a sync made stable and promises
/// nothing else. Reads, writes and syncs may run concurrently, from any loop; they share no state
/// here.
class File {
 public:
  virtual ~File() = default;

  /// Begins `op`, whose opcode, buffer and so on are set; see EventLoop::submit.
  virtual bool start(IoOp& op) = 0;
  /// Fills `out` from `at` if that takes no waiting, as when the bytes are in the page cache.
  /// False: not done, or in part, and only read_some() can say why. Not for files open `direct`.
  virtual bool read_now(std::span<std::byte> out, ByteOffset at) noexcept {
    (void)out, (void)at;
    return false;
  }
  /// Writes on the caller's thread, if that is expected to take no waiting: into the page cache,
  /// mostly. As write_some(); nothing: not begun. Not for files open `direct`.
  virtual std::optional<Result<std::size_t>> write_now(std::span<const std::byte> in,
                                                       ByteOffset at) {
    (void)in, (void)at;
    return std::nullopt;
  }

  /// For messages: the path as it was opened.
  const std::string& path() const noexcept { return path_; }

  virtual Task<Result<FileStat>> stat() = 0;
  virtual Task<Result<void>> truncate(std::uint64_t size) = 0;
  virtual Task<Result<void>> set_mode(unsigned mode) = 0;
  /// The first data at or after `from` (SEEK_DATA): start and end of the extent, or nothing if only
  /// a hole follows. A file system without support yields one extent to the end.
  struct Extent {
    std::uint64_t begin = 0;
    std::uint64_t end = 0;
  };
  virtual Task<Result<std::optional<Extent>>> next_data(std::uint64_t from) = 0;
  /// Takes the lock of this open file (flock). False if someone else holds it. Never waits. Held
  /// until the File is destroyed.
  virtual Task<Result<bool>> try_lock(bool exclusive) = 0;
  virtual Task<Result<void>> unlock() = 0;
  /// Asks the kernel to forget its clean cached pages (POSIX_FADV_DONTNEED).
  virtual Task<Result<void>> drop_cache() = 0;
  /// Fails as the next sync of this File would if the kernel could not write something back since
  /// it was opened or last told, and takes that failure from that sync. Other open Files of the
  /// same file are told of it, too. Waits for nothing and makes nothing stable.
  virtual Result<void> check_writeback() { return {}; }
  /// A hint that reads will be at random offsets: no readahead.
  virtual void advise_random() = 0;
  /// The descriptor, for what only a real file can do (sendfile, ioctl); -1 if there is none.
  virtual int native_handle() const noexcept { return -1; }

 protected:
  explicit File(std::string path) : path_(std::move(path)) {}

 private:
  std::string path_;
};

/// One operation each; the bytes done may be fewer than asked (0 at the end of the file).
struct FileOp : IoOp {
  FileOp(File& f, IoOpcode code, void* buf, std::size_t len, std::uint64_t off, int flag = 0) {
    file = &f;
    opcode = code;
    buffer = buf;
    length = len;
    offset = off;
    flags = flag;
  }
};
inline FileOp read_some(File& f, std::span<std::byte> out, ByteOffset at) {
  return FileOp(f, IoOpcode::kRead, out.data(), out.size(), at.value);
}
inline FileOp write_some(File& f, std::span<const std::byte> in, ByteOffset at) {
  return FileOp(f, IoOpcode::kWrite, const_cast<std::byte*>(in.data()), in.size(), at.value);
}
/// fdatasync: bytes and size are stable when it succeeds. A failed sync must never be retried.
inline FileOp data_sync(File& f) {
  return FileOp(f, IoOpcode::kDataSync, nullptr, 0, 0);
}
inline FileOp full_sync(File& f) {
  return FileOp(f, IoOpcode::kSync, nullptr, 0, 0);
}
/// Has the kernel begin to write a range to the disk, so that a later sync has less to wait for. A
/// hint: it makes nothing stable, and takes no failure from that sync (unlike the forms of
/// sync_file_range that wait, which would report a lost write in its place).
inline FileOp start_writeback(File& f, ByteOffset at, std::uint64_t length) {
  return FileOp(f, IoOpcode::kWriteback, nullptr, length, at.value);
}
/// Makes a hole: the range reads zero and takes no space; the size stays.
inline FileOp punch_hole(File& f, ByteOffset at, std::uint64_t length) {
  return FileOp(f, IoOpcode::kPunch, nullptr, length, at.value);
}
/// Takes space for a range in advance. keep_size: the file does not grow.
inline FileOp allocate(File& f, ByteOffset at, std::uint64_t length, bool keep_size) {
  return FileOp(f, IoOpcode::kAllocate, nullptr, length, at.value, keep_size ? 1 : 0);
}

/// All of `out`, or Corrupt ("ends at ...") if the file is shorter. Loops over short reads.
Task<Result<void>> read_exact(File& f, std::span<std::byte> out, ByteOffset at);
/// As much of `out` as the file has: bytes read.
Task<Result<std::size_t>> read_up_to(File& f, std::span<std::byte> out, ByteOffset at);
/// All of `in`. Loops over short writes.
Task<Result<void>> write_all(File& f, std::span<const std::byte> in, ByteOffset at);

struct OpenFlags {
  bool write = false;
  bool create = false;     ///< make it if it is not there
  bool exclusive = false;  ///< with create: fail with Exists if it is there
  bool truncate = false;
  bool direct = false;   ///< O_DIRECT: offset, length and memory aligned to 4096
  unsigned mode = 0600;  ///< of a created file, whatever the umask
};

struct DirEntry {
  std::string name;
  FileStat::Type type = FileStat::Type::kOther;
};

/// An open directory; names are single components (never "/", "..", "" or NUL: InvalidArgument).
class Directory {
 public:
  virtual ~Directory() = default;

  const std::string& path() const noexcept { return path_; }

  virtual Task<Result<std::unique_ptr<File>>> open(std::string name, OpenFlags flags) = 0;
  virtual Task<Result<std::unique_ptr<Directory>>> open_dir(std::string name) = 0;
  /// Exists if it is there.
  virtual Task<Result<void>> make_dir(std::string name, unsigned mode = 0700) = 0;
  virtual Task<Result<FileStat>> stat(std::string name) = 0;
  /// Every entry but "." and "..", sorted by name.
  virtual Task<Result<std::vector<DirEntry>>> list() = 0;
  /// Atomically gives `from` the name `to` in `target`, replacing a file there; with no_replace
  /// fails with Exists instead.
  virtual Task<Result<void>> rename(std::string from, Directory& target, std::string to,
                                    bool no_replace = false) = 0;
  virtual Task<Result<void>> unlink(std::string name) = 0;
  virtual Task<Result<void>> remove_dir(std::string name) = 0;
  /// Makes creations, renames and unlinks in this directory stable.
  virtual Task<Result<void>> sync() = 0;

  struct Space {
    std::uint64_t total = 0;
    std::uint64_t available = 0;
    std::string type;  ///< "ext4", "xfs", "btrfs", "tmpfs", "nfs", ... or "0x..." when unknown
  };
  virtual Task<Result<Space>> space() = 0;

 protected:
  explicit Directory(std::string path) : path_(std::move(path)) {}

 private:
  std::string path_;
};

/// Opens the real directory at `path`; with create, makes it (0700) and its parents first.
Task<Result<std::unique_ptr<Directory>>> open_directory(std::string path, bool create = false);
/// Opens a real file anywhere by its path (for import, dump, save, load).
Task<Result<std::unique_ptr<File>>> open_file(std::string path, OpenFlags flags);

/// Replaces `name` in `dir` whole: writes `bytes` under a temporary name, syncs, renames, syncs the
/// directory. After a crash the name has the old bytes or the new ones. docs/durability.md,
/// Publish.
Task<Result<void>> replace_file(Directory& dir, std::string name, std::span<const std::byte> bytes,
                                unsigned mode = 0600);
/// Whether `name` is one that replace_file makes for its temporary files; what a crash left of
/// them may be removed by whoever holds the directory's lock.
bool is_temporary_name(std::string_view name);
/// The whole file, at most `limit` bytes (else TooLarge).
Task<Result<std::vector<std::byte>>> read_whole(Directory& dir, std::string name,
                                                std::size_t limit);
/// Removes `name` and all below it. Missing is fine.
Task<Result<void>> remove_tree(Directory& dir, std::string name);

}  // namespace snap
