#include "engine/store/chain.h"

#include <algorithm>

#include "engine/store/names.h"
#include "snap/limits.h"

namespace snap {

namespace {

// Layers that are opened side by side: enough to keep a disk busy, few enough to bound memory.
constexpr std::size_t kOpenAtOnce = 16;

template <class Map>
void drop_expired(Map& map) {
  std::erase_if(map, [](const auto& entry) { return entry.second.expired(); });
}

bool is(const Layer& layer, const LayerRef& ref) {
  return layer.info().content == ref.content && layer.info().file_size == ref.file_size;
}

/// A stack is known by its blobs alone; a manifest may say of them what is not true.
bool is(const LayerStack& stack, const std::vector<LayerRef>& refs) {
  return std::ranges::equal(
      stack.layers(), refs,
      [](const std::shared_ptr<Layer>& layer, const LayerRef& ref) { return is(*layer, ref); });
}

Task<Result<std::shared_ptr<Layer>>> open_stored(BlobStore* blobs, LayerRef ref) {
  auto file = co_await blobs->open(ref.blob);
  if (!file) {
    if (file.error().code() != ErrorCode::kNotFound) co_return file.error();
    co_return Error(ErrorCode::kCorrupt, "layer " + ref.blob.str() +
                                             " is missing: restore blobs/sha256/" + ref.blob.hex() +
                                             " from a copy");
  }
  auto layer = co_await open_layer(std::move(*file), ref);
  co_return layer;
}

Task<Result<std::unique_ptr<Delta>>> open_one_sealed(VolumeStore* volumes, std::string uuid) {
  auto delta = co_await volumes->open_delta(std::move(uuid), Delta::Mode::kSealed);
  co_return delta;
}

}  // namespace

Task<Result<std::shared_ptr<Layer>>> open_layer(std::unique_ptr<File> file, LayerRef ref) {
  auto layer = co_await Layer::open(std::move(file), ref.content);
  if (!layer) co_return layer.error().with_context("layer " + ref.blob.str());
  if (is(**layer, ref)) co_return layer;
  co_return Error(ErrorCode::kCorrupt,
                  "layer " + ref.blob.str() + " has " + std::to_string((*layer)->info().file_size) +
                      " bytes, its manifest says " + std::to_string(ref.file_size));
}

Task<Result<std::shared_ptr<Layer>>> ChainCache::layer(LayerRef ref) {
  if (auto known = layers_[ref.blob].lock(); known && is(*known, ref)) co_return known;
  auto opened = co_await open_stored(blobs_, ref);
  if (!opened) co_return opened.error();
  // Another task may have opened it meanwhile: all share the first.
  auto& slot = layers_[ref.blob];
  if (auto first = slot.lock(); first && is(*first, ref)) co_return first;
  slot = *opened;
  co_return *opened;
}

Task<Result<std::shared_ptr<LayerStack>>> ChainCache::stack(std::vector<LayerRef> refs) {
  auto guard = co_await mutex_.lock();
  drop_expired(layers_);
  drop_expired(stacks_);
  std::vector<BlobDigest> key;
  for (const LayerRef& ref : refs)
    key.push_back(ref.blob);
  if (auto known = stacks_[key].lock(); known && is(*known, refs)) co_return known;
  if (refs.size() > kMaxLayersPerImage) {
    co_return Error(ErrorCode::kTooLarge, "a chain of " + std::to_string(refs.size()) +
                                              " layers; at most " +
                                              std::to_string(kMaxLayersPerImage) + " are allowed");
  }
  std::vector<std::shared_ptr<Layer>> layers;
  while (layers.size() < refs.size()) {
    std::vector<Task<Result<std::shared_ptr<Layer>>>> batch;
    const std::size_t end = std::min(refs.size(), layers.size() + kOpenAtOnce);
    for (std::size_t i = layers.size(); i < end; ++i)
      batch.push_back(layer(refs[i]));
    auto opened = co_await gather(std::move(batch));
    for (auto& one : opened) {
      if (!one) co_return one.error();
      layers.push_back(std::move(*one));
    }
  }
  auto made = LayerStack::make(std::move(layers));
  stacks_[key] = made;
  co_return made;
}

Task<Result<std::vector<Volume::Sealed>>> open_sealed(VolumeStore& volumes,
                                                      std::vector<SealedLink> links) {
  std::vector<Task<Result<std::unique_ptr<Delta>>>> opening;
  for (const SealedLink& link : links)
    opening.push_back(open_one_sealed(&volumes, link.delta));
  auto opened = co_await gather(std::move(opening));
  std::vector<Volume::Sealed> out;
  for (std::size_t i = 0; i < opened.size(); ++i) {
    if (!opened[i]) co_return opened[i].error();
    out.push_back({std::shared_ptr<Delta>(std::move(*opened[i])), links[i].floor});
  }
  co_return out;
}

}  // namespace snap
