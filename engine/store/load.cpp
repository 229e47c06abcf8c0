// Store::load: images out of an OCI image layout, in a tar or a folder (docker load).
//
//   1. fetch   blobs that the store lacks come into tmp/, each proven against the digest that names
//              it while it streams by; blobs that it has are skipped
//   2. resolve index.json, manifests and configs say what the images are; nothing may be missing
//   3. verify  every byte of each new layer, and that its content digest is the one of the config
//   4. publish layers, configs, manifests, and last the tags
//
// Before 4 nothing has a name in the store: a file that is cut, damaged or hostile leaves it as it
// was. Memory is bounded by the JSON limits and one block of the tar.
#include <algorithm>
#include <map>
#include <set>

#include "engine/store/chain_ops.h"
#include "engine/store/load_source.h"
#include "engine/store/names.h"
#include "engine/store/space.h"
#include "snap/limits.h"

namespace snap {

namespace {

constexpr std::size_t kMaxImagesInFile = 10000;
constexpr int kMaxIndexDepth = 4;

/// One image of the file, resolved.
struct Found {
  Image image;
  std::string manifest;  // JSON, as it came: its digest is the image's manifest
  std::string config;
  std::vector<std::optional<Reference>> tags;
  std::set<std::string> tag_names;  // of `tags`
};

class Load {
 public:
  Load(Store& store, Scratch& scratch, std::string file, const Progress& progress,
       const std::function<void(const BlobDigest&, bool)>& on_layer)
      : store_(store.impl()),
        watch_(store, scratch),
        source_(store, scratch.dir(), watch_, file, progress),
        file_(std::move(file)),
        progress_(progress),
        on_layer_(on_layer) {}

  Task<Result<Store::Loaded>> run();

 private:
  Error refusal(ErrorCode code, const std::string& why) const {
    return Error(code, "load " + file_ + ": " + why);
  }
  Task<Result<void>> resolve_index(std::vector<IndexEntry> entries, int depth);
  Task<Result<void>> resolve_entry(IndexEntry entry, int depth);
  Task<Result<Found>> resolve_image(BlobDigest manifest);
  Task<Result<void>> fetch_layers(const Image& image);
  Task<Result<std::uint64_t>> verify_layer(LayerRef layer);
  Task<Result<std::uint64_t>> look_at_layer(LayerRef layer, bool is_new);
  Task<Result<void>> publish_layers(Store::Loaded& loaded);
  Task<Result<void>> publish_images(Store::Loaded& loaded);

