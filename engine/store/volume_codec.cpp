#include "engine/store/volume_codec.h"

#include <set>

#include "engine/store/json_fields.h"
#include "engine/store/names.h"
#include "engine/store/text_sum.h"
#include "snap/limits.h"
#include "snap/units.h"

namespace snap {

namespace {

constexpr std::size_t kMaxImageName = kMaxReference + 16;

Json links_json(const std::vector<SealedLink>& links) {
  Json out = Json::array();
  for (const SealedLink& link : links)
    out.push_back({{"delta", link.delta}, {"floor", link.floor}});
  return out;
}

/// What lies below the deltas; for a volume and a snapshot alike.
template <class Record>
void put_base(Json& out, const Record& record) {
  out["image_name"] = record.image_name;
  if (record.manifest) out["manifest"] = record.manifest->str();
  if (record.image) out["image"] = record.image->str();
  if (record.base_manifest) out["base_manifest"] = record.base_manifest->str();
}

Json snapshot_json(const SnapshotRecord& snapshot) {
  Json out = {{"name", snapshot.name},
              {"created", snapshot.created},
              {"size", snapshot.size},
              {"sealed", links_json(snapshot.sealed)}};
  put_base(out, snapshot);
  return out;
}

/// Everything but the checksum.
Json volume_json(const StoredVolume& volume) {
  const VolumeRecord& record = volume.record;
  Json snapshots = Json::array();
  for (const SnapshotRecord& snapshot : record.snapshots)
    snapshots.push_back(snapshot_json(snapshot));
  Json labels = Json::object();
  for (const auto& [key, value] : record.labels)
    labels[key] = value;
  Json out = {{"format", features_json(volume.features)},
              {"generation", volume.generation},
              {"id", record.id},
              {"created", record.created},
              {"size", record.size},
              {"delta", record.delta},
              {"floor", record.floor},
              {"sealed", links_json(record.sealed)},
              {"snapshots", std::move(snapshots)},
              {"labels", std::move(labels)}};
  if (record.limit) out["limit"] = *record.limit;
  put_base(out, record);
  return out;
}

std::uint64_t read_size(JsonFields& fields, const char* key) {
  const std::uint64_t size = fields.number(key, kMaxVolumeSize);
  if (size == 0 || size % kSectorSize != 0) fields.fail(key, "is not a size");
  return size;
}

std::vector<SealedLink> read_links(JsonFields& fields, const char* key,
                                   std::optional<Error>& error) {
  std::vector<SealedLink> out;
  std::set<std::string> seen;
  const Json& links = fields.array(key, kMaxSealedDeltas);
  for (std::size_t i = 0; i < links.size() && !error; ++i) {
    JsonFields one(links[i], fields.path_of(key) + "[" + std::to_string(i) + "]", error);
    SealedLink link;
    link.delta = one.uuid("delta");
    link.floor = one.number("floor", kMaxVolumeSize);
    if (!seen.insert(link.delta).second) one.fail("delta", "is in the chain twice");
    out.push_back(std::move(link));
  }
  return out;
}

template <class D>
std::optional<D> read_optional_digest(JsonFields& fields, const char* key) {
  if (!fields.has(key)) return std::nullopt;
  return fields.digest<D>(key);
}

template <class Record>
void read_base(JsonFields& fields, Record& record) {
  record.image_name = fields.optional_text("image_name", kMaxImageName);
  record.manifest = read_optional_digest<BlobDigest>(fields, "manifest");
  record.image = read_optional_digest<ImageId>(fields, "image");
  record.base_manifest = read_optional_digest<BlobDigest>(fields, "base_manifest");
}

SnapshotRecord read_snapshot(const Json& value, const std::string& where,
                             std::optional<Error>& error) {
  JsonFields fields(value, where, error);
  SnapshotRecord out;
  out.name = fields.text("name", kMaxVolumeName);
  if (!check_volume_name(out.name)) fields.fail("name", "is not a snapshot name");
  out.created = fields.optional_time("created");
  out.size = read_size(fields, "size");
  out.sealed = read_links(fields, "sealed", error);
  read_base(fields, out);
  return out;
}

void read_snapshots(JsonFields& fields, VolumeRecord& record, std::optional<Error>& error) {
  const Json& snapshots = fields.array("snapshots", kMaxSnapshots);
  std::set<std::string> names;
  for (std::size_t i = 0; i < snapshots.size() && !error; ++i) {
    auto snapshot = read_snapshot(snapshots[i], "snapshots[" + std::to_string(i) + "]", error);
    if (!names.insert(snapshot.name).second) fields.fail("snapshots", "has one name twice");
    record.snapshots.push_back(std::move(snapshot));
  }
}

VolumeRecord read_record(JsonFields& fields, std::optional<Error>& error) {
  VolumeRecord record;
  record.id = fields.uuid("id");
  record.created = fields.optional_time("created");
  record.size = read_size(fields, "size");
  record.delta = fields.uuid("delta");
  record.floor = fields.number("floor", kMaxVolumeSize);
  record.sealed = read_links(fields, "sealed", error);
  for (const SealedLink& link : record.sealed) {
    if (link.delta == record.delta) fields.fail("delta", "is among the sealed deltas as well");
  }
  read_base(fields, record);
  read_snapshots(fields, record, error);
  record.labels = fields.labels("labels");
  if (fields.has("limit")) {
    record.limit = fields.number("limit", kMaxVolumeSize);
    if (*record.limit < kBlockSize) fields.fail("limit", "is less than a block");
  }
  return record;
}

/// The features come first: what a later release wrote may lack or change everything else.
Result<StoredVolume> read_volume(const std::string& name, Json value, const std::string& what) {
  std::optional<Error> error;
  JsonFields fields(value, "", error);
  StoredVolume out;
  out.features = read_features(fields.object("format"), error);
  if (error) return *error;
  auto writable = check_features(out.features, what);
  SNAP_RETURN_IF_ERROR(writable);
  out.read_only = *writable;
  const std::string checksum = fields.text("checksum", 16);
  Json rest = value;
  rest.erase("checksum");
  if (!error && checksum != checksum_hex(rest.dump()))
    fields.fail("checksum", "does not fit: the file is damaged or was edited by hand");
  out.generation = fields.number("generation");
  out.record = read_record(fields, error);
  out.record.name = name;
  if (error) return *error;
  return out;
}

}  // namespace

Result<std::string> encode_volume(const StoredVolume& volume) {
  Json value = volume_json(volume);
  auto text = dump_json(value, -1);
  if (!text) return text.error().with_context("volume " + shown(volume.record.name));
  value["checksum"] = checksum_hex(*text);
  // What is written can be read: the same checks, once.
  auto decoded = read_volume(volume.record.name, value, "volume");
  if (!decoded) {
    return decoded.error()
        .with_context("volume " + shown(volume.record.name))
        .with_code(ErrorCode::kInvalidArgument);
  }
  return value.dump(1) + "\n";
}

Result<StoredVolume> decode_volume(std::string_view name, std::string_view json) {
  const std::string what = "volume " + shown(name) + ": volume.json";
  auto parsed = parse_json(json);
  if (!parsed) return parsed.error().with_context(what);
  auto volume = read_volume(std::string(name), std::move(*parsed), what);
  if (!volume && volume.error().code() != ErrorCode::kUnsupported)
    return volume.error().with_context(what);
  return volume;
}

}  // namespace snap
