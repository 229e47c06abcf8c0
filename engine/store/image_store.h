// ImageStore: tags and images: store/index.json and the configs and manifests behind it
// (docs/format.md, Store, images).
//
// Invariants: index.json is replaced whole, by read-modify-write under the flock of index.lock. An
// entry is added only after manifest, config and layers are durable; the caller holds the store
// lock (shared) from the adoption of the layers to the return of publish(). One tag points at one
// image. An image that loses its last tag to another image stays, as an entry without a tag.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "engine/store/blob_store.h"
#include "engine/store/image_codec.h"
#include "snap/file.h"
#include "snap/result.h"
#include "snap/store.h"
#include "snap/task.h"

namespace snap {

/// The lock file of index.json.
inline constexpr const char* kIndexLockName = "index.lock";

class ImageStore {
 public:
  ImageStore(Directory& root, BlobStore& blobs) : root_(&root), blobs_(&blobs) {}

  /// Publishes an image whose layer blobs are in the store: config, manifest, then the index entry
  /// with `tag` (or without one). Gives `image` with id, manifest and tags filled in. NotFound
  /// names a layer that is missing. The caller holds the store lock.
  Task<Result<Image>> publish(Image image, std::optional<Reference> tag);

  /// Every image, newest first; several tags of one image are one Image. Images that cannot be
  /// read go to `damaged`; without it the first of them is the result.
  Task<Result<std::vector<Image>>> list(std::vector<Error>* damaged = nullptr);
  /// By reference, or by a unique prefix of the ID ("sha256:" may lead). NotFound suggests the
  /// nearest name; an ambiguous prefix is InvalidArgument.
  Task<Result<Image>> find(std::string name_or_id);
  /// Without its tags. NotFound if the manifest is not in the store.
  Task<Result<Image>> of_manifest(BlobDigest manifest);
  /// The image with `tags` as they are now.
  Task<Result<Image>> with_tags(Image image);

  /// Points `target` at the image of `manifest`, which is in the index or is used by a volume. The
  /// caller holds the store lock.
  Task<Result<void>> tag(BlobDigest manifest, std::optional<Reference> target);
  struct Untagged {
    std::vector<Reference> references;  ///< that were taken away
    bool last = false;                  ///< the index does not name the image any more
  };
  /// Takes away one tag; with the last one the image leaves the index.
  Task<Result<Untagged>> untag(Reference reference);
  /// Takes away every entry of an image.
  Task<Result<Untagged>> drop(BlobDigest manifest);

  /// Takes over entries of another store's index, whose blobs are in this one: each as it stands
  /// there. Entries that those do not replace stay, unless `remove`. The caller holds the store
  /// lock.
  Task<Result<void>> mirror(std::vector<IndexEntry> entries, bool remove);

  /// From now on each change fails with `why`: the store may only be read.
  void deny(Error why) { denied_ = std::move(why); }

  /// index.json as it is now.
  Task<Result<std::vector<IndexEntry>>> read_index();

 private:
  /// Changes the entries; says whether anything changed.
  using Edit = std::function<Result<bool>(std::vector<IndexEntry>&)>;
  Task<Result<void>> edit_index(Edit edit);

  Directory* root_;
  BlobStore* blobs_;
  std::map<BlobDigest, std::shared_ptr<const Image>> cache_;  ///< by manifest; they never change
  std::optional<Error> denied_;
};

/// Points `reference` at `manifest` in `entries`; true if that changed anything.
bool point_tag(std::vector<IndexEntry>& entries, BlobDigest manifest, std::uint64_t size,
               std::optional<Reference> reference);

}  // namespace snap
