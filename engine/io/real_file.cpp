#include "engine/io/real_file.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/uio.h>

#include <new>

#include "engine/io/file_calls.h"
#include "engine/io/real_calls.h"

namespace snap {

namespace {

Result<void> result_of(int err, const std::string& what) {
  if (err < 0) return Error::from_errno(-err, what);
  return {};
}

Error foreign_directory(const Directory& dir) {
  return Error(ErrorCode::kInvalidArgument,
               "rename into " + dir.path() + ": it is on another kind of disk");
}

}  // namespace

Result<void> check_file_name(const std::string& name) {
  if (name.empty() || name == "." || name == ".." || name.size() > 255 ||
      name.find('/') != std::string::npos || name.find('\0') != std::string::npos) {
    return Error(ErrorCode::kInvalidArgument,
                 "\"" + name.substr(0, 64) + "\" is not a file name: a name is 1 to 255 bytes, " +
                     "neither \".\" nor \"..\", without \"/\"");
  }
  return {};
}

// ---- RealFile

RealFile::~RealFile() {
  struct ::stat st = {};
  EventLoop* const loop = EventLoop::current();
  if (loop == nullptr || ::fstat(fd_.get(), &st) != 0 || st.st_nlink != 0) return;
  const int fd = fd_.get();
  try {
    loop->offload_raw([fd] { UniqueFd closes(fd); });
    fd_.release();
  } catch (const std::bad_alloc&) {
    // closed here, then
  }
}

bool RealFile::start(IoOp& op) {
  op.fd = fd_.get();
  if (op.opcode == IoOpcode::kWrite && op.flags == kBriefWrite) {
    if (const auto result = brief_writes_.run(op)) {
      op.result = *result;
      return false;
    }
  }
  if (op.opcode == IoOpcode::kRead && op.flags == kCachedRead) {
    const std::int64_t got = read_without_waiting(op.fd, iovec{op.buffer, op.length}, op.offset);
    if (got >= 0) {
      op.result = got;
      return false;
    }
  }
  return EventLoop::current()->submit(op);
}

bool RealFile::read_now(std::span<std::byte> out, ByteOffset at) noexcept {
  const iovec piece{out.data(), out.size()};
  return read_without_waiting(fd_.get(), piece, at.value) == static_cast<std::int64_t>(out.size());
}

std::optional<Result<std::size_t>> RealFile::write_now(std::span<const std::byte> in,
                                                       ByteOffset at) {
  FileOp op = write_cached(*this, in, at, true);
  op.fd = fd_.get();
  const auto result = brief_writes_.run(op);
  if (!result) return std::nullopt;
  op.result = *result;
  return op.await_resume();
}

Task<Result<FileStat>> RealFile::stat() {
  const int fd = fd_.get();
  auto work = [fd] { return real::stat_fd(fd); };
  real::StatResult r = co_await run_blocking(work);
  if (r.err != 0) co_return Error::from_errno(-r.err, "stat " + path());
  co_return r.stat;
}

Task<Result<void>> RealFile::truncate(std::uint64_t size) {
  const int fd = fd_.get();
  auto work = [fd, size] { return ::ftruncate(fd, static_cast<off_t>(size)) == 0 ? 0 : -errno; };
  const int err = co_await run_blocking(work);
  co_return result_of(err, "set the size of " + path() + " to " + std::to_string(size));
}

Task<Result<void>> RealFile::set_mode(unsigned mode) {
  const int fd = fd_.get();
  auto work = [fd, mode] { return ::fchmod(fd, mode) == 0 ? 0 : -errno; };
  const int err = co_await run_blocking(work);
  co_return result_of(err, "set the mode of " + path());
}

Task<Result<std::optional<File::Extent>>> RealFile::next_data(std::uint64_t from) {
  const int fd = fd_.get();
  auto work = [fd, from] { return real::next_data(fd, from); };
  real::DataExtent r = co_await run_blocking(work);
  if (r.err != 0) co_return Error::from_errno(-r.err, "look for data in " + path());
  std::optional<Extent> out;
  if (r.found) out = r.extent;
  co_return out;
}

Task<Result<bool>> RealFile::try_lock(bool exclusive) {
  const int fd = fd_.get();
  auto work = [fd, exclusive] {
    return ::flock(fd, (exclusive ? LOCK_EX : LOCK_SH) | LOCK_NB) == 0 ? 0 : -errno;
  };
  const int err = co_await run_blocking(work);
  if (err == -EWOULDBLOCK) co_return false;
  if (err != 0) co_return Error::from_errno(-err, "lock " + path());
  co_return true;
}

Task<Result<void>> RealFile::unlock() {
  const int fd = fd_.get();
  auto work = [fd] { return ::flock(fd, LOCK_UN) == 0 ? 0 : -errno; };
  const int err = co_await run_blocking(work);
  co_return result_of(err, "unlock " + path());
}

Task<Result<void>> RealFile::drop_cache() {
  const int fd = fd_.get();
  auto work = [fd] { return -::posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED); };
  const int err = co_await run_blocking(work);
  co_return result_of(err, "drop the cached pages of " + path());
}

Result<void> RealFile::check_writeback() {
  // This form waits for pages that are being written, and tells of all that were not. No file has a
  // page there, so it has nothing to wait for.
  constexpr off_t kBeyondFiles = off_t{1} << 62;
  if (::sync_file_range(fd_.get(), kBeyondFiles, 1, SYNC_FILE_RANGE_WAIT_BEFORE) == 0) return {};
  return Error::from_errno(errno, "write back " + path());
}

