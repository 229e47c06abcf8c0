// Opening a delta (docs/durability.md, Recovery): the map's segments, then the journal's records
// that continue from the last segment. A gap is damage and refused; a torn end is cut off. What was
// found is durable in the map before anything is served.
#include <algorithm>
#include <bit>

#include "engine/delta/delta_impl.h"

namespace snap {

namespace {

Task<Result<std::unique_ptr<File>>> open_part(Directory& dir, std::string name, bool write) {
  OpenFlags flags;
  flags.write = write;
  auto file = co_await dir.open(name, flags);
  if (!file && file.error().code() == ErrorCode::kNotFound) {
    co_return file.error().with_code(ErrorCode::kCorrupt).with_context("a file of a delta is gone");
  }
  SNAP_CO_RETURN_IF_ERROR(file);
  if (write) {
    // Rule Fault: after a sync that failed the cache holds pages that look clean and are not on
    // the disk. They go; pages that are still dirty stay.
    auto dropped = co_await (*file)->drop_cache();
    SNAP_CO_RETURN_IF_ERROR(dropped);
  }
  co_return std::move(*file);
}

/// What recovery reads and builds on may still be in the page cache of a process that died, so it
/// is made durable first (rule Recovery).
Task<Result<void>> settle(Directory& dir, File& data, File& map) {
  auto data_synced = co_await data_sync(data);
  SNAP_CO_RETURN_IF_ERROR(data_synced);
  auto map_synced = co_await data_sync(map);
  SNAP_CO_RETURN_IF_ERROR(map_synced);
  auto dir_synced = co_await dir.sync();
  SNAP_CO_RETURN_IF_ERROR(dir_synced);
  co_return Result<void>();
}

/// A data file that ends before a block that the map knows has lost it.
/// A data file that ends before a block of `blocks`, or before `synced_end`, has lost it. Blocks
/// that only records of the journal carry are in neither.
Task<Result<void>> check_data_size(File& data, const BlockMap& blocks, std::uint64_t synced_end) {
  auto stat = co_await data.stat();
  SNAP_CO_RETURN_IF_ERROR(stat);
  std::uint64_t end = synced_end;
  if (const auto last = blocks.last_data()) {
    const auto count = static_cast<unsigned>(std::bit_width(data_of(blocks.word(*last))));
    end = std::max(end, offset_of(*last).value + count * kBlockSize);
  }
  if (stat->size < end) {
    co_return Error(ErrorCode::kCorrupt, data.path() + " ends at " + std::to_string(stat->size) +
                                             ", but the map has data up to " + std::to_string(end) +
                                             "; restore the volume from a backup");
  }
  co_return Result<void>();
}

/// The size that creation or a resize gave it may not have become durable.
Task<Result<void>> restore_data_size(File& data, std::uint64_t volume_size) {
  auto stat = co_await data.stat();
  SNAP_CO_RETURN_IF_ERROR(stat);
  if (stat->size == data_file_size(volume_size)) co_return Result<void>();
  auto sized = co_await data.truncate(data_file_size(volume_size));
  SNAP_CO_RETURN_IF_ERROR(sized);
  co_return Result<void>();
}

Task<Result<std::unique_ptr<Delta>>> open_sealed(std::unique_ptr<Directory> dir) {
  auto data = co_await open_part(*dir, kDataName, false);
  SNAP_CO_RETURN_IF_ERROR(data);
  auto map_file = co_await open_part(*dir, kMapName, false);
  SNAP_CO_RETURN_IF_ERROR(map_file);
  auto blocks = BlockMap::make();
  SNAP_CO_RETURN_IF_ERROR(blocks);
  auto map = co_await MapFile::load(std::move(*map_file), **blocks, false);
  SNAP_CO_RETURN_IF_ERROR(map);
  if (!map->point().sealed) {
    co_return Error(ErrorCode::kCorrupt, map->file().path() +
                                             " does not end with the segment of a sealed delta; "
                                             "restore it from a backup");
  }
  auto checked = co_await check_data_size(**data, **blocks, 0);
  SNAP_CO_RETURN_IF_ERROR(checked);
  DeltaImpl::Files files{std::move(dir), std::move(*data), std::move(*blocks), std::move(*map),
                         nullptr};
  std::unique_ptr<Delta> delta = std::make_unique<DeltaImpl>(std::move(files));
  co_return std::move(delta);
}

Task<Result<std::unique_ptr<Delta>>> open_writable(std::unique_ptr<Directory> dir) {
  auto data = co_await open_part(*dir, kDataName, true);
  SNAP_CO_RETURN_IF_ERROR(data);
  auto map_file = co_await open_part(*dir, kMapName, true);
  SNAP_CO_RETURN_IF_ERROR(map_file);
  auto journal_file = co_await open_part(*dir, kJournalName, true);
  SNAP_CO_RETURN_IF_ERROR(journal_file);
  OpenFlags to_write;
  to_write.write = true;
  auto journal_files = co_await Journal::open(*dir, kJournalName, to_write);
  SNAP_CO_RETURN_IF_ERROR(journal_files);
  auto settled = co_await settle(*dir, **data, **map_file);
  SNAP_CO_RETURN_IF_ERROR(settled);
  auto gone = co_await dir->unlink(kMapNewName);
  if (!gone && gone.error().code() != ErrorCode::kNotFound) co_return gone.error();
  auto blocks = BlockMap::make();
  SNAP_CO_RETURN_IF_ERROR(blocks);
  auto map = co_await MapFile::load(std::move(*map_file), **blocks, true);
  SNAP_CO_RETURN_IF_ERROR(map);
  auto journal = std::make_unique<Journal>(std::move(*journal_files), map->id(), map->secret(),
                                           map->point().through);
  DeltaImpl::Files files{std::move(dir), std::move(*data), std::move(*blocks), std::move(*map),
                         std::move(journal)};
  auto delta = std::make_unique<DeltaImpl>(std::move(files));
  auto recovered = co_await delta->recover();
  SNAP_CO_RETURN_IF_ERROR(recovered);
  std::unique_ptr<Delta> out = std::move(delta);
  co_return std::move(out);
}

}  // namespace

Task<Result<std::unique_ptr<Delta>>> Delta::open(std::unique_ptr<Directory> dir, Mode mode) {
  if (mode == Mode::kSealed) {
    auto sealed = co_await open_sealed(std::move(dir));
    SNAP_CO_RETURN_IF_ERROR(sealed);
    co_return std::move(*sealed);
  }
  auto opened = co_await open_writable(std::move(dir));
  SNAP_CO_RETURN_IF_ERROR(opened);
  co_return std::move(*opened);
}

Task<Result<void>> DeltaImpl::recover() {
  auto tail = co_await journal_->scan(map_.point().through, size());
  SNAP_CO_RETURN_IF_ERROR(tail);
  // Numbers of segments never go back, so a header of any age holds.
  if (map_.next_number() <= journal_->closed()) {
    co_return Error(ErrorCode::kCorrupt,
                    map_.file().path() + " ends with segment " +
                        std::to_string(map_.next_number() - 1) + " of " +
                        std::to_string(journal_->closed()) +
                        ": it was cut short; restore the volume from a backup");
  }
  auto checked = co_await check_data_size(*data_, *blocks_, tail->synced_end);
  SNAP_CO_RETURN_IF_ERROR(checked);
  for (const Change& change : tail->changes) {
    auto restored = blocks_->restore(change);
    SNAP_CO_RETURN_IF_ERROR(restored);
  }
  claimed_ = blocks_->present_chunks();
  auto sized = co_await restore_data_size(*data_, size());
  SNAP_CO_RETURN_IF_ERROR(sized);
  if (!tail->blocks.empty()) {
    // Rule Recovery: the blocks are in the data file before a segment names them as data.
    auto replayed = co_await journal_->replay(*tail, *data_, size());
    SNAP_CO_RETURN_IF_ERROR(replayed);
    auto synced = co_await sync_data(next_sync());
    SNAP_CO_RETURN_IF_ERROR(synced);
  }
  if (map_.torn()) {
    auto cut = co_await map_.cut_tail();
    SNAP_CO_RETURN_IF_ERROR(cut);
  }
  if (tail->records == 0 && !tail->torn) co_return Result<void>();
  // The number of a torn record is not given again, or its remains could pass for the new one's.
  journal_->skip_to(tail->last_sequence + (tail->torn ? 1 : 0));
  // Rule Recovery: replayed changes are in a durable segment before anything is served, and before
  // the areas that hold their records are filled again.
  auto written = co_await checkpoint_all(tail->changes, false, size());
  SNAP_CO_RETURN_IF_ERROR(written);
  co_return Result<void>();
}

}  // namespace snap
