// A directory as an ext4 file system: mke2fs -d writes it into a sparse file in scratch, which is
// then read as a raw file.
//
// The file loses its name as soon as it is open, so nothing is left however the import ends, and it
// does not count as part of the store: it is no more than a copy of the source, for a while.
#include <fcntl.h>
#include <ftw.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <set>

#include "engine/base/uuid.h"
#include "engine/store/import_source.h"
#include "engine/store/program.h"
#include "snap/limits.h"

namespace snap {

namespace {

constexpr std::uint64_t kMiB = 1u << 20;
constexpr std::uint64_t kMinHeadRoom = 64 * kMiB;
constexpr std::uint64_t kBytesPerInode = 16384;
constexpr std::uint64_t kInodeBytes = 256;

/// What a tree takes as a file system.
struct TreeSize {
  std::uint64_t data = 0;     // bytes, in whole blocks
  std::uint64_t inodes = 0;   // files, directories, links, ...
  unsigned uid = 0, gid = 0;  // of the top directory
};

/// Bytes of data between the holes; as much as the size where that cannot be found out.
std::uint64_t data_between_holes(int fd, std::uint64_t size) {
  std::uint64_t sum = 0;
  off_t at = 0;
  while (at < static_cast<off_t>(size)) {
    const off_t data = ::lseek(fd, at, SEEK_DATA);
    if (data < 0) return errno == ENXIO ? sum : size;
    const off_t hole = ::lseek(fd, data, SEEK_HOLE);
    if (hole < 0) return size;
    sum += round_up(static_cast<std::uint64_t>(hole - data), kBlockSize);
    at = hole;
  }
  return sum;
}

std::uint64_t file_data(const char* path, const struct stat& st) {
  const auto size = static_cast<std::uint64_t>(st.st_size);
  const bool sparse = static_cast<std::uint64_t>(st.st_blocks) * 512 < size;
  if (!sparse) return round_up(size, kBlockSize);
  const int fd = ::open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NOCTTY);
  if (fd < 0) return round_up(size, kBlockSize);  // mke2fs will say that it cannot be read
  const std::uint64_t bytes = data_between_holes(fd, size);
  ::close(fd);  // read only
  return bytes;
}

/// nftw() passes no argument along; one walk a thread at a time.
struct Walk {
  TreeSize size;
  std::set<std::pair<dev_t, ino_t>> linked;  // inodes with several names that were counted
};
thread_local Walk* current_walk = nullptr;

int count_entry(const char* path, const struct stat* st, int type, struct FTW*) {
  Walk& walk = *current_walk;
  if (type == FTW_NS) return 0;  // gone, or not allowed: mke2fs decides
  if (!S_ISDIR(st->st_mode) && st->st_nlink > 1 &&
      !walk.linked.insert({st->st_dev, st->st_ino}).second) {
    return 0;
  }
  ++walk.size.inodes;
  if (S_ISREG(st->st_mode)) {
    walk.size.data += file_data(path, *st) + kBlockSize;  // and its extent tree
  } else {
    // A directory of ext4 takes at most a few times what the source's says; a link up to a block.
    const auto bytes = S_ISDIR(st->st_mode) ? 2 * static_cast<std::uint64_t>(st->st_size) : 0;
    walk.size.data += round_up(bytes, kBlockSize) + kBlockSize;
  }
  return 0;
}

Result<TreeSize> measure(const std::string& path) {
  struct stat top {};
  if (::stat(path.c_str(), &top) != 0) return Error::from_errno(errno, "import from " + path);
  if (::access(path.c_str(), R_OK | X_OK) != 0)
    return Error::from_errno(errno, "import from " + path);
  Walk walk;
  current_walk = &walk;
  const int walked = ::nftw(path.c_str(), count_entry, 64, FTW_PHYS);
  const int saved = errno;
  current_walk = nullptr;
  if (walked != 0) return Error::from_errno(saved, "walk through " + path);
  walk.size.uid = top.st_uid;
  walk.size.gid = top.st_gid;
  return walk.size;
}

/// The tree, a quarter more, and room for the file system's own tables and journal.
std::uint64_t file_system_size(const TreeSize& tree) {
  const std::uint64_t content = tree.data + tree.inodes * kInodeBytes;
  const std::uint64_t room = std::max(content / 4, kMinHeadRoom);
  const std::uint64_t tables = (content + room) / 32 + tree.inodes * kInodeBytes;
  return round_up(content + room + tables, kMiB);
}

std::vector<std::string> mke2fs_arguments(const std::string& program, const std::string& path,
                                          const std::string& file, const TreeSize& tree,
                                          std::uint64_t size) {
  const std::uint64_t inodes = std::max(size / kBytesPerInode, tree.inodes + tree.inodes / 4 + 64);
  return {program,
          "-q",
          "-F",
          "-t",
          "ext4",
          "-b",
          std::to_string(kBlockSize),
          "-I",
          std::to_string(kInodeBytes),
          "-N",
          std::to_string(inodes),
          "-E",
          "nodiscard,lazy_itable_init=1,root_owner=" + std::to_string(tree.uid) + ":" +
              std::to_string(tree.gid),
          "-d",
          path,
          file,
          std::to_string(size / 1024) + "k"};
}

Result<void> make_file_system(const ImportFrom& from, int fd) {
  const std::string& path = from.source;
  const auto program = find_program("mke2fs");
  if (!program) {
    return Error(ErrorCode::kUnsupported,
                 "import from " + path + ": mke2fs is not installed (package e2fsprogs)");
  }
  auto tree = measure(path);
  if (!tree) return tree.error();
  const std::uint64_t size =
      from.size ? round_down(*from.size, kBlockSize) : file_system_size(*tree);
  auto fits = import_size(size, std::nullopt, path);
  if (!fits) return fits.error();
  if (from.room) {
    // Without what it may take beside the files' own blocks: who is refused now is refused early.
    auto room = from.room(tree->data - tree->inodes * kBlockSize);
    if (!room) return room.error().with_context("import from " + path);
  }
  // An absolute path cannot be taken for an option.
  char* absolute = ::realpath(path.c_str(), nullptr);
  if (absolute == nullptr) return Error::from_errno(errno, "import from " + path);
  const std::string source = absolute;
  std::free(absolute);
  if (::ftruncate(fd, static_cast<off_t>(size)) != 0)
    return Error::from_errno(errno, "make a file for the file system of " + path);
  const std::string file = "/proc/" + std::to_string(::getpid()) + "/fd/" + std::to_string(fd);
  auto ran = run_program(mke2fs_arguments(*program, source, file, *tree, size));
  if (!ran) return ran.error();
  if (ran->exit_code != 0) {
    std::string hint =
        from.size ? " (is the size of " + std::to_string(size) + " bytes enough?)" : "";
    return Error(ErrorCode::kIo,
                 "make a file system of " + path + ": " +
                     (ran->errors.empty() ? "mke2fs ended with " + std::to_string(ran->exit_code)
                                          : ran->errors) +
                     hint);
  }
  return {};
}

}  // namespace

Task<Result<std::unique_ptr<ImportSource>>> make_directory_source(ImportFrom from,
                                                                  Directory& scratch) {
  SystemRandom random;
  const std::string name = "import-" + Uuid::make(random).str() + ".ext4";
  auto file = co_await scratch.open(name, {.write = true, .create = true, .exclusive = true});
  if (!file) co_return file.error();
  const int fd = (*file)->native_handle();
  if (fd < 0) {
    co_return Error(ErrorCode::kUnsupported,
                    "import from " + from.source + ": scratch is no real folder");
  }
  auto unlinked = co_await scratch.unlink(name);
  if (!unlinked) co_return unlinked.error();
  auto made_work = offload([&from, fd] { return make_file_system(from, fd); });
  auto made = co_await made_work;
  if (!made) co_return made.error();
  auto source = co_await make_raw_source(std::move(*file), std::nullopt);
  co_return source;
}

}  // namespace snap
