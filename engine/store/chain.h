// ChainCache: layers and resolved maps shared by the volumes of this process. A layer is opened
// once, by its blob digest; a LayerStack is made once for each list of layers. Both live as long as
// someone uses them.
#pragma once

#include <map>
#include <memory>
#include <vector>

#include "engine/io/sync.h"
#include "engine/layer/layer.h"
#include "engine/store/blob_store.h"
#include "engine/store/volume_store.h"
#include "engine/volume/layer_stack.h"
#include "snap/result.h"
#include "snap/store.h"
#include "snap/task.h"

namespace snap {

/// The layer in `file`, checked against the content digest and file size that its image names.
Task<Result<std::shared_ptr<Layer>>> open_layer(std::unique_ptr<File> file, LayerRef ref);

class ChainCache {
 public:
  explicit ChainCache(BlobStore& blobs) : blobs_(&blobs) {}

  /// The layer in the store, checked against its content digest and file size. A missing blob is
  /// Corrupt: something names it.
  Task<Result<std::shared_ptr<Layer>>> layer(LayerRef ref);
  /// The layers (bottom first) as one view; an empty list reads zero.
  Task<Result<std::shared_ptr<LayerStack>>> stack(std::vector<LayerRef> layers);

 private:
  BlobStore* blobs_;
  AsyncMutex mutex_;
  std::map<BlobDigest, std::weak_ptr<Layer>> layers_;
  std::map<std::vector<BlobDigest>, std::weak_ptr<LayerStack>> stacks_;
};

/// Opens the sealed deltas of a chain, top first, each read-only.
Task<Result<std::vector<Volume::Sealed>>> open_sealed(VolumeStore& volumes,
                                                      std::vector<SealedLink> links);

}  // namespace snap
