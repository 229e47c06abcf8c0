// VolumeStore: store/volumes/<name>/{volume.json,removed.json,lock} and store/deltas/<uuid>/
// (docs/format.md, Store, volumes).
//
// Invariants: volume.json is replaced whole, only by the holder of the volume's lock, and names
// only deltas and manifests that are durable. A folder without a volume.json is no volume. One with
// a removed.json in its place is what a crash left of a create or a remove; one with neither, but
// with a lock, may be a volume that has lost its record. A delta is writable by the one volume
// whose record names it as `delta`; sealed deltas may be shared.
#pragma once

#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "engine/base/uuid.h"
#include "engine/delta/delta.h"
#include "engine/store/store_lock.h"
#include "engine/store/volume_codec.h"
#include "snap/file.h"
#include "snap/result.h"
#include "snap/store.h"
#include "snap/task.h"

namespace snap {

// The files in the folder of a volume.
inline constexpr const char* kVolumeRecord = "volume.json";
inline constexpr const char* kVolumeRemoved = "removed.json";
inline constexpr const char* kVolumeLock = "lock";

/// Volumes that have lost their records, by name, and what may be theirs: the deltas that no record
/// names. Without such a delta no volume counts as one that has, for each has its own.
struct LostRecords {
  std::vector<std::string> volumes;
  std::vector<std::string> deltas;
};

/// The lock of one volume, held: the flock of store/volumes/<name>/lock, which says who holds it.
/// Destruction gives it back.
class [[nodiscard]] VolumeLock {
 public:
  VolumeLock() = default;
  VolumeLock(std::unique_ptr<Directory> dir, std::unique_ptr<File> file)
      : dir_(std::move(dir)), file_(std::move(file)) {}
  bool held() const noexcept { return file_ != nullptr; }
  /// The volume's folder. Whoever holds the lock reads and writes through this one.
  Directory& dir() noexcept { return *dir_; }
  void release() {
    file_.reset();
    dir_.reset();
  }

 private:
  std::unique_ptr<Directory> dir_;
  std::unique_ptr<File> file_;
};

class VolumeStore {
 public:
  VolumeStore(std::unique_ptr<Directory> volumes, std::unique_ptr<Directory> deltas, Random& random)
      : volumes_(std::move(volumes)), deltas_(std::move(deltas)), random_(&random) {}
  /// Before the first delta is opened; see Delta::open.
  void set_live_folder(std::string folder) { live_folder_ = std::move(folder); }
  /// Of all deltas that are opened to write from now on.
  void share_quota(std::shared_ptr<BlockQuota> quota) { quota_ = std::move(quota); }

  // ---- Records

  /// NotFound if there is no such volume: suggests the nearest name, or tells that it has lost its
  /// record.
  Task<Result<StoredVolume>> read(std::string name);
  /// By exact name, else by a unique prefix of the volume's id.
  Task<Result<StoredVolume>> find(std::string name_or_id);
  /// The names of all volumes, ascending.
  Task<Result<std::vector<std::string>>> names();
  /// Every record, by name. Those that cannot be read go to `damaged`; without it the first of
  /// them is the result.
  Task<Result<std::vector<StoredVolume>>> list(std::vector<Error>* damaged = nullptr);

  /// Takes the volume's lock, and removes what a crash left of replacing its record. Busy, with the
  /// pid, if it is held. NotFound if there is no such volume.
  Task<Result<VolumeLock>> lock(std::string name, Holder holder);
  /// Takes the name for a new volume: makes the folder, with a removed.json, and locks it. Exists
  /// if there is a volume of that name, Corrupt if there was one that has lost its record. Publish
  /// with replace(), or give the name back with discard().
  Task<Result<VolumeLock>> lock_new(std::string name, Holder holder);
  /// Who holds the lock, if anyone.
  Task<Result<std::optional<Holder>>> holder(std::string name);

  /// Keeps others from taking the lock while the handle lives, without taking it: for one who only
  /// looks. (Who wants the lock meanwhile gets Busy: keep it short.) The record is of the volume
  /// whose lock it is, read after that: the name may lead to another one by now.
  struct Still {
    bool at_rest = false;          ///< no one holds it
    std::unique_ptr<File> handle;  ///< none if someone does, or there is no lock file yet
    VolumeRecord record;
  };
  Task<Result<Still>> hold_still(std::string name);

