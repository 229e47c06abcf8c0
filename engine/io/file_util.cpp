// The helpers of file.h that are built of single operations: they work on any kind of disk.
#include "snap/file.h"

#include <algorithm>
#include <string>

namespace snap {

namespace {

// A crash leaves at most one temporary file a replace; who finds this many in the way has another
// problem.
constexpr unsigned kMaxTemporaryNames = 1000;

/// A file beside `name` that no one else has, and its name.
struct Temporary {
  std::string name;
  std::unique_ptr<File> file;
};

Task<Result<Temporary>> create_temporary(Directory& dir, std::string name, unsigned mode) {
  OpenFlags flags;
  flags.write = flags.create = flags.exclusive = true;
  flags.mode = mode;
  for (unsigned i = 0;; ++i) {
    std::string candidate = "." + name + "." + std::to_string(i) + ".tmp";
    auto file = co_await dir.open(candidate, flags);
    if (file) co_return Temporary{std::move(candidate), std::move(*file)};
    if (file.error().code() != ErrorCode::kExists || i == kMaxTemporaryNames)
      co_return file.error();
  }
}

Task<Result<void>> write_and_publish(Directory& dir, const Temporary& tmp, std::string name,
                                     std::span<const std::byte> bytes) {
  auto written = co_await write_all(*tmp.file, bytes, ByteOffset(0));
  if (!written) co_return written.error();
  // The bytes are stable before the name is: else a crash could show an empty or torn file.
  auto synced = co_await full_sync(*tmp.file);
  if (!synced) co_return synced.error();
  auto renamed = co_await dir.rename(tmp.name, dir, name);
  if (!renamed) co_return renamed.error();
  // The caller may go on to remove what the old bytes named: the new name is stable before.
  auto stable = co_await dir.sync();
  co_return stable;
}

Task<Result<void>> remove_entries(Directory& dir) {
  auto entries = co_await dir.list();
  if (!entries) co_return entries.error();
  for (const DirEntry& entry : *entries) {
    auto removed = co_await remove_tree(dir, entry.name);
    if (!removed) co_return removed.error();
  }
  co_return Result<void>();
}

Result<void> ignore_missing(Result<void> r) {
  if (!r && r.error().code() == ErrorCode::kNotFound) return {};
  return r;
}

}  // namespace

Task<Result<std::size_t>> read_up_to(File& f, std::span<std::byte> out, ByteOffset at) {
  std::size_t done = 0;
  while (done < out.size()) {
    auto n = co_await read_some(f, out.subspan(done), at + done);
    if (!n) co_return n.error();
    if (*n == 0) break;
    done += *n;
  }
  co_return done;
}

Task<Result<void>> read_exact(File& f, std::span<std::byte> out, ByteOffset at) {
  auto n = co_await read_up_to(f, out, at);
  if (!n) co_return n.error();
  if (*n != out.size()) {
    co_return Error(ErrorCode::kCorrupt, "read " + std::to_string(out.size()) + " bytes at " +
                                             std::to_string(at.value) + " of " + f.path() +
                                             ": it ends at " + std::to_string(at.value + *n));
  }
  co_return Result<void>();
}

Task<Result<void>> write_all(File& f, std::span<const std::byte> in, ByteOffset at) {
  std::size_t done = 0;
  while (done < in.size()) {
    auto n = co_await write_some(f, in.subspan(done), at + done);
    if (!n) co_return n.error();
    if (*n == 0) {
      co_return Error(ErrorCode::kIo, "write to " + f.path() + " at " +
                                          std::to_string(at.value + done) +
                                          ": the kernel wrote nothing");
    }
    done += *n;
  }
  co_return Result<void>();
}

Task<Result<void>> replace_file(Directory& dir, std::string name, std::span<const std::byte> bytes,
                                unsigned mode) {
  auto tmp = co_await create_temporary(dir, name, mode);
  if (!tmp) co_return tmp.error();
  auto done = co_await write_and_publish(dir, *tmp, name, bytes);
  if (!done) {
    // The first error is the one to report; a temporary file that stays is swept by its name.
    auto removed = co_await dir.unlink(tmp->name);
    (void)removed;
  }
  co_return done;
}

bool is_temporary_name(std::string_view name) {
  return name.size() > 7 && name.front() == '.' && name.ends_with(".tmp");
}

Task<Result<std::vector<std::byte>>> read_whole(Directory& dir, std::string name,
                                                std::size_t limit) {
  auto opened = co_await dir.open(name, OpenFlags{});
  if (!opened) co_return opened.error();
  File& file = **opened;
  auto stat = co_await file.stat();
  if (!stat) co_return stat.error();
  if (stat->size > limit) {
    co_return Error(ErrorCode::kTooLarge, file.path() + " has " + std::to_string(stat->size) +
                                              " bytes; at most " + std::to_string(limit) +
                                              " are allowed");
  }
  std::vector<std::byte> bytes(stat->size);
  auto n = co_await read_up_to(file, bytes, ByteOffset(0));
  if (!n) co_return n.error();
  bytes.resize(*n);
  co_return bytes;
}

Task<Result<void>> remove_tree(Directory& dir, std::string name) {
  auto stat = co_await dir.stat(name);
  if (!stat) {
    if (stat.error().code() == ErrorCode::kNotFound) co_return Result<void>();
    co_return stat.error();
  }
  if (stat->type != FileStat::Type::kDirectory) {
    auto removed = co_await dir.unlink(name);
    co_return ignore_missing(std::move(removed));
  }
  {
    auto child = co_await dir.open_dir(name);
    if (!child) co_return child.error();
    auto emptied = co_await remove_entries(**child);
    if (!emptied) co_return emptied.error();
  }
  auto removed = co_await dir.remove_dir(name);
  co_return ignore_missing(std::move(removed));
}

}  // namespace snap
