#include "engine/io/sim_state.h"

#include <errno.h>

#include <algorithm>

#include "engine/base/checksum.h"

namespace snap {

namespace {
bool is_on_names(SimOpKind kind) {
  return kind >= SimOpKind::kCreate;
}
}  // namespace

const char* sim_op_name(SimOpKind kind) {
  constexpr const char* kNames[] = {"read",     "write",     "punch",  "allocate",   "truncate",
                                    "set-mode", "data-sync", "sync",   "lost-write", "create",
                                    "make-dir", "rename",    "unlink", "remove-dir", "dir-sync"};
  return kNames[static_cast<std::size_t>(kind)];
}

SimState::SimState() {
  FileRecord& root = own(kRoot);
  root.is_directory = true;
  root.mode = root.stable_mode = 0700;
}

SimState::FileRecord& SimState::own(InodeId id) {
  std::shared_ptr<FileRecord>& record = inodes_[id];
  if (record == nullptr) {
    record = std::make_shared<FileRecord>();
  } else if (record.use_count() > 1) {
    record = std::make_shared<FileRecord>(*record);
  }
  record->hash = 0;
  return *record;
}

const SimState::Inode* SimState::find(InodeId id) const {
  auto found = inodes_.find(id);
  return found == inodes_.end() ? nullptr : found->second.get();
}

InodeId SimState::lookup(InodeId dir, const std::string& name) const {
  const Inode* inode = find(dir);
  if (inode == nullptr) return 0;
  auto entry = inode->entries.find(name);
  return entry == inode->entries.end() ? 0 : entry->second;
}

std::uint64_t SimState::new_pages(InodeId file, std::uint64_t at, std::uint64_t length) const {
  const Inode* inode = find(file);
  if (inode == nullptr || length == 0) return 0;
  std::uint64_t count = 0;
  for (std::uint64_t page = at / SparseBytes::kPage; page * SparseBytes::kPage < at + length;
       ++page) {
    if (!inode->bytes.has_page(page) && inode->reserved.count(page) == 0) ++count;
  }
  return count;
}

std::uint64_t SimState::used_pages(const std::function<bool(InodeId)>& is_open) const {
  std::uint64_t used = 0;
  for (const auto& [id, inode] : inodes_) {
    if (inode->names != 0 || is_open(id)) used += inode->bytes.pages() + inode->reserved.size();
  }
  return used;
}

// ---- Changes

int SimState::apply(const SimOp& op) {
  const int err = is_on_names(op.kind) ? apply_to_directory(op) : apply_to_file(op);
  if (err == 0) ++clock_;
  return err;
}

int SimState::apply_to_file(const SimOp& op) {
  if (inodes_.count(op.file) == 0) return -EIO;
  FileRecord& file = own(op.file);
  if (op.kind == SimOpKind::kDataSync || op.kind == SimOpKind::kSync) {
    sync_file(file, op);
    return 0;
  }
  Pending p;
  p.id = next_change_++;
  p.kind = op.kind;
  p.offset = op.offset;
  p.length = op.length;
  p.mode = op.mode;
  p.keep_size = op.keep_size;
  p.data = op.data;
  p.operation = op.operation;
  View view{std::move(file.bytes), file.size, file.mode};
  replay(p, view);
  file.bytes = std::move(view.bytes);
  file.size = view.size;
  file.mode = view.mode;

  const std::uint64_t first = op.offset / SparseBytes::kPage;
  if (op.kind == SimOpKind::kAllocate) {
    for (std::uint64_t n = first; n * SparseBytes::kPage < op.offset + op.length; ++n) {
      if (!file.bytes.has_page(n)) file.reserved.insert(n);
    }
  } else if (op.kind == SimOpKind::kTruncate) {
    const std::uint64_t end = (op.length + SparseBytes::kPage - 1) / SparseBytes::kPage;
    file.reserved.erase(file.reserved.lower_bound(end), file.reserved.end());
  } else if (op.kind != SimOpKind::kSetMode) {
    const std::uint64_t end = (op.offset + op.length + SparseBytes::kPage - 1) / SparseBytes::kPage;
    file.reserved.erase(file.reserved.lower_bound(first), file.reserved.lower_bound(end));
  }

  if (op.last) p.completed = clock_ + 1;
  file.pending.push_back(std::move(p));
  if (op.last && !op.first) {
    for (Pending& piece : file.pending) {
      if (piece.operation == op.operation) piece.completed = clock_ + 1;
    }
  }
  return 0;
}

void SimState::replay(const Pending& p, View& view) {
  switch (p.kind) {
    case SimOpKind::kWrite:
      view.bytes.write(p.offset, *p.data);
      view.size = std::max(view.size, p.offset + p.length);
      break;
    case SimOpKind::kPunch:
      view.bytes.zero(p.offset, p.length);
      break;
    case SimOpKind::kAllocate:
      if (!p.keep_size) view.size = std::max(view.size, p.offset + p.length);
      break;
    case SimOpKind::kTruncate:
      view.bytes.zero(p.length, ~std::uint64_t{0});
      view.size = p.length;
      break;
    case SimOpKind::kSetMode:
      view.mode = p.mode;
      break;
    default:
      break;
  }
}

int SimState::check_rename(const SimOp& op) const {
  const InodeId from = lookup(op.file, op.name);
  if (from == 0) return -ENOENT;
  const InodeId target = lookup(op.other, op.to);
  if (target == 0 || target == from) return target != 0 && op.no_replace ? -EEXIST : 0;
  if (op.no_replace) return -EEXIST;
  const Inode& replaced = *find(target);
  const bool directory = find(from)->is_directory;
  if (replaced.is_directory != directory) return directory ? -ENOTDIR : -EISDIR;
  return replaced.entries.empty() ? 0 : -ENOTEMPTY;
}

int SimState::apply_to_directory(const SimOp& op) {
  const Inode* dir = find(op.file);
  if (dir == nullptr || !dir->is_directory) return -EIO;
  const InodeId named = lookup(op.file, op.name);
  switch (op.kind) {
    case SimOpKind::kCreate:
    case SimOpKind::kMakeDir: {
      if (named != 0) return -EEXIST;
      FileRecord& made = own(op.other);
      made.is_directory = op.kind == SimOpKind::kMakeDir;
      made.mode = made.stable_mode = op.mode;
      next_inode_ = std::max(next_inode_, op.other + 1);
      break;
    }
    case SimOpKind::kRename:
      if (const int err = check_rename(op); err != 0) return err;
      break;
    case SimOpKind::kUnlink:
      if (named == 0) return -ENOENT;
      if (find(named)->is_directory) return -EISDIR;
      break;
    case SimOpKind::kRemoveDir:
      if (named == 0) return -ENOENT;
      if (!find(named)->is_directory) return -ENOTDIR;
      if (!find(named)->entries.empty()) return -ENOTEMPTY;
      break;
    default:
      sync_directory(op.file);
      return 0;
  }
  change_names(op, &FileRecord::entries);
  count_names();
  pending_names_.push_back(PendingName{next_change_++, op, false});
  return 0;
}

void SimState::change_names(const SimOp& op, std::map<std::string, InodeId> FileRecord::*entries) {
  std::map<std::string, InodeId>& names = own(op.file).*entries;
  if (op.kind == SimOpKind::kCreate || op.kind == SimOpKind::kMakeDir) {
    names[op.name] = op.other;
  } else if (op.kind != SimOpKind::kRename) {
    names.erase(op.name);
  } else {
    const InodeId moved = names[op.name];
    names.erase(op.name);
    (own(op.other).*entries)[op.to] = moved;
  }
}

void SimState::count_names() {
  std::map<InodeId, unsigned> names{{kRoot, 1}};
  for (const auto& [id, inode] : inodes_) {
    for (const auto& [name, child] : inode->entries)
      ++names[child];
  }
  for (const auto& [id, inode] : inodes_) {
    if (inode->names != names[id]) own(id).names = names[id];
  }
}

// ---- Syncs

void SimState::sync_file(FileRecord& file, const SimOp& op) {
  for (Pending& p : file.pending) {
    if (p.completed == 0 || p.completed > op.began || p.durable || p.abandoned) continue;
    // Of a range: the writes within it alone, whatever the kernel would take along.
    if (op.length != 0 && !(p.kind == SimOpKind::kWrite && p.offset >= op.offset &&
                            p.offset + p.length <= op.offset + op.length))
      continue;
    // fdatasync stores what is needed to read the bytes, the mode is not.
    if (p.kind == SimOpKind::kSetMode && op.kind == SimOpKind::kDataSync) continue;
    (op.failed ? p.abandoned : p.durable) = true;
  }
  fold_stable(file);
}

void SimState::fold_stable(FileRecord& file) {
  auto first_volatile = std::find_if(file.pending.begin(), file.pending.end(),
                                     [](const Pending& p) { return !p.durable; });
  if (first_volatile == file.pending.begin()) return;
  View view{std::move(file.stable_bytes), file.stable_size, file.stable_mode};
  for (auto p = file.pending.begin(); p != first_volatile; ++p)
    replay(*p, view);
  file.stable_bytes = std::move(view.bytes);
  file.stable_size = view.size;
  file.stable_mode = view.mode;
  file.pending.erase(file.pending.begin(), first_volatile);
}

void SimState::sync_directory(InodeId dir) {
  // A rename between two directories is atomic, so it takes along what came before in both.
  std::set<InodeId> needed{dir};
  for (auto p = pending_names_.rbegin(); p != pending_names_.rend(); ++p) {
    const bool both = p->op.kind == SimOpKind::kRename;
    if (needed.count(p->op.file) == 0 && !(both && needed.count(p->op.other) != 0)) continue;
    p->durable = true;
    needed.insert(p->op.file);
    if (both) needed.insert(p->op.other);
  }
  auto first_volatile = std::find_if(pending_names_.begin(), pending_names_.end(),
                                     [](const PendingName& p) { return !p.durable; });
  for (auto p = pending_names_.begin(); p != first_volatile; ++p)
    change_names(p->op, &FileRecord::stable_entries);
  pending_names_.erase(pending_names_.begin(), first_volatile);
}

void SimState::drop_cache(InodeId id) {
  if (inodes_.count(id) == 0) return;
  FileRecord& file = own(id);
  const std::size_t removed =
      std::erase_if(file.pending, [](const Pending& p) { return p.abandoned; });
  if (removed == 0) return;
  View view{file.stable_bytes, file.stable_size, file.stable_mode};
  for (const Pending& p : file.pending)
    replay(p, view);
  // Size and mode live in the inode, which is not forgotten.
  file.bytes = std::move(view.bytes);
}

}  // namespace snap
