// Opening: a volume to write, an image or a snapshot to read. Assembles the chain of delta, sealed
// deltas and layers.
#include <unistd.h>

#include "engine/store/names.h"
#include "engine/store/store_impl.h"

namespace snap {

namespace {

/// A read-only view and the lock that keeps its delta at rest.
struct LockedView {
  VolumeLock lock;
  std::shared_ptr<Volume> volume;
};

Error no_snapshot(const VolumeRecord& record, const std::string& snapshot) {
  std::vector<std::string> names;
  for (const SnapshotRecord& one : record.snapshots)
    names.push_back(one.name);
  return Error(ErrorCode::kNotFound, "volume " + shown(record.name) + " has no snapshot " +
                                         shown(snapshot) + did_you_mean(snapshot, names));
}

/// Opens the writable delta and gives it the size of the record: a resize that was cut short is
/// finished (docs/durability.md, Resize).
Task<Result<std::shared_ptr<Delta>>> open_writable(VolumeStore* volumes, std::string uuid,
                                                   std::uint64_t size) {
  auto opened = co_await volumes->open_delta(std::move(uuid), Delta::Mode::kReadWrite);
  if (!opened) co_return opened.error();
  std::shared_ptr<Delta> delta(std::move(*opened));
  if (delta->size() == size) co_return delta;
  auto resized = co_await delta->resize(size);
  if (resized) co_return delta;
  auto closed = co_await delta->close();
  (void)closed;  // the failed resize is the error to tell
  co_return resized.error();
}

/// Recovers the delta of a volume at rest, so that it can be opened as a sealed one.
Task<Result<void>> settle(VolumeStore* volumes, std::string uuid, std::uint64_t size) {
  auto delta = co_await open_writable(volumes, std::move(uuid), size);
  if (!delta) co_return delta.error();
  // Sealing changes nothing for who opens it to write the next time.
  auto sealed = co_await (*delta)->seal();
  auto closed = co_await (*delta)->close();
  if (!sealed) co_return sealed;
  co_return closed;
}

}  // namespace

Task<Result<std::shared_ptr<LayerStack>>> Store::Impl::stack_of(
    std::optional<BlobDigest> manifest) {
  std::vector<LayerRef> layers;
  if (manifest) {
    auto image = co_await images.of_manifest(*manifest);
    if (!image) co_return image.error();
    layers = std::move(image->layers);
  }
  auto stack = co_await chains.stack(std::move(layers));
  co_return stack;
}

Task<Result<std::shared_ptr<LayerStack>>> Store::Impl::stack_behind(
    std::optional<BlobDigest> manifest, std::string user) {
  if (manifest) {
    auto image = co_await image_behind(images, *manifest, user);
    if (!image) co_return image.error();
  }
  auto stack = co_await stack_of(manifest);
  if (!stack) co_return stack.error().with_context("open " + user);
  co_return stack;
}

Task<Result<Volume::Parts>> Store::Impl::open_chain(VolumeRecord record) {
  const std::string user = "volume " + shown(record.name);
  Volume::Parts parts;
  parts.size = record.size;
  parts.floor = record.floor;
  auto layers = co_await stack_behind(record.manifest, user);
  if (!layers) co_return layers.error();
  parts.layers = std::move(*layers);
  auto sealed = co_await open_sealed(volumes, record.sealed);
  if (!sealed) co_return sealed.error().with_context("open " + user);
  parts.sealed = std::move(*sealed);
  // Last, for a delta that is open for writing has to be closed when something else fails.
  auto delta = co_await open_writable(&volumes, record.delta, record.size);
  if (!delta) co_return delta.error().with_context("open " + user);
  parts.delta = std::move(*delta);
  parts.delta->set_limit(record.limit);
  co_return parts;
}

Task<Result<std::shared_ptr<Volume>>> Store::Impl::open_read_only(
    std::uint64_t size, std::vector<SealedLink> sealed, std::optional<BlobDigest> manifest) {
  Volume::Parts parts;
  parts.size = size;
  auto layers = co_await stack_behind(manifest, "a read-only view");
  if (!layers) co_return layers.error();
  parts.layers = std::move(*layers);
  auto deltas = co_await open_sealed(volumes, std::move(sealed));
  if (!deltas) co_return deltas.error();
  parts.sealed = std::move(*deltas);
  co_return std::make_shared<Volume>(std::move(parts));
}

Task<Result<std::unique_ptr<OpenVolume>>> Store::open_volume(std::string_view name, Holder holder) {
  const std::string volume_name(name);
  if (holder.pid == 0) holder.pid = static_cast<int>(::getpid());
  auto impl = std::make_unique<OpenVolume::Impl>();
  impl->store = impl_.get();
  auto lock = co_await impl_->volumes.lock(volume_name, std::move(holder));
  if (!lock) co_return lock.error();
  impl->lock = std::move(*lock);
  auto stored = co_await impl_->volumes.read_locked(impl->lock, volume_name);
  if (!stored) co_return stored.error();
  if (stored->read_only) co_return *stored->read_only;
  impl->stored = std::move(*stored);
  auto parts = co_await impl_->open_chain(impl->stored.record);
  if (!parts) co_return parts.error();
  impl->volume = std::make_shared<Volume>(std::move(*parts));
  co_return std::make_unique<OpenVolume>(std::move(impl));
}

Task<Result<std::shared_ptr<Volume>>> Store::open_image(const Image& image) {
  const BlobDigest manifest = image.manifest;
  const std::uint64_t size = image.size;
  // No sweep between looking up the layers and opening them.
  auto held = co_await impl_->reading("open an image");
  if (!held) co_return held.error();
  auto stack = co_await impl_->stack_of(manifest);
  if (!stack) co_return stack.error();
  Volume::Parts parts;
  parts.size = size;
  parts.layers = std::move(*stack);
  co_return std::make_shared<Volume>(std::move(parts));
}

namespace {

/// The whole chain of a volume at rest. Its lock is held as long as the view is.
Task<Result<std::shared_ptr<Volume>>> open_at_rest(Store::Impl* store, std::string name) {
  Holder self = this_process();
  auto lock = co_await store->volumes.lock(name, std::move(self));
  if (!lock) co_return lock.error();
  auto stored = co_await store->volumes.read_locked(*lock, name);
  if (!stored) co_return stored.error();
  const VolumeRecord& record = stored->record;
  auto settled = co_await settle(&store->volumes, record.delta, record.size);
  if (!settled) co_return settled.error().with_context("open volume " + shown(name));
  std::vector<SealedLink> links{{record.delta, record.floor}};
  links.insert(links.end(), record.sealed.begin(), record.sealed.end());
  auto view = co_await store->open_read_only(record.size, std::move(links), record.manifest);
  if (!view) co_return view.error().with_context("volume " + shown(name));
  auto locked = std::make_shared<LockedView>();
  locked->lock = std::move(*lock);
  locked->volume = std::move(*view);
  co_return std::shared_ptr<Volume>(locked, locked->volume.get());
}

}  // namespace

Task<Result<std::shared_ptr<Volume>>> Store::open_snapshot(std::string_view volume,
                                                           std::string_view snapshot) {
  const std::string name(volume), wanted(snapshot);
  auto held = co_await impl_->reading("open volume " + shown(name));
  if (!held) co_return held.error();
  if (wanted.empty()) {
    held->release();  // the volume's lock keeps its chain
    auto whole = co_await open_at_rest(impl_.get(), name);
    co_return whole;
  }
  auto stored = co_await impl_->volumes.read(name);
  if (!stored) co_return stored.error();
  for (const SnapshotRecord& one : stored->record.snapshots) {
    if (one.name != wanted) continue;
    auto view = co_await impl_->open_read_only(one.size, one.sealed, one.manifest);
    if (!view)
      co_return view.error().with_context("snapshot " + shown(wanted) + " of volume " +
                                          shown(name));
    co_return view;
  }
  co_return no_snapshot(stored->record, wanted);
}

// ---- OpenVolume

OpenVolume::OpenVolume(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
OpenVolume::~OpenVolume() = default;

const VolumeRecord& OpenVolume::record() const noexcept {
  return impl_->stored.record;
}
Volume& OpenVolume::volume() noexcept {
  return *impl_->volume;
}
std::shared_ptr<Volume> OpenVolume::shared_volume() noexcept {
  return impl_->volume;
}

Task<Result<void>> OpenVolume::close() {
  auto closed = co_await impl_->volume->close();
  impl_->lock.release();
  co_return closed;
}

Task<Result<void>> OpenVolume::Impl::publish(VolumeRecord next) {
  StoredVolume replacement = stored;
  replacement.record = std::move(next);
  auto replaced = co_await store->volumes.replace(lock, replacement);
  if (replaced) {
    stored = std::move(replacement);
  } else if (replacement.read_only) {
    // docs/durability.md, Publish: the other record may stand, in which the delta on top is sealed.
    stored.read_only = replacement.read_only;
    volume->parts().delta->stop(*stored.read_only);
  }
  co_return replaced;
}

}  // namespace snap
