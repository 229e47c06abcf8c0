// TarReader (tar_file.h). What it reads may be hostile: it lets through plain files and folders
// with plain names, in the order in which they come, and neither follows nor makes anything.
#include <archive.h>
#include <archive_entry.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <string_view>

#include "engine/store/names.h"
#include "engine/store/tar_file.h"
#include "snap/event_loop.h"

namespace snap {

namespace {

constexpr std::size_t kReadBytes = 1u << 20;
constexpr std::size_t kMaxEntryName = 4096;

/// The name without leading "./" and trailing "/"; nothing if it is no plain relative one.
std::optional<std::string> plain_name(std::string_view name) {
  if (name.size() > kMaxEntryName) return std::nullopt;
  while (name.starts_with("./"))
    name.remove_prefix(2);
  while (name.ends_with('/'))
    name.remove_suffix(1);
  if (name.starts_with('/')) return std::nullopt;
  for (std::size_t begin = 0; begin <= name.size();) {
    const std::size_t end = std::min(name.find('/', begin), name.size());
    if (name.substr(begin, end - begin) == "..") return std::nullopt;
    begin = end + 1;
  }
  return std::string(name);
}

}  // namespace

struct TarReader::Impl {
  std::string path;
  int fd = -1;
  struct archive* archive = nullptr;
  std::uint64_t total = 0;
  std::uint64_t position = 0;
  std::string entry;             // name of the present one, for messages
  std::uint64_t entry_size = 0;  // as claimed
  std::uint64_t entry_read = 0;

  Impl() = default;
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;
  ~Impl() {
    if (archive != nullptr) archive_read_free(archive);
    if (fd > STDERR_FILENO) ::close(fd);  // read only
  }

  Error archive_error(const std::string& what) const {
    const int code = archive_errno(archive);
    const char* why = archive_error_string(archive);
    if (code == EIO || code == EISDIR) return Error::from_errno(code, what + " " + path);
    return Error(ErrorCode::kCorrupt,
                 what + " " + path + ": " + (why != nullptr ? why : "not a tar file"));
  }
  Error refusal(std::string_view name, const std::string& why) const {
    return Error(ErrorCode::kInvalidArgument, "read " + path + ": " + shown(name) + " " + why);
  }

  Result<void> open();
  Result<std::optional<Entry>> next();
  Result<std::span<const std::byte>> read();
};

Result<void> TarReader::Impl::open() {
  fd = path == "-" ? STDIN_FILENO : ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return Error::from_errno(errno, "open " + path);
  struct stat st {};
  if (::fstat(fd, &st) == 0 && S_ISREG(st.st_mode)) total = static_cast<std::uint64_t>(st.st_size);
  archive = archive_read_new();
  if (archive == nullptr) return Error(ErrorCode::kOutOfMemory, "open " + path + ": no memory");
  // Filters of libarchive's own only: others would run programs.
  archive_read_support_filter_gzip(archive);
  archive_read_support_filter_bzip2(archive);
  archive_read_support_filter_xz(archive);
  archive_read_support_filter_zstd(archive);
  archive_read_support_format_tar(archive);
  if (archive_read_open_fd(archive, fd, kReadBytes) != ARCHIVE_OK) return archive_error("read");
  return {};
}

Result<std::optional<TarReader::Entry>> TarReader::Impl::next() {
  struct archive_entry* header = nullptr;
  const int status = archive_read_next_header(archive, &header);
  position = static_cast<std::uint64_t>(archive_filter_bytes(archive, -1));
  if (status == ARCHIVE_EOF) return std::optional<Entry>();
  if (status != ARCHIVE_OK) return archive_error("read");
  const char* raw_name = archive_entry_pathname(header);
  if (raw_name == nullptr) return refusal("?", "has no readable name");
  auto name = plain_name(raw_name);
  if (!name) return refusal(raw_name, "is no plain relative name");
  if (archive_entry_hardlink(header) != nullptr || archive_entry_symlink(header) != nullptr)
    return refusal(raw_name, "is a link: an image holds only files and folders");
  const auto type = archive_entry_filetype(header);
  if (type != AE_IFREG && type != AE_IFDIR)
    return refusal(raw_name, "is neither a file nor a folder");
  if (archive_entry_sparse_count(header) > 0)
    return refusal(raw_name, "is stored with holes, which an image never is");
  if (archive_entry_size(header) < 0) return refusal(raw_name, "has a negative size");
  entry = *name;
  entry_size = static_cast<std::uint64_t>(archive_entry_size(header));
  entry_read = 0;
  return std::optional<Entry>(Entry{*name, type == AE_IFDIR, entry_size});
}

Result<std::span<const std::byte>> TarReader::Impl::read() {
  const void* block = nullptr;
  std::size_t size = 0;
  la_int64_t offset = 0;
  const int status = archive_read_data_block(archive, &block, &size, &offset);
  position = static_cast<std::uint64_t>(archive_filter_bytes(archive, -1));
  if (status == ARCHIVE_EOF) {
    if (entry_read == entry_size) return std::span<const std::byte>();
    return Error(ErrorCode::kCorrupt, "read " + path + ": " + entry + " ends after " +
                                          std::to_string(entry_read) + " of " +
                                          std::to_string(entry_size) + " bytes");
  }
  if (status != ARCHIVE_OK) return archive_error("read " + entry + " in");
  if (static_cast<std::uint64_t>(offset) != entry_read || size > entry_size - entry_read)
    return refusal(entry, "is stored with holes, which an image never is");
  entry_read += size;
  return std::span(static_cast<const std::byte*>(block), size);
}

TarReader::TarReader(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
TarReader::~TarReader() = default;

Task<Result<std::unique_ptr<TarReader>>> TarReader::open(std::string path) {
  auto impl = std::make_unique<Impl>();
  impl->path = path;
  Impl* self = impl.get();
  auto opened_work = offload([self] { return self->open(); });
  auto opened = co_await opened_work;
  if (!opened) co_return opened.error();
  co_return std::unique_ptr<TarReader>(new TarReader(std::move(impl)));
}

Task<Result<std::optional<TarReader::Entry>>> TarReader::next() {
  auto entry_work = offload([this] { return impl_->next(); });
  auto entry = co_await entry_work;
  co_return entry;
}

Task<Result<std::span<const std::byte>>> TarReader::read() {
  // An empty block is not the end.
  for (;;) {
    auto block_work = offload([this] { return impl_->read(); });
    auto block = co_await block_work;
    if (!block) co_return block.error();
    const bool ended = impl_->entry_read == impl_->entry_size;
    if (!block->empty() || ended) co_return *block;
  }
}

std::uint64_t TarReader::position() const noexcept {
  return impl_->position;
}
std::uint64_t TarReader::total() const noexcept {
  return impl_->total;
}

}  // namespace snap
