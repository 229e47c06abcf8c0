#include "engine/delta/delta_verify.h"

#include "engine/delta/delta_impl.h"

namespace snap {

namespace {

Task<Result<std::unique_ptr<File>>> open_to_read(Directory& dir, std::string name) {
  auto file = co_await dir.open(name, OpenFlags{});
  if (!file && file.error().code() == ErrorCode::kNotFound)
    co_return file.error().with_code(ErrorCode::kCorrupt).with_context("a file of a delta is gone");
  co_return file;
}

/// What the journal holds beyond the map goes into `blocks`, as recovery would have it.
Task<Result<void>> verify_journal(Directory& dir, MapFile& map, File& data, BlockMap& blocks) {
  auto there = co_await open_to_read(dir, kJournalName);
  SNAP_CO_RETURN_IF_ERROR(there);
  auto files = co_await Journal::open(dir, kJournalName, OpenFlags{});
  SNAP_CO_RETURN_IF_ERROR(files);
  Journal journal(std::move(*files), map.id(), map.secret(), map.point().through);
  auto tail = co_await journal.scan(map.point().through, map.point().volume_size);
  SNAP_CO_RETURN_IF_ERROR(tail);
  auto whole = check_not_cut_short(map, journal);
  SNAP_CO_RETURN_IF_ERROR(whole);
  auto sized = co_await check_data_size(data, blocks, tail->synced_end);
  SNAP_CO_RETURN_IF_ERROR(sized);
  for (const Change& change : tail->changes) {
    auto restored = blocks.restore(change);
    SNAP_CO_RETURN_IF_ERROR(restored);
  }
  co_return Result<void>();
}

}  // namespace

Task<Result<VerifiedDelta>> verify_delta(std::unique_ptr<Directory> dir, DeltaUse use) {
  auto data = co_await open_to_read(*dir, kDataName);
  SNAP_CO_RETURN_IF_ERROR(data);
  auto map_file = co_await open_to_read(*dir, kMapName);
  SNAP_CO_RETURN_IF_ERROR(map_file);
  auto blocks = BlockMap::make();
  SNAP_CO_RETURN_IF_ERROR(blocks);
  auto map = co_await MapFile::load(std::move(*map_file), **blocks, false);
  SNAP_CO_RETURN_IF_ERROR(map);
  if (use == DeltaUse::kSealed) {
    auto sealed = check_sealed(*map);
    SNAP_CO_RETURN_IF_ERROR(sealed);
    auto sized = co_await check_data_size(**data, **blocks, 0);
    SNAP_CO_RETURN_IF_ERROR(sized);
  }
  if (use == DeltaUse::kAtRest) {
    auto journal = co_await verify_journal(*dir, *map, **data, **blocks);
    SNAP_CO_RETURN_IF_ERROR(journal);
  }
  co_return VerifiedDelta{map->id(), map->point().volume_size, std::move(*blocks)};
}

}  // namespace snap
