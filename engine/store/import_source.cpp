// Chooses the kind of an import source, and recognises disk image formats by content.
//
// A format that was recognised, not asked for, may have been planted by a guest that owned the raw
// disk. So an image that names other files (a backing file, extents) is taken only if its format
// was given by name: else a guest could have any file of this machine read into an image.
#include "engine/store/import_source.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "engine/base/codec.h"
#include "snap/limits.h"

namespace snap {

Task<Result<std::optional<std::uint64_t>>> ImportSource::data_bytes(std::uint64_t) {
  co_return std::optional<std::uint64_t>();
}

namespace {

constexpr std::size_t kProbeBytes = 512;

bool starts_with(std::span<const std::byte> bytes, std::string_view magic, std::size_t at = 0) {
  return bytes.size() >= at + magic.size() &&
         std::memcmp(bytes.data() + at, magic.data(), magic.size()) == 0;
}

DetectedFormat detect_qcow(std::span<const std::byte> head) {
  const std::uint32_t version = load_be<std::uint32_t>(head.data() + 4);
  const std::uint64_t backing_file = load_be<std::uint64_t>(head.data() + 8);
  if (version == 1) return {"qcow", backing_file != 0};
  constexpr std::uint64_t kExternalDataFile = 1u << 2;
  const std::uint64_t incompatible = load_be<std::uint64_t>(head.data() + 72);
  return {"qcow2", backing_file != 0 || (version >= 3 && (incompatible & kExternalDataFile) != 0)};
}

/// A source that only lives as a path, and what stat says of it.
struct Probe {
  enum class Kind { kDirectory, kFile, kStream };
  Kind kind = Kind::kFile;
};

Result<Probe> probe_path(const std::string& path) {
  struct stat st {};
  if (::stat(path.c_str(), &st) != 0) return Error::from_errno(errno, "import from " + path);
  if (S_ISDIR(st.st_mode)) return Probe{Probe::Kind::kDirectory};
  if (S_ISREG(st.st_mode) || S_ISBLK(st.st_mode)) return Probe{Probe::Kind::kFile};
  if (S_ISFIFO(st.st_mode) || S_ISCHR(st.st_mode)) return Probe{Probe::Kind::kStream};
  return Error(
      ErrorCode::kUnsupported,
      "import from " + path + ": it is neither a file, a directory, a block device nor a pipe");
}

Result<int> open_stream(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return Error::from_errno(errno, "open " + path);
  return fd;
}

/// True if standard input is a file that is still at its start: then its holes can be kept.
bool stdin_is_fresh_file() {
  struct stat st {};
  return ::fstat(STDIN_FILENO, &st) == 0 && S_ISREG(st.st_mode) &&
         ::lseek(STDIN_FILENO, 0, SEEK_CUR) == 0;
}

Task<Result<DetectedFormat>> detect_file(File& file, std::uint64_t size) {
  std::vector<std::byte> head(std::min<std::uint64_t>(size, kProbeBytes));
  std::vector<std::byte> tail(head.size());
  auto read = co_await read_exact(file, head, ByteOffset(0));
  if (!read) co_return read.error();
  read = co_await read_exact(file, tail, ByteOffset(size - tail.size()));
  if (!read) co_return read.error();
  co_return detect_image_format(head, tail);
}

Task<Result<std::unique_ptr<ImportSource>>> open_file_source(ImportFrom from) {
  auto opened = co_await open_file(from.source, OpenFlags{});
  if (!opened) co_return opened.error();
  std::unique_ptr<File> file = std::move(*opened);
  std::string format = from.format;
  if (format.empty()) {
    auto stat = co_await file->stat();
    if (!stat) co_return stat.error();
    auto detected = co_await detect_file(*file, stat->size);
    if (!detected) co_return detected.error();
    if (detected->names_other_files) {
      co_return Error(ErrorCode::kInvalidArgument,
                      "import from " + from.source + ": this " + detected->name +
                          " image names other files, which would be read too; if you trust it, "
                          "say so with --format " +
                          detected->name);
    }
    format = detected->name;
  }
  if (format == "raw") {
    auto source = co_await make_raw_source(std::move(file), from.size);
    co_return source;
  }
  auto source = co_await make_qemu_source(from.source, format, from.size);
  co_return source;
}

Task<Result<std::unique_ptr<ImportSource>>> open_stdin_source(ImportFrom from) {
  if (stdin_is_fresh_file()) {
    // Not /dev/stdin: qemu-nbd would look for its own.
    from.source = "/proc/" + std::to_string(::getpid()) + "/fd/0";
    auto source = co_await open_file_source(from);
    co_return source;
  }
  co_return make_stream_source(STDIN_FILENO, false, "standard input", from.size);
}

bool is_format_name(std::string_view format) {
  return std::all_of(format.begin(), format.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-';
  });
}

Error needs_raw(const std::string& what, const std::string& format) {
  return Error(ErrorCode::kInvalidArgument, "import from " + what + " as " + format +
                                                ": only a file can be read as that; save it to a "
                                                "file first");
}

}  // namespace

