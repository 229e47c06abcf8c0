// See chain_ops.h.
#include "engine/store/chain_ops.h"

#include <algorithm>
#include <bit>

#include "engine/store/names.h"
#include "engine/store/space.h"
#include "snap/limits.h"

namespace snap {

namespace {

constexpr std::uint64_t kChunksPerTurn = 16384;  // looked at between two turns of the loop

/// Removes deltas that a change has freed. What cannot be removed now (a sweep would have to wait
/// for a command that adds, or the file system fails) is left to prune: the change itself stands.
Task<void> drop_freed(Store::Impl& store, std::vector<std::string> deltas) {
  if (deltas.empty()) co_return;
  auto dropped = co_await store.drop_deltas(std::move(deltas), false);
  static_cast<void>(dropped);
}

/// Stores config and manifest of an image that only a volume's record will name.
Task<Result<BlobDigest>> put_anonymous(BlobStore& blobs, const Image& image) {
  auto encoded = encode_image(image);
  if (!encoded) co_return encoded.error();
  auto config = co_await blobs.put(encoded->config);
  if (!config) co_return config.error();
  auto manifest = co_await blobs.put(encoded->manifest);
  if (!manifest) co_return manifest.error();
  co_return manifest->digest;
}

/// The image that make_room() packs the snapshots into: the one below, and a layer.
Image anonymous_image(std::optional<Image> below, const PackedLayer& layer, std::uint64_t size) {
  Image image;
  if (below) image = std::move(*below);
  image.size = size;
  image.created = now_rfc3339();
  image.layers.push_back(layer.ref());
  image.history.push_back({.created = image.created,
                           .created_by = "snapctl snapshot",
                           .comment = "snapshots that were packed"});
  return image;
}

/// Refuses what the store or its disk would not hold: while the snapshots are packed their data is
/// there twice, and it stays so as long as they are kept.
Task<Result<void>> require_room_to_pack(Store& store, Volume::Parts parts, bool compressed) {
  std::uint64_t data = 0;
  parts.delta = nullptr;
  if (!compressed) data = co_await data_above_image(std::move(parts));
  auto required = co_await require_room(store, layer_bytes(data),
                                        "; or commit the volume with --compress, which takes less");
  co_return required;
}

Task<Result<void>> make_room_through(Store& store, OpenVolume::Impl& volume, Scratch& scratch,
                                     PackOptions packing) {
  RoomWatch watch(store, scratch);
  const Volume::Parts parts = volume.volume->parts();
  // What the delta on top hides of them for good need not be kept.
  auto layer = co_await pack_sealed(scratch, watch, parts, parts.floor, std::move(packing));
  if (!layer) co_return layer.error();
  auto below = co_await image_below(volume);
  if (!below) co_return below.error();
  Image image = anonymous_image(std::move(*below), *layer, parts.floor);
  auto lock = co_await volume.store->lock.shared("snapshot of " + volume.stored.record.name);
  if (!lock) co_return lock.error();
  auto adopted = co_await watch.adopt(layer->offer());
  if (!adopted) co_return adopted.error();
  auto manifest = co_await put_anonymous(volume.store->blobs, image);
  if (!manifest) co_return manifest.error();
  VolumeRecord next = volume.stored.record;
  next.base_manifest = reset_target(next);
  next.manifest = image.manifest = *manifest;
  auto replaced = co_await replace_base(volume, parts.sealed.size(), image, next, std::move(*lock));
  co_return replaced;
}

}  // namespace

bool top_is_clean(const Volume::Parts& parts) noexcept {
  if (parts.delta == nullptr) return true;
  const Delta::Stats stats = parts.delta->stats();
  return stats.data_blocks == 0 && stats.zero_blocks == 0 && parts.floor >= parts.size;
}

Task<Result<Volume::Pause>> push_delta(OpenVolume::Impl& volume, VolumeRecord next) {
  // Durable, its name too, before the record names it.
  auto created = co_await volume.store->volumes.create_delta(next.size);
  if (!created) co_return created.error();
  const std::shared_ptr<Delta> fresh = std::move(*created);
  fresh->set_limit(next.limit);
  next.sealed.insert(next.sealed.begin(), {next.delta, next.floor});
  next.delta = fresh->id().str();
  next.floor = next.size;
  OpenVolume::Impl* self = &volume;
  const Volume::Publish publish = [self, &next] { return self->publish(next); };
  auto pushed = co_await volume.volume->push_delta(fresh, publish);
  if (pushed) co_return pushed;
  auto closed = co_await fresh->close();
  static_cast<void>(closed);  // it is empty, and prune removes it
  co_return pushed.error();
}

PackOptions packing_of(const Store::CommitOptions& how) {
  PackOptions out;
  out.encoding = how.compress ? Encoding::kZstd : Encoding::kRaw;
  out.zstd_level = how.zstd_level;
  return out;
}

Task<Result<PackedLayer>> pack_sealed(Scratch& scratch, RoomWatch& watch, Volume::Parts parts,
                                      std::uint64_t size, PackOptions options) {
  auto file = co_await scratch.dir().open(kScratchLayer, kNewBlob);
  if (!file) co_return file.error();
  PackSource source;
  source.last = parts.sealed.size() - 1;
  source.size = size;
  source.chain = std::move(parts);
  options.wrote = [&watch](std::uint64_t bytes) { return watch.wrote(bytes); };
  auto packing = pack(std::move(source), std::move(*file), std::move(options));
  auto written = co_await std::move(packing);
  if (!written) co_return written.error();
  co_return PackedLayer{written->info, written->blob};
}

Task<Result<std::optional<Image>>> image_below(OpenVolume::Impl& volume) {
  const VolumeRecord& record = volume.stored.record;
  if (!record.manifest) co_return std::optional<Image>();
  auto image =
      co_await image_behind(volume.store->images, *record.manifest, "volume " + record.name);
  if (!image) co_return image.error();
  co_return std::optional<Image>(std::move(*image));
}

Task<Result<void>> replace_base(OpenVolume::Impl& volume, std::size_t count, const Image& image,
                                VolumeRecord next, FileLock lock) {
  auto stack = co_await volume.store->chains.stack(image.layers);
  if (!stack) co_return stack.error();
  const std::size_t first = next.sealed.size() - count;
  std::vector<std::string> freed;
  for (std::size_t i = first; i < next.sealed.size(); ++i)
    freed.push_back(next.sealed[i].delta);
  next.sealed.resize(first);
  OpenVolume::Impl* self = &volume;
  const Volume::Publish publish = [self, &next] { return self->publish(next); };
  auto replaced = co_await volume.volume->replace_base(first, *stack, publish);
  lock.release();
  if (!replaced) co_return replaced.error();
  co_await drop_freed(*volume.store, std::move(freed));
  co_return Result<void>();
}

Task<Result<void>> make_room(Store& store, OpenVolume::Impl& volume, PackOptions packing) {
  if (volume.stored.record.sealed.size() < kMaxSealedDeltas) co_return Result<void>();
  constexpr const char* kContext = "pack the older snapshots";
  const bool compressed = packing.encoding != Encoding::kRaw;
  auto room = co_await require_room_to_pack(store, volume.volume->parts(), compressed);
  if (!room) co_return room.error().with_context(kContext);
  auto scratch = co_await volume.store->scratch();
  if (!scratch) co_return scratch.error();
  auto packed = co_await make_room_through(store, volume, *scratch, std::move(packing));
  auto removed = co_await scratch->remove();
  static_cast<void>(removed);  // swept when the store is opened next
  if (!packed) co_return packed.error().with_context(kContext);
  co_await note_room(store);
  co_return Result<void>();
}

Task<Result<AsyncMutex::Guard>> lock_with_room(Store& store, OpenVolume::Impl& volume) {
  PackOptions packing;
  auto turn = co_await lock_with_room(store, volume, std::move(packing));
  co_return turn;
}

Task<Result<AsyncMutex::Guard>> lock_with_room(Store& store, OpenVolume::Impl& volume,
                                               PackOptions packing) {
  AsyncMutex::Guard changing = co_await volume.changing.lock();
  if (volume.stored.record.sealed.size() < kMaxSealedDeltas) co_return std::move(changing);
  changing.release();
  AsyncMutex::Guard committing = co_await volume.committing.lock();
  changing = co_await volume.changing.lock();
  auto room = co_await make_room(store, volume, std::move(packing));
  if (!room) co_return room.error();
  co_return std::move(changing);
}

Task<std::uint64_t> data_above_image(Volume::Parts parts) {
  std::vector<const Delta*> deltas;
  if (parts.delta != nullptr) deltas.push_back(parts.delta.get());
  for (const Volume::Sealed& sealed : parts.sealed)
    deltas.push_back(sealed.delta.get());
  std::uint64_t blocks = 0;
  for (std::size_t i = 0; i < deltas.size(); ++i) {
    std::uint64_t seen = 0;
    for (auto chunk = deltas[i]->next_present(ChunkIndex(0)); chunk;
         chunk = deltas[i]->next_present(*chunk + 1)) {
      BlockMask hidden = 0;
      for (std::size_t above = 0; above < i; ++above) {
        const BlockState state = deltas[above]->lookup(*chunk);
        hidden |= state.data | state.zero;
      }
      const auto mask = static_cast<BlockMask>(deltas[i]->lookup(*chunk).data & ~hidden);
      blocks += static_cast<unsigned>(std::popcount(mask));
      if (++seen % kChunksPerTurn == 0) co_await yield_now();
    }
  }
  co_return blocks* kBlockSize;
}

std::optional<BlobDigest> reset_target(const VolumeRecord& record) {
  if (record.base_manifest) return record.base_manifest;
  if (record.image) return record.manifest;
  return std::nullopt;
}

}  // namespace snap
