// Checkpoints (docs/durability.md, Checkpoint): what the journal holds goes into a segment of the
// map, so that the journal's area can be used again. Also what ends with one: seal, resize, close.
//
// A checkpoint consists of recorded changes only, so it does not need the block map. Blocks that
// only records carry are durable in the journal alone: a sync of the data file comes first. When
// more than half of the map file would be stale, it is written anew from its own segments and
// replaced by rename.
#include "engine/delta/delta_impl.h"
#include "engine/delta/run_file.h"

#include <algorithm>
#include <cerrno>
#include <limits>

namespace snap {

namespace {
/// A map file below this is not worth a compaction.
constexpr std::uint64_t kMapSlack = 256u << 10;
/// Chunks whose map entries are given space at a time; doubles up to the second figure.
constexpr std::uint64_t kReserveChunks = 4096;
constexpr std::uint64_t kReserveChunksMax = 1u << 20;

bool not_supported(const Error& error) {
  return error.code() == ErrorCode::kUnsupported || error.sys_errno() == EOPNOTSUPP ||
         error.sys_errno() == ENOSYS;
}

}  // namespace

// ---- Checkpoint

void DeltaImpl::start_background_checkpoint() {
  background_.add();
  EventLoop::current()->spawn(checkpoint_in_background());
}

Task<void> DeltaImpl::checkpoint_in_background() {
  // What takes long does not keep others from the lock.
  auto synced = co_await sync_data(journal_->frozen_sync());
  (void)synced;  // a failure has failed the delta
  {
    auto held = co_await checkpoint_lock_.lock();
    if (!failed_.load()) {
      auto done = co_await checkpoint_frozen();
      if (!done) (void)fail(done.error());
    }
  }
  background_.done();
}

Task<Result<void>> DeltaImpl::checkpoint_frozen() {
  if (!journal_->frozen()) co_return Result<void>();  // someone who needed the area was faster
  // Rule Checkpoint: blocks that the records carry are stable in the data file first.
  auto synced = co_await sync_data(journal_->frozen_sync());
  SNAP_CO_RETURN_IF_ERROR(synced);
  MapFile::Point point;
  point.through = journal_->frozen_through();
  point.volume_size = map_.point().volume_size;
  auto written = co_await write_checkpoint(journal_->frozen_changes(), point);
  SNAP_CO_RETURN_IF_ERROR(written);
  journal_->free_frozen();
  co_return Result<void>();
}

Task<Result<void>> DeltaImpl::checkpoint_all(std::span<const Change> more, bool sealed,
                                             std::uint64_t volume_size) {
  auto held = co_await checkpoint_lock_.lock();
  auto synced = co_await sync_data(journal_->last_sync());
  SNAP_CO_RETURN_IF_ERROR(synced);
  std::vector<Change> changes;
  if (journal_->frozen()) changes = journal_->frozen_changes();
  const auto& active = journal_->active_changes();
  changes.insert(changes.end(), active.begin(), active.end());
  changes.insert(changes.end(), more.begin(), more.end());
  MapFile::Point point;
  point.through = journal_->last_sequence();
  point.volume_size = volume_size;
  point.sealed = sealed;
  auto written = co_await write_checkpoint(std::move(changes), point);
  if (!written) co_return fail(written.error());
  if (journal_->frozen()) journal_->free_frozen();
  journal_->free_active();
  co_return Result<void>();
}

Task<Result<void>> DeltaImpl::write_checkpoint(std::vector<Change> changes, MapFile::Point point) {
  // Rule Fault: who waited for the lock may find that the checkpoint before his has failed. Nothing
  // is appended behind a segment whose sync failed.
  if (auto failed = failure()) co_return *failed;
  changes = merge_changes(std::move(changes));
  clip_changes(changes, point.volume_size);
  const std::uint64_t needed = segments_length(changes.size());
  const std::uint64_t live = segments_length(blocks_->present_chunks());
  const bool stale = map_.bytes() + needed > std::max(2 * live + kMapSlack, compact_above_);
  const bool reserves = tail_reserved_ != 0;
  if (stale || (reserves && needed > tail_reserved_)) {
    auto compacted = co_await compact(changes, point);
    SNAP_CO_RETURN_IF_ERROR(compacted);
    if (*compacted) co_return Result<void>();
    // Once it must not be tried any more (drop_reserve_file) that stays so.
    compact_above_ = std::max(compact_above_, 2 * map_.bytes());
  }
  auto appended = co_await map_.append(changes, point);
  SNAP_CO_RETURN_IF_ERROR(appended);
  checkpoints_.fetch_add(1, std::memory_order_relaxed);
  if (reserves) {
    const std::uint64_t wanted = 2 * segments_length(reserved_chunks_.load());
    auto taken = co_await map_.reserve(wanted);
    // On a full disk the rest of the space is used up first; then the map is compacted into the
    // space that is kept for that.
    tail_reserved_ = taken ? wanted : std::max(tail_reserved_, needed + 1) - needed;
  }
  co_return Result<void>();
}

// ---- Compaction

Task<Result<std::vector<Change>>> DeltaImpl::merged_with_map(std::span<const Change> changes,
                                                             std::uint64_t volume_size) {
  auto scratch = BlockMap::make();
  SNAP_CO_RETURN_IF_ERROR(scratch);
  auto file = co_await dir_->open(kMapName, OpenFlags{});
  SNAP_CO_RETURN_IF_ERROR(file);
  auto old = co_await MapFile::load(std::move(*file), **scratch, false);
  SNAP_CO_RETURN_IF_ERROR(old);
  if (old->next_number() != map_.next_number()) {
    co_return Error(ErrorCode::kCorrupt,
                    map_.file().path() + " no longer holds the segments that were written to it");
  }
  if (volume_size < old->point().volume_size) (*scratch)->drop_beyond(volume_size);
  for (const Change& change : changes) {
    auto restored = (*scratch)->restore(change);
    SNAP_CO_RETURN_IF_ERROR(restored);
  }
  std::vector<Change> all;
  ChunkIndex from;
  while ((*scratch)->list_some(&from, all))
    co_await yield_now();
  co_return std::move(all);
}

Task<void> DeltaImpl::drop_reserve_file() {
  auto gone = co_await dir_->unlink(kMapNewName);
  if (!gone && gone.error().code() != ErrorCode::kNotFound) {
    // A file that may hold segments of an abandoned attempt must not be written into.
    compact_above_ = std::numeric_limits<std::uint64_t>::max();
  }
}

Task<Result<bool>> DeltaImpl::compact(std::span<const Change> changes, MapFile::Point point) {
  if (compact_above_ == std::numeric_limits<std::uint64_t>::max()) co_return false;
  auto all = co_await merged_with_map(changes, point.volume_size);
  if (!all) {
    if (all.error().code() == ErrorCode::kCorrupt) co_return all.error();
    co_return false;
  }
  auto next = co_await MapFile::write_new(*dir_, kMapNewName, id_, map_.secret(),
                                          map_.next_number(), *all, point);
  // Until the rename nothing is lost by giving up: the old file goes on.
  if (!next) {
    co_await drop_reserve_file();
    co_return false;
  }
  auto renamed = co_await dir_->rename(kMapNewName, *dir_, kMapName);
  if (!renamed) {
    co_await drop_reserve_file();
    co_return false;
  }
  // Rule Publish: the new file's name is durable before what only the old one held may go.
  auto synced = co_await dir_->sync();
  SNAP_CO_RETURN_IF_ERROR(synced);
  map_ = std::move(*next);
  compact_above_ = 0;
  checkpoints_.fetch_add(1, std::memory_order_relaxed);
  const std::uint64_t reserved = reserved_chunks_.load();
  if (tail_reserved_ != 0) {
    tail_reserved_ = 1;  // that was the old file's; of the new one nothing is certain yet
    auto again = co_await reserve_for(reserved);
    if (!again) again = co_await reserve_for(round_up(claimed_.load(), kFrameAlign / kChangeBytes));
    // No space: chunks that hold nothing yet take none until there is some again.
    if (!again) reserved_chunks_.store(0);
  }
  co_return true;
}

// ---- Reserved space (rule Space)

Task<Result<void>> DeltaImpl::reserve_for(std::uint64_t chunks) {
  const std::uint64_t segments = segments_length(chunks);
  // As much as a compaction takes: then on a full disk the file that one replaces has given back
  // what the next one needs.
  auto taken = co_await map_.reserve(2 * segments);
  SNAP_CO_RETURN_IF_ERROR(taken);
  tail_reserved_ = std::max(tail_reserved_, 2 * segments);
  OpenFlags flags;
  flags.write = true;
  flags.create = true;
  auto file = co_await dir_->open(kMapNewName, flags);
  SNAP_CO_RETURN_IF_ERROR(file);
  // The new file's base, and the segment after it.
  auto space = co_await allocate(**file, ByteOffset(0), kDeltaHeaderBytes + 2 * segments, true);
  SNAP_CO_RETURN_IF_ERROR(space);
  reserved_chunks_.store(chunks);
  co_return Result<void>();
}

Task<Result<void>> DeltaImpl::reserve_more() {
  auto held = co_await checkpoint_lock_.lock();
  const std::uint64_t claimed = claimed_.load();
  const std::uint64_t reserved = reserved_chunks_.load();
  if (space_taken_.load() && claimed <= reserved) co_return Result<void>();
  if (tail_reserved_ == 0) {
    auto journal = co_await journal_->reserve();
    if (!journal && not_supported(journal.error())) {
      // The file system cannot promise space: a full disk then ends writes at the next checkpoint.
      reserved_chunks_.store(std::numeric_limits<std::uint64_t>::max());
      space_taken_.store(true);
      co_return Result<void>();
    }
    SNAP_CO_RETURN_IF_ERROR(journal);
  }
  const std::uint64_t step = std::clamp(reserved, kReserveChunks, kReserveChunksMax);
  auto taken = co_await reserve_for(claimed + step);
  if (!taken) taken = co_await reserve_for(round_up(claimed, kFrameAlign / kChangeBytes));
  SNAP_CO_RETURN_IF_ERROR(taken);
  space_taken_.store(true);
  co_return Result<void>();
}

// ---- Life

Task<Result<void>> DeltaImpl::seal() {
  if (journal_ == nullptr) co_return Result<void>();
  auto held = co_await commit_lock_.lock();
  auto committed = co_await commit(Path::kLarge);
  SNAP_CO_RETURN_IF_ERROR(committed);
  auto written = co_await checkpoint_all({}, true, size());
  SNAP_CO_RETURN_IF_ERROR(written);
  co_return Result<void>();
}

Task<Result<void>> DeltaImpl::prepare_grow(std::uint64_t from, std::uint64_t to) {
  auto sized = co_await data_->truncate(data_file_size(to));
  SNAP_CO_RETURN_IF_ERROR(sized);
  const std::uint64_t end = data_file_size(from);
  if (from == end) co_return Result<void>();
  const ByteOffset edge(round_down(from, kBlockSize));
  const BlockMask block = block_range(block_in_chunk(edge), 1);
  if ((data_of(blocks_->word(chunk_of(edge))) & block) == 0) {
    // It may have been data, which comes back whole if the zeros of now are not durable.
    auto committed = co_await commit(Path::kLarge);
    co_return committed;
  }
  const std::vector<std::byte> zeros(end - from);
  auto written = co_await write_all(*data_, zeros, ByteOffset(from));
  SNAP_CO_RETURN_IF_ERROR(written);
  // Rule Resize: bytes that become addressable are zero before they are.
  auto synced = co_await sync_data(next_sync());
  co_return synced;
}

Task<Result<void>> DeltaImpl::resize(std::uint64_t new_size) {
  auto allowed = check_change(ByteOffset(0), 0);
  SNAP_CO_RETURN_IF_ERROR(allowed);
  if (new_size > kMaxVolumeSize) {
    co_return Error(ErrorCode::kTooLarge, "a volume of " + std::to_string(new_size) +
                                              " bytes; the limit is " +
                                              std::to_string(kMaxVolumeSize));
  }
  auto held = co_await commit_lock_.lock();
  const std::uint64_t old_size = size();
  if (new_size > old_size) {
    auto ready = co_await prepare_grow(old_size, new_size);
    SNAP_CO_RETURN_IF_ERROR(ready);
  }
  // Rule Resize: the bits beyond are durably gone before anyone may grow the volume again.
  auto written = co_await checkpoint_all({}, false, new_size);
  SNAP_CO_RETURN_IF_ERROR(written);
  size_.store(new_size, std::memory_order_release);
  if (new_size < old_size) {
    const std::uint64_t before = blocks_->present_chunks();
    const std::uint64_t data_before = blocks_->data_blocks();
    blocks_->drop_beyond(new_size);
    give_blocks(data_before - blocks_->data_blocks());
    claimed_.fetch_sub(before - blocks_->present_chunks());
    // Only gives space back: no bit stands for what is beyond, and opening cuts it off.
    auto sized = co_await data_->truncate(data_file_size(new_size));
    (void)sized;
  }
  co_return Result<void>();
}

Task<Result<void>> DeltaImpl::close() {
  if (journal_ == nullptr || closed_.load()) co_return Result<void>();
  auto held = co_await commit_lock_.lock();
  auto committed = co_await commit(Path::kLarge);
  co_await background_.wait();
  SNAP_CO_RETURN_IF_ERROR(committed);
  if (journal_->frozen() || !journal_->active_changes().empty()) {
    auto written = co_await checkpoint_all({}, false, size());
    SNAP_CO_RETURN_IF_ERROR(written);
  }
  if (auto failed = failure()) co_return *failed;
  auto map_held = co_await checkpoint_lock_.lock();
  auto guarded = co_await map_.append_guard();
  // The guard is not worth a failure on a full disk: nothing relies on it.
  if (!guarded && guarded.error().code() != ErrorCode::kNoSpace) co_return fail(guarded.error());
  if (tail_reserved_ != 0) co_await drop_reserve_file();
  tail_reserved_ = 0;
  reserved_chunks_.store(0);
  space_taken_.store(false);
  // All of the journal is covered by durable segments: its space goes back. Stale records that a
  // crash brings back are passed over by their sequence.
  const std::uint64_t last_segment = map_.ends_with_base() ? 0 : map_.last_number();
  auto emptied = co_await journal_->release_space(last_segment);
  // A full disk may have no page for what the header would say: nothing relies on it.
  if (!emptied && emptied.error().code() != ErrorCode::kNoSpace) co_return fail(emptied.error());
  extending_ = false;
  extended_.store(0);
  co_await end_live();
  co_return Result<void>();
}

/// Rule Live: the live map goes, and a note takes its place if no sync has failed.
Task<void> DeltaImpl::end_live() {
  closed_.store(true);
  if (blocks_->live() != nullptr) LiveMap::remove(blocks_->live()->place());
  if (failure() || map_.point().sealed) co_return;
  co_await note_closed(*dir_, *data_);
}

}  // namespace snap
