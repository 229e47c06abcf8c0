// Volumes that have lost their records: folders with a lock but with neither a record nor
// removed.json, where there are deltas that no record names.
#include "engine/store/names.h"
#include "engine/store/volume_store.h"

namespace snap {

namespace {

/// Of a volume's folder.
Task<Result<bool>> lacks_record(Directory& dir) {
  auto there = co_await has_entry(dir, kVolumeRecord);
  if (!there) co_return there.error();
  if (*there) co_return false;  // as most have
  auto locked = co_await has_entry(dir, kVolumeLock);
  if (!locked || !*locked) co_return locked;
  // In this order: a creation takes removed.json away after it has put its record in.
  for (const char* name : {kVolumeRemoved, kVolumeRecord}) {
    auto found = co_await has_entry(dir, name);
    if (!found) co_return found.error();
    if (*found) co_return false;
  }
  co_return true;
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
                   " is not there, and deltas that no volume names may be its own: " + list +
                   "; restore the file from a copy of it, or the volume from a backup; or remove "
                   "the folder " +
                   folder + " by hand if the volume is not missed");
}

Task<Result<std::vector<std::string>>> VolumeStore::without_record() {
  return folders_where(&lacks_record);
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
    if (!named->contains(uuid)) out.deltas.push_back(uuid);
  }
  if (!out.deltas.empty()) out.volumes = std::move(*names);
  co_return out;
}

/// For a volume to be made, before its lock: Corrupt if its folder is of one that has lost its
/// record. Else the folder says from now on that there is none yet, so that what is cut short is
/// not taken for such a one.
Task<Result<void>> VolumeStore::prepare_new(std::string name) {
  auto dir = co_await volumes_->open_dir(name);
  if (!dir) co_return dir.error();
  auto taken = co_await has_entry(**dir, kVolumeRecord);
  if (!taken) co_return taken.error();
  if (*taken) co_return Result<void>();  // lock_new() says so once it is sure
  auto lacks = co_await lacks_record(**dir);
  if (!lacks) co_return lacks.error();
  if (*lacks) {
    auto maker = co_await holder(name);
    if (!maker) co_return maker.error();
    if (*maker) co_return Result<void>();  // by now someone makes it
    auto lost = co_await find_lost(std::nullopt);
    if (!lost) co_return lost.error();
    if (!lost->deltas.empty()) co_return lost_record(*this, name, lost->deltas);
  }
  auto marked = co_await mark_new(**dir);
  co_return marked;
}

/// Where it means nothing, beside a record, the holder of the lock removes it.
Task<Result<void>> VolumeStore::mark_new(Directory& dir) {
  OpenFlags flags;
  flags.write = flags.create = true;
  auto marked = co_await dir.open(kVolumeRemoved, flags);
  if (!marked) co_return marked.error();
  co_return Result<void>();
}

}  // namespace snap
