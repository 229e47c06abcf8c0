// backup_store: freeze, copy, publish.
//
//   1. freeze   each volume: what it answered so far is in sealed deltas, which never change
//   2. gather   what the index and the records name, root by root; a root that cannot be read, or
//               names what is damaged, is left out; so is a volume that is not as it was frozen
//   3. copy     blobs and sealed deltas that the target lacks, or has damaged, one by one, each
//               whole or not at all. What was removed from the source meanwhile sends us back to 2,
//               and a volume that came or changed its size to 1
//   4. publish  the index; each volume's record over an empty delta of its own. Before this the
//               target shows what the run before left
//
// Broken off anywhere, what was copied stays and is not copied again (docs/durability.md, Backup).
#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "engine/delta/delta_verify.h"
#include "engine/store/backup_copy.h"
#include "engine/store/backup_target.h"
#include "engine/store/names.h"
#include "engine/store/sweep.h"
#include "snap/backup.h"

namespace snap {

namespace {

constexpr int kRounds = 3;  // of gathering again after something vanished

/// An entry of the index or a volume, and what it needs.
struct Root {
  std::string name;  ///< for messages
  std::optional<IndexEntry> entry;
  std::optional<StoredVolume> volume;
  Marks needs;
};

/// Whether both say the same but for the delta on top.
bool same_content(VolumeRecord a, const VolumeRecord& b) {
  a.delta = b.delta;
  StoredVolume left, right;
  left.record = std::move(a);
  right.record = b;
  left.generation = right.generation = 1;
  auto x = encode_volume(left);
  auto y = encode_volume(right);
  return x && y && *x == *y;
}

class Backup {
 public:
  Backup(Store& source, Store& target, const BackupOptions& options, const Progress& progress)
      : source_store_(source),
        source_(source.impl()),
        target_(target.impl()),
        options_(options),
        progress_(progress) {}
  Task<Result<BackupReport>> run();

 private:
  Task<Result<void>> freeze_all(std::vector<std::string> names);
  bool is_frozen(const VolumeRecord& record) const;
  Task<Result<void>> freeze(std::string volume);
  Task<Result<void>> gather();
  Task<Result<void>> gather_lost();
  Task<Result<bool>> copy_all();
  Task<Result<void>> note(std::string object, Result<Copied> copied);
  Task<Result<void>> count_bytes();
  Task<Result<void>> publish();
  Task<Result<void>> publish_images();
  Task<void> publish_volumes();
  Task<Result<void>> publish_volume(const Root& root);
  Task<Result<VolumeLock>> take_place(const VolumeRecord& record, StoredVolume& stored);
  Task<Result<void>> rename(VolumeLock& lock, std::string from, std::string to);
  Task<Result<void>> move_away(std::string name);
  Task<Result<bool>> check_unused(const StoredVolume& stored);
  Task<Result<void>> check_there(const Marks& needs);
  Task<void> remove_gone();
  void fail(const Root& root, const Error& error) {
    report_.failed.push_back(error.with_context(root.name));
  }

