// See content_source.h.
#include "tools/snapctl/content_source.h"

#include <fmt/format.h>

#include <algorithm>

#include "engine/store/names.h"
#include "tools/snapctl/names.h"
#include "tools/snapctl/volume_access.h"

namespace snap::cli {

namespace {

void add_layers(ContentSource& source, const Image& image) {
  for (auto layer = image.layers.rbegin(); layer != image.layers.rend(); ++layer)
    source.links.push_back(layer->blob.str());
}

const SnapshotRecord* find_snapshot(const VolumeRecord& record, const std::string& name) {
  auto found = std::find_if(record.snapshots.begin(), record.snapshots.end(),
                            [&name](const SnapshotRecord& s) { return s.name == name; });
  return found == record.snapshots.end() ? nullptr : &*found;
}

Error no_such_snapshot(const VolumeRecord& record, const std::string& name) {
  std::vector<std::string> names;
  for (const SnapshotRecord& s : record.snapshots)
    names.push_back(s.name);
  return Error(ErrorCode::kNotFound, fmt::format("volume '{}' has no snapshot '{}'{}", record.name,
                                                 name, did_you_mean(name, names)));
}

Task<Result<ContentSource>> open_image_content(Store& store, Image image, std::string text) {
  ContentSource source;
  source.name = text;
  auto volume = co_await store.open_image(image);
  if (!volume) co_return volume.error();
  source.volume = *volume;
  add_layers(source, image);
  co_return source;
}

/// The manifest's layers, if there is one, at the end of the links.
Task<Result<void>> add_layers_of(Store& store, ContentSource* source,
                                 std::optional<BlobDigest> manifest) {
  if (!manifest) co_return Result<void>();
  auto image = co_await store.image_of_manifest(*manifest);
  if (!image) co_return image.error();
  add_layers(*source, *image);
  co_return Result<void>();
}

}  // namespace

Task<Result<ContentSource>> open_content(Store& store, std::string text) {
  auto object = co_await find_object(store, text);
  if (!object) co_return object.error();
  if (object->image) co_return co_await open_image_content(store, *object->image, text);

  if (object->snapshot.empty()) co_await release_idle(&*object->volume);
  const VolumeRecord& record = object->volume->record;
  ContentSource source;
  source.name = text;
  std::optional<BlobDigest> manifest = record.manifest;
  std::vector<SealedLink> sealed = record.sealed;
  if (!object->snapshot.empty()) {
    const SnapshotRecord* snapshot = find_snapshot(record, object->snapshot);
    if (snapshot == nullptr) co_return no_such_snapshot(record, object->snapshot);
    manifest = snapshot->manifest;
    sealed = snapshot->sealed;
  } else if (object->volume->holder) {
    co_return Error(
        ErrorCode::kBusy,
        fmt::format(
            "volume '{0}' is in use by pid {1}; read a snapshot of it: '" SNAPCTL_PROGRAM_NAME
            " snapshot {0} now', then {0}@now in place of {0}",
            record.name, object->volume->holder->pid));
  } else {
    source.links.push_back("delta " + record.delta);
  }
  auto volume = co_await store.open_snapshot(record.name, object->snapshot);
  if (!volume) co_return volume.error();
  source.volume = *volume;
  for (const SealedLink& link : sealed)
    source.links.push_back("delta " + link.delta);
  auto added = co_await add_layers_of(store, &source, manifest);
  if (!added) co_return added.error();
  co_return source;
}

Task<Result<ContentSource>> open_image_below(Store& store, std::string text) {
  auto object = co_await find_object(store, text);
  if (!object) co_return object.error();
  if (object->image) {
    co_return Error(
        ErrorCode::kInvalidArgument,
        fmt::format("diff: '{}' is an image; give a second one to compare it with", text));
  }
  const VolumeRecord& record = object->volume->record;
  // Packing of old snapshots puts layers without a name between the image and the volume.
  auto below = [](const auto& r) { return r.base_manifest ? r.base_manifest : r.manifest; };
  std::optional<BlobDigest> manifest = below(record);
  if (!object->snapshot.empty()) {
    const SnapshotRecord* snapshot = find_snapshot(record, object->snapshot);
    if (snapshot == nullptr) co_return no_such_snapshot(record, object->snapshot);
    manifest = below(*snapshot);
  }
  if (!manifest) {
    co_return Error(ErrorCode::kInvalidArgument,
                    fmt::format("diff: volume '{}' was made without an image; give what to compare "
                                "it with",
                                record.name));
  }
  auto image = co_await store.image_of_manifest(*manifest);
  if (!image) co_return image.error();
  co_return co_await open_image_content(store, *image, image->id.str());
}

}  // namespace snap::cli
