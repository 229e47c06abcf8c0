// Volumes that have lost their records. A folder with a lock but with neither a record nor
// removed.json is one, or a creation that an earlier release was cut short in: that one has no
// data.
#include "engine/delta/delta_verify.h"
#include "engine/store/names.h"
#include "engine/store/volume_store.h"

namespace snap {

namespace {

Task<Result<bool>> has(Directory& dir, std::string name) {
  auto stat = co_await dir.stat(name);
  if (stat) co_return true;
  if (stat.error().code() == ErrorCode::kNotFound) co_return false;
  co_return stat.error();
}

/// Of a volume's folder. In this order: a creation puts the lock in after removed.json, and its
/// record before it takes that away.
Task<Result<bool>> lacks_record(Directory& dir) {
  auto locked = co_await has(dir, kVolumeLock);
  if (!locked || !*locked) co_return locked;
  for (const char* name : {kVolumeRemoved, kVolumeRecord}) {
    auto there = co_await has(dir, name);
    if (!there) co_return there.error();
    if (*there) co_return false;
  }
  co_return true;
}

Task<bool> has_bytes(Directory& dir, std::string name) {
  auto file = co_await dir.open(name, OpenFlags{});
  if (!file) co_return file.error().code() != ErrorCode::kNotFound;
  auto extent = co_await (*file)->next_data(0);
  co_return !extent || extent->has_value();
}

/// Whether the delta holds a block, or may. Nothing of it is changed.
Task<bool> may_hold_data(Directory* deltas, std::string uuid) {
  for (const DeltaUse use : {DeltaUse::kSealed, DeltaUse::kAtRest}) {
    auto dir = co_await deltas->open_dir(uuid);
    if (!dir) co_return dir.error().code() != ErrorCode::kNotFound;
    auto verified = co_await verify_delta(std::move(*dir), use);
    if (verified) co_return verified->blocks->next_present(ChunkIndex(0)).has_value();
  }
  // Damaged, or its creation was cut short: then nothing has been written to either file.
  auto dir = co_await deltas->open_dir(uuid);
  if (!dir) co_return dir.error().code() != ErrorCode::kNotFound;
  const bool data = co_await has_bytes(**dir, "data");
  if (data) co_return true;
  const bool journal = co_await has_bytes(**dir, "journal");
  co_return journal;
}

}  // namespace

Error lost_record(const VolumeStore& volumes, const std::string& name,
                  const std::vector<std::string>& deltas) {
  const std::string folder = volumes.path() + "/" + name;
  std::string list;
  for (const std::string& delta : deltas)
    list += (list.empty() ? "" : ", ") + delta;
  return Error(ErrorCode::kCorrupt,
               "volume " + shown(name) + " has lost its record: " + folder + "/" + kVolumeRecord +
                   " is not there, and deltas that no volume names hold data, which may be its "
                   "own: " +
                   list +
                   "; restore the file from a copy of it, or the volume from a backup; or remove "
                   "the folder " +
                   folder + " by hand if the volume is not missed");
}

Task<Result<std::vector<std::string>>> VolumeStore::without_record() {
  auto entries = co_await volumes_->list();
  if (!entries) co_return entries.error();
  std::vector<std::string> out;
  for (const DirEntry& entry : *entries) {
    if (entry.type != FileStat::Type::kDirectory || !check_volume_name(entry.name)) continue;
    auto dir = co_await volumes_->open_dir(entry.name);
    if (!dir && dir.error().code() == ErrorCode::kNotFound) continue;
    if (!dir) co_return dir.error();
    auto lacks = co_await lacks_record(**dir);
    if (!lacks) co_return lacks.error();
    if (*lacks) out.push_back(entry.name);
  }
  co_return out;
}

Task<Result<std::set<std::string>>> VolumeStore::named_deltas() {
  std::vector<Error> damaged;
  auto all = co_await list(&damaged);
  if (!all) co_return all.error();
  std::set<std::string> out;
  for (const StoredVolume& volume : *all) {
    for (std::string& delta : deltas_of(volume.record))
      out.insert(std::move(delta));
  }
  co_return out;
}

Task<Result<LostRecords>> VolumeStore::find_lost(std::optional<std::set<std::string>> named) {
  LostRecords out;
  auto names = co_await without_record();
  if (!names) co_return names.error();
  if (names->empty()) co_return out;
  if (!named) {
    auto all = co_await named_deltas();
    if (!all) co_return all.error();
    named = std::move(*all);
  }
  auto deltas = co_await list_deltas();
  if (!deltas) co_return deltas.error();
  for (const std::string& uuid : *deltas) {
    if (named->contains(uuid)) continue;
    const bool holds = co_await may_hold_data(deltas_.get(), uuid);
    if (holds) out.deltas.push_back(uuid);
  }
  if (!out.deltas.empty()) out.volumes = std::move(*names);
  co_return out;
}

/// Before the lock of a volume to be made: from now on its folder says that there is none yet, so
/// that what is cut short is not taken for one that has lost its record. False: it said so already.
Task<Result<bool>> VolumeStore::mark_new(std::string name) {
  auto dir = co_await volumes_->open_dir(name);
  if (!dir) co_return dir.error();
  auto taken = co_await has(**dir, kVolumeRecord);
  if (!taken) co_return taken.error();
  if (*taken) co_return false;  // lock_new() says so once it is sure
  auto lacks = co_await lacks_record(**dir);
  if (!lacks) co_return lacks.error();
  if (*lacks) {
    auto maker = co_await holder(name);
    if (!maker) co_return maker.error();
    if (*maker) co_return false;  // by now someone makes it
    auto lost = co_await find_lost(std::nullopt);
    if (!lost) co_return lost.error();
    if (!lost->deltas.empty()) co_return lost_record(*this, name, lost->deltas);
  }
  OpenFlags flags;
  flags.write = flags.create = flags.exclusive = true;
  auto marked = co_await (*dir)->open(kVolumeRemoved, flags);
  if (marked) co_return true;
  if (marked.error().code() == ErrorCode::kExists) co_return false;
  co_return marked.error();
}

}  // namespace snap
