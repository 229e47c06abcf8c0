#include "engine/store/sweep.h"

#include <algorithm>

#include "engine/store/names.h"
#include "snap/limits.h"

namespace snap {

namespace {

constexpr int kMaxIndexDepth = 4;  // an image index that names an image index that ...

bool is_manifest_type(const std::string& media_type) {
  return media_type == kManifestMediaType ||
         media_type == "application/vnd.docker.distribution.manifest.v2+json";
}
bool is_index_type(const std::string& media_type) {
  return media_type == kIndexMediaType ||
         media_type == "application/vnd.docker.distribution.manifest.list.v2+json";
}

Error unreadable(const Error& error, const std::string& user) {
  return error.with_context(user + " cannot be read").with_code(ErrorCode::kCorrupt);
}

Task<Result<void>> mark_manifest(BlobStore* blobs, BlobDigest manifest, std::string user,
                                 Marks* marks) {
  if (!marks->blobs.insert(manifest).second) co_return Result<void>();
  auto text = co_await blobs->read_json(manifest);
  if (!text) co_return unreadable(text.error(), user);
  auto parts = decode_manifest(*text);
  if (!parts) co_return unreadable(parts.error(), user);
  marks->blobs.insert(parts->config.digest);
  for (const ManifestParts::Blob& layer : parts->layers) {
    marks->blobs.insert(layer.digest);
    if (layer.media_type == kLayerMediaType) marks->layers.insert(layer.digest);
  }
  co_return Result<void>();
}

/// `depth` 0 is index.json itself: there everything that is named must be there. Deeper, images
/// for other platforms may be missing.
Task<Result<void>> mark_entry(BlobStore* blobs, IndexEntry entry, int depth, Marks* marks) {
  const std::string user = "index entry " + shown(entry.ref_name.value_or(entry.manifest.str()));
  if (depth > 0) {
    auto there = co_await blobs->exists(entry.manifest);
    if (!there) co_return there.error();
    if (!*there) co_return Result<void>();
  }
  if (is_manifest_type(entry.media_type)) {
    auto marked = co_await mark_manifest(blobs, entry.manifest, user, marks);
    co_return marked;
  }
  if (!is_index_type(entry.media_type) || depth == kMaxIndexDepth) {
    co_return Error(ErrorCode::kUnsupported, user +
                                                 " is of a kind that this release does not know (" +
                                                 shown(entry.media_type) + "); remove it");
  }
  if (!marks->blobs.insert(entry.manifest).second) co_return Result<void>();
  auto text = co_await blobs->read_json(entry.manifest);
  if (!text) co_return unreadable(text.error(), user);
  auto nested = decode_nested_index(*text);
  if (!nested) co_return unreadable(nested.error(), user);
  for (const IndexEntry& one : *nested) {
    auto marked = co_await mark_entry(blobs, one, depth + 1, marks);
    if (!marked) co_return marked;
  }
  co_return Result<void>();
}

void mark_deltas(const VolumeRecord& record, Marks& marks) {
  for (std::string& delta : deltas_of(record))
    marks.deltas.insert(std::move(delta));
}

Result<void> missing_is_fine(Result<void> result) {
  if (!result && result.error().code() == ErrorCode::kNotFound) return {};
  return result;
}

/// What was marked may be the work of a process that died before it was stable: a power cut would
/// bring back names of what is removed now. (A name that it brings back of a volume's folder leads
/// to the same record or to none.)
Task<Result<void>> settle_names(Store::Impl* store) {
  auto index = co_await store->root->sync();
  if (!index) co_return index;
  Directory& volumes = store->volumes.volumes_dir();
  auto entries = co_await volumes.list();
  if (!entries) co_return entries.error();
  for (const DirEntry& entry : *entries) {
    if (entry.type != FileStat::Type::kDirectory) continue;
    auto dir = co_await volumes.open_dir(entry.name);
    if (!dir && dir.error().code() == ErrorCode::kNotFound) continue;
    if (!dir) co_return dir.error();
    auto record = co_await (*dir)->sync();
    if (!record) co_return record;
  }
  co_return Result<void>();
}

/// Moves all of it into `out`. Each move by itself leaves a consistent store, so none is
/// synced: what a crash brings back is found by the next sweep.
Task<Result<void>> move_out(Store::Impl* store, const Garbage* garbage, Directory* out) {
  for (const BlobStore::Entry& blob : garbage->blobs) {
    const std::string name = blob.digest.hex();
    auto moved = co_await store->blobs.dir().rename(name, *out, name, true);
    moved = missing_is_fine(std::move(moved));
    if (!moved) co_return moved;
  }
  for (const Garbage::DeltaEntry& delta : garbage->deltas) {
    auto moved = co_await store->volumes.deltas_dir().rename(delta.uuid, *out, delta.uuid, true);
    moved = missing_is_fine(std::move(moved));
    if (!moved) co_return moved;
  }
  co_return Result<void>();
}

}  // namespace

Task<Result<std::unique_ptr<Directory>>> make_swept_folder(Directory& scratch) {
  auto made = co_await scratch.make_dir(kSweptFolder);
  if (!made) co_return made.error();
  auto swept = co_await scratch.open_dir(kSweptFolder);
  co_return swept;
}

std::uint64_t Garbage::bytes() const {
  std::uint64_t sum = 0;
  for (const BlobStore::Entry& blob : blobs)
    sum += blob.allocated;
  for (const DeltaEntry& delta : deltas)
    sum += delta.allocated;
  return sum;
}

Task<Result<void>> mark_image(Store::Impl& store, IndexEntry entry, Marks& marks) {
  auto marked = co_await mark_entry(&store.blobs, std::move(entry), 0, &marks);
  co_return marked;
}

Task<Result<void>> mark_volume(Store::Impl& store, const VolumeRecord& record, Marks& marks) {
  mark_deltas(record, marks);
  const std::string user = "the image of volume " + shown(record.name);
  for (const BlobDigest& manifest : manifests_of(record)) {
    auto marked = co_await mark_manifest(&store.blobs, manifest, user, &marks);
    if (!marked) co_return marked;
  }
  co_return Result<void>();
}

Task<Result<Marks>> mark_used(Store::Impl& store, std::vector<IndexEntry> entries) {
  constexpr const char* kContext = "nothing can be reclaimed";
  Marks marks;
  for (const IndexEntry& entry : entries) {
    auto marked = co_await mark_entry(&store.blobs, entry, 0, &marks);
    if (!marked) co_return marked.error().with_context(kContext);
  }
  auto volumes = co_await store.volumes.list();
  if (!volumes) co_return volumes.error().with_context(kContext);
  for (const StoredVolume& volume : *volumes) {
    auto marked = co_await mark_volume(store, volume.record, marks);
    if (!marked) co_return marked.error().with_context(kContext);
  }
  co_return marks;
}

namespace {

/// Leaves what a volume that has lost its record may need: blobs that only it named, and deltas.
Task<Result<void>> keep_of_lost(Store::Impl* store, const Marks* marks, Garbage* garbage) {
  if (garbage->blobs.empty() && garbage->deltas.empty()) co_return Result<void>();
  auto lost = co_await store->volumes.find_lost(marks->deltas);
  if (!lost) co_return lost.error();
  if (lost->volumes.empty()) co_return Result<void>();
  garbage->kept = lost_record(store->volumes, lost->volumes.front(), lost->deltas);
  garbage->blobs.clear();
  const std::set<std::string> deltas(lost->deltas.begin(), lost->deltas.end());
  std::erase_if(garbage->deltas, [&deltas](const Garbage::DeltaEntry& delta) {
    return deltas.contains(delta.uuid);
  });
  co_return Result<void>();
}

}  // namespace

Task<Result<Garbage>> find_garbage(Store::Impl& store, const Marks& marks, Candidates candidates) {
  Garbage out;
  if (candidates.blobs) {
    for (const BlobDigest& digest : *candidates.blobs) {
      if (marks.blobs.contains(digest)) continue;
      auto stat = co_await store.blobs.stat(digest);
      if (stat) {
        out.blobs.push_back({digest, stat->size, stat->allocated});
      } else if (stat.error().code() != ErrorCode::kNotFound) {
        co_return stat.error();
      }
    }
  } else {
    auto blobs = co_await store.blobs.list();
    if (!blobs) co_return blobs.error();
    for (const BlobStore::Entry& blob : *blobs) {
      if (!marks.blobs.contains(blob.digest)) out.blobs.push_back(blob);
    }
  }
  if (!candidates.deltas) {
    auto all = co_await store.volumes.list_deltas();
    if (!all) co_return all.error();
    candidates.deltas = std::move(*all);
  }
  for (const std::string& uuid : *candidates.deltas) {
    if (marks.deltas.contains(uuid)) continue;
    auto allocated = co_await store.volumes.delta_allocated(uuid);
    if (allocated) {
      out.deltas.push_back({uuid, *allocated});
    } else if (allocated.error().code() != ErrorCode::kNotFound) {
      co_return allocated.error();
    }
  }
  auto kept = co_await keep_of_lost(&store, &marks, &out);
  if (!kept) co_return kept.error();
  co_return out;
}

Store::Removed describe(const Garbage& garbage) {
  Store::Removed out;
  for (const BlobStore::Entry& blob : garbage.blobs)
    out.deleted.push_back(blob.digest.str());
  for (const Garbage::DeltaEntry& delta : garbage.deltas)
    out.deleted.push_back(delta.uuid);
  out.freed = garbage.bytes();
  out.kept = garbage.kept;
  return out;
}

Task<Result<Store::Removed>> dispose(Store::Impl& store, Garbage garbage, FileLock lock) {
  if (garbage.blobs.empty() && garbage.deltas.empty()) co_return describe(garbage);
  auto settled = co_await settle_names(&store);
  if (!settled) co_return settled.error();
  auto scratch = co_await store.scratch();
  if (!scratch) co_return scratch.error();
  // There it does not count: else what is moved while the store is measured would count twice.
  auto swept = co_await make_swept_folder(scratch->dir());
  Result<void> moved;
  if (swept) {
    moved = co_await move_out(&store, &garbage, swept->get());
  } else {
    moved = swept.error();
  }
  lock.release();
  auto removed = co_await scratch->remove();
  if (!moved) co_return moved.error();
  if (!removed) co_return removed.error();
  co_return describe(garbage);
}

Task<Result<Store::Removed>> Store::Impl::drop_deltas(std::vector<std::string> deltas,
                                                      bool dry_run) {
  auto held = co_await lock.exclusive("remove deltas");
  if (!held) co_return held.error();
  auto known = co_await volumes.list();
  if (!known) co_return known.error();
  Marks marks;  // only volumes name deltas: images need not be read
  for (const StoredVolume& volume : *known)
    mark_deltas(volume.record, marks);
  Candidates candidates;
  candidates.blobs.emplace();
  candidates.deltas = std::move(deltas);
  auto garbage = co_await find_garbage(*this, marks, std::move(candidates));
  if (!garbage) co_return garbage.error();
  if (dry_run) co_return describe(*garbage);
  auto removed = co_await dispose(*this, std::move(*garbage), std::move(*held));
  co_return removed;
}

}  // namespace snap