  /// The record, read through the lock.
  Task<Result<StoredVolume>> read_locked(VolumeLock& lock, std::string name);
  /// Replaces volume.json (generation + 1) and makes it durable, the folder's name too. What it
  /// names is durable before the call. On failure the old record stands; if even that cannot be
  /// established, the message says so and volume.read_only is set.
  Task<Result<void>> replace(VolumeLock& lock, StoredVolume& volume);
  /// Publishes the end of a volume: its record becomes removed.json, durably; then the folder goes,
  /// that file last, so that its end is never taken for a loss of its record. Its deltas are left
  /// to the caller. `store_lock` is held shared: a sweep that saw the end before it is durable
  /// would remove what a power cut brings the name of back.
  Task<Result<void>> erase(VolumeLock lock, const FileLock& store_lock, std::string name);
  /// Gives the volume another name, durably. Exists if it is taken. `store_lock` is held shared: a
  /// sweep that found neither name would take what the volume has for garbage.
  Task<Result<void>> rename(VolumeLock& lock, const FileLock& store_lock, std::string name,
                            std::string new_name);
  /// Gives back a name that lock_new() took.
  Task<void> discard(VolumeLock lock, std::string name);

  /// From now on each lock fails with `why`: the store may only be read.
  void deny(Error why) { denied_ = std::move(why); }

  /// Folders with a lock but with neither a record nor a removed.json, ascending.
  Task<Result<std::vector<std::string>>> without_record();
  /// `named`: every delta that a record names, if the caller knows. For a sure answer under the
  /// exclusive store lock.
  Task<Result<LostRecords>> find_lost(std::optional<std::set<std::string>> named);

  // ---- Deltas

  /// A new, empty, durable delta (its name too). The caller holds the store lock until a record
  /// that names it is published.
  Task<Result<std::unique_ptr<Delta>>> create_delta(std::uint64_t size);
  /// What to say when the file system answers EFBIG for a volume of `size` bytes.
  Task<Error> too_large(std::uint64_t size);
  Task<Result<std::unique_ptr<Delta>>> open_delta(std::string uuid, Delta::Mode mode);
  /// Removes a delta that no record names. Only under the exclusive store lock.
  Task<Result<void>> remove_delta(std::string uuid);
  /// Bytes on disk.
  Task<Result<std::uint64_t>> delta_allocated(std::string uuid);
  /// Every folder of deltas/.
  Task<Result<std::vector<std::string>>> list_deltas();

  Directory& volumes_dir() noexcept { return *volumes_; }
  /// Of the folder of volumes.
  std::string path() const { return volumes_->path(); }
  Directory& deltas_dir() noexcept { return *deltas_; }

 private:
  static Task<Result<StoredVolume>> read_record(Directory& dir, std::string name);
  static Task<Result<bool>> has_record(Directory& dir);
  /// Names of folders of volumes of which that is so, in no order.
  Task<Result<std::vector<std::string>>> folders_where(Task<Result<bool>> (*holds)(Directory& dir));
  Task<Result<void>> prepare_new(std::string name);
  static Task<Result<void>> mark_new(Directory& dir);
  Task<Result<std::set<std::string>>> named_deltas();
  Task<Result<VolumeLock>> try_lock_dir(std::string name, Holder holder);
  Task<Result<void>> undo_replace(Directory& dir, std::string name, std::string old_bytes,
                                  Error why, bool* certain);

  std::unique_ptr<Directory> volumes_;
  std::unique_ptr<Directory> deltas_;
  Random* random_;
  std::string live_folder_;
  std::shared_ptr<BlockQuota> quota_;
  std::optional<Error> denied_;
};

/// This process, without a control socket. Name the value and move it into a coroutine: g++ 12
/// destroys the temporary Holder{...} of a co_await expression twice.
Holder this_process();

/// Whether the folder has an entry of that name.
Task<Result<bool>> has_entry(Directory& dir, std::string name);

/// What there is to say of volume `name`, which has lost its record.
Error lost_record(const VolumeStore& volumes, const std::string& name,
                  const std::vector<std::string>& deltas);

/// Every delta that `record` names: the writable one, its sealed ones, those of its snapshots.
std::vector<std::string> deltas_of(const VolumeRecord& record);
/// Every manifest that `record` names.
std::vector<BlobDigest> manifests_of(const VolumeRecord& record);

}  // namespace snap
