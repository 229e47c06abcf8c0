#include "engine/store/volume_store.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "engine/store/names.h"
#include "snap/limits.h"

namespace snap {

namespace {

std::span<const std::byte> bytes_of(const std::string& text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

/// What a crash left of replacing volume.json, and beside it of its creation.
Task<void> remove_leftovers(Directory& dir) {
  auto entries = co_await dir.list();
  if (!entries) co_return;
  const bool record = std::ranges::any_of(
      *entries, [](const DirEntry& entry) { return entry.name == kVolumeRecord; });
  for (const DirEntry& entry : *entries) {
    const bool stale = record && entry.name == kVolumeRemoved;
    if (!is_temporary_name(entry.name) && !stale) continue;
    auto removed = co_await dir.unlink(entry.name);
    (void)removed;  // of no harm where it stays
  }
}

void add_links(std::vector<std::string>& out, const std::vector<SealedLink>& links) {
  for (const SealedLink& link : links)
    out.push_back(link.delta);
}

template <class T>
void sort_unique(std::vector<T>& values) {
  std::sort(values.begin(), values.end());
  values.erase(std::unique(values.begin(), values.end()), values.end());
}

}  // namespace

Task<Result<StoredVolume>> VolumeStore::read_record(Directory& dir, std::string name) {
  auto bytes = co_await read_whole(dir, kVolumeRecord, kMaxJsonBytes);
  if (!bytes) co_return bytes.error();
  auto decoded = decode_volume(
      name, std::string_view(reinterpret_cast<const char*>(bytes->data()), bytes->size()));
  co_return decoded;
}

Holder this_process() {
  return Holder{static_cast<int>(::getpid()), ""};
}

std::vector<std::string> deltas_of(const VolumeRecord& record) {
  std::vector<std::string> out{record.delta};
  add_links(out, record.sealed);
  for (const SnapshotRecord& snapshot : record.snapshots)
    add_links(out, snapshot.sealed);
  sort_unique(out);
  return out;
}

std::vector<BlobDigest> manifests_of(const VolumeRecord& record) {
  std::vector<BlobDigest> out;
  const auto add = [&out](const std::optional<BlobDigest>& manifest) {
    if (manifest) out.push_back(*manifest);
  };
  add(record.manifest);
  add(record.base_manifest);
  for (const SnapshotRecord& snapshot : record.snapshots) {
    add(snapshot.manifest);
    add(snapshot.base_manifest);
  }
  sort_unique(out);
  return out;
}

// ---- Records

Task<Result<bool>> has_entry(Directory& dir, std::string name) {
  auto stat = co_await dir.stat(std::move(name));
  if (stat) co_return true;
  if (stat.error().code() == ErrorCode::kNotFound) co_return false;
  co_return stat.error();
}

Task<Result<bool>> VolumeStore::has_record(Directory& dir) {
  return has_entry(dir, kVolumeRecord);
}

Task<Result<std::vector<std::string>>> VolumeStore::names() {
  return folders_where(&has_record);
}

Task<Result<std::vector<std::string>>> VolumeStore::folders_where(
    Task<Result<bool>> (*holds)(Directory& dir)) {
  auto entries = co_await volumes_->list();
  if (!entries) co_return entries.error();
  std::vector<std::string> out;
  for (const DirEntry& entry : *entries) {
    if (entry.type != FileStat::Type::kDirectory || !check_volume_name(entry.name)) continue;
    auto dir = co_await volumes_->open_dir(entry.name);
    if (!dir) {
      if (dir.error().code() == ErrorCode::kNotFound) continue;
      co_return dir.error();
    }
    auto so = co_await holds(**dir);
    if (!so) co_return so.error();
    if (*so) out.push_back(entry.name);
  }
  co_return out;
}

Task<Result<StoredVolume>> VolumeStore::read(std::string name) {
  auto checked = check_volume_name(name);
  if (!checked) co_return checked.error();
  auto dir = co_await volumes_->open_dir(name);
  Result<StoredVolume> out = Error(ErrorCode::kNotFound, "");
  if (dir) {
    out = co_await read_record(**dir, name);
  } else {
    out = dir.error();
  }
  if (out || out.error().code() != ErrorCode::kNotFound) co_return out;
  auto lost = co_await find_lost(std::nullopt);
  if (lost && std::ranges::find(lost->volumes, name) != lost->volumes.end())
    co_return lost_record(*this, name, lost->deltas).with_code(ErrorCode::kNotFound);
  auto others = co_await names();
  if (!others) co_return others.error();
  co_return Error(ErrorCode::kNotFound, "no volume " + shown(name) + did_you_mean(name, *others));
}

Task<Result<StoredVolume>> VolumeStore::find(std::string name_or_id) {
  auto exact = co_await read(name_or_id);
  if (exact || exact.error().code() != ErrorCode::kNotFound) co_return exact;
  auto all = co_await list();
  if (!all) co_return all.error();
  const StoredVolume* found = nullptr;
  for (const StoredVolume& volume : *all) {
    if (!volume.record.id.starts_with(name_or_id)) continue;
    if (found != nullptr) {
      co_return Error(ErrorCode::kInvalidArgument,
                      "volume ID " + shown(name_or_id) + " is ambiguous: it begins those of " +
                          shown(found->record.name) + " and " + shown(volume.record.name) +
                          "; give more digits");
    }
    found = &volume;
  }
  if (found == nullptr) co_return exact.error();
  co_return StoredVolume(*found);
}

Task<Result<std::vector<StoredVolume>>> VolumeStore::list(std::vector<Error>* damaged) {
  auto all = co_await names();
  if (!all) co_return all.error();
  std::vector<StoredVolume> out;
  for (const std::string& name : *all) {
    auto dir = co_await volumes_->open_dir(name);
    if (!dir) {
      if (dir.error().code() == ErrorCode::kNotFound) continue;  // removed since it was listed
      co_return dir.error();
    }
    auto record = co_await read_record(**dir, name);
    if (!record) {
      if (record.error().code() == ErrorCode::kNotFound) continue;
      if (damaged == nullptr) co_return record.error();
      damaged->push_back(record.error());
      continue;
    }
    out.push_back(std::move(*record));
  }
  co_return out;
}

Task<Result<VolumeLock>> VolumeStore::lock(std::string name, Holder holder) {
  if (denied_) co_return *denied_;
  auto known = co_await read(name);  // says NotFound with the nearest name, makes no lock file
  if (!known && known.error().code() != ErrorCode::kCorrupt) co_return known.error();
  auto lock = co_await try_lock_dir(name, holder);
  if (!lock) co_return lock.error();
  auto there = co_await has_record(lock->dir());
  if (!there) co_return there.error();
  if (!*there) {
    // Removed since it was read: a folder with nothing but our lock would look like a loss.
    co_await discard(std::move(*lock), name);
    co_return Error(ErrorCode::kNotFound, "no volume " + shown(name));
  }
  co_await remove_leftovers(lock->dir());
  // docs/durability.md, Publish: who changed the record or the name last may have died before that
  // was stable, and what is made from now on relies on it.
  auto settled = co_await lock->dir().sync();
  if (settled) settled = co_await volumes_->sync();
  if (!settled) co_return settled.error();
  co_return std::move(*lock);
}

Task<Result<VolumeLock>> VolumeStore::lock_new(std::string name, Holder holder) {
  if (denied_) co_return *denied_;
  auto checked = check_volume_name(name);
  if (!checked) co_return checked.error();
  auto made = co_await volumes_->make_dir(name);
  if (!made && made.error().code() != ErrorCode::kExists) co_return made.error();
  const bool fresh = made.has_value();
  auto prepared = co_await prepare_new(name);
  if (!prepared) co_return prepared.error();
  auto lock = co_await try_lock_dir(name, std::move(holder));
  const Error exists(ErrorCode::kExists, "there is a volume " + shown(name) +
                                             " already; remove it first or take another name");
  if (!lock) {
    if (lock.error().code() == ErrorCode::kBusy) co_return exists;
    co_return lock.error();
  }
  // Another process may have been faster to lock a folder that was made here, and be done.
  auto there = co_await has_record(lock->dir());
  if (!there) co_return there.error();
  if (*there) co_return exists;
  // Or may have given it up, and taken away what says that there is none yet.
  auto marked = co_await mark_new(lock->dir());
  if (!marked) co_return marked.error();
  if (fresh) co_return std::move(*lock);
  co_await remove_leftovers(lock->dir());
  // docs/durability.md, Publish: who ended a volume here may have died before that was stable. Its
  // record must not come back once its folder is gone, where no one finds it.
  auto settled = co_await lock->dir().sync();
  if (!settled) co_return settled.error();
  co_return std::move(*lock);
}

Task<Result<StoredVolume>> VolumeStore::read_locked(VolumeLock& lock, std::string name) {
  auto record = co_await read_record(lock.dir(), name);
  if (!record && record.error().code() == ErrorCode::kNotFound)
    co_return Error(ErrorCode::kNotFound, "no volume " + shown(name));
  co_return record;
}

Task<Result<void>> VolumeStore::replace(VolumeLock& lock, StoredVolume& volume) {
  if (volume.read_only) co_return *volume.read_only;
  const bool first = volume.generation == 0;
  StoredVolume next = volume;
  ++next.generation;
  auto text = encode_volume(next);
  if (!text) co_return text.error();
  std::string old_text;
  if (!first) {
    auto old = co_await read_whole(lock.dir(), kVolumeRecord, kMaxJsonBytes);
    if (!old) co_return old.error();
    old_text.assign(reinterpret_cast<const char*>(old->data()), old->size());
  }
  // docs/durability.md, Publish: all that the record names is durable before it is replaced.
  auto replaced = co_await replace_file(lock.dir(), kVolumeRecord, bytes_of(*text));
  if (replaced && first) replaced = co_await volumes_->sync();
  if (!replaced) {
    bool certain = true;
    auto undone =
        co_await undo_replace(lock.dir(), volume.record.name, old_text, replaced.error(), &certain);
    if (!certain) volume.read_only = undone.error();
    co_return undone;
  }
  volume.generation = next.generation;
  if (first) {
    // From here on a record that is not there is one that was lost.
    auto unmarked = co_await lock.dir().unlink(kVolumeRemoved);
    (void)unmarked;  // where a power cut brings it back who takes the lock next removes it
  }
  co_return Result<void>();
}

/// The new record may stand although publishing it failed (the sync of the folder, which comes
/// last). The caller goes on with the old one, so that one has to stand again.
Task<Result<void>> VolumeStore::undo_replace(Directory& dir, std::string name, std::string old_text,
                                             Error why, bool* certain) {
  Result<void> undone;
  if (old_text.empty()) {
    undone = co_await dir.unlink(kVolumeRecord);
    if (!undone && undone.error().code() == ErrorCode::kNotFound) undone = Result<void>();
    if (undone) undone = co_await dir.sync();
  } else {
    auto now = co_await read_whole(dir, kVolumeRecord, kMaxJsonBytes);
    if (now && std::ranges::equal(*now, bytes_of(old_text))) co_return why;
    undone = co_await replace_file(dir, kVolumeRecord, bytes_of(old_text));
  }
  if (undone) co_return why;
  *certain = false;
  co_return why.with_context("volume " + shown(name) +
                             ": it is not certain whether the old or the new record stands "
                             "(close the volume and open it again)");
}

Task<Result<void>> VolumeStore::erase(VolumeLock lock, const FileLock& store_lock,
                                      std::string name) {
  if (!store_lock.held())
    co_return Error(ErrorCode::kInvalidArgument, "remove a volume without the store lock");
  // docs/durability.md, Publish: the end of the volume is its record's, durably; the rest is
  // cleaning up, and what a crash leaves of it is no volume, and says so.
  auto gone = co_await lock.dir().rename(kVolumeRecord, lock.dir(), kVolumeRemoved);
  if (!gone) co_return gone.error();
  auto synced = co_await lock.dir().sync();
  if (!synced) co_return synced.error();
  co_await discard(std::move(lock), std::move(name));
  co_return Result<void>();
}

Task<void> VolumeStore::discard(VolumeLock lock, std::string name) {
  co_await remove_leftovers(lock.dir());
  auto unlocked = co_await lock.dir().unlink(kVolumeLock);
  // Last: a lock without it would look like a volume that has lost its record.
  auto unmarked = co_await lock.dir().unlink(kVolumeRemoved);
  auto removed = co_await volumes_->remove_dir(name);
  // A folder that stays is no volume; creating one of that name, or prune, takes it up.
  (void)unlocked;
  (void)unmarked;
  (void)removed;
}

Task<Result<void>> VolumeStore::rename(VolumeLock& lock, const FileLock& store_lock,
                                       std::string name, std::string new_name) {
  if (!lock.held() || !store_lock.held())
    co_return Error(ErrorCode::kInvalidArgument, "rename without the lock");
  Holder self = this_process();
  auto target = co_await lock_new(new_name, std::move(self));
  if (!target) co_return target.error();
  co_await discard(std::move(*target), new_name);
  auto renamed = co_await volumes_->rename(name, *volumes_, new_name, true);
  if (!renamed) co_return renamed.error();
  auto synced = co_await volumes_->sync();
  co_return synced;
}

// ---- Deltas

Task<Error> VolumeStore::too_large(std::uint64_t size) {
  auto space = co_await deltas_->space();
  const std::string type = space ? space->type + " " : std::string();
  co_return Error(ErrorCode::kTooLarge, "a volume of " + std::to_string(size) +
                                            " bytes needs a file as large, which the " + type +
                                            "file system of " + deltas_->path() +
                                            " cannot hold; choose a smaller size, or a store on "
                                            "xfs");
}

Task<Result<std::unique_ptr<Delta>>> VolumeStore::create_delta(std::uint64_t size) {
  const Uuid id = Uuid::make(*random_);
  const std::string name = id.str();
  auto made = co_await deltas_->make_dir(name);
  if (!made) co_return made.error();
  auto dir = co_await deltas_->open_dir(name);
  if (!dir) co_return dir.error();
  Delta::CreateOptions options;
  options.id = id;
  options.size = size;
  options.live_folder = live_folder_;
  auto delta = co_await Delta::create(std::move(*dir), options);
  Result<void> synced;
  if (delta) synced = co_await deltas_->sync();
  if (delta && synced) {
    (*delta)->share_quota(quota_);
    co_return std::move(*delta);
  }
  Error why = delta ? synced.error() : delta.error();
  if (why.sys_errno() == EFBIG) why = co_await too_large(size);
  if (delta) {
    auto closed = co_await (*delta)->close();
    (void)closed;  // it goes away; the sync's error is the one to tell
  }
  auto removed = co_await remove_tree(*deltas_, name);
  (void)removed;  // no record names it: prune removes what stays
  co_return why;
}

Task<Result<std::unique_ptr<Delta>>> VolumeStore::open_delta(std::string uuid, Delta::Mode mode) {
  const auto id = Uuid::parse(uuid);
  if (!id) co_return Error(ErrorCode::kCorrupt, "delta " + shown(uuid) + " is not a UUID");
  auto dir = co_await deltas_->open_dir(uuid);
  if (!dir) {
    if (dir.error().code() != ErrorCode::kNotFound) co_return dir.error();
    co_return Error(ErrorCode::kCorrupt, "delta " + uuid + " is missing: " + deltas_->path() + "/" +
                                             uuid + " is not there; restore it from a copy");
  }
  auto delta = co_await Delta::open(std::move(*dir), mode, live_folder_);
  if (!delta) co_return delta.error().with_context("delta " + uuid);
  if ((*delta)->id() == *id) {
    (*delta)->share_quota(quota_);
    co_return std::move(*delta);
  }
  co_return Error(ErrorCode::kCorrupt,
                  "delta " + uuid + ": its files are of delta " + (*delta)->id().str());
}

Task<Result<void>> VolumeStore::remove_delta(std::string uuid) {
  const auto id = Uuid::parse(uuid);
  if (!id) co_return Error(ErrorCode::kInvalidArgument, shown(uuid) + " is not a delta");
  auto dir = co_await deltas_->open_dir(uuid);
  if (dir) co_await Delta::forget_live(**dir, *id, live_folder_);
  auto removed = co_await remove_tree(*deltas_, uuid);
  co_return removed;
}

Task<Result<std::uint64_t>> VolumeStore::delta_allocated(std::string uuid) {
  auto dir = co_await deltas_->open_dir(uuid);
  if (!dir) co_return dir.error();
  auto files = co_await (*dir)->list();
  if (!files) co_return files.error();
  std::uint64_t sum = 0;
  for (const DirEntry& file : *files) {
    auto stat = co_await (*dir)->stat(file.name);
    if (stat) {
      sum += stat->allocated;
    } else if (stat.error().code() != ErrorCode::kNotFound) {
      co_return stat.error();
    }
  }
  co_return sum;
}

Task<Result<std::vector<std::string>>> VolumeStore::list_deltas() {
  auto entries = co_await deltas_->list();
  if (!entries) co_return entries.error();
  std::vector<std::string> out;
  for (const DirEntry& entry : *entries) {
    if (entry.type == FileStat::Type::kDirectory && Uuid::parse(entry.name))
      out.push_back(entry.name);
  }
  co_return out;
}

}  // namespace snap
