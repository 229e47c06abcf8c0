// The flush protocol (docs/durability.md, Flush): group commit. One commit runs at a time; flushes
// and writes with FUA that arrive meanwhile share the next.
//
//   1. raise the epoch, fix S = the last sequence, and take the dirty bits
//
// Few blocks, the small path: one sequential write and one sync.
//   2. read the blocks from the data file (from memory: they were written just now)
//   3. a record with what was taken and the blocks, written durably
//
// Many, the large path:
//   2. fdatasync(data), if data was written
//   3. a record of what was taken, through S, written durably
//
// A commit that finds nothing dirty makes no system call. One without a flush, for writes with FUA
// alone, takes the small path with just their blocks; where that cannot be, it is as for a flush.
#include <algorithm>
#include <bit>

#include "engine/delta/delta_impl.h"

namespace snap {

namespace {
/// Chunks whose blocks are read for a record at a time.
constexpr std::size_t kGatherers = 16;
/// Blocks that records carry are written back all the time, once around the data file for so many
/// bytes of records. Else the sync before a checkpoint writes all of them at once, and commits
/// wait behind that: 16 ms and more, for one flush of twenty.
constexpr std::uint64_t kWritebackTurn = 8u << 20;
/// In so many steps: a call for every record would cost more than it writes.
constexpr std::uint64_t kWritebackSteps = 16;
constexpr std::uint64_t kWritebackPiece = 1u << 30;
constexpr std::chrono::seconds kShortArea{1};
constexpr std::uint64_t kMiddlingArea = 16u << 20;
}  // namespace

void DeltaImpl::mark(std::atomic<std::uint64_t>& epoch_of_last) {
  std::uint64_t epoch = epoch_.load();
  while (true) {
    std::uint64_t marked = epoch_of_last.load();
    while (marked < epoch && !epoch_of_last.compare_exchange_weak(marked, epoch)) {
    }
    // A commit that raised the epoch in between may have looked before the mark was there: then
    // this belongs to the next one.
    const std::uint64_t now = epoch_.load();
    if (now == epoch) return;
    epoch = now;
  }
}

Error DeltaImpl::fail(const Error& error) {
  std::lock_guard guard(failure_lock_);
  if (!failure_) failure_ = error;
  // Rule Fault: the page cache may hold what is not on the disk and looks as if it were.
  if (blocks_->live() != nullptr) blocks_->live()->discount();
  failed_.store(true, std::memory_order_release);
  return *failure_;
}

std::optional<Error> DeltaImpl::failure() const {
  if (!failed_.load(std::memory_order_acquire)) return std::nullopt;
  std::lock_guard guard(failure_lock_);
  return failure_;
}

Task<Result<void>> DeltaImpl::flush() {
  if (journal_ == nullptr) co_return Result<void>();  // sealed: all of it is durable
  // Rule Fault: after a failed sync no flush succeeds, not even one that has nothing to do.
  if (auto failed = failure()) co_return *failed;
  flushes_.fetch_add(1, std::memory_order_relaxed);
  if (synced_.load() >= std::max(written_.load(), zeroed_.load())) co_return Result<void>();
  auto done = co_await join_round({});
  co_return done;
}

Task<Result<void>> DeltaImpl::flush_write(ByteOffset at, std::uint64_t length) {
  const std::uint64_t first = at.value / kBlockSize;
  const std::uint64_t end = round_up(at.value + length, kBlockSize) / kBlockSize;
  if (end - first > kSmallFlushBlocks) {
    auto done = co_await flush();
    co_return done;
  }
  std::vector<Change> blocks;
  for (std::uint64_t b = first; b < end;) {
    const auto in_chunk = static_cast<unsigned>(b % kBlocksPerChunk);
    const auto count =
        static_cast<unsigned>(std::min<std::uint64_t>(end - b, kBlocksPerChunk - in_chunk));
    blocks.push_back(
        {static_cast<std::uint32_t>(b / kBlocksPerChunk), block_range(in_chunk, count), 0});
    b += count;
  }
  auto done = co_await join_round(blocks);
  co_return done;
}

Task<Result<void>> DeltaImpl::join_round(std::span<const Change> blocks) {
  std::shared_ptr<Round> round;
  {
    std::lock_guard guard(round_lock_);
    if (next_round_ == nullptr) next_round_ = std::make_shared<Round>();
    round = next_round_;
    if (blocks.empty()) round->all = true;
    round->blocks.insert(round->blocks.end(), blocks.begin(), blocks.end());
    if (count_blocks(round->blocks) > kSmallFlushBlocks) round->all = true;
    if (round->all) round->blocks.clear();
  }
  auto held = co_await commit_lock_.lock();
  if (!round->done) {
    {
      // Rule Group: from here on flushes join a later round; this one's capture is still ahead,
      // so it covers everything that completed before any of its flushes arrived.
      std::lock_guard guard(round_lock_);
      next_round_ = nullptr;
    }
    bool recorded = false;
    if (!round->all) {
      auto alone = co_await commit_blocks(std::move(round->blocks));
      if (!alone) round->result = alone.error();
      recorded = !alone || *alone;
    }
    if (!recorded) {
      auto committed = co_await commit(Path::kSmall);
      round->result = std::move(committed);
    }
    round->done = true;
  }
  co_return round->result;
}

Task<Result<void>> DeltaImpl::flush_data() {
  if (journal_ == nullptr) co_return Result<void>();
  auto held = co_await commit_lock_.lock();
  auto committed = co_await commit(Path::kLarge);
  SNAP_CO_RETURN_IF_ERROR(committed);
  co_return Result<void>();
}

Task<Result<void>> DeltaImpl::sync_data(std::uint64_t number) {
  // One at a time: the kernel tells of a lost write once. Who syncs next must find that it was.
  auto held = co_await data_sync_lock_.lock();
  if (auto failed = failure()) co_return *failed;
  if (synced_data_.load() >= number) co_return Result<void>();
  const std::uint64_t begun = ++syncs_;
  auto synced = co_await data_sync(*data_);
  if (!synced) co_return fail(synced.error());
  synced_data_.store(begun);
  co_return Result<void>();
}

void DeltaImpl::check_writeback() {
  if (data_watch_ == nullptr || closed_.load()) return;
  // A File of its own, so that a sync is told, too.
  auto written = data_watch_->check_writeback();
  if (!written) (void)fail(written.error());
}

Task<Result<void>> DeltaImpl::commit(Path path) {
  if (auto failed = failure()) co_return *failed;
  // Rule Through: S and the changes are fixed before the sync is submitted.
  const std::uint64_t through = journal_->last_sequence();
  const std::uint64_t epoch = epoch_.fetch_add(1);
  std::vector<Change> changes;
  std::uint64_t cursor = 0;
  while (blocks_->capture_some(&cursor, changes))
    co_await yield_now();
  bool recordable = true;
  if (!changes.empty() && !space_taken_.load()) {
    // Since the delta was opened only blocks that it had were overwritten, so there is nothing that
    // must be recorded. If the disk is full, a sync of the data is all.
    auto space = co_await reserve_more();
    recordable = space.has_value();
  }
  if (path == Path::kSmall && recordable && fits_small(changes)) {
    auto small = co_await record_with_blocks(changes);
    if (!small) co_return fail(small.error());
    if (*small) co_return committed(epoch);
  }
  // A write sets its bits before it marks the epoch: what was taken may hold bits of a write that
  // has no mark yet.
  const auto names_data = [](const Change& change) { return change.data != 0; };
  const bool carried = journal_->last_sync() > synced_data_.load();
  if (carried || written_.load() > data_synced_ || std::ranges::any_of(changes, names_data)) {
    // Rule Data: the bytes are durable before the bits that name them, and before the record that
    // supersedes those which carry blocks.
    auto synced = co_await sync_data(next_sync());
    SNAP_CO_RETURN_IF_ERROR(synced);
    data_synced_ = epoch;
  }
  if (!changes.empty() && recordable) {
    auto recorded = co_await record(std::move(changes), through);
    if (!recorded) co_return fail(recorded.error());
  }
  co_return committed(epoch);
}

Result<void> DeltaImpl::committed(std::uint64_t epoch) {
  // Rule Fault: a sync of the journal that failed in the background may have covered the record.
  if (auto failed = failure()) return *failed;
  synced_.store(epoch);
  return {};
}

// ---- The small path

bool DeltaImpl::fits_small(std::span<const Change> changes) const {
  const std::size_t blocks = count_blocks(changes);
  return blocks <= kSmallFlushBlocks &&
         frame_length(changes.size()) + blocks * kBlockSize <= kMaxFrameBytes;
}

Task<Result<bool>> DeltaImpl::commit_blocks(std::vector<Change> blocks) {
  if (auto failed = failure()) co_return *failed;
  if (!space_taken_.load()) co_return false;
  // Rule Own: the bits of other blocks stay dirty. A bit that is clean already was recorded by an
  // earlier commit, for these end before the lock is free again.
  std::vector<Change> changes;
  for (const Change& written : merge_changes(std::move(blocks)))
    blocks_->capture(ChunkIndex(written.chunk), written.data, changes);
  auto recorded = co_await record_with_blocks(changes);
  if (!recorded) co_return fail(recorded.error());
  if (!*recorded) {
    for (const Change& change : changes)
      blocks_->give_back(change);
    co_return false;
  }
  // Rule Fault: a sync of the journal that failed in the background may have covered the record.
  if (auto failed = failure()) co_return *failed;
  co_return true;
}

Task<Result<bool>> DeltaImpl::record_with_blocks(std::span<const Change> changes) {
  if (changes.empty()) co_return true;
  const std::size_t blocks = count_blocks(changes);
  const std::uint64_t length = frame_length(changes.size()) + blocks * kBlockSize;
  if (length > std::max(journal_->area_length(), extended_.load())) {
    want_larger_journal(length);
    co_return false;
  }
  auto room = co_await make_room(length);
  SNAP_CO_RETURN_IF_ERROR(room);
  auto place = journal_->place_for_blocks(changes.size(), blocks);
  if (!place) co_return false;
  const bool gathered = co_await gather(changes, *place);
  if (!gathered) co_return false;
  // Rule Fault: a block that the kernel could not write back, and gave up, was read as it had been.
  check_writeback();
  if (auto failed = failure()) co_return *failed;
  auto appended = co_await journal_->append_with_blocks(changes, next_sync());
  SNAP_CO_RETURN_IF_ERROR(appended);
  records_.fetch_add(1, std::memory_order_relaxed);
  begin_writeback(length);
  co_return true;
}

void DeltaImpl::begin_writeback(std::uint64_t bytes) {
  const auto share = static_cast<double>(bytes) / static_cast<double>(kWritebackTurn);
  const auto due = static_cast<std::uint64_t>(share * static_cast<double>(size()));
  if (writeback_due_.fetch_add(due) + due < size() / kWritebackSteps) return;
  if (writing_back_.exchange(true)) return;
  background_.add();
  EventLoop::current()->spawn(write_back());
}

Task<void> DeltaImpl::write_back() {
  const std::uint64_t end = data_file_size(size());
  std::uint64_t due = std::min(round_up(writeback_due_.exchange(0), kChunkSize), end);
  while (due != 0 && end != 0) {
    if (writeback_hand_ >= end) writeback_hand_ = 0;
    const std::uint64_t piece = std::min({due, end - writeback_hand_, kWritebackPiece});
    // A hint. What it cannot write the next sync, or check_writeback(), is told of.
    auto begun = co_await start_writeback(*data_, ByteOffset(writeback_hand_), piece);
    (void)begun;
    writeback_hand_ += piece;
    due -= piece;
  }
  writing_back_.store(false);
  background_.done();
}

struct DeltaImpl::Gathering {
  std::span<const Change> changes;  ///< not begun yet
  std::span<std::byte> out;         ///< for their blocks
  bool well = true;
  WaitGroup readers;
};

Task<bool> DeltaImpl::gather(std::span<const Change> changes, std::span<std::byte> out) {
  Gathering gathering;
  gathering.changes = changes;
  gathering.out = out;
  const std::size_t readers = std::clamp<std::size_t>(changes.size(), 1, kGatherers);
  gathering.readers.add(readers);
  for (std::size_t i = 1; i < readers; ++i)
    EventLoop::current()->spawn(gather_some(&gathering));
  co_await gather_some(&gathering);
  co_await gathering.readers.wait();
  co_return gathering.well;
}

Task<void> DeltaImpl::gather_some(Gathering* g) {
  while (!g->changes.empty() && g->well) {
    const Change change = g->changes.front();
    g->changes = g->changes.subspan(1);
    if (change.data == 0) continue;
    const auto bytes = static_cast<std::size_t>(std::popcount(change.data)) * kBlockSize;
    std::span<std::byte> out = g->out.first(bytes);
    g->out = g->out.subspan(bytes);
    // Rule Blocks: held, so that no write is under way in what is read. A block that is busy is not
    // waited for: the large path will do. One that was trimmed since it was taken reads zero.
    const ChunkIndex chunk(change.chunk);
    if (!blocks_->hold_now(chunk, change.data)) {
      g->well = false;
      break;
    }
    for (BlockRun run = next_run(change.data, 0); run.count != 0 && g->well;
         run = next_run(change.data, run.first + run.count)) {
      const auto place = out.first(run.count * kBlockSize);
      out = out.subspan(place.size());
      const ByteOffset at = offset_of(chunk) + run.first * kBlockSize;
      if (data_->read_now(place, at)) continue;
      auto got = co_await read_exact(*data_, place, at);
      if (!got) g->well = false;
    }
    blocks_->release(chunk, change.data);
  }
  g->readers.done();
}

// ---- The journal's room

Task<Result<void>> DeltaImpl::record(std::vector<Change> changes, std::uint64_t through) {
  const std::uint64_t length = frame_length(changes.size());
  if (length > std::min(journal_->area_length(), kMaxFrameBytes)) {
    auto done = co_await checkpoint_all(changes, false, size());
    SNAP_CO_RETURN_IF_ERROR(done);
    co_return Result<void>();
  }
  auto room = co_await make_room(length);
  SNAP_CO_RETURN_IF_ERROR(room);
  auto appended = co_await journal_->append(changes, through);
  SNAP_CO_RETURN_IF_ERROR(appended);
  records_.fetch_add(1, std::memory_order_relaxed);
  co_return Result<void>();
}

Task<Result<void>> DeltaImpl::make_room(std::uint64_t length) {
  if (length <= journal_->area_length() && journal_->fits(length)) co_return Result<void>();
  if (extended_.load() > journal_->area_length()) {
    auto covered = co_await checkpoint_all({}, false, size());
    SNAP_CO_RETURN_IF_ERROR(covered);
    auto grown = co_await journal_->grow(extended_.load());
    SNAP_CO_RETURN_IF_ERROR(grown);
    extending_ = false;
    co_return Result<void>();
  }
  if (journal_->frozen()) {
    want_larger_journal(length);
    // Rule Reuse: an area is filled again only when a durable segment covers it.
    auto held = co_await checkpoint_lock_.lock();
    auto freed = co_await checkpoint_frozen();
    SNAP_CO_RETURN_IF_ERROR(freed);
  }
  journal_->switch_area();
  start_background_checkpoint();
  // Areas that last for less than a second make checkpoints frequent, and commits wait for them.
  // They grow to a middling length, though: zeros are written for it, and recovery has to read it.
  const auto now = EventLoop::current()->now();
  const auto lasted = now - std::exchange(area_begun_, now);
  const bool short_lived = lasted > EventLoop::Clock::duration::zero() && lasted < kShortArea;
  if (short_lived && journal_->area_length() < kMiddlingArea) want_larger_journal(length);
  co_return Result<void>();
}

void DeltaImpl::want_larger_journal(std::uint64_t length) {
  const std::uint64_t next = journal_->larger_area_length(length);
  if (extending_ || next == journal_->area_length()) return;
  extending_ = true;
  background_.add();
  EventLoop::current()->spawn(extend_journal_in_background(next));
}

/// A journal that cannot grow, for the disk is full, stays as it is until the delta is opened
/// again.
Task<void> DeltaImpl::extend_journal_in_background(std::uint64_t area_length) {
  OpenFlags flags;
  flags.write = true;
  // A descriptor of its own: the kernel tells each of a lost write.
  auto file = co_await dir_->open(kJournalName, flags);
  if (file) {
    auto extended = co_await journal_->extend(**file, area_length);
    if (extended) extended_.store(area_length);
    if (!extended && extended.error().code() != ErrorCode::kNoSpace &&
        extended.error().code() != ErrorCode::kUnsupported) {
      (void)fail(extended.error());
    }
  }
  background_.done();
}

}  // namespace snap