void RealFile::advise_random() {
  // A hint: a file system that does not take it reads ahead, which costs time and nothing else.
  (void)::posix_fadvise(fd_.get(), 0, 0, POSIX_FADV_RANDOM);
}

// ---- RealDirectory

Task<Result<std::unique_ptr<File>>> RealDirectory::open(std::string name, OpenFlags flags) {
  auto named = check_file_name(name);
  if (!named) co_return named.error();
  auto work = [this, &name, &flags] { return real::open_at(fd_.get(), name, flags, true); };
  const int fd = co_await run_blocking(work);
  if (fd < 0)
    co_return Error::from_errno(-fd, (flags.create ? "create " : "open ") + path_of(name));
  co_return std::unique_ptr<File>(std::make_unique<RealFile>(path_of(name), UniqueFd(fd)));
}

Task<Result<std::unique_ptr<Directory>>> RealDirectory::open_dir(std::string name) {
  auto named = check_file_name(name);
  if (!named) co_return named.error();
  auto work = [this, &name] { return real::open_dir_at(fd_.get(), name); };
  const int fd = co_await run_blocking(work);
  if (fd < 0) co_return Error::from_errno(-fd, "open directory " + path_of(name));
  co_return std::unique_ptr<Directory>(
      std::make_unique<RealDirectory>(path_of(name), UniqueFd(fd)));
}

Task<Result<void>> RealDirectory::make_dir(std::string name, unsigned mode) {
  auto named = check_file_name(name);
  if (!named) co_return named.error();
  auto work = [this, &name, mode] { return real::make_dir_at(fd_.get(), name, mode); };
  const int err = co_await run_blocking(work);
  co_return result_of(err, "make directory " + path_of(name));
}

Task<Result<FileStat>> RealDirectory::stat(std::string name) {
  auto named = check_file_name(name);
  if (!named) co_return named.error();
  auto work = [this, &name] { return real::stat_at(fd_.get(), name); };
  real::StatResult r = co_await run_blocking(work);
  if (r.err != 0) co_return Error::from_errno(-r.err, "stat " + path_of(name));
  co_return r.stat;
}

Task<Result<std::vector<DirEntry>>> RealDirectory::list() {
  std::vector<DirEntry> entries;
  auto work = [this, &entries] { return real::list_entries(fd_.get(), entries); };
  const int err = co_await run_blocking(work);
  if (err != 0) co_return Error::from_errno(-err, "list directory " + path());
  co_return entries;
}

Task<Result<void>> RealDirectory::rename(std::string from, Directory& target, std::string to,
                                         bool no_replace) {
  auto from_named = check_file_name(from);
  if (!from_named) co_return from_named.error();
  auto to_named = check_file_name(to);
  if (!to_named) co_return to_named.error();
  auto* real_target = dynamic_cast<RealDirectory*>(&target);
  if (real_target == nullptr) co_return foreign_directory(target);
  auto work = [this, &from, real_target, &to, no_replace] {
    return real::rename_at(fd_.get(), from, real_target->fd_.get(), to, no_replace);
  };
  const int err = co_await run_blocking(work);
  co_return result_of(err, "rename " + path_of(from) + " to " + real_target->path_of(to));
}

Task<Result<void>> RealDirectory::unlink(std::string name) {
  auto named = check_file_name(name);
  if (!named) co_return named.error();
  auto work = [this, &name] { return ::unlinkat(fd_.get(), name.c_str(), 0) == 0 ? 0 : -errno; };
  const int err = co_await run_blocking(work);
  co_return result_of(err, "remove " + path_of(name));
}

Task<Result<void>> RealDirectory::remove_dir(std::string name) {
  auto named = check_file_name(name);
  if (!named) co_return named.error();
  auto work = [this, &name] {
    return ::unlinkat(fd_.get(), name.c_str(), AT_REMOVEDIR) == 0 ? 0 : -errno;
  };
  const int err = co_await run_blocking(work);
  co_return result_of(err, "remove directory " + path_of(name));
}

Task<Result<void>> RealDirectory::sync() {
  const int fd = fd_.get();
  auto work = [fd] { return ::fsync(fd) == 0 ? 0 : -errno; };
  const int err = co_await run_blocking(work);
  co_return result_of(err, "sync directory " + path());
}

Task<Result<Directory::Space>> RealDirectory::space() {
  const int fd = fd_.get();
  auto work = [fd] { return real::space_of(fd); };
  real::SpaceResult r = co_await run_blocking(work);
  if (r.err != 0) co_return Error::from_errno(-r.err, "ask for the free space of " + path());
  co_return r.space;
}

// ---- By path

Task<Result<std::unique_ptr<Directory>>> open_directory(std::string path, bool create) {
  auto work = [&path, create] {
    if (create) {
      const int err = real::make_dirs(path);
      if (err != 0) return err;
    }
    return real::open_dir_at(AT_FDCWD, path);
  };
  const int fd = co_await run_blocking(work);
  if (fd < 0)
    co_return Error::from_errno(-fd, (create ? "make directory " : "open directory ") + path);
  co_return std::unique_ptr<Directory>(std::make_unique<RealDirectory>(path, UniqueFd(fd)));
}

Task<Result<std::unique_ptr<File>>> open_file(std::string path, OpenFlags flags) {
  auto work = [&path, &flags] { return real::open_at(AT_FDCWD, path, flags, false); };
  const int fd = co_await offload(work);
  if (fd < 0) co_return Error::from_errno(-fd, (flags.create ? "create " : "open ") + path);
  co_return std::unique_ptr<File>(std::make_unique<RealFile>(path, UniqueFd(fd)));
}

}  // namespace snap
