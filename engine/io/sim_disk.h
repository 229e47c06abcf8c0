// SimDisk: a disk that forgets what was not synced. The engine's own code runs on it, under
// SimLoop, and a test cuts the power wherever it likes.
//
// Fault model
// - A file's writes, punches, allocations and changes of size or mode are visible at once and
//   volatile. data_sync and full_sync make stable what had completed before the sync began; the
//   mode needs full_sync. An operation still in flight is not covered.
// - At a power cut each volatile change is, independently, kept, lost, or (writes, punches) torn:
//   any subset of its 512-byte sectors. A sector ends as one of the versions that it has had since
//   it was stable. Changes of size may be lost too; bytes past the size are gone.
// - Creations, renames and unlinks are volatile until their directory is synced; that of a file
//   does not cover its name. At a cut each directory keeps some first part of its changes. A rename
//   between two directories is atomic: in both or in neither.
// - A large write becomes visible in pieces; a read beside it sees some of them.
// - Operations in flight complete in any order (SimLoop's seed), those on names in almost any.
// - A sync that fails makes the kernel forget: what it covered stays visible, no later sync stores
//   it, and drop_cache() shows what the disk has (as Linux does). A lost write-back (kLostWrite) is
//   the same, told by check_writeback(). Every other handle that was open then hears of it, too, at
//   its next sync or check, once.
// - Injected: the n-th operation of a kind fails with an errno or is short; no space beyond a
//   limit; the disk freezes after n changes: all that follows fails with EIO.
// Not modelled: a disk that lies about a sync, bit rot, misdirected writes.
//
// Thread-safe, so that it also serves real loops (there each operation is done at once). Files and
// directories must not outlive the disk. After a power cut all handles fail with EIO.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "engine/io/sim_loop.h"
#include "engine/io/sim_state.h"
#include "snap/file.h"

namespace snap {

class SimFile;

/// The `nth` operation of `kind` from now on (1: the next) fails with `error`, or, where `error` is
/// 0, moves at most `short_to` bytes (reads and writes).
struct SimFault {
  SimOpKind kind = SimOpKind::kWrite;
  std::uint64_t nth = 1;
  int error = 0;
  std::size_t short_to = 0;
};

class SimDisk final : public SimDevice {
 public:
  explicit SimDisk(std::uint64_t seed = 1) : random_(seed) {}
  SimDisk(const SimDisk&) = delete;
  SimDisk& operator=(const SimDisk&) = delete;

  std::unique_ptr<Directory> root();

  /// The same disk with all that is visible, stable and pending, and the same limit. No handles,
  /// faults, log or freeze.
  std::unique_ptr<SimDisk> clone() const;

  // ---- Power cuts

  /// What is pending is kept, lost or torn as `random` says.
  void crash(std::mt19937_64& random);
  void crash_all_lost();
  void crash_all_kept();
  void crash(CrashChooser& choose);

  /// The process dies: handles fail from now on, nothing that is visible is lost.
  void kill();
  /// What the next cut may lose, as it is now; see SimState::pending().
  std::vector<SimPending> pending() const;
  /// Of the visible tree; see SimState::hash().
  std::uint64_t hash() const;

  /// After `n` more changes the disk takes nothing any more; thaw() or a crash ends that.
  void freeze_after(std::uint64_t n);
  void thaw();
  /// Called at the moment the disk freezes; uses nothing of the disk.
  void on_freeze(std::function<void()> call);
  bool frozen() const;

  // ---- Faults

  void inject(const SimFault& fault);
  /// Bytes that files may take; writes beyond fail with ENOSPC. Untold: who asks for the space
  /// hears of a large disk, as if others took it since.
  void set_space_limit(std::uint64_t bytes, bool told = true);

  // ---- What happened

  /// Changes so far: the boundaries at which freeze_after() may stop.
  std::uint64_t changes() const;
  /// Every operation that was done or failed by injection, reads too. Not while others use it.
  const std::vector<SimOp>& log() const { return log_; }
  void clear_log();
  /// With it the log keeps the bytes of writes, and replay() can rebuild every boundary.
  void record_data(bool on);
  /// Does a logged operation on this disk (a clone made where the log begins).
  void replay(const SimOp& op);
  /// All visible files by path ("dir/name"), for comparisons.
  std::map<std::string, std::vector<std::byte>> visible_files() const;

  std::optional<std::int64_t> step(IoOp& op) override;

 private:
  friend class SimFile;
  friend class SimDirectory;

  /// An operation between its start and its completion.
  struct Flight {
    std::uint64_t operation = 0;
    std::uint64_t began = 0;
    std::uint64_t done = 0;
    std::uint64_t limit = ~std::uint64_t{0};
    bool started = false;
  };
  struct Locks {
    const void* exclusive = nullptr;
    std::set<const void*> shared;
  };

  /// Syncs of a file that failed.
  struct SyncFailures {
    std::uint64_t count = 0;
    int error = 0;  ///< of the last
  };
  SyncFailures failures_of(InodeId file) const;

  void freeze();
  /// Lets others run before an operation that is done at once, sometimes for longer: who comes
  /// later may be faster.
  Task<void> take_turns();
  void begin(IoOp& op);
  std::optional<std::int64_t> advance(IoOp& op, Flight& flight);
  std::int64_t read(IoOp& op, Flight& flight);
  std::optional<std::int64_t> write(IoOp& op, Flight& flight);
  std::int64_t simple(IoOp& op, const Flight& flight, bool failed);
  /// A sync or a write-back that fails.
  void lose(InodeId file, int error);
  /// Tells this handle of those that it was not told of: the errno of the last, or 0.
  int failure_for(SimFile& file);
  /// For check_writeback(): the same.
  int lost_write(SimFile& file);

  /// The errno of the fault that is due for this operation; 0 if there is none.
  int fault(SimOpKind kind, std::uint64_t* limit = nullptr);
  /// Does `op` and logs it; 0 or -errno.
  int execute(SimOp op);
  void note(SimOp op);
  bool has_space(InodeId file, std::uint64_t at, std::uint64_t length) const;
  bool alive(std::uint64_t generation) const { return generation == generation_ && !frozen_; }

  mutable std::mutex lock_;
  SimState state_;
  std::mt19937_64 random_;
  std::unordered_map<IoOp*, Flight> flights_;
  std::map<InodeId, unsigned> open_;  ///< handles
  std::map<InodeId, Locks> locks_;
  std::map<InodeId, SyncFailures> sync_failures_;
  std::uint64_t generation_ = 0;  ///< grows with each power cut
  std::uint64_t next_operation_ = 1;

  std::vector<SimFault> faults_;
  std::uint64_t space_limit_ = ~std::uint64_t{0};
  bool space_told_ = true;
  std::uint64_t changes_ = 0;
  std::uint64_t freeze_at_ = ~std::uint64_t{0};
  bool frozen_ = false;
  std::function<void()> on_freeze_;
  bool record_data_ = false;
  std::vector<SimOp> log_;
};

}  // namespace snap
