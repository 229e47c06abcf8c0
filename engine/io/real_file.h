// RealFile and RealDirectory: File and Directory over the kernel's file systems.
//
// Reads, writes, syncs, punches and allocations are IoOps of the current loop (but brief writes and
// cached reads, engine/io/cached_io.h, are done at once). Everything else is
// a metadata system call, which may wait for the disk, and so goes by run_blocking(). Descriptors
// are O_CLOEXEC. All names are resolved relative to an open directory (openat and friends), so that
// a directory that is renamed above us is no surprise.
//
// Relies on POSIX durability as file.h states it, and on Linux: fdatasync covers size and extents.
#pragma once

#include "engine/io/cached_io.h"
#include "engine/io/unique_fd.h"
#include "snap/file.h"

namespace snap {

class RealFile final : public File {
 public:
  RealFile(std::string path, UniqueFd fd) : File(std::move(path)), fd_(std::move(fd)) {}
  /// The last descriptor of a file without a name frees its blocks, which takes as long as the file
  /// is large: on a loop's thread, a helper closes it.
  ~RealFile() override;

  bool start(IoOp& op) override;
  bool read_now(std::span<std::byte> out, ByteOffset at) noexcept override;
  std::optional<Result<std::size_t>> write_now(std::span<const std::byte> in,
                                               ByteOffset at) override;
  Task<Result<FileStat>> stat() override;
  Task<Result<void>> truncate(std::uint64_t size) override;
  Task<Result<void>> set_mode(unsigned mode) override;
  Task<Result<std::optional<Extent>>> next_data(std::uint64_t from) override;
  Task<Result<bool>> try_lock(bool exclusive) override;
  Task<Result<void>> unlock() override;
  Task<Result<void>> drop_cache() override;
  Result<void> check_writeback() override;
  void advise_random() override;
  int native_handle() const noexcept override { return fd_.get(); }

 private:
  UniqueFd fd_;
  BriefWrites brief_writes_;
};

class RealDirectory final : public Directory {
 public:
  RealDirectory(std::string path, UniqueFd fd) : Directory(std::move(path)), fd_(std::move(fd)) {}

  Task<Result<std::unique_ptr<File>>> open(std::string name, OpenFlags flags) override;
  Task<Result<std::unique_ptr<Directory>>> open_dir(std::string name) override;
  Task<Result<void>> make_dir(std::string name, unsigned mode) override;
  Task<Result<FileStat>> stat(std::string name) override;
  Task<Result<std::vector<DirEntry>>> list() override;
  Task<Result<void>> rename(std::string from, Directory& target, std::string to,
                            bool no_replace) override;
  Task<Result<void>> unlink(std::string name) override;
  Task<Result<void>> remove_dir(std::string name) override;
  Task<Result<void>> sync() override;
  Task<Result<Space>> space() override;

 private:
  std::string path_of(const std::string& name) const { return path() + "/" + name; }

  UniqueFd fd_;
};

/// InvalidArgument unless `name` is a single component that may name a file: not "", ".", "..",
/// no "/", no NUL, at most 255 bytes.
Result<void> check_file_name(const std::string& name);

}  // namespace snap
