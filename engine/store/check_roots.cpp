// index.json and the records of volumes, the images that they name, and what is to be there for
// them.
#include "engine/store/check_impl.h"
#include "engine/store/names.h"

namespace snap {

namespace {

constexpr int kMaxIndexDepth = 4;  // as in a sweep

std::string user_of(const IndexEntry& entry) {
  if (entry.ref_name) return "image " + *entry.ref_name;
  return "image " + entry.manifest.str().substr(0, 19) + " (without a tag)";
}

Error missing_is_damage(const Error& error) {
  if (error.code() != ErrorCode::kNotFound) return error;
  return error.with_code(ErrorCode::kCorrupt);
}

}  // namespace

Task<void> StoreCheck::gather(Roots& roots) {
  auto entries = co_await store_.images.read_index();
  if (!entries) {
    roots.complete = false;
    add_error("index.json", entries.error(), {});
  } else {
    for (const IndexEntry& entry : *entries) {
      IndexEntry one = entry;
      co_await gather_entry(roots, std::move(one), 0);
    }
  }
  auto records = co_await read_records();
  if (!records.settled) {
    roots.complete = roots.records_complete = false;
    add_error("volumes/", {ErrorCode::kBusy, "names come and go all the time: try again"}, {});
  }
  for (auto& [name, volume] : records.by_name) {
    if (volume) {
      co_await gather_volume(roots, std::move(*volume));
      continue;
    }
    if (volume.error().code() == ErrorCode::kNotFound) continue;  // no volume, or removed
    roots.complete = roots.records_complete = false;
    Subject subject;
    subject.volume = name;
    roots.volumes.insert(name);
    add_error("volume " + name, volume.error(), subject);
  }
}

Task<void> StoreCheck::gather_entry(Roots& roots, IndexEntry entry, int depth) {
  if (depth > 0) {
    auto there = co_await store_.blobs.exists(entry.manifest);
    if (!there || !*there) co_return;  // images for other platforms may be missing
  }
  const bool nested =
      entry.media_type == kIndexMediaType ||
      entry.media_type == "application/vnd.docker.distribution.manifest.list.v2+json";
  if (nested && depth < kMaxIndexDepth) {
    co_await gather_nested(roots, std::move(entry), depth);
    co_return;
  }
  co_await gather_image(roots, entry.manifest, user_of(entry));
  const auto& image = roots.images[entry.manifest];
  if (!image) co_return;
  roots.chains.push_back({user_of(entry), image->size, {}, image->layers});
}

Task<void> StoreCheck::gather_nested(Roots& roots, IndexEntry entry, int depth) {
  const bool first = !roots.blobs.contains(entry.manifest);
  roots.blobs[entry.manifest].users.insert(user_of(entry));
  if (!first) co_return;
  auto text = co_await store_.blobs.read_json(entry.manifest);
  Result<std::vector<IndexEntry>> inside = std::vector<IndexEntry>();
  if (text) inside = decode_nested_index(*text);
  if (!text || !inside) {
    roots.complete = false;
    Subject subject;
    subject.blob = entry.manifest;
    add_error("index " + entry.manifest.str(),
              missing_is_damage(text ? inside.error() : text.error()), subject);
    co_return;
  }
  for (const IndexEntry& one : *inside) {
    IndexEntry inner = one;
    co_await gather_entry(roots, std::move(inner), depth + 1);
  }
}

Task<void> StoreCheck::gather_volume(Roots& roots, StoredVolume volume) {
  const VolumeRecord& record = volume.record;
  const std::string user = "volume " + record.name;
  roots.volumes.insert(record.name);
  NamedDelta& top = roots.deltas[record.delta];
  if (!top.volume.empty()) {
    Finding finding;
    finding.object = user;
    finding.what = "its delta " + record.delta + " is that of volume " + shown(top.volume) +
                   ", too: two volumes would write to it; remove one of them";
    Subject subject;
    subject.volume = record.name;
    add(std::move(finding), subject);
  }
  top.volume = record.name;
  top.volume_id = record.id;
  top.users.insert(user);
  const auto add_chain = [&roots](std::string name, const auto& of, std::string writable) {
    CheckedChain chain;
    chain.name = std::move(name);
    chain.size = of.size;
    if (!writable.empty()) chain.deltas.push_back(std::move(writable));
    for (const SealedLink& link : of.sealed) {
      chain.deltas.push_back(link.delta);
      roots.deltas[link.delta].users.insert(chain.name);
    }
    if (of.manifest) {
      const auto& image = roots.images[*of.manifest];
      if (image) chain.layers = image->layers;
    }
    roots.chains.push_back(std::move(chain));
  };
  for (const BlobDigest& manifest : manifests_of(record))
    co_await gather_image(roots, manifest, user);
  add_chain(user, record, record.delta);
  for (const SnapshotRecord& snapshot : record.snapshots)
    add_chain("snapshot " + record.name + "@" + snapshot.name, snapshot, "");
}

/// The manifest, its config and its layers are named by `user`.
Task<void> StoreCheck::gather_image(Roots& roots, BlobDigest manifest, std::string user) {
  const bool first = !roots.images.contains(manifest);
  roots.blobs[manifest].users.insert(user);
  if (first) {
    auto image = co_await read_image(roots, manifest);
    if (!image) {
      roots.complete = false;
      roots.images[manifest] = std::nullopt;
    } else {
      roots.images[manifest] = std::move(*image);
    }
  }
  const auto& image = roots.images[manifest];
  if (!image) co_return;
  roots.blobs[BlobDigest{image->id.bytes}].users.insert(user);
  for (const LayerRef& layer : image->layers) {
    Named& named = roots.blobs[layer.blob];
    named.layer = layer;
    named.claims.emplace(layer.content, image->id);
    named.users.insert(user);
  }
}

/// Nothing for an image of other tools, whose blobs are noted all the same.
Task<Result<std::optional<Image>>> StoreCheck::read_image(Roots& roots, BlobDigest manifest) {
  Subject subject;
  subject.blob = manifest;
  const std::string object = "manifest " + manifest.str();
  auto text = co_await store_.blobs.read_json(manifest);
  if (!text) {
    add_error(object, missing_is_damage(text.error()), subject);
    co_return text.error();
  }
  auto parts = decode_manifest(*text);
  if (!parts) {
    add_error(object, parts.error(), subject);
    co_return parts.error();
  }
  subject.blob = parts->config.digest;
  roots.blobs[parts->config.digest];
  auto config = co_await store_.blobs.read_json(parts->config.digest);
  Error why(ErrorCode::kCorrupt, "");
  if (config) {
    auto image = decode_image(manifest, *parts, *config);
    if (image) co_return std::optional<Image>(std::move(*image));
    why = image.error();
  } else {
    why = missing_is_damage(config.error());
  }
  const std::set<std::string> users = roots.blobs[manifest].users;
  roots.blobs[parts->config.digest].users.insert(users.begin(), users.end());
  for (const ManifestParts::Blob& layer : parts->layers) {
    Named& named = roots.blobs[layer.digest];
    named.size = layer.size;
    named.users.insert(users.begin(), users.end());
  }
  if (why.code() == ErrorCode::kUnsupported) co_return std::optional<Image>();
  // A config that does not say what its layers are leaves them to be checked by their digests.
  add_error("config " + parts->config.digest.str(), why.with_context(object), subject);
  co_return std::optional<Image>();
}

}  // namespace snap
