// How the space of a store is used (df).
#include <map>

#include "engine/store/store_impl.h"
#include "engine/store/sweep.h"

namespace snap {

namespace {

std::string name_of(const Image& image) {
  if (image.tags.empty()) return image.id.hex().substr(0, 12);
  return image.tags.front().str();
}

/// Adds a row for each image: layers that another image has too are shared.
void add_images(const std::vector<Image>& images, Store::Usage& usage) {
  std::map<BlobDigest, std::size_t> users;
  std::map<BlobDigest, std::uint64_t> sizes;
  for (const Image& image : images) {
    std::set<BlobDigest> own;
    for (const LayerRef& layer : image.layers) {
      if (own.insert(layer.blob).second) ++users[layer.blob];
      sizes[layer.blob] = layer.file_size;
    }
  }
  for (const auto& [layer, count] : users)
    usage.shared_saving += (count - 1) * sizes[layer];
  for (const Image& image : images) {
    Store::Usage::Row row{"image", name_of(image), 0, 0, 0};
    std::set<BlobDigest> own;
    for (const LayerRef& layer : image.layers) {
      if (!own.insert(layer.blob).second) continue;
      row.size += layer.file_size;
      (users[layer.blob] > 1 ? row.shared : row.unique) += layer.file_size;
    }
    usage.rows.push_back(std::move(row));
  }
}

/// Adds a row for each volume: sealed deltas that another volume has too are shared.
void add_volumes(const std::vector<StoredVolume>& volumes,
                 const std::map<std::string, std::uint64_t>& allocated, Store::Usage& usage) {
  std::map<std::string, std::size_t> users;
  for (const StoredVolume& volume : volumes) {
    for (const std::string& delta : deltas_of(volume.record))
      ++users[delta];
  }
  for (const StoredVolume& volume : volumes) {
    Store::Usage::Row row{"volume", volume.record.name, 0, 0, 0};
    for (const std::string& delta : deltas_of(volume.record)) {
      const auto found = allocated.find(delta);
      if (found == allocated.end()) continue;
      row.size += found->second;
      (users[delta] > 1 ? row.shared : row.unique) += found->second;
    }
    usage.rows.push_back(std::move(row));
  }
}

}  // namespace

Task<Result<Store::Usage>> Store::usage() {
  Usage out;
  auto entries = co_await impl_->images.read_index();
  if (!entries) co_return entries.error();
  auto marks = co_await mark_used(*impl_, std::move(*entries));
  if (!marks) co_return marks.error();
  auto lost = co_await impl_->volumes.find_lost(marks->deltas);
  if (!lost) co_return lost.error();
  // What a volume that has lost its record may need is not removed.
  marks->deltas.insert(lost->deltas.begin(), lost->deltas.end());
  const bool sweeps_blobs = lost->volumes.empty();
  auto blobs = co_await impl_->blobs.list();
  if (!blobs) co_return blobs.error();
  for (const BlobStore::Entry& blob : *blobs) {
    (marks->layers.contains(blob.digest) ? out.layer_bytes : out.other_bytes) += blob.allocated;
    if (sweeps_blobs && !marks->blobs.contains(blob.digest)) out.reclaimable += blob.allocated;
  }
  auto deltas = co_await impl_->volumes.list_deltas();
  if (!deltas) co_return deltas.error();
  std::map<std::string, std::uint64_t> allocated;
  for (const std::string& delta : *deltas) {
    auto bytes = co_await impl_->volumes.delta_allocated(delta);
    if (!bytes) {
      if (bytes.error().code() == ErrorCode::kNotFound) continue;  // removed since it was listed
      co_return bytes.error();
    }
    allocated[delta] = *bytes;
    out.delta_bytes += *bytes;
    if (!marks->deltas.contains(delta)) out.reclaimable += *bytes;
  }
  auto images = co_await impl_->images.list();
  if (!images) co_return images.error();
  add_images(*images, out);
  auto volumes = co_await impl_->volumes.list();
  if (!volumes) co_return volumes.error();
  add_volumes(*volumes, allocated, out);
  co_return out;
}

}  // namespace snap
