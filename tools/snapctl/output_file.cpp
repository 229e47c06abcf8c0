// See output_file.h.
#include "tools/snapctl/output_file.h"

#include <fcntl.h>
#include <limits.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <optional>

#include "engine/base/uuid.h"
#include "snap/event_loop.h"

namespace snap::cli {

namespace {

constexpr int kMostLinks = 40;  // that are followed, as the kernel does
constexpr std::size_t kRandomDigits = 8;
constexpr mode_t kPermissions = 07777;

struct Place {
  bool in_place = false;
  std::string folder, name;
  std::optional<struct stat> before;  ///< of the file that is to be replaced
};

std::string folder_of(const std::string& path) {
  const std::size_t slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

/// Where the symbolic links lead that `path` is.
std::string followed(std::string path) {
  std::array<char, PATH_MAX> target;
  for (int links = 0; links < kMostLinks; ++links) {
    const ssize_t length = ::readlink(path.c_str(), target.data(), target.size());
    if (length < 0) break;
    const std::string to(target.data(), static_cast<std::size_t>(length));
    path = to.starts_with('/') ? to : folder_of(path) + "/" + to;
  }
  return path;
}

/// Whether another file can take its name: not where it is mounted, alone or in a folder that takes
/// no files.
bool is_replaceable(const std::string& file) {
  struct statx st {};
  if (::statx(AT_FDCWD, file.c_str(), AT_SYMLINK_NOFOLLOW, STATX_TYPE, &st) != 0) return false;
  return (st.stx_attributes & STATX_ATTR_MOUNT_ROOT) == 0 &&
         ::access(folder_of(file).c_str(), W_OK | X_OK) == 0;
}

Result<Place> find_place(const std::string& path) {
  Place place;
  std::string target = path;
  struct stat st {};
  struct stat there {};
  // The kernel decides whether a link may be followed (protected_symlinks); what is found out here
  // of where it leads counts only if that is what the kernel found.
  if (::stat(path.c_str(), &st) == 0) {
    target = followed(path);
    // What /dev/stdout leads to may have no name any more.
    const bool same = ::lstat(target.c_str(), &there) == 0 && there.st_dev == st.st_dev &&
                      there.st_ino == st.st_ino;
    place.in_place = !S_ISREG(st.st_mode) || !same || !is_replaceable(target);
    if (!place.in_place) place.before = st;
    // That its folder takes new files does not mean that this one may be changed.
    if (place.before && ::access(path.c_str(), W_OK) != 0)
      return Error::from_errno(errno, "write to " + path);
  } else if (errno != ENOENT) {
    return Error::from_errno(errno, "write to " + path);
  } else if (::lstat(path.c_str(), &there) == 0) {
    return Error(ErrorCode::kNotFound, "write to " + path +
                                           ": it is a link that leads nowhere; remove it, or give "
                                           "the path that it is to lead to");
  }
  place.folder = folder_of(target);
  place.name = target.substr(target.rfind('/') + 1);  // npos + 1 is 0
  return place;
}

/// The mode of files that this process makes for others to read, as its umask has it.
unsigned new_file_mode() {
  const mode_t mask = ::umask(0);
  ::umask(mask);
  return 0666 & ~mask;
}

std::string temporary_name(const std::string& name) {
  SystemRandom random;
  const std::string end = ".partial-" + Uuid::make(random).str().substr(0, kRandomDigits);
  return name.substr(0, NAME_MAX - end.size()) + end;
}

Task<Result<std::unique_ptr<File>>> open_in_place(std::string path) {
  OpenFlags flags;
  flags.write = true;
  auto file = co_await open_file(std::move(path), flags);
  co_return file;
}

}  // namespace

Task<Result<std::unique_ptr<OutputFile>>> OutputFile::create(std::string path) {
  std::unique_ptr<OutputFile> out(new OutputFile());
  auto look = [&path] { return find_place(path); };
  auto place = co_await offload(look);
  if (!place) co_return place.error();
  if (place->in_place) {
    auto file = co_await open_in_place(path);
    if (!file) co_return file.error();
    out->file_ = std::move(*file);
    co_return out;
  }
  auto folder = co_await open_directory(place->folder);
  if (!folder) co_return folder.error().with_context("create " + path);
  OpenFlags flags;
  flags.write = flags.create = flags.exclusive = true;
  flags.mode = place->before ? place->before->st_mode & kPermissions : new_file_mode();
  const std::string temporary = temporary_name(place->name);
  auto file = co_await (*folder)->open(temporary, flags);
  if (!file) co_return file.error();
  out->file_ = std::move(*file);
  out->folder_ = std::move(*folder);
  out->name_ = std::move(place->name);
  out->temporary_ = temporary;
  if (place->before) {
    // As far as this process may: its owner can be given away by root alone.
    const int given =
        ::fchown(out->file_->native_handle(), place->before->st_uid, place->before->st_gid);
    if (given == 0) {
      auto kept = co_await out->file_->set_mode(flags.mode);  // the owner's change may take bits
      if (!kept) co_return kept.error();
    }
  }
  co_return out;
}

OutputFile::~OutputFile() {
  if (!temporary_.empty()) ::unlink(path().c_str());
}

Task<Result<void>> OutputFile::publish() {
  if (!folder_) co_return Result<void>();
  auto synced = co_await full_sync(*file_);
  if (!synced) co_return synced.error();
  auto named = co_await folder_->rename(temporary_, *folder_, name_);
  if (!named) co_return named.error();
  temporary_.clear();
  auto stable = co_await folder_->sync();
  // Some file systems cannot sync a folder: then the name is as durable as they make it.
  if (!stable && stable.error().sys_errno() != EINVAL) co_return stable.error();
  co_return Result<void>();
}

}  // namespace snap::cli
