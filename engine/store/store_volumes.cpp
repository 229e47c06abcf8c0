// Volumes of a store at rest: create, look up, remove, rename.
#include "engine/store/names.h"
#include "engine/store/space.h"
#include "engine/store/store_impl.h"
#include "engine/store/sweep.h"
#include "snap/limits.h"
#include "snap/units.h"

namespace snap {

namespace {

Result<std::uint64_t> size_of_new(const Store::CreateOptions& options) {
  const std::string what = "create volume " + shown(options.name) + ": ";
  const std::uint64_t least = options.image ? options.image->size : 0;
  const std::uint64_t size = options.size != 0 ? options.size : least;
  if (size == 0) return Error(ErrorCode::kInvalidArgument, what + "give a size or an image");
  if (size % kSectorSize != 0) {
    return Error(ErrorCode::kInvalidArgument,
                 what + "size " + std::to_string(size) + " is not a multiple of 512");
  }
  if (size > kMaxVolumeSize) {
    return Error(ErrorCode::kTooLarge, what + "size " + std::to_string(size) + " is more than " +
                                           std::to_string(kMaxVolumeSize) + " (256 TiB)");
  }
  if (size < least) {
    return Error(ErrorCode::kInvalidArgument, what + "size " + std::to_string(size) +
                                                  " is less than that of the image, " +
                                                  std::to_string(least));
  }
  return size;
}

/// Under the store lock: an image that the index names stays as long as the lock is held.
Task<Result<void>> check_still_there(ImageStore& images, BlobDigest manifest) {
  auto entries = co_await images.read_index();
  if (!entries) co_return entries.error();
  for (const IndexEntry& entry : *entries) {
    if (entry.manifest == manifest) co_return Result<void>();
  }
  co_return Error(ErrorCode::kNotFound,
                  "the image of manifest " + manifest.str() + " is not in the store any more");
}

StoredVolume new_record(const Store::CreateOptions& options, std::uint64_t size, Random& random) {
  StoredVolume volume;
  VolumeRecord& record = volume.record;
  record.name = options.name;
  record.id = Uuid::make(random).str();
  record.created = now_rfc3339();
  record.size = size;
  record.floor = size;
  record.labels = options.labels;
  record.image_name = options.image_name;
  record.limit = options.limit;
  if (options.image) {
    record.manifest = options.image->manifest;
    record.base_manifest = options.image->manifest;
    record.image = options.image->id;
  }
  return volume;
}

/// The name is ours; what it names gets made, then the record published.
Task<Result<VolumeRecord>> create_locked(Store::Impl& store, Store::CreateOptions options,
                                         std::uint64_t size, VolumeLock& lock) {
  // docs/durability.md, Publish: from the making of the delta to the record that names it no sweep
  // may run.
  auto held = co_await store.lock.shared("create volume " + shown(options.name));
  if (!held) co_return held.error();
  if (options.image) {
    auto there = co_await check_still_there(store.images, options.image->manifest);
    if (!there) co_return there.error();
  }
  StoredVolume volume = new_record(options, size, store.random);
  // Labels and names are checked before anything is made.
  volume.record.delta = volume.record.id;
  auto encodable = encode_volume(volume);
  if (!encodable) co_return encodable.error();
  auto delta = co_await store.volumes.create_delta(size);
  if (!delta) co_return delta.error();
  volume.record.delta = (*delta)->id().str();
  auto closed = co_await (*delta)->close();
  Result<void> published = closed;
  if (closed) published = co_await store.volumes.replace(lock, volume);
  if (published) co_return volume.record;
  delta->reset();
  // Unless it is not certain that no record names it: then prune finds out.
  if (!volume.read_only) {
    auto removed = co_await store.volumes.remove_delta(volume.record.delta);
    (void)removed;  // prune removes what stays
  }
  co_return published.error();
}

Task<Result<VolumeSummary>> summarize(VolumeStore& volumes, VolumeRecord record) {
  VolumeSummary out;
  for (const std::string& delta : deltas_of(record)) {
    auto allocated = co_await volumes.delta_allocated(delta);
    if (allocated) {
      out.allocated += *allocated;
    } else if (allocated.error().code() != ErrorCode::kNotFound) {
      co_return allocated.error();
    }
  }
  auto holder = co_await volumes.holder(record.name);
  if (holder) {
    out.holder = *holder;
  } else if (holder.error().code() != ErrorCode::kNotFound) {
    co_return holder.error();
  }
  out.record = std::move(record);
  co_return out;
}

/// What removing the volume would free: the deltas that no other volume has.
Task<Result<Store::Removed>> describe_removal(Store::Impl& store, std::string name,
                                              std::vector<std::string> deltas) {
  auto all = co_await store.volumes.list();
  if (!all) co_return all.error();
  Marks others;
  for (const StoredVolume& volume : *all) {
    if (volume.record.name == name) continue;
    for (std::string& delta : deltas_of(volume.record))
      others.deltas.insert(std::move(delta));
  }
  Candidates candidates;
  candidates.blobs.emplace();
  candidates.deltas = std::move(deltas);
  auto garbage = co_await find_garbage(store, others, std::move(candidates));
  if (!garbage) co_return garbage.error();
  co_return describe(*garbage);
}

}  // namespace

Task<Result<VolumeRecord>> Store::create_volume(CreateOptions options) {
  auto named = check_volume_name(options.name);
  if (!named) co_return named.error();
  auto size = size_of_new(options);
  if (!size) co_return size.error();
  auto limited = check_volume_limit(options.limit);
  if (!limited) co_return limited.error().with_context("create volume " + shown(options.name));
  const std::string name = options.name;
  auto room = co_await require_room(*this, kNewVolumeBytes);
  if (!room) co_return room.error().with_context("create volume " + shown(name));
  Holder self = this_process();
  auto lock = co_await impl_->volumes.lock_new(name, std::move(self));
  if (!lock) co_return lock.error();
  auto record = co_await create_locked(*impl_, std::move(options), *size, *lock);
  if (!record) co_await impl_->volumes.discard(std::move(*lock), name);
  co_return record;
}

Task<Result<std::vector<VolumeSummary>>> Store::volumes(std::vector<Error>* damaged) {
  auto all = co_await impl_->volumes.list(damaged);
  if (!all) co_return all.error();
  std::vector<VolumeSummary> out;
  for (StoredVolume& volume : *all) {
    auto summary = co_await summarize(impl_->volumes, std::move(volume.record));
    if (!summary) co_return summary.error();
    out.push_back(std::move(*summary));
  }
  co_return out;
}

Task<Result<VolumeSummary>> Store::volume(std::string_view name_or_id) {
  auto found = co_await impl_->volumes.find(std::string(name_or_id));
  if (!found) co_return found.error();
  auto summary = co_await summarize(impl_->volumes, std::move(found->record));
  co_return summary;
}

Task<Result<Store::Removed>> Store::remove_volume(std::string_view name, bool dry_run) {
  const std::string volume_name(name);
  Holder self = this_process();
  auto lock = co_await impl_->volumes.lock(volume_name, std::move(self));
  if (!lock) co_return lock.error();
  auto stored = co_await impl_->volumes.read_locked(*lock, volume_name);
  if (!stored && stored.error().code() != ErrorCode::kCorrupt) co_return stored.error();
  // A record that is damaged does not say what its deltas are: they wait for prune.
  std::vector<std::string> deltas;
  if (stored) deltas = deltas_of(stored->record);
  if (dry_run) {
    auto would = co_await describe_removal(*impl_, volume_name, std::move(deltas));
    co_return would;
  }
  auto store_lock = co_await impl_->lock.shared("remove volume " + shown(volume_name));
  if (!store_lock) co_return store_lock.error();
  auto erased = co_await impl_->volumes.erase(std::move(*lock), *store_lock, volume_name);
  if (!erased) co_return erased.error();
  store_lock->release();
  auto removed = co_await impl_->drop_deltas(std::move(deltas), false);
  // The volume is gone, which is what was asked for; what could not be reclaimed now (a busy store,
  // another volume that is damaged) waits for prune, which says why.
  co_await note_room(*this);
  if (removed) co_return removed;
  Removed out;
  out.kept = removed.error();
  co_return out;
}

Task<Result<void>> Store::rename_volume(std::string_view name, std::string_view new_name) {
  const std::string from(name), to(new_name);
  auto named = check_volume_name(to);
  if (!named) co_return named.error();
  Holder self = this_process();
  auto lock = co_await impl_->volumes.lock(from, std::move(self));
  if (!lock) co_return lock.error();
  auto store_lock = co_await impl_->lock.shared("rename volume " + shown(from));
  if (!store_lock) co_return store_lock.error();
  auto renamed = co_await impl_->volumes.rename(*lock, *store_lock, from, to);
  co_return renamed;
}

}  // namespace snap