  Store& source_store_;
  Store::Impl& source_;
  Store::Impl& target_;
  const BackupOptions& options_;
  const Progress& progress_;
  BackupReport report_;
  std::vector<Root> roots_;
  std::map<std::string, std::uint64_t> frozen_;  ///< volumes by id, and their sizes then
  std::set<std::string> not_frozen_;             ///< ids of those for which that failed
  std::vector<std::string> to_freeze_;           ///< names
  // Of the source, as they were last gathered.
  std::set<std::string> ids_;              ///< of volumes
  std::set<std::string> unread_names_;     ///< of volumes whose id cannot be read, or is lost
  std::vector<Error> unread_;              ///< of roots
  std::map<std::string, Error> damaged_;   ///< objects of the source: digests and UUIDs
  std::map<std::string, Error> vanished_;  ///< as it looked in the last round
  std::uint64_t total_ = 0;
};

Task<Result<void>> Backup::freeze(std::string volume) {
  if (options_.freeze) {
    auto frozen = co_await options_.freeze(volume);
    co_return frozen;
  }
  Holder self = this_process();
  auto open = co_await source_store_.open_volume(volume, std::move(self));
  if (!open) co_return open.error();
  auto frozen = co_await source_store_.freeze(**open);
  auto closed = co_await (*open)->close();
  if (!frozen) co_return frozen.error();
  co_return closed;
}

/// Freezes volumes of the source, by name. One that is not there any more, or is another now, is
/// left to gather().
Task<Result<void>> Backup::freeze_all(std::vector<std::string> names) {
  for (const std::string& name : names) {
    if (progress_.is_cancelled()) co_return Error(ErrorCode::kCancelled, "cancelled");
    auto before = co_await source_.volumes.read(name);
    if (!before) continue;  // gather() says what is wrong with it
    const std::string id = before->record.id;
    frozen_.erase(id);
    auto frozen = co_await freeze(name);
    if (frozen) {
      auto after = co_await source_.volumes.read(name);
      if (after && after->record.id == id) frozen_.emplace(id, before->record.size);
      continue;
    }
    if (frozen.error().code() == ErrorCode::kCancelled) co_return frozen;
    Error why = frozen.error();
    if (why.code() == ErrorCode::kNotFound) {
      auto there = co_await source_.volumes.read(name);
      if (!there && there.error().code() == ErrorCode::kNotFound) continue;
      why = why.with_code(ErrorCode::kBusy);  // it is there: who holds it is not to be reached
    }
    if (not_frozen_.insert(id).second) report_.failed.push_back(std::move(why));
  }
  co_return Result<void>();
}

/// Whether what the record names is what the volume held at one moment: that of its freezing in
/// this run. A shrink since then would cut it: what was moved out of the way first is not in it.
bool Backup::is_frozen(const VolumeRecord& record) const {
  const auto frozen = frozen_.find(record.id);
  return frozen != frozen_.end() && record.size == frozen->second && record.floor >= record.size;
}

/// Volumes of the source that have lost their records, and folders of which that cannot be said.
Task<Result<void>> Backup::gather_lost() {
  auto names = co_await source_.volumes.without_record();
  if (!names) co_return names.error();
  unread_names_.insert(names->begin(), names->end());
  auto lost = co_await source_.volumes.find_lost(std::nullopt);
  if (!lost) co_return lost.error();
  for (const std::string& name : lost->volumes)
    unread_.push_back(lost_record(source_.volumes, name, lost->deltas));
  co_return Result<void>();
}

Task<Result<void>> Backup::gather() {
  roots_.clear();
  unread_.clear();
  ids_.clear();
  unread_names_.clear();
  // No sweep between reading the roots and reading what they name, and none is renamed meanwhile.
  auto held = co_await source_.reading_all("back up");
  if (!held) co_return held.error();
  auto entries = co_await source_.images.read_index();
  if (!entries) co_return entries.error();
  for (const IndexEntry& entry : *entries) {
    Root root;
    root.name = "image " + shown(entry.ref_name.value_or(entry.manifest.str()));
    root.entry = entry;
    auto marked = co_await mark_image(source_, entry, root.needs);
    if (marked) {
      roots_.push_back(std::move(root));
    } else {
      unread_.push_back(marked.error());
    }
  }
  auto names = co_await source_.volumes.names();
  if (!names) co_return names.error();
  for (const std::string& name : *names) {
    auto volume = co_await source_.volumes.read(name);
    if (!volume) {
      unread_.push_back(volume.error());
      unread_names_.insert(name);
      continue;
    }
    ids_.insert(volume->record.id);
    if (not_frozen_.contains(volume->record.id)) continue;
    if (!is_frozen(volume->record)) {
      to_freeze_.push_back(name);
      continue;
    }
    Root root;
    root.name = "volume " + shown(name);
    root.volume = *volume;
    auto marked = co_await mark_volume(source_, volume->record, root.needs);
    root.needs.deltas.erase(volume->record.delta);  // what it holds is not in this backup
    if (marked) {
      roots_.push_back(std::move(root));
    } else {
      unread_.push_back(marked.error());
    }
  }
  auto lost = co_await gather_lost();
  co_return lost;
}

Task<Result<void>> Backup::count_bytes() {
  total_ = report_.bytes_copied;
  std::set<BlobDigest> blobs;
  std::set<std::string> deltas;
  for (const Root& root : roots_) {
    blobs.insert(root.needs.blobs.begin(), root.needs.blobs.end());
    deltas.insert(root.needs.deltas.begin(), root.needs.deltas.end());
  }
  for (const BlobDigest& blob : blobs) {
    auto there = co_await target_.blobs.exists(blob);
    if (!there) co_return there.error();
    auto stat = co_await source_.blobs.stat(blob);
    if (!*there && stat) total_ += stat->size;
  }
  for (const std::string& delta : deltas) {
    auto there = co_await target_.volumes.deltas_dir().stat(delta);
    auto bytes = co_await source_.volumes.delta_allocated(delta);
    if (!there && bytes) total_ += *bytes;
  }
  co_return Result<void>();
}

Task<Result<void>> Backup::note(std::string object, Result<Copied> copied) {
  if (!copied) co_return copied.error();
  if (copied->outcome == Copied::Outcome::kVanished) {
    const Error missing(ErrorCode::kCorrupt, object + " is missing in " + source_.path);
    vanished_.insert_or_assign(std::move(object), missing);
  } else if (copied->outcome == Copied::Outcome::kDamaged) {
    damaged_.insert_or_assign(std::move(object), *copied->why);
  }
  co_return Result<void>();
}

/// False if something that a root names was not in the source.
Task<Result<bool>> Backup::copy_all() {
  vanished_.clear();
  auto counted = co_await count_bytes();
  if (!counted) co_return counted.error();
  std::set<std::string> done;
  const CopyStep step = [this](std::uint64_t bytes) {
    report_.bytes_copied += bytes;
    progress_.tell("backup", report_.bytes_copied, std::max(total_, report_.bytes_copied));
    return !progress_.is_cancelled() && !EventLoop::current()->stopping();
  };
  for (const Root& root : roots_) {
    for (const BlobDigest& blob : root.needs.blobs) {
      if (!done.insert(blob.str()).second) continue;
      auto copied = co_await copy_blob(source_, target_, blob, step);
      if (copied && copied->outcome == Copied::Outcome::kCopied) ++report_.blobs_copied;
      auto noted = co_await note(blob.str(), std::move(copied));
      if (!noted) co_return noted.error();
    }
    for (const std::string& delta : root.needs.deltas) {
      if (!done.insert(delta).second) continue;
      auto copied = co_await copy_delta(source_, target_, delta, step);
      if (copied && copied->outcome == Copied::Outcome::kCopied) ++report_.deltas_copied;
      auto noted = co_await note(delta, std::move(copied));
      if (!noted) co_return noted.error();
    }
  }
  co_return vanished_.empty();
}

// ---- Publishing

Task<Result<void>> Backup::check_there(const Marks& needs) {
  const Error swept(ErrorCode::kBusy,
                    "something was removed from the backup while it was made; "
                    "run it again");
  for (const BlobDigest& blob : needs.blobs) {
    const auto bad = damaged_.find(blob.str());
    if (bad != damaged_.end()) co_return bad->second;
    auto there = co_await target_.blobs.exists(blob);
    if (!there) co_return there.error();
    if (!*there) co_return swept;
  }
  for (const std::string& delta : needs.deltas) {
    const auto bad = damaged_.find(delta);
    if (bad != damaged_.end()) co_return bad->second;
    auto there = co_await target_.volumes.deltas_dir().stat(delta);
    if (!there && there.error().code() == ErrorCode::kNotFound) co_return swept;
    if (!there) co_return there.error();
  }
  co_return Result<void>();
}

Task<Result<void>> Backup::publish_images() {
  auto lock = co_await target_.lock.shared("back up");
  if (!lock) co_return lock.error();
  std::vector<IndexEntry> entries;
  bool all = unread_.empty();
  for (const Root& root : roots_) {
    if (!root.entry) continue;
    auto there = co_await check_there(root.needs);
    if (there) {
      entries.push_back(*root.entry);
    } else {
      all = false;
      fail(root, there.error());
    }
  }
  report_.images = entries.size();
  // What could not be copied keeps the name that it had here.
  auto mirrored = co_await target_.images.mirror(std::move(entries), options_.remove && all);
  co_return mirrored;
}

/// Whoever has written to the backup's own delta would lose that. False if that delta is not there.
Task<Result<bool>> Backup::check_unused(const StoredVolume& stored) {
  auto dir = co_await target_.volumes.deltas_dir().open_dir(stored.record.delta);
  if (!dir && dir.error().code() == ErrorCode::kNotFound) co_return false;
  if (!dir) co_return dir.error();
  auto own = co_await verify_delta(std::move(*dir), DeltaUse::kAtRest);  // the volume is locked
  if (!own) co_return own.error().with_context("its delta in the backup");
  const bool used = own->blocks->next_present(ChunkIndex(0)).has_value();
  if (!used) co_return true;
  co_return Error(ErrorCode::kExists,
                  "it was written to in the backup, which the next copy would "
                  "drop; commit it there, or go back with '" +
                      std::string("snapctl --store ") + target_.path +
                      " reset', or remove it there");
}

/// A volume of the target.
Task<Result<void>> Backup::rename(VolumeLock& lock, std::string from, std::string to) {
  auto store_lock = co_await target_.lock.shared("rename volume " + shown(from));
  if (!store_lock) co_return store_lock.error();
  auto renamed = co_await target_.volumes.rename(lock, *store_lock, std::move(from), std::move(to));
  co_return renamed;
}

/// Another volume has the name: what the backup has of it stays, under a longer one.
Task<Result<void>> Backup::move_away(std::string name) {
  constexpr std::size_t kIdDigits = 8;
  Holder self = this_process();
  auto lock = co_await target_.volumes.lock(name, std::move(self));
  if (!lock) co_return lock.error();
  auto old = co_await target_.volumes.read_locked(*lock, name);
  if (!old) co_return old.error();
  const std::string tail = "." + old->record.id.substr(0, kIdDigits);
  const std::string kept = name.substr(0, kMaxVolumeName - tail.size()) + tail;
  auto renamed = co_await rename(*lock, name, kept);
  co_return renamed;
}

/// The lock of the volume's name in the target, and the record that is there.
Task<Result<VolumeLock>> Backup::take_place(const VolumeRecord& record, StoredVolume& stored) {
  auto volumes = co_await target_.volumes.list();
  if (!volumes) co_return volumes.error();
  std::string known_as;
  bool taken = false;
  for (const StoredVolume& one : *volumes) {
    if (one.record.id == record.id) known_as = one.record.name;
    if (one.record.name == record.name && one.record.id != record.id) taken = true;
  }
  if (taken) {
    auto moved = co_await move_away(record.name);
    if (!moved) co_return moved.error();
  }
  Holder self = this_process();
  if (known_as.empty()) {
    auto lock = co_await target_.volumes.lock_new(record.name, std::move(self));
    co_return lock;
  }
  auto lock = co_await target_.volumes.lock(known_as, std::move(self));
  if (!lock) co_return lock.error();
  if (known_as != record.name) {
    auto renamed = co_await rename(*lock, known_as, record.name);
    if (!renamed) co_return renamed.error();
  }
  auto read = co_await target_.volumes.read_locked(*lock, record.name);
  if (!read) co_return read.error();
  stored = std::move(*read);
  co_return std::move(*lock);
}

Task<Result<void>> Backup::publish_volume(const Root& root) {
  const VolumeRecord& record = root.volume->record;
  StoredVolume stored;
  auto place = co_await take_place(record, stored);
  if (!place) co_return place.error();
  const bool fresh = stored.generation == 0;
  if (!fresh) {
    // Before anything else: contents that were changed are no backup, whatever the records say.
    auto there = co_await check_unused(stored);
    if (!there) co_return there.error();
    if (*there && same_content(stored.record, record)) co_return Result<void>();
  }
  Result<void> done;
  {
    auto lock = co_await target_.lock.shared("back up " + record.name);
    if (!lock) co_return lock.error();
    done = co_await check_there(root.needs);
    if (done) {
      auto delta = co_await target_.volumes.create_delta(record.size);
      if (delta) {
        stored.record = record;
        stored.record.delta = (*delta)->id().str();
        done = co_await (*delta)->close();
        if (done) done = co_await target_.volumes.replace(*place, stored);
      } else {
        done = delta.error();
      }
    }
  }
  if (!done && fresh) co_await target_.volumes.discard(std::move(*place), record.name);
  co_return done;
}

Task<void> Backup::publish_volumes() {
  for (const Root& root : roots_) {
    if (!root.volume) continue;
    auto published = co_await publish_volume(root);
    if (published) {
      ++report_.volumes;
    } else {
      fail(root, published.error());
    }
  }
}

/// Removes volumes that the source did not have any more when it was gathered last, whatever their
/// names. None if the source has one of which that is not known: its name may be another now.
Task<void> Backup::remove_gone() {
  auto target = co_await target_.volumes.list();
  if (!target) {
    report_.failed.push_back(target.error().with_context("nothing was removed"));
    co_return;
  }
  std::erase_if(*target, [this](const StoredVolume& one) { return ids_.contains(one.record.id); });
  if (!target->empty() && !unread_names_.empty()) {
    report_.failed.push_back(Error(
        ErrorCode::kCorrupt, "no volume was removed from the backup, for the record of volume " +
                                 shown(*unread_names_.begin()) +
                                 " in the source cannot be read, and volume " +
                                 shown(target->front().record.name) +
                                 " of the backup may be the only copy of it; check says more"));
    co_return;
  }
  for (const StoredVolume& volume : *target) {
    const std::string& name = volume.record.name;
    Holder self = this_process();
    auto lock = co_await target_.volumes.lock(name, std::move(self));
    if (lock) {
      auto store_lock = co_await target_.lock.shared("remove volume " + shown(name));
      Result<void> erased;
      if (store_lock) {
        erased = co_await target_.volumes.erase(std::move(*lock), *store_lock, name);
      } else {
        erased = store_lock.error();
      }
      if (erased) {
        report_.removed.push_back(name);
        continue;
      }
      report_.failed.push_back(erased.error());
    } else {
      report_.failed.push_back(lock.error());
    }
  }
}

Task<Result<void>> Backup::publish() {
  // An earlier run may have died between the naming of a copy and its sync of the folder.
  auto blobs = co_await target_.blobs.dir().sync();
  if (!blobs) co_return blobs;
  auto deltas = co_await target_.volumes.deltas_dir().sync();
  if (!deltas) co_return deltas;
  auto images = co_await publish_images();
  if (!images) co_return images;
  co_await publish_volumes();
  if (options_.remove) co_await remove_gone();
  co_return Result<void>();
}

Task<Result<BackupReport>> Backup::run() {
  auto names = co_await source_.volumes.names();
  if (!names) co_return names.error();
  to_freeze_ = std::move(*names);
  bool whole = false;
  for (int round = 0; round < kRounds && !whole; ++round) {
    auto frozen = co_await freeze_all(std::exchange(to_freeze_, {}));
    if (!frozen) co_return frozen.error();
    auto gathered = co_await gather();
    if (!gathered) co_return gathered.error();
    auto copied = co_await copy_all();
    if (!copied) co_return copied.error();
    whole = *copied && to_freeze_.empty();
  }
  for (const std::string& name : to_freeze_)
    report_.failed.push_back(
        Error(ErrorCode::kBusy, "volume " + shown(name) +
                                    " was made, renamed or resized again and again while it "
                                    "was to be copied; run the backup again"));
  report_.failed.insert(report_.failed.end(), unread_.begin(), unread_.end());
  damaged_.insert(vanished_.begin(), vanished_.end());  // again and again: it is missing
  auto published = co_await publish();
  if (!published) co_return published.error();
  auto finished = co_await finish_backup(target_);
  if (!finished) co_return finished.error();
  co_return std::move(report_);
}

}  // namespace

Task<Result<BackupReport>> backup_store(Store& source, Store& target, BackupOptions options,
                                        Progress progress) {
  auto only = co_await lock_file(*target.impl().root, kBackupLock, true, "back up",
                                 std::chrono::milliseconds(0));
  if (!only) co_return only.error();
  Backup backup(source, target, options, progress);
  auto report = co_await backup.run();
  if (!report) co_return report.error();
  // What the records named before, and copies that were never named.
  auto pruned = co_await target.prune(false);
  static_cast<void>(pruned);  // what cannot be removed now stays until the next run
  co_return report;
}

}  // namespace snap
