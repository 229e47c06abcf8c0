// BlobStore: store/blobs/sha256/<hex>: layers, configs and manifests, immutable, mode 0444, named
// by the SHA-256 of their bytes (docs/format.md, Store, blobs).
//
// Invariants: a blob has its name only after its bytes are durable; a blob that exists is never
// replaced or changed. Whoever relies on a blob that exists, or puts one in order to name it, holds
// the store lock (shared) from then until it has published the name (docs/durability.md, Publish).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "engine/base/uuid.h"
#include "snap/digest.h"
#include "snap/file.h"
#include "snap/result.h"
#include "snap/task.h"

namespace snap {

/// How the file of a blob to be is made: with the mode that it keeps, so that the sync of its bytes
/// is the last that it needs.
inline constexpr OpenFlags kNewBlob{.write = true, .create = true, .exclusive = true, .mode = 0444};

class BlobStore {
 public:
  /// `blobs` is store/blobs/sha256, `tmp` is store/tmp.
  BlobStore(std::unique_ptr<Directory> blobs, Directory& tmp, Random& random)
      : dir_(std::move(blobs)), tmp_(&tmp), random_(&random) {}

  Task<Result<bool>> exists(BlobDigest digest);
  /// Size and allocation of a blob; NotFound names the digest.
  Task<Result<FileStat>> stat(BlobDigest digest);
  /// Open for reading; NotFound names the digest. Layers are checked by Layer, not here.
  Task<Result<std::unique_ptr<File>>> open(BlobDigest digest);
  /// The bytes of a config or manifest, at most kMaxJsonBytes, checked against the digest (Corrupt
  /// names the blob).
  Task<Result<std::string>> read_json(BlobDigest digest);

  /// What became of a blob that was offered.
  struct Put {
    BlobDigest digest;
    bool existed = false;  ///< it was there already; nothing was written
  };
  /// Stores small bytes (a config or manifest). Durable when it returns.
  Task<Result<Put>> put(std::string bytes);
  /// Takes the finished, synced file `name` of `from`, made with kNewBlob, into the store as
  /// `digest`, which the caller has computed from its bytes: renamed without replacing, directory
  /// synced. If the blob exists, the file is removed instead (Corrupt if the sizes differ). Durable
  /// when it returns.
  Task<Result<Put>> adopt(Directory& from, std::string name, BlobDigest digest);

  /// Takes such a file in place of the blob that is there, which is damaged. Only for a backup,
  /// which syncs the directory before it names the blob.
  Task<Result<void>> mend(Directory& from, std::string name, BlobDigest digest);

  /// Removes a blob. Only under the exclusive store lock, by a sweep that found it unreferenced.
  Task<Result<void>> remove(BlobDigest digest);

  struct Entry {
    BlobDigest digest;
    std::uint64_t size = 0;
    std::uint64_t allocated = 0;
  };
  /// Every blob, ascending. Names that are no digests are left out.
  Task<Result<std::vector<Entry>>> list();

  Directory& dir() noexcept { return *dir_; }

 private:
  Task<Result<Put>> put_in(Directory& scratch, std::string bytes, BlobDigest digest);

  std::unique_ptr<Directory> dir_;
  Directory* tmp_;
  Random* random_;
};

}  // namespace snap
