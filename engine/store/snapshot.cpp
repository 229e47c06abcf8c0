// Store::snapshot, freeze, clone, resize and set_volume_limit: changes of an open volume that take
// the same few milliseconds whatever its size.
//
// A snapshot is a name for what the chain holds below the delta on top; so the delta is sealed and
// an empty one put in its place. A clone is a record that names the same sealed deltas and layers
// under a delta of its own. If the delta on top is empty there is nothing to seal.
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "engine/store/chain_ops.h"
#include "engine/store/names.h"
#include "snap/limits.h"

namespace snap {

namespace {

Result<void> check_new_snapshot(const VolumeRecord& record, const std::string& name) {
  auto valid = check_volume_name(name);
  if (!valid) return valid.error();
  for (const SnapshotRecord& s : record.snapshots) {
    if (s.name != name) continue;
    return Error(ErrorCode::kExists, "snapshot " + name + " of volume " + record.name +
                                         ": there is one of that name; choose another, or remove "
                                         "it first");
  }
  return {};
}

SnapshotRecord snapshot_of(const VolumeRecord& record, std::string name) {
  SnapshotRecord snapshot;
  snapshot.name = std::move(name);
  snapshot.created = now_rfc3339();
  snapshot.size = record.size;
  snapshot.sealed = record.sealed;
  snapshot.manifest = record.manifest;
  snapshot.image = record.image;
  snapshot.image_name = record.image_name;
  snapshot.base_manifest = record.base_manifest;
  return snapshot;
}

/// Seals what is on top unless it is empty. The caller holds volume.changing and the store lock.
Task<Result<Volume::Pause>> freeze_top(OpenVolume::Impl& volume) {
  if (top_is_clean(volume.volume->parts())) co_return Volume::Pause{};
  auto pushed = co_await push_delta(volume, volume.stored.record);
  co_return pushed;
}

VolumeRecord clone_record(const VolumeRecord& source, std::string name, Random& random) {
  VolumeRecord clone = source;
  clone.name = std::move(name);
  clone.id = Uuid::make(random).str();
  clone.created = now_rfc3339();
  clone.floor = clone.size;
  clone.snapshots.clear();
  return clone;
}

/// Freezes the source and publishes the clone's record, last. `lock` is the clone's.
Task<Result<VolumeRecord>> publish_clone(OpenVolume::Impl& source, VolumeLock& lock,
                                         std::string name) {
  Store::Impl& store = *source.store;
  auto store_lock = co_await store.lock.shared("clone " + source.stored.record.name);
  if (!store_lock) co_return store_lock.error();
  auto frozen = co_await freeze_top(source);
  if (!frozen) co_return frozen.error();
  StoredVolume clone;
  clone.record = clone_record(source.stored.record, std::move(name), store.random);
  auto delta = co_await store.volumes.create_delta(clone.record.size);
  if (!delta) co_return delta.error();
  clone.record.delta = (*delta)->id().str();
  auto closed = co_await (*delta)->close();
  if (!closed) co_return closed.error();
  auto published = co_await store.volumes.replace(lock, clone);
  if (!published) co_return published.error();
  co_return clone.record;
}

}  // namespace

Task<Result<Volume::Pause>> Store::snapshot(OpenVolume& volume, std::string name) {
  OpenVolume::Impl& open = volume.impl();
  auto turn = co_await lock_with_room(*this, open);
  if (!turn) co_return turn.error();
  auto valid = check_new_snapshot(open.stored.record, name);
  if (!valid) co_return valid.error();
  auto lock = co_await open.store->lock.shared("snapshot of " + open.stored.record.name);
  if (!lock) co_return lock.error();
  if (!top_is_clean(open.volume->parts())) {
    VolumeRecord next = open.stored.record;
    SnapshotRecord snapshot = snapshot_of(next, std::move(name));
    snapshot.sealed.insert(snapshot.sealed.begin(), {next.delta, next.floor});
    next.snapshots.push_back(std::move(snapshot));
    auto pushed = co_await push_delta(open, std::move(next));
    co_return pushed;
  }
  VolumeRecord next = open.stored.record;
  next.snapshots.push_back(snapshot_of(next, std::move(name)));
  auto published = co_await open.publish(std::move(next));
  if (!published) co_return published.error();
  co_return Volume::Pause{};
}

Task<Result<void>> Store::make_room(OpenVolume& volume, CommitOptions how) {
  PackOptions packing = packing_of(how);
  auto turn = co_await lock_with_room(*this, volume.impl(), std::move(packing));
  if (!turn) co_return turn.error();
  co_return Result<void>();
}

Task<Result<Volume::Pause>> Store::freeze(OpenVolume& volume) {
  OpenVolume::Impl& open = volume.impl();
  auto turn = co_await lock_with_room(*this, open);
  if (!turn) co_return turn.error();
  auto lock = co_await open.store->lock.shared("freeze " + open.stored.record.name);
  if (!lock) co_return lock.error();
  auto frozen = co_await freeze_top(open);
  co_return frozen;
}

Task<Result<VolumeRecord>> Store::clone(OpenVolume& volume, std::string new_name) {
  OpenVolume::Impl& source = volume.impl();
  auto valid = check_volume_name(new_name);
  if (!valid) co_return valid.error();
  auto turn = co_await lock_with_room(*this, source);
  if (!turn) co_return turn.error();
  const Holder holder = this_process();
  auto lock = co_await source.store->volumes.lock_new(new_name, holder);
  if (!lock) co_return lock.error();
  auto clone = co_await publish_clone(source, *lock, new_name);
  if (!clone) {
    co_await source.store->volumes.discard(std::move(*lock), new_name);
    co_return clone.error().with_context("clone " + source.stored.record.name + " as " + new_name);
  }
  co_return clone;
}

Task<Result<void>> Store::resize(OpenVolume& volume, std::uint64_t size) {
  OpenVolume::Impl& open = volume.impl();
  auto changing = co_await open.changing.lock();
  if (size == 0) {
    co_return Error(ErrorCode::kInvalidArgument,
                    "resize " + open.stored.record.name + ": a volume has at least 512 bytes");
  }
  if (size == open.stored.record.size) co_return Result<void>();
  VolumeRecord next = open.stored.record;
  next.size = size;
  next.floor = std::min(next.floor, size);
  OpenVolume::Impl* self = &open;
  const Volume::Publish publish = [self, &next] { return self->publish(next); };
  auto resized = co_await open.volume->resize(size, publish);
  if (!resized) {
    Error why = resized.error();
    if (why.sys_errno() == EFBIG) why = co_await open.store->volumes.too_large(size);
    co_return why.with_context("resize " + next.name);
  }
  co_return Result<void>();
}

Result<void> check_volume_limit(std::optional<std::uint64_t> bytes) {
  if (!bytes || (*bytes >= kBlockSize && *bytes <= kMaxVolumeSize)) return {};
  return Error(ErrorCode::kInvalidArgument,
               "a limit of " + std::to_string(*bytes) +
                   " bytes: give at least 4096 and at most 256T, or none");
}

Task<Result<void>> Store::set_volume_limit(OpenVolume& volume, std::optional<std::uint64_t> bytes) {
  OpenVolume::Impl& open = volume.impl();
  const std::string context = "set the limit of " + open.stored.record.name;
  auto valid = check_volume_limit(bytes);
  if (!valid) co_return valid.error().with_context(context);
  auto changing = co_await open.changing.lock();
  VolumeRecord next = open.stored.record;
  next.limit = bytes;
  auto published = co_await open.publish(std::move(next));
  if (!published) co_return published.error().with_context(context);
  open.volume->parts().delta->set_limit(bytes);
  co_return Result<void>();
}

}  // namespace snap
