// What lies in the store's folders: what does not belong there (which is nobody's to remove), and
// what dead processes left of writing (which is).
#include <nlohmann/json.hpp>

#include "engine/store/backup_target.h"
#include "engine/store/check_impl.h"
#include "engine/store/names.h"
#include "engine/store/settings.h"
#include "engine/store/sweep.h"

namespace snap {

namespace {

using Type = FileStat::Type;

const std::map<std::string, Type>& root_names() {
  static const std::map<std::string, Type> names = {
      {"format", Type::kFile},         {"oci-layout", Type::kFile},
      {"index.json", Type::kFile},     {"blobs", Type::kDirectory},
      {"volumes", Type::kDirectory},   {"deltas", Type::kDirectory},
      {"tmp", Type::kDirectory},       {"lock", Type::kFile},
      {"index.lock", Type::kFile},     {"creating", Type::kFile},
      {kBackupMarker, Type::kFile},    {"settings.json", Type::kFile},
      {"events", Type::kDirectory},    {kBackupLock, Type::kFile},
      {"lost+found", Type::kDirectory}};
  return names;
}

const char* word_of(Type type) {
  switch (type) {
    case Type::kFile:
      return "a file";
    case Type::kDirectory:
      return "a folder";
    default:
      return "a symbolic link or a device";
  }
}

/// Whether no one holds the lock `name`; a lock that is not there is free.
Task<bool> is_free(Directory& dir, std::string name) {
  auto file = co_await dir.open(name, OpenFlags{});
  if (!file) co_return file.error().code() == ErrorCode::kNotFound;
  auto free = co_await (*file)->try_lock(false);
  co_return free&&* free;
}

/// Bytes on disk of `name` and all below it.
Task<std::uint64_t> allocated_in(Directory& dir, std::string name) {
  auto stat = co_await dir.stat(name);
  if (!stat) co_return 0;
  std::uint64_t sum = stat->allocated;
  if (stat->type != Type::kDirectory) co_return sum;
  auto child = co_await dir.open_dir(name);
  if (!child) co_return sum;
  auto entries = co_await (*child)->list();
  if (!entries) co_return sum;
  for (const DirEntry& entry : *entries)
    sum += co_await allocated_in(**child, entry.name);
  co_return sum;
}

}  // namespace

void StoreCheck::add_foreign(const std::string& path, FileStat::Type type) {
  foreign_.insert(path);
  Finding finding;
  finding.object = shown(path);
  finding.what = store_.path + "/" + path + " is " + word_of(type) +
                 " that does not belong there; move it away";
  add(std::move(finding), {});
}

Task<std::vector<DirEntry>> StoreCheck::list(Directory& dir, std::string path) {
  auto entries = co_await dir.list();
  if (entries) co_return std::move(*entries);
  if (entries.error().code() != ErrorCode::kNotFound) add_error(path + "/", entries.error(), {});
  co_return std::vector<DirEntry>();
}

Task<void> StoreCheck::check_folders() {
  co_await check_root();
  co_await check_oci_layout();
  co_await check_blob_folder();
  co_await check_volume_folders();
  co_await check_delta_folders();
}

Task<void> StoreCheck::check_root() {
  const auto entries = co_await list(*store_.root, "the store");
  for (const DirEntry& entry : entries) {
    if (entry.type == Type::kFile && is_temporary_name(entry.name)) continue;
    const auto known = root_names().find(entry.name);
    if (known == root_names().end() || known->second != entry.type)
      add_foreign(entry.name, entry.type);
  }
  auto settings = co_await read_settings(*store_.root);
  if (!settings) add_error("settings.json", settings.error(), {});
  auto blobs = co_await store_.root->open_dir("blobs");
  if (!blobs) co_return;  // the store would not have been opened
  const auto kinds = co_await list(**blobs, "blobs");
  for (const DirEntry& entry : kinds) {
    if (entry.name != "sha256" || entry.type != Type::kDirectory)
      add_foreign("blobs/" + entry.name, entry.type);
  }
}

Task<void> StoreCheck::check_oci_layout() {
  constexpr std::size_t kMaxBytes = 4096;
  auto bytes = co_await read_whole(*store_.root, "oci-layout", kMaxBytes);
  if (!bytes) {
    add_error("oci-layout", bytes.error(), {});
    co_return;
  }
  const auto* text = reinterpret_cast<const char*>(bytes->data());
  const auto json = nlohmann::json::parse(text, text + bytes->size(), nullptr, false);
  if (json.is_object() && json.contains("imageLayoutVersion") &&
      json["imageLayoutVersion"] == "1.0.0")
    co_return;
  Finding finding;
  finding.object = "oci-layout";
  finding.what = store_.path +
                 R"(/oci-layout is damaged: it should be {"imageLayoutVersion":"1.0.0"}; )"
                 "OCI tools read it, this program does not";
  add(std::move(finding), {});
}

Task<void> StoreCheck::check_blob_folder() {
  const auto entries = co_await list(store_.blobs.dir(), "blobs/sha256");
  for (const DirEntry& entry : entries) {
    if (entry.type != Type::kFile || !parse_sha256_hex(entry.name))
      add_foreign("blobs/sha256/" + entry.name, entry.type);
  }
}

Task<void> StoreCheck::check_volume_folders() {
  const auto entries = co_await list(store_.volumes.volumes_dir(), "volumes");
  for (const DirEntry& entry : entries) {
    if (entry.type != Type::kDirectory || !check_volume_name(entry.name)) {
      add_foreign("volumes/" + entry.name, entry.type);
      continue;
    }
    co_await check_volume_folder(entry.name);
  }
}

Task<void> StoreCheck::check_volume_folder(std::string name) {
  auto dir = co_await store_.volumes.volumes_dir().open_dir(name);
  if (!dir) co_return;  // removed since it was listed, or gather() tells
  const auto entries = co_await list(**dir, "volumes/" + name);
  for (const DirEntry& entry : entries) {
    const bool ours = entry.name == kVolumeRecord || entry.name == kVolumeRemoved ||
                      entry.name == kVolumeLock || is_temporary_name(entry.name);
    if (!ours || entry.type != Type::kFile)
      add_foreign("volumes/" + name + "/" + entry.name, entry.type);
  }
}

Task<void> StoreCheck::check_delta_folders() {
  const auto entries = co_await list(store_.volumes.deltas_dir(), "deltas");
  for (const DirEntry& entry : entries) {
    if (entry.type != Type::kDirectory || !Uuid::parse(entry.name)) {
      add_foreign("deltas/" + entry.name, entry.type);
    } else {
      co_await check_delta_folder(entry.name);
    }
  }
}

Task<void> StoreCheck::check_delta_folder(std::string uuid) {
  static const std::set<std::string> kNames = {"data", "map", "map.new", "journal", "run"};
  auto dir = co_await store_.volumes.deltas_dir().open_dir(uuid);
  if (!dir) co_return;
  const auto entries = co_await list(**dir, "deltas/" + uuid);
  for (const DirEntry& entry : entries) {
    if (!kNames.contains(entry.name) || entry.type != Type::kFile)
      add_foreign("deltas/" + uuid + "/" + entry.name, entry.type);
  }
}

// ---- Leftovers

void StoreCheck::add_leftover(const std::string& path, const std::string& what, std::uint64_t bytes,
                              bool reclaimed) {
  Finding finding;
  finding.kind = Finding::Kind::kLeak;
  finding.object = shown(path);
  finding.what = what;
  finding.bytes = bytes;
  finding.reclaimed = reclaimed;
  add(std::move(finding), {});
}

Task<void> StoreCheck::find_leftovers() {
  co_await find_tmp_leftovers();
  co_await find_root_leftovers();
  co_await find_volume_leftovers();
}

Task<void> StoreCheck::find_tmp_leftovers() {
  auto abandoned = co_await find_abandoned(*store_.tmp);
  if (!abandoned) {
    add_error("tmp/", abandoned.error(), {});
    co_return;
  }
  std::map<std::string, std::uint64_t> bytes;
  for (const std::string& name : *abandoned)
    bytes[name] = co_await allocated_in(*store_.tmp, name);
  const bool repair = options_.repair && !store_.denied;
  if (repair) {
    auto swept = co_await sweep_scratch(*store_.tmp);
    if (!swept) add_error("tmp/", swept.error(), {});
  }
  for (const auto& [name, allocated] : bytes) {
    auto there = co_await store_.tmp->stat(name);
    add_leftover("tmp/" + name, "what a process that died was writing", allocated,
                 repair && !there);
  }
  const auto entries = co_await list(*store_.tmp, "tmp");
  for (const DirEntry& entry : entries) {
    if (entry.type == Type::kDirectory && Uuid::parse(entry.name)) continue;
    add_foreign("tmp/" + entry.name, entry.type);
  }
}

Task<void> StoreCheck::find_root_leftovers() {
  std::map<std::string, std::uint64_t> bytes;
  const auto entries = co_await list(*store_.root, "the store");
  for (const DirEntry& entry : entries) {
    if (entry.type == Type::kFile && is_temporary_name(entry.name))
      bytes[entry.name] = co_await allocated_in(*store_.root, entry.name);
  }
  if (bytes.empty()) co_return;
  const bool free = co_await is_free(*store_.root, kIndexLockName);
  if (!free) co_return;  // someone is replacing index.json
  const bool repair = options_.repair && !store_.denied;
  if (repair) co_await remove_root_temporaries(*store_.root);
  for (const auto& [name, allocated] : bytes) {
    auto there = co_await store_.root->stat(name);
    add_leftover(name, "a replacement that was cut short", allocated, repair && !there);
  }
}

Task<void> StoreCheck::find_volume_leftovers() {
  const auto entries = co_await list(store_.volumes.volumes_dir(), "volumes");
  for (const DirEntry& entry : entries) {
    if (entry.type != Type::kDirectory || !check_volume_name(entry.name)) continue;
    co_await find_leftovers_of(entry.name);
  }
}

/// A folder without a record, and what was cut short beside one: a replacement, a creation.
Task<void> StoreCheck::find_leftovers_of(std::string name) {
  if (lost_.contains(name)) co_return;
  const std::string path = "volumes/" + name;
  auto dir = co_await store_.volumes.volumes_dir().open_dir(name);
  if (!dir) co_return;
  const bool free = co_await is_free(**dir, kVolumeLock);
  if (!free) co_return;  // someone works on it
  const auto entries = co_await list(**dir, path);
  std::map<std::string, std::uint64_t> cut_short;
  bool record = false, foreign = false;
  for (const DirEntry& entry : entries) {
    if (entry.name == kVolumeRecord) record = true;
    if (foreign_.contains(path + "/" + entry.name)) foreign = true;
    const bool left = entry.name == kVolumeRemoved || is_temporary_name(entry.name);
    if (entry.type == Type::kFile && left)
      cut_short[entry.name] = co_await allocated_in(**dir, entry.name);
  }
  const bool repair = options_.repair && !store_.denied && report_.leaks_known;
  if (!record) {
    if (foreign) co_return;
    if (repair) {
      Holder self = this_process();
      auto lock = co_await store_.volumes.lock_new(name, std::move(self));
      if (lock) co_await store_.volumes.discard(std::move(*lock), name);
    }
    auto there = co_await store_.volumes.volumes_dir().stat(name);
    add_leftover(path, "a folder without a volume.json: a volume that was being made or removed", 0,
                 repair && !there);
    co_return;
  }
  if (cut_short.empty()) co_return;
  if (repair) {
    Holder self = this_process();
    auto lock = co_await store_.volumes.lock(name, std::move(self));  // which removes them
  }
  for (const auto& [temporary, allocated] : cut_short) {
    auto there = co_await (*dir)->stat(temporary);
    const bool creation = temporary == kVolumeRemoved;
    add_leftover(path + "/" + temporary,
                 creation ? "left of the making of the volume" : "a replacement that was cut short",
                 allocated, repair && !there);
  }
}

}  // namespace snap
