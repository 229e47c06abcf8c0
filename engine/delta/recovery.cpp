// Opening a delta (docs/durability.md, Recovery): the map's segments, then the journal's records
// that continue from the last segment. A gap is damage and refused; a torn end is cut off. What was
// found is durable in the map before anything is served. Where a process died on the same boot, its
// live map is taken in place of what the records carry.
#include <algorithm>
#include <bit>

#include "engine/delta/delta_impl.h"
#include "engine/delta/run_file.h"

namespace snap {

namespace {

Task<Result<std::unique_ptr<File>>> open_part(Directory& dir, std::string name, bool write) {
  OpenFlags flags;
  flags.write = write;
  auto file = co_await dir.open(name, flags);
  if (!file && file.error().code() == ErrorCode::kNotFound) {
    co_return file.error().with_code(ErrorCode::kCorrupt).with_context("a file of a delta is gone");
  }
  co_return file;
}

/// The same, to write, and what is read of it is what the disk has. Rule Fault: after a sync that
/// failed the cache holds pages that look clean and are not on the disk. They go; pages that are
/// still dirty stay.
Task<Result<std::unique_ptr<File>>> open_as_on_disk(Directory& dir, std::string name) {
  auto file = co_await open_part(dir, std::move(name), true);
  SNAP_CO_RETURN_IF_ERROR(file);
  auto dropped = co_await (*file)->drop_cache();
  SNAP_CO_RETURN_IF_ERROR(dropped);
  co_return std::move(*file);
}

/// What recovery reads and builds on may still be in the page cache of a process that died, so it
/// is made durable first (rule Recovery).
Task<Result<void>> settle(Directory& dir, File& data, File& map, File& journal) {
  auto data_synced = co_await data_sync(data);
  SNAP_CO_RETURN_IF_ERROR(data_synced);
  auto map_synced = co_await data_sync(map);
  SNAP_CO_RETURN_IF_ERROR(map_synced);
  // A record makes itself stable, not the header and the zeros that it needs.
  auto journal_synced = co_await data_sync(journal);
  SNAP_CO_RETURN_IF_ERROR(journal_synced);
  auto dir_synced = co_await dir.sync();
  SNAP_CO_RETURN_IF_ERROR(dir_synced);
  co_return Result<void>();
}

}  // namespace

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

Result<void> check_sealed(MapFile& map) {
  if (map.point().sealed) return {};
  return Error(ErrorCode::kCorrupt, map.file().path() +
                                        " does not end with the segment of a sealed delta; "
                                        "restore it from a backup");
}

Result<void> check_not_cut_short(MapFile& map, const Journal& journal) {
  // Numbers of segments never go back, so a header of any age holds.
  if (map.next_number() > journal.closed()) return {};
  return Error(ErrorCode::kCorrupt, map.file().path() + " ends with segment " +
                                        std::to_string(map.next_number() - 1) + " of " +
                                        std::to_string(journal.closed()) +
                                        ": it was cut short; restore the volume from a backup");
}

namespace {

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
  auto sealed = check_sealed(*map);
  SNAP_CO_RETURN_IF_ERROR(sealed);
  auto checked = co_await check_data_size(**data, **blocks, 0);
  SNAP_CO_RETURN_IF_ERROR(checked);
  DeltaImpl::Files files{std::move(dir), std::move(*data), std::move(*blocks), std::move(*map),
                         nullptr};
  std::unique_ptr<Delta> delta = std::make_unique<DeltaImpl>(std::move(files));
  co_return std::move(delta);
}

/// Takes the note away that the delta was closed in order, so that it counts once, by one that it
/// is open. False: this one could not be written, so there is none.
Task<Result<bool>> take_note(Directory& dir, LiveMap::Token token) {
  auto noted = co_await note_open(dir, token);
  if (noted) co_return true;
  auto gone = co_await remove_run(dir);
  SNAP_CO_RETURN_IF_ERROR(gone);
  co_return false;
}

/// What the process knew that had the delta open last, if it died on this boot and its live map
/// counts.
Task<Result<std::optional<std::vector<Change>>>> read_live(std::optional<LivePlace> place,
                                                           std::optional<LiveMap::Token> token) {
  if (!place || !token) co_return std::optional<std::vector<Change>>();
  auto reading = offload([&] { return BlockMap::read_live(*place, *token); });
  auto live = co_await reading;
  co_return live;
}

Task<Result<std::unique_ptr<Delta>>> open_writable(std::unique_ptr<Directory> dir,
                                                   std::string live_folder) {
  auto data = co_await open_part(*dir, kDataName, true);
  SNAP_CO_RETURN_IF_ERROR(data);
  auto map_file = co_await open_as_on_disk(*dir, kMapName);
  SNAP_CO_RETURN_IF_ERROR(map_file);
  auto journal_file = co_await open_as_on_disk(*dir, kJournalName);
  SNAP_CO_RETURN_IF_ERROR(journal_file);
  OpenFlags to_write;
  to_write.write = true;
  auto journal_files = co_await Journal::open(*dir, kJournalName, to_write);
  SNAP_CO_RETURN_IF_ERROR(journal_files);
  auto blocks = BlockMap::make();
  SNAP_CO_RETURN_IF_ERROR(blocks);
  auto map = co_await MapFile::load(std::move(*map_file), **blocks, true);
  SNAP_CO_RETURN_IF_ERROR(map);
  std::optional<LivePlace> place;
  if (!live_folder.empty()) {
    auto found = live_place(live_folder, map->id(), **data);
    if (found) place = *found;  // else go_live() tells why not
  }
  const RunNote left = co_await read_run(*dir, **data);
  std::optional<LiveMap::Token> noted;
  if (left.closed) {
    SystemRandom random;
    const LiveMap::Token token = LiveMap::Token::make(random);
    auto taken = co_await take_note(*dir, token);
    SNAP_CO_RETURN_IF_ERROR(taken);
    if (*taken) noted = token;
  } else {
    auto dropped = co_await (*data)->drop_cache();  // as open_as_on_disk()
    SNAP_CO_RETURN_IF_ERROR(dropped);
  }
  auto settled = co_await settle(*dir, **data, map->file(), *journal_files->buffered);
  if (!settled && place) LiveMap::remove(*place);  // rule Fault: its blocks may be lost
  SNAP_CO_RETURN_IF_ERROR(settled);
  auto live = co_await read_live(place, left.token);
  SNAP_CO_RETURN_IF_ERROR(live);
  auto gone = co_await dir->unlink(kMapNewName);
  if (!gone && gone.error().code() != ErrorCode::kNotFound) co_return gone.error();
  auto journal = std::make_unique<Journal>(std::move(*journal_files), map->id(), map->secret(),
                                           map->point().through);
  DeltaImpl::Files files{std::move(dir), std::move(*data), std::move(*blocks), std::move(*map),
                         std::move(journal)};
  auto delta = std::make_unique<DeltaImpl>(std::move(files));
  auto recovered = co_await delta->recover(std::move(*live));
  SNAP_CO_RETURN_IF_ERROR(recovered);
  auto ready = co_await delta->go_live(std::move(live_folder), noted);
  SNAP_CO_RETURN_IF_ERROR(ready);
  std::unique_ptr<Delta> out = std::move(delta);
  co_return std::move(out);
}

}  // namespace

