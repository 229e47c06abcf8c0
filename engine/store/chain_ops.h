// Steps that snapshot, clone and commit share.
//
// Publish order, of each: what a record names is durable before the record; the record that frees
// something is durable before that is removed (docs/durability.md, Publish).
#pragma once

#include <cstdint>
#include <memory>
#include <optional>

#include "engine/layer/layer.h"
#include "engine/store/room_watch.h"
#include "engine/store/store_impl.h"
#include "engine/volume/pack.h"
#include "snap/store.h"

namespace snap {

/// The name of a layer in its scratch folder.
inline constexpr const char* kScratchLayer = "layer";

/// A layer file in a scratch folder, whole and synced, without a name in the store yet.
struct PackedLayer {
  LayerInfo info;
  BlobDigest blob;
  LayerRef ref() const { return {blob, info.content, info.file_size}; }
  std::vector<RoomWatch::Offer> offer() const { return {{kScratchLayer, blob}}; }
};

/// True if the delta on top holds nothing and hides nothing of what lies below: the state of the
/// volume is that of its sealed deltas and layers.
bool top_is_clean(const Volume::Parts& parts) noexcept;

/// Seals the delta on top and puts an empty one there; `next` is the record to publish with it,
/// whose delta, floor and sealed links are filled in here. The caller holds volume.changing and the
/// store lock. On failure the volume goes on as it was.
Task<Result<Volume::Pause>> push_delta(OpenVolume::Impl& volume, VolumeRecord next);

/// Makes room for one more sealed delta: at kMaxSealedDeltas all of them are packed into an image
/// that only this volume's record names. NoSpace, before anything is written, if that may not fit.
/// The caller holds volume.committing and volume.changing, not the store lock.
Task<Result<void>> make_room(Store& store, OpenVolume::Impl& volume, PackOptions packing);
/// volume.changing, with room for one more sealed delta. Waits for a commit only where it must.
Task<Result<AsyncMutex::Guard>> lock_with_room(Store& store, OpenVolume::Impl& volume);
/// The same; what has to be packed is as `packing` says.
Task<Result<AsyncMutex::Guard>> lock_with_room(Store& store, OpenVolume::Impl& volume,
                                               PackOptions packing);

/// Bytes of data in the delta on top and the sealed ones, each block once.
Task<std::uint64_t> data_above_image(Volume::Parts parts);

/// What a commit says of compression, for its own packing and what has to be packed before it.
PackOptions packing_of(const Store::CommitOptions& how);
/// Packs the sealed deltas of `parts` into scratch; `size` is that of the layer. NoSpace if `watch`
/// says so: then scratch is gone.
Task<Result<PackedLayer>> pack_sealed(Scratch& scratch, RoomWatch& watch, Volume::Parts parts,
                                      std::uint64_t size, PackOptions options);

/// The image that the layers of `record` come from; none: it has no layers.
Task<Result<std::optional<Image>>> image_below(OpenVolume::Impl& volume);

/// Gives the chain the layers of `image` in the place of its last `count` sealed deltas, with
/// `next`'s image fields; the deltas that nothing names any more are removed. The caller holds
/// volume.changing and, in `lock`, the store lock, which is given back before the removal.
Task<Result<void>> replace_base(OpenVolume::Impl& volume, std::size_t count, const Image& image,
                                VolumeRecord next, FileLock lock);

/// The manifest that `reset` goes back to.
std::optional<BlobDigest> reset_target(const VolumeRecord& record);

}  // namespace snap
