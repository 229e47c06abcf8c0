// Store::commit: what is above a volume's image becomes a layer, and with the image's layers a new
// image.
//
//   1. seal   the delta on top is sealed, an empty one put there: a pause of milliseconds
//   2. pack   the sealed deltas become a layer file in tmp/, while the volume serves requests
//   3. publish  layer, config, manifest, tag; last the volume's record, with the layer in the place
//             of the sealed deltas
//
// Killed after 1 or 2, the volume has a sealed delta more, which the next commit packs with the
// rest. Killed in 3, perhaps the image is there already and the volume still reads through its
// sealed deltas: the content is the same (docs/durability.md, Publish).
#include <algorithm>

#include "engine/store/chain_ops.h"
#include "engine/store/names.h"
#include "engine/store/space.h"
#include "snap/limits.h"

namespace snap {

namespace {

constexpr std::size_t kShortId = 12;  // hex digits, as people see them

/// What is committed: fixed by the seal, whatever happens to the volume meanwhile.
struct Sealed {
  Volume::Parts parts;
  std::uint64_t size = 0;
  std::chrono::microseconds pause{0};
};

Task<Result<Sealed>> seal(Store& store, OpenVolume::Impl& volume, PackOptions packing) {
  auto changing = co_await volume.changing.lock();
  Sealed sealed;
  if (!top_is_clean(volume.volume->parts())) {
    auto room = co_await make_room(store, volume, std::move(packing));
    if (!room) co_return room.error();
    auto lock = co_await volume.store->lock.shared("commit " + volume.stored.record.name);
    if (!lock) co_return lock.error();
    auto pushed = co_await push_delta(volume, volume.stored.record);
    if (!pushed) co_return pushed.error();
    sealed.pause = pushed->writes;
  }
  sealed.parts = volume.volume->parts();
  sealed.size = volume.stored.record.size;
  co_return sealed;
}

/// Refuses before the seal what the store or its disk would not hold. What a layer leaves out
/// (zeros, what is below anyway) shows only when it is packed, so this is the most that it takes.
Task<Result<void>> require_room_for_layer(Store& store, const Volume& volume, bool compressed) {
  std::uint64_t data = 0;
  if (!compressed) data = co_await data_above_image(volume.parts());
  auto required = co_await require_room(store, layer_bytes(data),
                                        "; or commit with --compress, which takes less");
  co_return required;
}

/// A layer that mentions nothing: for its size alone.
Task<Result<PackedLayer>> empty_layer(Scratch& scratch, std::uint64_t size, bool bottom) {
  auto file = co_await scratch.dir().open(kScratchLayer, kNewBlob);
  if (!file) co_return file.error();
  LayerWriter writer(std::move(*file), {.virtual_size = size, .bottom = bottom});
  auto written = co_await writer.finish();
  if (!written) co_return written.error();
  co_return PackedLayer{written->info, written->blob};
}

class Commit {
 public:
  Commit(Store& store, OpenVolume::Impl& volume, Scratch& scratch,
         const Store::CommitOptions& options, const Progress& progress)
      : store_(store),
        volume_(volume),
        scratch_(scratch),
        watch_(store, scratch),
        options_(options),
        progress_(progress) {}

  Task<Result<Store::Committed>> run();

 private:
  PackOptions pack_options();
  Task<Result<std::optional<PackedLayer>>> make_layer();
  Image new_image(const std::optional<PackedLayer>& layer) const;
  Task<Result<Image>> publish(std::optional<PackedLayer> layer);

