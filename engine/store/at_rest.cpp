// Store::rollback, reset and remove_snapshot: changes of a volume that no one has open.
//
// Each publishes one new record, then removes the deltas that it has freed: killed between the two,
// prune removes them.
#include <unistd.h>

#include <algorithm>

#include "engine/store/chain_ops.h"
#include "engine/store/names.h"
#include "engine/store/space.h"

namespace snap {

namespace {

/// A volume whose lock we hold, and its record.
struct AtRest {
  VolumeLock lock;
  StoredVolume stored;
};

Task<Result<AtRest>> take(Store::Impl& store, std::string name) {
  auto valid = check_volume_name(name);
  if (!valid) co_return valid.error();
  const Holder holder = this_process();
  auto lock = co_await store.volumes.lock(name, holder);
  if (!lock) co_return lock.error();
  auto stored = co_await store.volumes.read_locked(*lock, name);
  if (!stored) co_return stored.error();
  co_return AtRest{std::move(*lock), std::move(*stored)};
}

Result<SnapshotRecord> find_snapshot(const VolumeRecord& record, const std::string& name) {
  std::vector<std::string> names;
  for (const SnapshotRecord& s : record.snapshots) {
    if (s.name == name) return s;
    names.push_back(s.name);
  }
  return Error(ErrorCode::kNotFound, "volume " + record.name + " has no snapshot " + shown(name) +
                                         did_you_mean(name, names));
}

/// Publishes `next` with a new, empty delta on top of its chain, and removes what that frees.
Task<Result<void>> restart_from(Store::Impl& store, AtRest& volume, VolumeRecord next) {
  const std::vector<std::string> before = deltas_of(volume.stored.record);
  auto store_lock = co_await store.lock.shared("change volume " + next.name);
  if (!store_lock) co_return store_lock.error();
  auto delta = co_await store.volumes.create_delta(next.size);
  if (!delta) co_return delta.error();
  next.delta = (*delta)->id().str();
  next.floor = next.size;
  auto closed = co_await (*delta)->close();
  if (!closed) co_return closed.error();
  volume.stored.record = std::move(next);
  auto published = co_await store.volumes.replace(volume.lock, volume.stored);
  if (!published) co_return published.error();
  store_lock->release();
  // The new record stands; what cannot be removed now is left to prune.
  auto dropped = co_await store.drop_deltas(before, false);
  static_cast<void>(dropped);
  co_return Result<void>();
}

VolumeRecord rolled_back(const VolumeRecord& record, const SnapshotRecord& snapshot) {
  VolumeRecord next = record;
  next.size = snapshot.size;
  next.sealed = snapshot.sealed;
  next.manifest = snapshot.manifest;
  next.image = snapshot.image;
  next.image_name = snapshot.image_name;
  next.base_manifest = snapshot.base_manifest;
  return next;
}

}  // namespace

Task<Result<void>> Store::rollback(std::string_view name, std::string_view snapshot) {
  const std::string volume_name(name);
  const std::string snapshot_name(snapshot);
  auto volume = co_await take(*impl_, volume_name);
  if (!volume) co_return volume.error().with_context("rollback");
  auto found = find_snapshot(volume->stored.record, snapshot_name);
  if (!found) co_return found.error();
  auto done = co_await restart_from(*impl_, *volume, rolled_back(volume->stored.record, *found));
  if (!done) co_return done.error().with_context("roll " + volume_name + " back");
  co_await note_room(*this);
  co_return Result<void>();
}

Task<Result<void>> Store::reset(std::string_view name) {
  const std::string volume_name(name);
  auto volume = co_await take(*impl_, volume_name);
  if (!volume) co_return volume.error().with_context("reset");
  VolumeRecord next = volume->stored.record;
  next.manifest = reset_target(next);
  next.base_manifest.reset();
  next.sealed.clear();
  auto done = co_await restart_from(*impl_, *volume, std::move(next));
  if (!done) co_return done.error().with_context("reset " + volume_name);
  co_await note_room(*this);
  co_return Result<void>();
}

Task<Result<void>> Store::remove_snapshot(std::string_view name, std::string_view snapshot) {
  const std::string volume_name(name);
  const std::string snapshot_name(snapshot);
  auto volume = co_await take(*impl_, volume_name);
  if (!volume) co_return volume.error().with_context("remove a snapshot");
  VolumeRecord& record = volume->stored.record;
  auto found = find_snapshot(record, snapshot_name);
  if (!found) co_return found.error();
  std::erase_if(record.snapshots,
                [&snapshot_name](const SnapshotRecord& s) { return s.name == snapshot_name; });
  // Until the new record is durable no sweep takes what it frees.
  auto store_lock = co_await impl_->lock.shared("remove a snapshot of " + shown(volume_name));
  if (!store_lock) co_return store_lock.error();
  auto published = co_await impl_->volumes.replace(volume->lock, volume->stored);
  if (!published) co_return published.error();
  store_lock->release();
  std::vector<std::string> freed;
  for (const SealedLink& link : found->sealed)
    freed.push_back(link.delta);
  // The new record stands; what cannot be removed now is left to prune.
  auto dropped = co_await impl_->drop_deltas(std::move(freed), false);
  static_cast<void>(dropped);
  co_await note_room(*this);
  co_return Result<void>();
}

}  // namespace snap