Result<std::uint64_t> import_size(std::uint64_t bytes, std::optional<std::uint64_t> grow_to,
                                  std::string_view name) {
  const std::string what = "import from " + std::string(name);
  if (bytes == 0) return Error(ErrorCode::kInvalidArgument, what + ": it is empty");
  if (grow_to && *grow_to < bytes) {
    return Error(ErrorCode::kInvalidArgument, what + ": it has " + std::to_string(bytes) +
                                                  " bytes, more than the size of " +
                                                  std::to_string(*grow_to) + " asked for");
  }
  const std::uint64_t size = grow_to.value_or(bytes);
  if (size > kMaxVolumeSize) {
    return Error(ErrorCode::kTooLarge, what + ": " + std::to_string(size) +
                                           " bytes are more than a volume can have (" +
                                           std::to_string(kMaxVolumeSize) + ")");
  }
  return round_up(size, kSectorSize);
}

DetectedFormat detect_image_format(std::span<const std::byte> head,
                                   std::span<const std::byte> tail) noexcept {
  if (head.size() >= 80 && starts_with(head, "QFI\xfb")) return detect_qcow(head);
  if (starts_with(head, "KDMV") || starts_with(head, "COWD")) return {"vmdk", false};
  if (starts_with(head, "# Disk DescriptorFile")) return {"vmdk", true};
  if (starts_with(head, "vhdxfile")) return {"vhdx", false};
  if (starts_with(head, "\x7f\x10\xda\xbe", 64)) return {"vdi", false};
  if (starts_with(head, std::string_view("QED\0", 4))) return {"qed", true};
  if (starts_with(head, "conectix") || starts_with(tail, "conectix")) return {"vpc", false};
  if (starts_with(head, "WithoutFreeSpace") || starts_with(head, "WithouFreSpacExt"))
    return {"parallels", false};
  return {};
}

Task<Result<std::unique_ptr<ImportSource>>> make_import_source(ImportFrom from,
                                                               Directory& scratch) {
  const bool raw = from.format.empty() || from.format == "raw";
  if (!is_format_name(from.format)) {
    co_return Error(ErrorCode::kInvalidArgument,
                    "format '" + from.format + "': names are like raw, qcow2, vmdk");
  }
  if (from.source == "-") {
    if (!raw && !stdin_is_fresh_file()) co_return needs_raw("standard input", from.format);
    auto source = co_await open_stdin_source(from);
    co_return source;
  }
  if (is_nbd_uri(from.source)) {
    if (!raw) co_return needs_raw(from.source, from.format);
    auto source = co_await make_nbd_source(from.source, from.size);
    co_return source;
  }
  const std::string path = from.source;
  auto probe_work = offload([&path] { return probe_path(path); });
  auto probe = co_await probe_work;
  if (!probe) co_return probe.error();
  switch (probe->kind) {
    case Probe::Kind::kDirectory: {
      if (!from.format.empty()) co_return needs_raw(path, from.format);
      auto source = co_await make_directory_source(std::move(from), scratch);
      co_return source;
    }
    case Probe::Kind::kStream: {
      if (!raw) co_return needs_raw(path, from.format);
      auto fd_work = offload([&path] { return open_stream(path); });
      auto fd = co_await fd_work;
      if (!fd) co_return fd.error();
      co_return make_stream_source(*fd, true, path, from.size);
    }
    case Probe::Kind::kFile:
      break;
  }
  auto source = co_await open_file_source(from);
  co_return source;
}

}  // namespace snap