  Store::Impl& store_;
  RoomWatch watch_;
  LoadSource source_;
  const std::string file_;
  const Progress& progress_;
  const std::function<void(const BlobDigest&, bool)>& on_layer_;
  std::vector<Found> found_;
  std::map<BlobDigest, std::size_t> by_manifest_;  // index into found_
  std::set<BlobDigest> seen_indexes_;
  std::size_t entries_ = 0;                        // of all indexes
  std::vector<std::pair<LayerRef, bool>> layers_;  // each once, and whether it is new
  std::set<BlobDigest> seen_layers_;
};

Task<Result<void>> Load::resolve_index(std::vector<IndexEntry> entries, int depth) {
  if (depth > kMaxIndexDepth)
    co_return refusal(ErrorCode::kInvalidArgument, "its indexes are nested too deep");
  entries_ += entries.size();
  if (entries_ > kMaxIndexEntries)
    co_return refusal(ErrorCode::kTooLarge, "its indexes have too many entries");
  for (const IndexEntry& entry : entries) {
    if (progress_.is_cancelled()) co_return refusal(ErrorCode::kCancelled, "cancelled");
    auto resolved = co_await resolve_entry(entry, depth);
    if (!resolved) co_return resolved.error();
  }
  co_return Result<void>();
}

Task<Result<void>> Load::resolve_entry(IndexEntry entry, int depth) {
  if (entry.media_type == kIndexMediaType) {
    // One that is named again has nothing new: else few files could name each other without end.
    if (!seen_indexes_.insert(entry.manifest).second) co_return Result<void>();
    auto text = co_await source_.json(entry.manifest);
    if (!text) co_return text.error();
    auto nested = decode_nested_index(*text);
    if (!nested) co_return refusal(nested.error().code(), nested.error().message());
    auto resolved = co_await resolve_index(std::move(*nested), depth + 1);
    co_return resolved;
  }
  auto known = by_manifest_.find(entry.manifest);
  if (known == by_manifest_.end()) {
    if (found_.size() == kMaxImagesInFile)
      co_return refusal(ErrorCode::kTooLarge, "it holds too many images");
    auto image = co_await resolve_image(entry.manifest);
    if (!image) co_return image.error();
    auto fetched = co_await fetch_layers(image->image);
    if (!fetched) co_return fetched.error();
    known = by_manifest_.emplace(entry.manifest, found_.size()).first;
    found_.push_back(std::move(*image));
  }
  Found& found = found_[known->second];
  const std::string tag = entry.reference ? entry.reference->str() : std::string();
  if (found.tag_names.insert(tag).second) found.tags.push_back(entry.reference);
  co_return Result<void>();
}

Task<Result<Found>> Load::resolve_image(BlobDigest manifest) {
  Found found;
  auto text = co_await source_.json(manifest);
  if (!text) co_return text.error();
  found.manifest = std::move(*text);
  auto parts = decode_manifest(found.manifest);
  if (!parts) co_return refusal(parts.error().code(), parts.error().message());
  auto config = co_await source_.json(parts->config.digest);
  if (!config) co_return config.error();
  found.config = std::move(*config);
  auto image = decode_image(manifest, *parts, found.config);
  if (!image) co_return refusal(image.error().code(), image.error().message());
  found.image = std::move(*image);
  co_return found;
}

Task<Result<void>> Load::fetch_layers(const Image& image) {
  std::uint64_t size = image.size;
  for (const LayerRef& layer : image.layers) {
    auto fetched = co_await source_.fetch(layer.blob);
    if (!fetched) co_return fetched.error();
    const bool is_new = *fetched == LoadSource::Where::kScratch;
    const bool first = seen_layers_.insert(layer.blob).second;
    // One that was there, or came before, may be another than this image says.
    Result<std::uint64_t> looked = size;
    if (is_new && first) {
      looked = co_await verify_layer(layer);
    } else {
      looked = co_await look_at_layer(layer, is_new);
    }
    if (!looked) co_return refusal(looked.error().code(), looked.error().message());
    size = *looked;
    if (first) layers_.emplace_back(layer, is_new);
  }
  if (size != image.size) {
    co_return refusal(ErrorCode::kCorrupt, "its image is to have " + std::to_string(image.size) +
                                               " bytes, its topmost layer has " +
                                               std::to_string(size));
  }
  co_return Result<void>();
}

/// Opens a layer and compares it with what the manifest and config say of it. Gives the size of the
/// disk that it is of.
Task<Result<std::uint64_t>> Load::look_at_layer(LayerRef layer, bool is_new) {
  if (!is_new) {
    auto opened = co_await store_.chains.layer(layer);
    if (!opened) co_return opened.error();
    co_return (*opened)->info().virtual_size;
  }
  auto file = co_await source_.open(layer.blob);
  if (!file) co_return file.error();
  auto opened = co_await open_layer(std::move(*file), layer);
  if (!opened) co_return opened.error();
  co_return (*opened)->info().virtual_size;
}

/// The same, of one that is new here: all of its bytes are checked.
Task<Result<std::uint64_t>> Load::verify_layer(LayerRef layer) {
  auto file = co_await source_.open(layer.blob);
  if (!file) co_return file.error();
  auto opened = co_await open_layer(std::move(*file), layer);
  if (!opened) co_return opened.error();
  const std::string stage = "verify " + layer.blob.str();
  const Progress* progress = &progress_;
  const std::uint64_t total = layer.file_size;
  const std::function<void(std::uint64_t)> told = [progress, &stage, total](std::uint64_t done) {
    progress->tell(stage, done, total);
  };
  auto verified = co_await (*opened)->verify_all(told);
  if (!verified) co_return verified.error().with_context("layer " + layer.blob.str());
  if (progress_.is_cancelled()) co_return Error(ErrorCode::kCancelled, "cancelled");
  co_return (*opened)->info().virtual_size;
}

Task<Result<void>> Load::publish_layers(Store::Loaded& loaded) {
  std::vector<RoomWatch::Offer> offers;
  for (const auto& [layer, is_new] : layers_) {
    if (is_new) offers.push_back({layer.blob.hex(), layer.blob});
  }
  auto puts = co_await watch_.adopt(std::move(offers));
  if (!puts) co_return puts.error().with_context("load " + file_);
  auto put = puts->begin();
  for (const auto& [layer, is_new] : layers_) {
    bool existed = true;
    if (is_new) {
      existed = put++->existed;
    } else {
      // It was there before the lock was taken: is it still?
      auto there = co_await store_.blobs.stat(layer.blob);
      if (!there) {
        co_return there.error().with_context("load " + file_ +
                                             ": a layer was removed meanwhile; try again");
      }
    }
    (existed ? loaded.layers_existing : loaded.layers_new).push_back(layer.blob);
    if (on_layer_) on_layer_(layer.blob, existed);
  }
  co_return Result<void>();
}

Task<Result<void>> Load::publish_images(Store::Loaded& loaded) {
  for (Found& found : found_) {
    auto config = co_await store_.blobs.put(found.config);
    if (!config) co_return config.error();
    auto manifest = co_await store_.blobs.put(found.manifest);
    if (!manifest) co_return manifest.error();
    for (const auto& tag : found.tags) {
      auto tagged = co_await store_.images.tag(manifest->digest, tag);
      if (!tagged) co_return tagged.error();
      if (tag) found.image.tags.push_back(*tag);
    }
    loaded.images.push_back(found.image);
  }
  co_return Result<void>();
}

Task<Result<Store::Loaded>> Load::run() {
  auto fetched = co_await source_.fetch_all();
  if (!fetched) co_return fetched.error();
  auto entries = decode_index(source_.index());
  if (!entries) co_return refusal(entries.error().code(), entries.error().message());
  if (entries->empty()) co_return refusal(ErrorCode::kInvalidArgument, "it holds no image");
  auto resolved = co_await resolve_index(std::move(*entries), 0);
  if (!resolved) co_return resolved.error();
  auto lock = co_await store_.lock.shared("load " + file_);
  if (!lock) co_return lock.error();
  Store::Loaded loaded;
  auto layers = co_await publish_layers(loaded);
  if (!layers) co_return layers.error();
  auto images = co_await publish_images(loaded);
  if (!images) co_return images.error();
  co_return loaded;
}

}  // namespace

Task<Result<Store::Loaded>> Store::load(std::string file, Progress progress,
                                        std::function<void(const BlobDigest&, bool)> on_layer) {
  auto scratch = co_await impl_->scratch();
  if (!scratch) co_return scratch.error();
  Result<Loaded> loaded = Error(ErrorCode::kCancelled, "load");
  {
    Load load(*this, *scratch, std::move(file), progress, on_layer);
    loaded = co_await load.run();
  }
  auto removed = co_await scratch->remove();
  static_cast<void>(removed);  // swept when the store is opened next
  if (loaded) co_await note_room(*this);
  co_return loaded;
}

}  // namespace snap
