// Store::save: images as an OCI image layout in a tar (docker save).
//
// The order lets a reader that streams know what is coming: oci-layout, index.json, manifests,
// configs, layers; within each kind in the order in which the images were named. Each blob comes
// once. Nothing else goes in, so equal images give equal files.
#include <algorithm>
#include <set>

#include "engine/store/store_impl.h"
#include "engine/store/tar_file.h"
#include "snap/limits.h"

namespace snap {

namespace {

constexpr std::size_t kCopyBytes = 1u << 20;
constexpr std::string_view kLayoutFile = "{\"imageLayoutVersion\":\"1.0.0\"}";

/// What goes into the file.
struct Bundle {
  std::vector<IndexEntry> index;
  std::vector<BlobDigest> blobs;  // in the order in which they are written
  std::uint64_t total = 0;        // bytes of them
};

std::string blob_name(BlobDigest digest) {
  return "blobs/sha256/" + digest.hex();
}

/// The tags that `asked` selects: itself if it is a tag, else (an ID) all that the image has.
std::vector<std::optional<Reference>> tags_to_save(const Image& image, const std::string& asked) {
  auto reference = Reference::parse(asked);
  if (reference &&
      std::find(image.tags.begin(), image.tags.end(), *reference) != image.tags.end()) {
    return {*reference};
  }
  std::vector<std::optional<Reference>> tags(image.tags.begin(), image.tags.end());
  if (tags.empty()) tags.emplace_back();
  return tags;
}

/// Collects blobs of one kind, each once.
class BlobList {
 public:
  void add(BlobDigest digest) {
    if (seen_.insert(digest).second) order_.push_back(digest);
  }
  const std::vector<BlobDigest>& order() const { return order_; }

 private:
  std::set<BlobDigest> seen_;
  std::vector<BlobDigest> order_;
};

Task<Result<Bundle>> collect(Store::Impl& store, const std::vector<std::string>& names) {
  Bundle bundle;
  BlobList manifests, configs, layers;
  std::set<std::pair<BlobDigest, std::string>> entries;
  for (const std::string& name : names) {
    auto image = co_await store.images.find(name);
    if (!image) co_return image.error();
    auto stat = co_await store.blobs.stat(image->manifest);
    if (!stat) co_return stat.error();
    for (const auto& tag : tags_to_save(*image, name)) {
      if (entries.insert({image->manifest, tag ? tag->str() : ""}).second)
        bundle.index.push_back(make_index_entry(image->manifest, stat->size, tag));
    }
    manifests.add(image->manifest);
    configs.add(BlobDigest{image->id.bytes});
    for (const LayerRef& layer : image->layers)
      layers.add(layer.blob);
  }
  for (const BlobList* list : {&manifests, &configs, &layers})
    bundle.blobs.insert(bundle.blobs.end(), list->order().begin(), list->order().end());
  for (const BlobDigest digest : bundle.blobs) {
    auto stat = co_await store.blobs.stat(digest);
    if (!stat) co_return stat.error();
    bundle.total += stat->size;
  }
  co_return bundle;
}

Task<Result<void>> write_text(TarWriter& tar, std::string name, std::string_view text) {
  auto begun = co_await tar.begin_file(std::move(name), text.size());
  if (!begun) co_return begun.error();
  auto written = co_await tar.write(std::as_bytes(std::span(text.data(), text.size())));
  co_return written;
}

/// Copies one blob; `done` counts the bytes of all.
Task<Result<void>> write_blob(TarWriter& tar, BlobStore& blobs, BlobDigest digest,
                              std::uint64_t& done, std::uint64_t total, const Progress& progress) {
  auto file = co_await blobs.open(digest);
  if (!file) co_return file.error();
  auto stat = co_await (*file)->stat();
  if (!stat) co_return stat.error();
  auto begun = co_await tar.begin_file(blob_name(digest), stat->size);
  if (!begun) co_return begun.error();
  std::vector<std::byte> buffer(std::min<std::uint64_t>(kCopyBytes, stat->size));
  // What leaves the store is proven to be what its name says: a friend could not load damage.
  Sha256Stream hash;
  for (std::uint64_t at = 0; at < stat->size;) {
    if (progress.is_cancelled()) co_return Error(ErrorCode::kCancelled, "save: cancelled");
    const auto piece =
        std::span(buffer).first(std::min<std::uint64_t>(buffer.size(), stat->size - at));
    auto read = co_await read_exact(**file, piece, ByteOffset(at));
    if (!read) co_return read.error();
    auto work = offload([&hash, piece] { hash.update(piece); });
    co_await work;
    auto written = co_await tar.write(piece);
    if (!written) co_return written.error();
    at += piece.size();
    done += piece.size();
    progress.tell("save " + digest.str(), done, total);
  }
  if (hash.finish() != digest.bytes) {
    co_return Error(ErrorCode::kCorrupt,
                    "save: blob " + digest.str() + " is damaged: its bytes have another digest");
  }
  co_return Result<void>();
}

Task<Result<void>> write_bundle(TarWriter& tar, BlobStore& blobs, const Bundle& bundle,
                                const Progress& progress) {
  auto written = co_await write_text(tar, "oci-layout", kLayoutFile);
  if (!written) co_return written.error();
  const std::string index = encode_index(bundle.index);
  written = co_await write_text(tar, "index.json", index);
  if (!written) co_return written.error();
  for (const char* folder : {"blobs", "blobs/sha256"}) {
    auto made = co_await tar.begin_directory(folder);
    if (!made) co_return made.error();
  }
  std::uint64_t done = 0;
  for (const BlobDigest digest : bundle.blobs) {
    written = co_await write_blob(tar, blobs, digest, done, bundle.total, progress);
    if (!written) co_return written.error();
  }
  auto finished = co_await tar.finish();
  co_return finished;
}

}  // namespace

Task<Result<void>> Store::save(std::vector<std::string> images, std::string file,
                               Progress progress) {
  if (images.empty()) {
    co_return Error(ErrorCode::kInvalidArgument, "save: name at least one image");
  }
  auto bundle = co_await collect(*impl_, images);
  if (!bundle) co_return bundle.error();
  auto tar = co_await TarWriter::create(file);
  if (!tar) co_return tar.error();
  auto written = co_await write_bundle(**tar, impl_->blobs, *bundle, progress);
  co_return written;
}

}  // namespace snap
