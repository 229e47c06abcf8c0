// TarWriter (tar_file.h). The archive says nothing of when, where and by whom it was made: equal
// entries give equal bytes.
#include "engine/store/tar_file.h"

#include <archive.h>
#include <archive_entry.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>

#include "engine/base/uuid.h"
#include "snap/event_loop.h"

namespace snap {

namespace {
constexpr int kBlockBytes = 1 << 20;  // of one write(2)
}

struct TarWriter::Impl {
  std::string path;       // for messages, and what it is to be called
  std::string temporary;  // what it is called while it is written; empty: written in place
  int fd = -1;
  bool regular = false;
  bool given_up = false;  // no end-of-archive blocks: it is not whole
  struct archive* archive = nullptr;

  Impl() = default;
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;
  ~Impl() {
    given_up = true;
    if (archive != nullptr) archive_write_free(archive);
    if (fd > STDERR_FILENO) ::close(fd);  // given up: what it held does not matter
    if (!temporary.empty()) ::unlink(temporary.c_str());
  }

  Error archive_error(const std::string& what) const {
    const int code = archive_errno(archive);
    const char* why = archive_error_string(archive);
    const std::string message = what + " " + path;
    if (code > 0) return Error::from_errno(code, message);
    return Error(ErrorCode::kIo, message + ": " + (why != nullptr ? why : "libarchive failed"));
  }

  /// As archive_write_open_fd() does, and nothing once it is given up. (archive_write_fail() would
  /// do that, too, but leaks the buffer of the block in libarchive 3.6.)
  static la_ssize_t write_block(struct archive* to, void* self, const void* bytes, std::size_t n);

  Result<void> open();
  Result<void> begin(const std::string& name, std::uint64_t size, bool directory);
  Result<void> write(std::span<const std::byte> bytes);
  Result<void> finish();
};

la_ssize_t TarWriter::Impl::write_block(struct archive* to, void* self, const void* bytes,
                                        std::size_t n) {
  const Impl& impl = *static_cast<const Impl*>(self);
  if (impl.given_up) return static_cast<la_ssize_t>(n);
  for (;;) {
    const ssize_t written = ::write(impl.fd, bytes, n);
    if (written >= 0) return written;
    if (errno == EINTR) continue;
    archive_set_error(to, errno, "write");
    return -1;
  }
}

Result<void> TarWriter::Impl::open() {
  struct stat st {};
  if (path == "-") {
    fd = STDOUT_FILENO;
  } else if (::stat(path.c_str(), &st) == 0 && !S_ISREG(st.st_mode)) {
    fd = ::open(path.c_str(), O_WRONLY | O_CLOEXEC);
  } else {
    SystemRandom random;
    temporary = path + ".partial-" + Uuid::make(random).str().substr(0, 8);
    fd = ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0) temporary.clear();
    regular = true;
  }
  if (fd < 0) return Error::from_errno(errno, "create " + path);
  archive = archive_write_new();
  if (archive == nullptr) return Error(ErrorCode::kOutOfMemory, "create " + path + ": no memory");
  if (archive_write_set_format_pax_restricted(archive) != ARCHIVE_OK ||
      archive_write_set_bytes_per_block(archive, kBlockBytes) != ARCHIVE_OK ||
      archive_write_set_bytes_in_last_block(archive, 1) != ARCHIVE_OK ||
      archive_write_open2(archive, this, nullptr, &write_block, nullptr, nullptr) != ARCHIVE_OK) {
    return archive_error("create");
  }
  return {};
}

Result<void> TarWriter::Impl::begin(const std::string& name, std::uint64_t size, bool directory) {
  struct archive_entry* entry = archive_entry_new();
  if (entry == nullptr) return Error(ErrorCode::kOutOfMemory, "write " + path + ": no memory");
  archive_entry_set_pathname(entry, name.c_str());
  archive_entry_set_filetype(entry, directory ? AE_IFDIR : AE_IFREG);
  archive_entry_set_perm(entry, directory ? 0755 : 0644);
  archive_entry_set_size(entry, static_cast<la_int64_t>(size));
  archive_entry_set_mtime(entry, 0, 0);
  const int status = archive_write_header(archive, entry);
  archive_entry_free(entry);
  if (status != ARCHIVE_OK) return archive_error("write " + name + " to");
  return {};
}

Result<void> TarWriter::Impl::write(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const la_ssize_t n = archive_write_data(archive, bytes.data(), bytes.size());
    if (n < 0) return archive_error("write to");
    if (n == 0) {
      return Error(ErrorCode::kInvalidArgument,
                   "write to " + path + ": an entry got more bytes than it was to have");
    }
    bytes = bytes.subspan(static_cast<std::size_t>(n));
  }
  return {};
}

Result<void> TarWriter::Impl::finish() {
  if (archive_write_close(archive) != ARCHIVE_OK) return archive_error("finish");
  archive_write_free(archive);
  archive = nullptr;
  if (regular && ::fsync(fd) != 0) return Error::from_errno(errno, "sync " + path);
  if (fd > STDERR_FILENO && ::close(std::exchange(fd, -1)) != 0)
    return Error::from_errno(errno, "close " + path);
  if (temporary.empty()) return {};
  if (::rename(temporary.c_str(), path.c_str()) != 0)
    return Error::from_errno(errno, "give " + temporary + " the name " + path);
  temporary.clear();
  const std::size_t slash = path.rfind('/');
  const std::string folder = slash == std::string::npos ? "." : path.substr(0, slash + 1);
  const int dir = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (dir < 0) return Error::from_errno(errno, "open " + folder);
  const int synced = ::fsync(dir);
  const int why = errno;
  ::close(dir);  // read only
  // Some file systems cannot sync a folder: then the name is as durable as they make it.
  if (synced != 0 && why != EINVAL) return Error::from_errno(why, "sync " + folder);
  return {};
}

TarWriter::TarWriter(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
TarWriter::~TarWriter() = default;

Task<Result<std::unique_ptr<TarWriter>>> TarWriter::create(std::string path) {
  auto impl = std::make_unique<Impl>();
  impl->path = path;
  Impl* self = impl.get();
  auto opened_work = offload([self] { return self->open(); });
  auto opened = co_await opened_work;
  if (!opened) co_return opened.error();
  co_return std::unique_ptr<TarWriter>(new TarWriter(std::move(impl)));
}

Task<Result<void>> TarWriter::begin_file(std::string name, std::uint64_t size) {
  auto done_work = offload([this, &name, size] { return impl_->begin(name, size, false); });
  auto done = co_await done_work;
  co_return done;
}

Task<Result<void>> TarWriter::begin_directory(std::string name) {
  auto done_work = offload([this, &name] { return impl_->begin(name, 0, true); });
  auto done = co_await done_work;
  co_return done;
}

Task<Result<void>> TarWriter::write(std::span<const std::byte> bytes) {
  auto done_work = offload([this, bytes] { return impl_->write(bytes); });
  auto done = co_await done_work;
  co_return done;
}

Task<Result<void>> TarWriter::finish() {
  auto done_work = offload([this] { return impl_->finish(); });
  auto done = co_await done_work;
  co_return done;
}

}  // namespace snap
