// SimFile and SimDirectory: handles of a SimDisk.
#pragma once

#include "engine/io/sim_disk.h"

namespace snap {

class SimFile final : public File {
 public:
  SimFile(std::string path, SimDisk& disk, InodeId inode, const OpenFlags& flags);
  ~SimFile() override;

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
  void advise_random() override {}

 private:
  friend class SimDisk;

  std::int64_t do_now(IoOp& op);
  Result<void> change(SimOpKind kind, std::uint64_t size, unsigned mode, const char* what);
  std::optional<Extent> find_data(std::uint64_t from) const;

  SimDisk& disk_;
  const InodeId inode_;
  const std::uint64_t generation_;
  std::uint64_t failures_told_;  ///< of syncs of the inode; under the disk's lock
  const bool writable_;
  const bool direct_;
};

class SimDirectory final : public Directory {
 public:
  SimDirectory(std::string path, SimDisk& disk, InodeId inode);
  ~SimDirectory() override;

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
  /// Finds or makes the file: its inode, or -errno.
  std::int64_t open_inode(const std::string& name, const OpenFlags& flags);
  /// Fills in what `op` needs to be one on this directory, injects faults, does it.
  Result<void> change(SimOp op, const std::string& what);

  SimDisk& disk_;
  const InodeId inode_;
  const std::uint64_t generation_;
};

}  // namespace snap