Task<Result<std::unique_ptr<Delta>>> Delta::open(std::unique_ptr<Directory> dir, Mode mode,
                                                 std::string live_folder) {
  if (mode == Mode::kSealed) {
    auto sealed = co_await open_sealed(std::move(dir));
    SNAP_CO_RETURN_IF_ERROR(sealed);
    co_return std::move(*sealed);
  }
  auto opened = co_await open_writable(std::move(dir), std::move(live_folder));
  SNAP_CO_RETURN_IF_ERROR(opened);
  co_return std::move(*opened);
}

Task<void> Delta::forget_live(Directory& dir, Uuid id, std::string live_folder) {
  if (live_folder.empty()) co_return;
  auto data = co_await dir.open(kDataName, OpenFlags{});
  if (!data) co_return;
  auto place = live_place(live_folder, id, **data);
  if (place) LiveMap::remove(*place);
}

Task<Result<void>> DeltaImpl::go_live(std::string folder, std::optional<LiveMap::Token> noted) {
  auto watch = co_await open_part(*dir_, kDataName, false);
  SNAP_CO_RETURN_IF_ERROR(watch);
  data_watch_ = std::move(*watch);
  if (!folder.empty()) {
    auto started = co_await start_live(std::move(folder), noted);
    if (started) co_return Result<void>();
    live_trouble_ = started.error();
  }
  // What an earlier process left must not count once this one changes something.
  auto gone = co_await remove_run(*dir_);
  SNAP_CO_RETURN_IF_ERROR(gone);
  co_return Result<void>();
}

