#include "engine/io/sim_file.h"

#include <errno.h>

#include <algorithm>

#include "engine/io/real_file.h"

namespace snap {

namespace {

constexpr std::int64_t kMtime = 1'700'000'000;  // the simulation has no calendar
constexpr std::uint64_t kEndlessDisk = std::uint64_t{1} << 40;

FileStat stat_of(const SimState::Inode& inode) {
  FileStat out;
  out.type = inode.is_directory ? FileStat::Type::kDirectory : FileStat::Type::kFile;
  out.size = inode.size;
  out.allocated = (inode.bytes.pages() + inode.reserved.size()) * SparseBytes::kPage;
  out.mode = inode.mode;
  out.mtime = kMtime;
  return out;
}

}  // namespace

// ---- SimFile. The constructors run with the disk's lock held, by whoever opens.

SimFile::SimFile(std::string path, SimDisk& disk, InodeId inode, const OpenFlags& flags)
    : File(std::move(path)),
      disk_(disk),
      inode_(inode),
      generation_(disk.generation_),
      failures_told_(disk.failures_of(inode).count),
      writable_(flags.write),
      direct_(flags.direct) {
  ++disk_.open_[inode_];
}

SimFile::~SimFile() {
  std::lock_guard guard(disk_.lock_);
  if (generation_ != disk_.generation_) return;
  if (--disk_.open_[inode_] == 0) disk_.open_.erase(inode_);
  SimDisk::Locks& locks = disk_.locks_[inode_];
  if (locks.exclusive == this) locks.exclusive = nullptr;
  locks.shared.erase(this);
}

bool SimFile::start(IoOp& op) {
  if (op.opcode == IoOpcode::kWriteback) {
    op.result = 0;  // a hint, which this disk does not take
    return false;
  }
  disk_.begin(op);
  if (auto* loop = dynamic_cast<SimLoop*>(EventLoop::current())) {
    loop->add(op, disk_);
    return true;
  }
  op.result = do_now(op);
  return false;
}

/// Takes an operation that has begun to its end.
std::int64_t SimFile::do_now(IoOp& op) {
  std::optional<std::int64_t> result;
  while (!result)
    result = disk_.step(op);
  return *result;
}

bool SimFile::read_now(std::span<std::byte> out, ByteOffset at) noexcept {
  FileOp op = read_some(*this, out, at);
  disk_.begin(op);
  return do_now(op) == static_cast<std::int64_t>(out.size());
}

std::optional<Result<std::size_t>> SimFile::write_now(std::span<const std::byte> in,
                                                      ByteOffset at) {
  FileOp op = write_some(*this, in, at);
  disk_.begin(op);
  op.result = do_now(op);
  return op.await_resume();
}

Task<Result<FileStat>> SimFile::stat() {
  co_await disk_.take_turns();
  std::lock_guard guard(disk_.lock_);
  if (!disk_.alive(generation_)) co_return Error::from_errno(EIO, "stat " + path());
  co_return stat_of(*disk_.state_.find(inode_));
}

Result<void> SimFile::change(SimOpKind kind, std::uint64_t size, unsigned mode, const char* what) {
  std::lock_guard guard(disk_.lock_);
  int err = disk_.alive(generation_) ? -disk_.fault(kind) : -EIO;
  if (err == 0 && kind == SimOpKind::kTruncate && !writable_) err = -EINVAL;
  if (err == 0) {
    SimOp op;
    op.kind = kind;
    op.file = inode_;
    op.path = path();
    op.length = size;
    op.mode = mode;
    op.operation = disk_.next_operation_++;
    err = disk_.execute(std::move(op));
  }
  if (err != 0) return Error::from_errno(-err, std::string(what) + path());
  return {};
}

Task<Result<void>> SimFile::truncate(std::uint64_t size) {
  co_await disk_.take_turns();
  co_return change(SimOpKind::kTruncate, size, 0, "set the size of ");
}

Task<Result<void>> SimFile::set_mode(unsigned mode) {
  co_await disk_.take_turns();
  co_return change(SimOpKind::kSetMode, 0, mode, "set the mode of ");
}

std::optional<File::Extent> SimFile::find_data(std::uint64_t from) const {
  const SimState::Inode& inode = *disk_.state_.find(inode_);
  if (from >= inode.size) return std::nullopt;
  constexpr std::uint64_t kPage = SparseBytes::kPage;
  const auto first = inode.bytes.next_page(from / kPage);
  if (!first || *first * kPage >= inode.size) return std::nullopt;
  std::uint64_t end = *first + 1;
  while (inode.bytes.has_page(end))
    ++end;
  return Extent{std::max(from, *first * kPage), std::min(end * kPage, inode.size)};
}

Task<Result<std::optional<File::Extent>>> SimFile::next_data(std::uint64_t from) {
  co_await disk_.take_turns();
  std::lock_guard guard(disk_.lock_);
  if (!disk_.alive(generation_)) co_return Error::from_errno(EIO, "look for data in " + path());
  co_return find_data(from);
}

Task<Result<bool>> SimFile::try_lock(bool exclusive) {
  co_await disk_.take_turns();
  std::lock_guard guard(disk_.lock_);
  if (!disk_.alive(generation_)) co_return Error::from_errno(EIO, "lock " + path());
  SimDisk::Locks& locks = disk_.locks_[inode_];
  const bool others_share = locks.shared.size() > locks.shared.count(this);
  if (locks.exclusive != nullptr && locks.exclusive != this) co_return false;
  if (exclusive && others_share) co_return false;
  locks.exclusive = exclusive ? this : nullptr;
  locks.shared.erase(this);
  if (!exclusive) locks.shared.insert(this);
  co_return true;
}

Task<Result<void>> SimFile::unlock() {
  co_await disk_.take_turns();
  std::lock_guard guard(disk_.lock_);
  if (!disk_.alive(generation_)) co_return Error::from_errno(EIO, "unlock " + path());
  SimDisk::Locks& locks = disk_.locks_[inode_];
  if (locks.exclusive == this) locks.exclusive = nullptr;
  locks.shared.erase(this);
  co_return Result<void>();
}

Task<Result<void>> SimFile::drop_cache() {
  co_await disk_.take_turns();
  std::lock_guard guard(disk_.lock_);
  if (!disk_.alive(generation_))
    co_return Error::from_errno(EIO, "drop the cached pages of " + path());
  disk_.state_.drop_cache(inode_);
  co_return Result<void>();
}

Result<void> SimFile::check_writeback() {
  if (const int err = disk_.lost_write(*this); err != 0)
    return Error::from_errno(err, "write back " + path());
  return {};
}

// ---- SimDirectory

SimDirectory::SimDirectory(std::string path, SimDisk& disk, InodeId inode)
    : Directory(std::move(path)), disk_(disk), inode_(inode), generation_(disk.generation_) {
  ++disk_.open_[inode_];
}

SimDirectory::~SimDirectory() {
  std::lock_guard guard(disk_.lock_);
  if (generation_ != disk_.generation_) return;
  if (--disk_.open_[inode_] == 0) disk_.open_.erase(inode_);
}

std::int64_t SimDirectory::open_inode(const std::string& name, const OpenFlags& flags) {
  if (!disk_.alive(generation_)) return -EIO;
  SimState& state = disk_.state_;
  InodeId found = state.lookup(inode_, name);
  if (found != 0 && flags.create && flags.exclusive) return -EEXIST;
  if (found == 0 && !flags.create) return -ENOENT;
  if (found != 0 && state.find(found)->is_directory) return -EISDIR;
  SimOp op;
  op.operation = disk_.next_operation_++;
  if (found == 0) {
    if (const int err = disk_.fault(SimOpKind::kCreate); err != 0) return -err;
    op.kind = SimOpKind::kCreate;
    op.file = inode_;
    op.path = path();
    op.name = name;
    op.mode = flags.mode;
    op.other = found = state.next_inode();
    if (const int err = disk_.execute(std::move(op)); err != 0) return err;
  } else if (flags.truncate && state.find(found)->size != 0) {
    if (const int err = disk_.fault(SimOpKind::kTruncate); err != 0) return -err;
    op.kind = SimOpKind::kTruncate;
    op.file = found;
    op.path = path_of(name);
    if (const int err = disk_.execute(std::move(op)); err != 0) return err;
  }
  return static_cast<std::int64_t>(found);
}

Task<Result<std::unique_ptr<File>>> SimDirectory::open(std::string name, OpenFlags flags) {
  auto named = check_file_name(name);
  if (!named) co_return named.error();
  co_await disk_.take_turns();
  std::lock_guard guard(disk_.lock_);
  const std::int64_t inode = open_inode(name, flags);
  if (inode < 0) {
    co_return Error::from_errno(static_cast<int>(-inode),
                                (flags.create ? "create " : "open ") + path_of(name));
  }
  co_return std::unique_ptr<File>(
      std::make_unique<SimFile>(path_of(name), disk_, static_cast<InodeId>(inode), flags));
}

Task<Result<std::unique_ptr<Directory>>> SimDirectory::open_dir(std::string name) {
  auto named = check_file_name(name);
  if (!named) co_return named.error();
  co_await disk_.take_turns();
  std::lock_guard guard(disk_.lock_);
  int err = disk_.alive(generation_) ? 0 : EIO;
  const InodeId inode = disk_.state_.lookup(inode_, name);
  if (err == 0 && inode == 0) err = ENOENT;
  if (err == 0 && !disk_.state_.find(inode)->is_directory) err = ENOTDIR;
  if (err != 0) co_return Error::from_errno(err, "open directory " + path_of(name));
  co_return std::unique_ptr<Directory>(std::make_unique<SimDirectory>(path_of(name), disk_, inode));
}

Task<Result<FileStat>> SimDirectory::stat(std::string name) {
  auto named = check_file_name(name);
  if (!named) co_return named.error();
  co_await disk_.take_turns();
  std::lock_guard guard(disk_.lock_);
  const InodeId inode = disk_.state_.lookup(inode_, name);
  if (!disk_.alive(generation_)) co_return Error::from_errno(EIO, "stat " + path_of(name));
  if (inode == 0) co_return Error::from_errno(ENOENT, "stat " + path_of(name));
  co_return stat_of(*disk_.state_.find(inode));
}

Task<Result<std::vector<DirEntry>>> SimDirectory::list() {
  co_await disk_.take_turns();
  std::lock_guard guard(disk_.lock_);
  if (!disk_.alive(generation_)) co_return Error::from_errno(EIO, "list directory " + path());
  std::vector<DirEntry> entries;
  for (const auto& [name, inode] : disk_.state_.find(inode_)->entries) {
    const bool directory = disk_.state_.find(inode)->is_directory;
    entries.push_back(
        DirEntry{name, directory ? FileStat::Type::kDirectory : FileStat::Type::kFile});
  }
  co_return entries;
}

Result<void> SimDirectory::change(SimOp op, const std::string& what) {
  op.file = inode_;
  op.path = path();
  if (op.kind != SimOpKind::kDirSync) {
    auto named = check_file_name(op.name);
    if (!named) return named;
  }
  std::lock_guard guard(disk_.lock_);
  int err = disk_.alive(generation_) ? -disk_.fault(op.kind) : -EIO;
  if (err == 0) {
    op.operation = disk_.next_operation_++;
    if (op.kind == SimOpKind::kMakeDir) op.other = disk_.state_.next_inode();
    err = disk_.execute(std::move(op));
  }
  if (err != 0) return Error::from_errno(-err, what);
  return {};
}

Task<Result<void>> SimDirectory::make_dir(std::string name, unsigned mode) {
  co_await disk_.take_turns();
  SimOp op;
  op.kind = SimOpKind::kMakeDir;
  op.name = name;
  op.mode = mode;
  co_return change(std::move(op), "make directory " + path_of(name));
}

Task<Result<void>> SimDirectory::rename(std::string from, Directory& target, std::string to,
                                        bool no_replace) {
  auto named = check_file_name(to);
  if (!named) co_return named.error();
  co_await disk_.take_turns();
  auto* other = dynamic_cast<SimDirectory*>(&target);
  if (other == nullptr || &other->disk_ != &disk_) {
    co_return Error(ErrorCode::kInvalidArgument,
                    "rename into " + target.path() + ": it is on another kind of disk");
  }
  SimOp op;
  op.kind = SimOpKind::kRename;
  op.name = from;
  op.to = to;
  op.other = other->inode_;
  op.no_replace = no_replace;
  co_return change(std::move(op), "rename " + path_of(from) + " to " + other->path_of(to));
}

Task<Result<void>> SimDirectory::unlink(std::string name) {
  co_await disk_.take_turns();
  SimOp op;
  op.kind = SimOpKind::kUnlink;
  op.name = name;
  co_return change(std::move(op), "remove " + path_of(name));
}

Task<Result<void>> SimDirectory::remove_dir(std::string name) {
  co_await disk_.take_turns();
  SimOp op;
  op.kind = SimOpKind::kRemoveDir;
  op.name = name;
  co_return change(std::move(op), "remove directory " + path_of(name));
}

Task<Result<void>> SimDirectory::sync() {
  co_await disk_.take_turns();
  SimOp op;
  op.kind = SimOpKind::kDirSync;
  co_return change(std::move(op), "sync directory " + path());
}

Task<Result<Directory::Space>> SimDirectory::space() {
  co_await disk_.take_turns();
  std::lock_guard guard(disk_.lock_);
  if (!disk_.alive(generation_))
    co_return Error::from_errno(EIO, "ask for the free space of " + path());
  const auto is_open = [this](InodeId id) { return disk_.open_.count(id) != 0; };
  const std::uint64_t used = disk_.state_.used_pages(is_open) * SparseBytes::kPage;
  Space out;
  out.total = disk_.space_told_ ? std::min(disk_.space_limit_, kEndlessDisk) : kEndlessDisk;
  out.available = out.total > used ? out.total - used : 0;
  out.type = "simulated";
  co_return out;
}

}  // namespace snap