  Store& store_;
  OpenVolume::Impl& volume_;
  Scratch& scratch_;
  RoomWatch watch_;
  const Store::CommitOptions& options_;
  const Progress& progress_;
  Sealed sealed_;
  std::optional<Image> below_;
  std::uint64_t packed_ = 0;
};

PackOptions Commit::pack_options() {
  PackOptions pack = packing_of(options_);
  pack.bytes_per_second = options_.rate_limit;
  pack.progress = [this](std::uint64_t done, std::uint64_t total) {
    packed_ = done;
    progress_.tell("pack", done, total);
  };
  pack.cancelled = [this] { return progress_.is_cancelled(); };
  return pack;
}

/// The layer to put on the image; none if that would say nothing new.
Task<Result<std::optional<PackedLayer>>> Commit::make_layer() {
  const bool same_size = below_ && below_->size == sealed_.size;
  if (sealed_.parts.sealed.empty()) {
    if (same_size) co_return std::optional<PackedLayer>();
    auto layer = co_await empty_layer(scratch_, sealed_.size, !below_);
    if (!layer) co_return layer.error();
    co_return std::optional<PackedLayer>(*layer);
  }
  auto layer = co_await pack_sealed(scratch_, watch_, sealed_.parts, sealed_.size, pack_options());
  if (!layer) co_return layer.error();
  if (same_size && layer->info.entries == 0) co_return std::optional<PackedLayer>();
  co_return std::optional<PackedLayer>(*layer);
}

Image Commit::new_image(const std::optional<PackedLayer>& layer) const {
  Image image;
  if (below_) image = *below_;
  image.tags.clear();
  image.size = sealed_.size;
  image.created = now_rfc3339();
  image.author = options_.author;
  for (const auto& [key, value] : options_.labels)
    image.labels[key] = value;
  if (layer) image.layers.push_back(layer->ref());
  image.history.push_back({.created = image.created,
                           .created_by = options_.created_by,
                           .author = options_.author,
                           .comment = options_.comment,
                           .empty_layer = !layer});
  return image;
}

Task<Result<Image>> Commit::publish(std::optional<PackedLayer> layer) {
  auto changing = co_await volume_.changing.lock();
  auto lock = co_await volume_.store->lock.shared("commit " + volume_.stored.record.name);
  if (!lock) co_return lock.error();
  if (layer) {
    auto adopted = co_await watch_.adopt(layer->offer());
    if (!adopted) co_return adopted.error();
  }
  auto image = co_await volume_.store->images.publish(new_image(layer), options_.name);
  if (!image) co_return image.error();
  VolumeRecord next = volume_.stored.record;
  next.manifest = image->manifest;
  next.image = image->id;
  next.image_name = options_.name ? options_.name->str() : image->id.hex().substr(0, kShortId);
  next.base_manifest.reset();
  auto replaced =
      co_await replace_base(volume_, sealed_.parts.sealed.size(), *image, next, std::move(*lock));
  if (!replaced) {
    co_return replaced.error().with_context("image " + image->id.str() +
                                            " is made, but the volume does not use it yet");
  }
  co_return image;
}

Task<Result<Store::Committed>> Commit::run() {
  const auto begin = EventLoop::current()->now();
  PackOptions older = packing_of(options_);  // before the seal: not the work that is told of
  older.cancelled = [this] { return progress_.is_cancelled(); };
  auto sealed = co_await seal(store_, volume_, std::move(older));
  if (!sealed) co_return sealed.error();
  sealed_ = std::move(*sealed);
  // What is written from now on is no part of it: who has paused writes lets them go.
  progress_.tell("seal", 1, 1);
  auto below = co_await image_below(volume_);
  if (!below) co_return below.error();
  below_ = std::move(*below);
  auto layer = co_await make_layer();
  if (!layer) co_return layer.error();
  if (progress_.is_cancelled()) co_return Error(ErrorCode::kCancelled, "cancelled");
  auto image = co_await publish(*layer);
  if (!image) co_return image.error();
  Store::Committed committed;
  committed.layer = image->layers.back();
  committed.image = std::move(*image);
  committed.pause = sealed_.pause;
  committed.packed = packed_;
  committed.total =
      std::chrono::duration_cast<std::chrono::microseconds>(EventLoop::current()->now() - begin);
  co_return committed;
}

}  // namespace

Task<Result<Store::Committed>> Store::commit(OpenVolume& volume, CommitOptions options,
                                             Progress progress) {
  OpenVolume::Impl& open = volume.impl();
  const std::string context = "commit " + open.stored.record.name;
  auto committing = co_await open.committing.lock();
  auto room = co_await require_room_for_layer(*this, *open.volume, options.compress);
  if (!room) co_return room.error().with_context(context);
  auto scratch = co_await impl_->scratch();
  if (!scratch) co_return scratch.error().with_context(context);
  Commit commit(*this, open, *scratch, options, progress);
  auto committed = co_await commit.run();
  auto removed = co_await scratch->remove();
  static_cast<void>(removed);  // swept when the store is opened next
  if (!committed) co_return committed.error().with_context(context);
  co_await note_room(*this);
  co_return committed;
}

}  // namespace snap