Task<Result<void>> DeltaImpl::start_live(std::string folder, std::optional<LiveMap::Token> noted) {
  SystemRandom random;
  const LiveMap::Token token = noted ? *noted : LiveMap::Token::make(random);
  if (!noted) {
    auto written = co_await note_open(*dir_, token);
    SNAP_CO_RETURN_IF_ERROR(written);
  }
  auto place = live_place(folder, id_, *data_);
  SNAP_CO_RETURN_IF_ERROR(place);
  auto live = BlockMap::make_live(*place, token);
  if (!live) LiveMap::remove(*place);
  SNAP_CO_RETURN_IF_ERROR(live);
  blocks_->go_live(std::move(*live));
  if (blocks_->live()->counts()) co_return Result<void>();
  co_return Error(ErrorCode::kNoSpace, "no space left in " + folder);
}

Result<std::vector<Change>> DeltaImpl::take_live(std::vector<Change> live) {
  clip_changes(live, size());
  std::vector<Change> changes;
  for (Change change : live) {
    const MapWord known = blocks_->word(ChunkIndex(change.chunk));
    change.data &= static_cast<BlockMask>(~data_of(known));
    change.zero &= static_cast<BlockMask>(~zero_of(known));
    if ((change.data | change.zero) == 0) continue;
    auto restored = blocks_->restore(change);
    SNAP_RETURN_IF_ERROR(restored);
    changes.push_back(change);
  }
  return changes;
}

Task<Result<void>> DeltaImpl::recover(std::optional<std::vector<Change>> live) {
  auto tail = co_await journal_->scan(map_.point().through, size());
  SNAP_CO_RETURN_IF_ERROR(tail);
  auto whole = check_not_cut_short(map_, *journal_);
  SNAP_CO_RETURN_IF_ERROR(whole);
  auto checked = co_await check_data_size(*data_, *blocks_, tail->synced_end);
  SNAP_CO_RETURN_IF_ERROR(checked);
  for (const Change& change : tail->changes) {
    auto restored = blocks_->restore(change);
    SNAP_CO_RETURN_IF_ERROR(restored);
  }
  std::vector<Change> changes = std::move(tail->changes);
  if (live) {
    auto more = take_live(std::move(*live));
    SNAP_CO_RETURN_IF_ERROR(more);
    changes.insert(changes.end(), more->begin(), more->end());
  }
  claimed_ = blocks_->present_chunks();
  quota_.set_taken(blocks_->data_blocks());
  auto sized = co_await restore_data_size(*data_, size());
  SNAP_CO_RETURN_IF_ERROR(sized);
  if (!tail->blocks.empty() && !live) {
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
  if (changes.empty() && tail->records == 0 && !tail->torn) co_return Result<void>();
  // The number of a torn record is not given again, or its remains could pass for the new one's.
  journal_->skip_to(tail->last_sequence + (tail->torn ? 1 : 0));
  // Rule Recovery: replayed changes are in a durable segment before anything is served, and before
  // the areas that hold their records are filled again.
  auto written = co_await checkpoint_all(changes, false, size());
  SNAP_CO_RETURN_IF_ERROR(written);
  co_return Result<void>();
}

}  // namespace snap
