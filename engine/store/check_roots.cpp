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
    if (volume.error().code() == ErrorCode::kNotFound) continue;  // find_lost_records()
    roots.complete = roots.records_complete = false;
    Subject subject;
    subject.volume = name;
    subject.opener = true;
    roots.volumes.insert(name);
    add_error("volume " + name, volume.error(), subject);
  }
}

/// Volumes whose records are gone. Under the exclusive store lock: a volume that is being removed
/// leaves deltas that nothing names, too.
Task<void> StoreCheck::find_lost_records() {
  auto suspects = co_await store_.volumes.without_record();
  if (suspects && suspects->empty()) co_return;
  auto held = co_await store_.reading_all("look for lost records");
  Result<LostRecords> lost = LostRecords{};
  if (held) lost = co_await store_.volumes.find_lost(std::nullopt);
  if (!suspects || !held || !lost) {
    add_error("volumes/", !suspects ? suspects.error() : !held ? held.error() : lost.error(), {});
    co_return;
  }
  for (const std::string& name : lost->volumes) {
    lost_.insert(name);
    add_error("volume " + name, lost_record(store_.volumes, name, lost->deltas), {});
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
  CheckedChain chain;
  chain.name = user_of(entry);
  lead_through(roots, entry.manifest, chain);
  if (const auto& image = roots.images[entry.manifest].image) chain.size = image->size;
  roots.chains.push_back(std::move(chain));
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
      add_user(roots, *of.manifest, chain.name);
      lead_through(roots, *of.manifest, chain);
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
  if (!roots.images.contains(manifest)) {
    auto read = co_await read_image(roots, manifest);
    roots.images[manifest] = std::move(read);
  }
  add_user(roots, manifest, user);
}

/// The image has been gathered, and is perhaps none that can be read: what is known of it is named.
void StoreCheck::add_user(Roots& roots, BlobDigest manifest, const std::string& user) {
  roots.blobs[manifest].users.insert(user);
  const NamedImage& known = roots.images[manifest];
  if (!known.parts) return;
  roots.blobs[known.parts->config.digest].users.insert(user);
  for (const ManifestParts::Blob& layer : known.parts->layers) {
    Named& named = roots.blobs[layer.digest];
    // A config that does not say what its layers are leaves them to be checked by their digests.
    if (!known.image) named.size = layer.size;
    named.users.insert(user);
  }
  if (!known.image) return;
  for (const LayerRef& layer : known.image->layers) {
    Named& named = roots.blobs[layer.blob];
    named.layer = layer;
    named.claims.emplace(layer.content, known.image->id);
  }
}

void StoreCheck::lead_through(Roots& roots, BlobDigest manifest, CheckedChain& chain) {
  const NamedImage& known = roots.images[manifest];
  chain.manifest = manifest;
  if (known.parts) chain.config = known.parts->config.digest;
  if (known.image) chain.layers = known.image->layers;
}

Task<StoreCheck::NamedImage> StoreCheck::read_image(Roots& roots, BlobDigest manifest) {
  NamedImage out;
  Subject subject;
  subject.blob = manifest;
  subject.opener = true;
  const std::string object = "manifest " + manifest.str();
  auto text = co_await store_.blobs.read_json(manifest);
  Result<ManifestParts> parts = ManifestParts();
  if (text) parts = decode_manifest(*text);
  if (!text || !parts) {
    roots.complete = false;
    add_error(object, text ? parts.error() : missing_is_damage(text.error()), subject);
    co_return out;
  }
  out.parts = std::move(*parts);
  const BlobDigest digest = out.parts->config.digest;
  auto config = co_await store_.blobs.read_json(digest);
  Result<Image> image = Error(ErrorCode::kCorrupt, "");
  if (config) {
    image = decode_image(manifest, *out.parts, *config);
  } else {
    image = missing_is_damage(config.error());
  }
  if (image) {
    out.image = std::move(*image);
  } else if (image.error().code() != ErrorCode::kUnsupported) {  // that is one of other tools
    subject.blob = digest;
    add_error("config " + digest.str(), image.error().with_context(object), subject);
  }
  co_return out;
}

}  // namespace snap
