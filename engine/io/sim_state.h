// SimState: what a simulated disk holds, as a value: the tree that reads see, the part of it that
// is stable, and in between every change that a power cut may keep, lose or tear. The fault model
// is at the top of sim_disk.h.
//
// All change goes through apply(), and a SimOp says all that apply() needs. So a recorded list of
// SimOps applied to a copy of the state at its beginning gives the state at each boundary.
//
// Invariants:
// - A file's bytes are its stable ones with `pending` applied in order; an op that a sync made
//   durable leaves the list only when all before it are durable too, for a sector must not go back
//   to an older version.
// - Copies share inodes and pages until one of them changes; so copies that are used at the same
// time
//   by several threads must not share an origin.
// - The visible tree is the stable one with `pending_names_` applied in order.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "engine/io/sim_bytes.h"

namespace snap {

enum class SimOpKind : std::uint8_t {
  kRead,
  kWrite,
  kPunch,
  kAllocate,
  kTruncate,
  kSetMode,
  kDataSync,
  kSync,
  kLostWrite,  ///< never in the log: one that fails is a data sync that failed
  kCreate,
  kMakeDir,
  kRename,
  kUnlink,
  kRemoveDir,
  kDirSync,
};
const char* sim_op_name(SimOpKind kind);

using InodeId = std::uint64_t;

/// One thing that was done to the disk.
struct SimOp {
  SimOpKind kind{};
  InodeId file = 0;   ///< the file, or the directory that the name is in
  InodeId other = 0;  ///< kCreate, kMakeDir: the new inode; kRename: the directory of `to`
  std::string path;   ///< of `file`, as it was opened
  std::string name;   ///< the entry, for operations on a directory
  std::string to;     ///< kRename: the new name
  std::uint64_t offset = 0;
  std::uint64_t length = 0;  ///< bytes; kTruncate: the new size; syncs: 0 for the whole file
  unsigned mode = 0;
  bool keep_size = false;
  bool no_replace = false;
  std::shared_ptr<const std::vector<std::byte>> data;  ///< kWrite
  /// A number of its own for each operation. A write may happen in pieces: they share it.
  std::uint64_t operation = 0;
  bool first = true;
  bool last = true;
  /// Syncs: the clock when it began; what had completed by then is made stable.
  std::uint64_t began = 0;
  /// A sync that failed: what it covered is clean to the kernel and lost to later syncs.
  bool failed = false;
};

/// Decides what becomes of a change that was pending at a power cut.
class CrashChooser {
 public:
  enum class Fate { kKept, kLost, kTorn };
  virtual ~CrashChooser() = default;
  /// Which pending change (SimPending::id) the questions that follow are about.
  virtual void about(std::uint64_t id) { (void)id; }
  virtual Fate fate() = 0;
  /// For a torn change: whether this sector of it (or its new size) was kept.
  virtual bool keep_sector(std::uint64_t index, std::uint64_t count) = 0;
  /// Whether a pending change of names survives; the later ones of its directory do not if not.
  virtual bool keep_name() = 0;
};

/// A change that a power cut may lose.
struct SimPending {
  std::uint64_t id = 0;  ///< of the change, on this disk and all its clones
  SimOpKind kind{};
  std::string path;  ///< of the file, or of the entry
  std::uint64_t offset = 0;
  std::uint64_t length = 0;
  std::uint64_t sectors = 0;  ///< writes and punches: in how many pieces it may be torn
};

class SimState {
 public:
  static constexpr InodeId kRoot = 1;
  static constexpr std::uint64_t kSector = 512;

  struct Inode {
    bool is_directory = false;
    // Files
    SparseBytes bytes;
    std::uint64_t size = 0;
    std::set<std::uint64_t> reserved;  ///< pages allocated and not written
    // Directories
    std::map<std::string, InodeId> entries;
    unsigned mode = 0;
    unsigned names = 0;  ///< visible entries that name it
  };

  SimState();

  /// Does what `op` says: 0, or -errno with nothing changed.
  int apply(const SimOp& op);
  /// Grows with each op that was applied.
  std::uint64_t clock() const { return clock_; }

  /// Null if there is none.
  const Inode* find(InodeId id) const;
  /// The inode of `name` in `dir`; 0 if there is none.
  InodeId lookup(InodeId dir, const std::string& name) const;
  InodeId next_inode() const { return next_inode_; }
  /// Pages that `length` bytes at `at` would take in addition.
  std::uint64_t new_pages(InodeId file, std::uint64_t at, std::uint64_t length) const;
  /// Pages taken by what has a name or satisfies `is_open`.
  std::uint64_t used_pages(const std::function<bool(InodeId)>& is_open) const;

  /// The kernel forgets clean pages: what a failed sync had called clean is read from the disk.
  void drop_cache(InodeId file);

  /// What is pending: changes of names in their order, then those of files, in theirs. Files that
  /// no pending or stable name leads to are left out.
  std::vector<SimPending> pending() const;
  /// Of all that is visible: names, sizes, modes, bytes. A hole counts as the zeros that it reads.
  std::uint64_t hash() const;

  /// A power cut. What survives is what there is afterwards, and stable.
  void crash(CrashChooser& choose);

 private:
  /// A change of a file that is not stable yet.
  struct Pending {
    std::uint64_t id = 0;
    SimOpKind kind{};
    std::uint64_t offset = 0;
    std::uint64_t length = 0;  ///< kTruncate: the new size
    unsigned mode = 0;
    bool keep_size = false;
    std::shared_ptr<const std::vector<std::byte>> data;
    std::uint64_t operation = 0;
    std::uint64_t completed = 0;  ///< clock; 0: its write is still in flight
    bool durable = false;
    bool abandoned = false;  ///< a failed sync has called it clean
  };
  struct FileRecord : Inode {
    SparseBytes stable_bytes;
    std::uint64_t stable_size = 0;
    unsigned stable_mode = 0;
    std::map<std::string, InodeId> stable_entries;
    std::vector<Pending> pending;
    mutable std::uint64_t hash = 0;  ///< of size, mode and visible bytes; 0: not known
  };
  struct PendingName {
    std::uint64_t id = 0;
    SimOp op;
    bool durable = false;
  };
  /// Bytes, size and mode while pending changes are replayed.
  struct View {
    SparseBytes bytes;
    std::uint64_t size = 0;
    unsigned mode = 0;
  };

  int apply_to_file(const SimOp& op);
  int apply_to_directory(const SimOp& op);
  int check_rename(const SimOp& op) const;
  /// The inode for a change: copies of the state share what neither has changed.
  FileRecord& own(InodeId id);
  void change_names(const SimOp& op, std::map<std::string, InodeId> FileRecord::*entries);
  void count_names();
  void sync_file(FileRecord& file, const SimOp& op);
  void sync_directory(InodeId dir);
  void fold_stable(FileRecord& file);

  static void replay(const Pending& p, View& view);
  static bool changes_size(const Pending& p, std::uint64_t size_before);
  /// What becomes of one pending change.
  struct Plan {
    CrashChooser::Fate fate = CrashChooser::Fate::kKept;
    bool size = false;  ///< the change of the size survives
  };
  static std::vector<Plan> plan_crash(const FileRecord& file, CrashChooser& choose);
  static void crash_file(FileRecord& file, CrashChooser& choose);
  void crash_names(CrashChooser& choose);
  void drop_unreachable();

  std::map<InodeId, std::shared_ptr<FileRecord>> inodes_;
  std::vector<PendingName> pending_names_;
  InodeId next_inode_ = kRoot + 1;
  std::uint64_t clock_ = 0;
  std::uint64_t next_change_ = 1;
};

}  // namespace snap
