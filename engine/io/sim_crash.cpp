// What a power cut leaves of a SimState.
#include <algorithm>
#include <optional>

#include "engine/base/checksum.h"
#include "engine/io/sim_state.h"

namespace snap {

namespace {

struct Range {
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
};

/// Grown to whole sectors.
Range sectors_of(std::uint64_t begin, std::uint64_t end) {
  constexpr std::uint64_t s = SimState::kSector;
  return {begin / s * s, (end + s - 1) / s * s};
}

}  // namespace

bool SimState::changes_size(const Pending& p, std::uint64_t size_before) {
  switch (p.kind) {
    case SimOpKind::kTruncate:
      return p.length != size_before;
    case SimOpKind::kWrite:
      return p.offset + p.length > size_before;
    case SimOpKind::kAllocate:
      return !p.keep_size && p.offset + p.length > size_before;
    default:
      return false;
  }
}

std::vector<SimState::Plan> SimState::plan_crash(const FileRecord& file, CrashChooser& choose) {
  using Fate = CrashChooser::Fate;
  std::vector<Plan> plan(file.pending.size());
  std::uint64_t size = file.stable_size;
  for (std::size_t i = 0; i < plan.size(); ++i) {
    const Pending& p = file.pending[i];
    const bool resizes = changes_size(p, size);
    choose.about(p.id);
    if (!p.durable) plan[i].fate = choose.fate();
    // Size and mode are one record of the inode each: there or not.
    const bool whole = p.kind == SimOpKind::kTruncate || p.kind == SimOpKind::kSetMode ||
                       p.kind == SimOpKind::kAllocate;
    if (whole && plan[i].fate == Fate::kTorn)
      plan[i].fate = choose.keep_sector(0, 1) ? Fate::kKept : Fate::kLost;
    plan[i].size = resizes && (plan[i].fate == Fate::kKept ||
                               (plan[i].fate == Fate::kTorn && choose.keep_sector(0, 1)));
    if (resizes) size = p.kind == SimOpKind::kTruncate ? p.length : p.offset + p.length;
  }
  // File systems order changes of one inode: a later size cannot survive without an earlier
  // truncate, or bytes that were cut off would come back.
  bool later_size = false;
  for (std::size_t i = plan.size(); i-- > 0;) {
    if (file.pending[i].kind == SimOpKind::kTruncate && later_size) plan[i] = {Fate::kKept, true};
    later_size = later_size || plan[i].size;
  }
  return plan;
}

// A sector may end as any version that it has had since it was stable, never as a mix that was
// never there: so a change that survives copies whole sectors out of the replay of all changes.
void SimState::crash_file(FileRecord& file, CrashChooser& choose) {
  using Fate = CrashChooser::Fate;
  const std::vector<Plan> plan = plan_crash(file, choose);
  View now{std::move(file.stable_bytes), file.stable_size, file.stable_mode};
  View left = now;
  for (std::size_t i = 0; i < plan.size(); ++i) {
    const Pending& p = file.pending[i];
    choose.about(p.id);
    Range range = sectors_of(p.offset, p.offset + p.length);
    if (p.kind == SimOpKind::kTruncate) range = sectors_of(p.length, std::max(p.length, now.size));
    if (p.kind == SimOpKind::kSetMode || p.kind == SimOpKind::kAllocate) range = {};
    replay(p, now);
    if (plan[i].size) left.size = now.size;
    // A durable write can be read, though the write that made the file so long may be lost.
    if (p.durable && p.kind == SimOpKind::kWrite)
      left.size = std::max(left.size, p.offset + p.length);
    if (p.kind == SimOpKind::kSetMode && plan[i].fate == Fate::kKept) left.mode = p.mode;
    const std::uint64_t count = (range.end - range.begin) / kSector;
    if (plan[i].fate == Fate::kKept) {
      left.bytes.copy_range(now.bytes, range.begin, range.end - range.begin);
    } else if (plan[i].fate == Fate::kTorn) {
      for (std::uint64_t s = 0; s < count; ++s) {
        if (choose.keep_sector(s, count))
          left.bytes.copy_range(now.bytes, range.begin + s * kSector, kSector);
      }
    }
  }
  left.bytes.zero(left.size, ~std::uint64_t{0});

  file.bytes = file.stable_bytes = std::move(left.bytes);
  file.size = file.stable_size = left.size;
  file.mode = file.stable_mode = left.mode;
  file.pending.clear();
}

void SimState::crash_names(CrashChooser& choose) {
  std::set<InodeId> cut;  // directories whose journal ends before the op at hand
  for (const PendingName& p : pending_names_) {
    const bool both = p.op.kind == SimOpKind::kRename;
    const bool open = cut.count(p.op.file) == 0 && !(both && cut.count(p.op.other) != 0);
    choose.about(p.id);
    if (p.durable || (open && choose.keep_name())) {
      change_names(p.op, &FileRecord::stable_entries);
    } else {
      cut.insert(p.op.file);
      if (both) cut.insert(p.op.other);
    }
  }
  pending_names_.clear();
  for (const auto& [id, inode] : inodes_) {
    if (inode->entries != inode->stable_entries) {
      FileRecord& directory = own(id);
      directory.entries = directory.stable_entries;
    }
  }
}

void SimState::drop_unreachable() {
  std::set<InodeId> reached;
  std::vector<InodeId> next{kRoot};
  while (!next.empty()) {
    const InodeId id = next.back();
    next.pop_back();
    if (!reached.insert(id).second) continue;
    for (const auto& [name, child] : inodes_[id]->entries)
      next.push_back(child);
  }
  std::erase_if(inodes_, [&reached](const auto& item) { return reached.count(item.first) == 0; });
}

void SimState::crash(CrashChooser& choose) {
  crash_names(choose);
  drop_unreachable();
  count_names();
  for (const auto& [id, inode] : inodes_) {
    // Where nothing is pending the visible bytes are the stable ones.
    if (!inode->pending.empty()) crash_file(own(id), choose);
  }
  ++clock_;
}

// ---- What is pending, and what is there

std::vector<SimPending> SimState::pending() const {
  std::vector<SimPending> out;
  std::map<InodeId, std::string> paths{{kRoot, ""}};
  // Names as they were stable first, then those that are pending; later ones win.
  const auto add = [&paths](InodeId dir, const std::string& name, InodeId child) {
    const std::string& above = paths[dir];
    paths[child] = above.empty() ? name : above + "/" + name;
  };
  using Entries = std::map<std::string, InodeId> FileRecord::*;
  for (const Entries entries : {Entries(&FileRecord::stable_entries), Entries(&Inode::entries)}) {
    std::vector<InodeId> next{kRoot};
    while (!next.empty()) {
      const InodeId id = next.back();
      next.pop_back();
      auto found = inodes_.find(id);
      if (found == inodes_.end()) continue;
      for (const auto& [name, child] : (*found->second).*entries) {
        add(id, name, child);
        next.push_back(child);
      }
    }
  }
  for (const PendingName& p : pending_names_) {
    if (p.op.kind == SimOpKind::kCreate || p.op.kind == SimOpKind::kMakeDir) {
      if (paths.count(p.op.other) == 0) add(p.op.file, p.op.name, p.op.other);
    }
    if (p.durable) continue;
    SimPending info;
    info.id = p.id;
    info.kind = p.op.kind;
    info.path = paths[p.op.file] + "/" + p.op.name;
    if (p.op.kind == SimOpKind::kRename) info.path += " -> " + paths[p.op.other] + "/" + p.op.to;
    out.push_back(std::move(info));
  }
  for (const auto& [id, inode] : inodes_) {
    if (paths.count(id) == 0) continue;
    for (const Pending& p : inode->pending) {
      if (p.durable) continue;
      SimPending info;
      info.id = p.id;
      info.kind = p.kind;
      info.path = paths[id];
      info.offset = p.offset;
      info.length = p.length;
      if (p.kind == SimOpKind::kWrite || p.kind == SimOpKind::kPunch) {
        const Range range = sectors_of(p.offset, p.offset + p.length);
        info.sectors = (range.end - range.begin) / kSector;
      }
      out.push_back(std::move(info));
    }
  }
  return out;
}

std::uint64_t SimState::hash() const {
  std::uint64_t sum = 0;
  std::vector<std::pair<std::uint64_t, InodeId>> next{{1, kRoot}};
  while (!next.empty()) {
    const auto [path, id] = next.back();
    next.pop_back();
    const FileRecord& inode = *inodes_.at(id);
    if (inode.hash == 0) {
      const std::uint64_t fields[] = {inode.size, inode.mode, inode.bytes.hash()};
      inode.hash = xxh3(std::as_bytes(std::span(fields)));
    }
    const std::uint64_t entry[] = {path, inode.hash};
    sum += xxh3(std::as_bytes(std::span(entry)));  // whatever the order
    for (const auto& [name, child] : inode.entries) {
      const std::uint64_t named[] = {path, xxh3(std::as_bytes(std::span(name)))};
      next.emplace_back(xxh3(std::as_bytes(std::span(named))), child);
    }
  }
  return sum;
}

}  // namespace snap
