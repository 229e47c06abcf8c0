// Mark and sweep: what nothing names goes (docs/durability.md, Reclaiming).
//
// Roots are index.json and every volume.json. All of it happens under the exclusive store lock,
// which the caller holds: so nothing is being added that no root names yet. A root that cannot be
// read stops the sweep, for it may name anything; of a volume that has lost its record what may be
// its own stays. What goes is moved to tmp/ at once and deleted
// there after the lock is given back, since deleting large files takes time.
#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "engine/store/store_impl.h"
#include "snap/result.h"
#include "snap/store.h"
#include "snap/task.h"

namespace snap {

/// What the roots reach.
struct Marks {
  std::set<BlobDigest> blobs;
  std::set<BlobDigest> layers;  ///< those of the blobs that are layers of ours
  std::set<std::string> deltas;
};
/// Of one entry of index.json, added to `marks`. Corrupt if what it names cannot be read.
Task<Result<void>> mark_image(Store::Impl& store, IndexEntry entry, Marks& marks);
/// Of one volume.
Task<Result<void>> mark_volume(Store::Impl& store, const VolumeRecord& record, Marks& marks);
/// Of all. `entries` are those of index.json that count.
Task<Result<Marks>> mark_used(Store::Impl& store, std::vector<IndexEntry> entries);

/// What a sweep looks at; nothing set: everything.
struct Candidates {
  std::optional<std::vector<BlobDigest>> blobs;
  std::optional<std::vector<std::string>> deltas;
};
struct Garbage {
  std::vector<BlobStore::Entry> blobs;
  struct DeltaEntry {
    std::string uuid;
    std::uint64_t allocated = 0;
  };
  std::vector<DeltaEntry> deltas;
  /// Why there is more that nothing names, if so: a volume has lost its record, and may need it.
  std::optional<Error> kept;
  std::uint64_t bytes() const;
};
Task<Result<Garbage>> find_garbage(Store::Impl& store, const Marks& marks, Candidates candidates);

/// The folder, in one of a sweep's in tmp/, of what it has moved out.
inline constexpr const char* kSweptFolder = "swept";
/// Makes and opens it: what moves there does not count as used any more.
Task<Result<std::unique_ptr<Directory>>> make_swept_folder(Directory& scratch);
/// Removes it; gives the lock back as soon as it may. Fills `deleted` and `freed`.
Task<Result<Store::Removed>> dispose(Store::Impl& store, Garbage garbage, FileLock lock);
/// Removes folders of volumes/ without a record: what a crash left of a create or a remove. Those
/// of volumes that have lost it stay.
Task<Result<void>> remove_empty_names(VolumeStore& volumes);
/// Removes what a crash left of replacing index.json. Someone who is replacing it now holds
/// index.lock.
Task<void> remove_root_temporaries(Directory& root);
/// What dispose() would tell.
Store::Removed describe(const Garbage& garbage);

}  // namespace snap
