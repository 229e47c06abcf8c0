#include "engine/store/image_codec.h"

#include <charconv>
#include <set>

#include "engine/store/json_fields.h"
#include "engine/store/names.h"
#include "engine/store/text_sum.h"
#include "snap/limits.h"
#include "snap/units.h"

namespace snap {

namespace {

constexpr std::size_t kMaxMediaType = 255;
constexpr std::size_t kMaxComment = 64u << 10;
constexpr std::size_t kMaxHistory = 2 * kMaxLayersPerImage;
// Configs say what they run on; a block device runs anywhere. A constant keeps the ID of an image
// independent of the machine that made it.
constexpr std::string_view kArchitecture = "amd64";
constexpr std::string_view kOs = "linux";

Json history_json(const std::vector<HistoryEntry>& history) {
  Json out = Json::array();
  for (const HistoryEntry& entry : history) {
    Json one = Json::object();
    if (!entry.created.empty()) one["created"] = entry.created;
    if (!entry.created_by.empty()) one["created_by"] = entry.created_by;
    if (!entry.author.empty()) one["author"] = entry.author;
    if (!entry.comment.empty()) one["comment"] = entry.comment;
    if (entry.empty_layer) one["empty_layer"] = true;
    out.push_back(std::move(one));
  }
  return out;
}

Json config_json(const Image& image) {
  Json labels = Json::object();
  for (const auto& [key, value] : image.labels)
    labels[key] = value;
  labels[std::string(kSizeLabel)] = std::to_string(image.size);
  Json diff_ids = Json::array();
  for (const LayerRef& layer : image.layers)
    diff_ids.push_back(layer.content.str());
  Json out = Json::object();
  if (!image.created.empty()) out["created"] = image.created;
  if (!image.author.empty()) out["author"] = image.author;
  out["architecture"] = kArchitecture;
  out["os"] = kOs;
  out["config"] = {{"Labels", std::move(labels)}};
  out["rootfs"] = {{"type", "layers"}, {"diff_ids", std::move(diff_ids)}};
  out["history"] = history_json(image.history);
  return out;
}

Json descriptor(std::string_view media_type, const std::string& digest, std::uint64_t size) {
  return {{"mediaType", media_type}, {"digest", digest}, {"size", size}};
}

std::optional<std::uint64_t> parse_number(std::string_view text) {
  std::uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

ManifestParts::Blob read_blob(const Json& value, const std::string& where,
                              std::optional<Error>& error) {
  JsonFields fields(value, where, error);
  ManifestParts::Blob out;
  out.digest = fields.digest<BlobDigest>("digest");
  out.size = fields.number("size", std::uint64_t{1} << 62);
  out.media_type = fields.text("mediaType", kMaxMediaType);
  return out;
}

std::string element(const char* array, std::size_t index) {
  return std::string(array) + "[" + std::to_string(index) + "]";
}

Error in(std::string_view what, const Error& error) {
  return error.with_context(what);
}

/// Of everything an entry says, so that a flipped bit in a tag is found. Entries that other tools
/// wrote have none.
std::string entry_checksum(const IndexEntry& entry) {
  return checksum_hex(entry.media_type + "\n" + entry.manifest.str() + "\n" +
                      std::to_string(entry.size) + "\n" + entry.ref_name.value_or(""));
}

constexpr const char* kChecksumAnnotation = "dev.snapctl.checksum";

bool known_descriptor_key(const std::string& key) {
  for (const char* known :
       {"mediaType", "digest", "size", "annotations", "urls", "data", "platform", "artifactType"}) {
    if (key == known) return true;
  }
  return false;
}

void check_annotations(const Json& value, IndexEntry& entry, const std::string& where,
                       std::optional<Error>& error) {
  JsonFields fields(value, where, error);
  if (!fields.has("annotations")) {
    // Only a damaged name of the field "annotations" leads here with a field that OCI lacks.
    for (const auto& [key, unused] : value.items()) {
      if (!known_descriptor_key(key)) fields.fail(key.c_str(), "is not a field of a descriptor");
    }
    return;
  }
  JsonFields annotations(fields.object("annotations"), where + ".annotations", error);
  const std::string name(kRefNameAnnotation);
  if (annotations.has(name.c_str()))
    entry.ref_name = annotations.text(name.c_str(), kMaxLabelBytes);
  if (!annotations.has(kChecksumAnnotation)) return;
  if (annotations.text(kChecksumAnnotation, 16) != entry_checksum(entry))
    annotations.fail(kChecksumAnnotation, "does not fit the entry, which is damaged");
}

IndexEntry read_index_entry(const Json& value, const std::string& where,
                            std::optional<Error>& error) {
  const ManifestParts::Blob blob = read_blob(value, where, error);
  IndexEntry entry;
  entry.manifest = blob.digest;
  entry.size = blob.size;
  entry.media_type = blob.media_type;
  if (error) return entry;
  check_annotations(value, entry, where, error);
  if (entry.ref_name) {
    auto reference = Reference::parse(*entry.ref_name);
    if (reference) entry.reference = *reference;
  }
  auto raw = dump_json(value, -1);
  if (raw) entry.raw = *raw;
  return entry;
}

Result<std::vector<IndexEntry>> read_entries(std::string_view json) {
  auto parsed = parse_json(json);
  SNAP_RETURN_IF_ERROR(parsed);
  std::optional<Error> error;
  JsonFields fields(*parsed, "", error);
  if (fields.number("schemaVersion") != 2) fields.fail("schemaVersion", "is not 2");
  const Json& manifests = fields.array("manifests", kMaxIndexEntries);
  std::vector<IndexEntry> out;
  out.reserve(manifests.size());
  for (std::size_t i = 0; i < manifests.size() && !error; ++i)
    out.push_back(read_index_entry(manifests[i], element("manifests", i), error));
  if (error) return *error;
  return out;
}

void read_history(const Json& entries, Image& image, std::optional<Error>& error) {
  std::size_t with_layer = 0;
  for (std::size_t i = 0; i < entries.size() && !error; ++i) {
    JsonFields fields(entries[i], element("history", i), error);
    HistoryEntry entry;
    entry.created = fields.optional_time("created");
    entry.created_by = fields.optional_text("created_by", kMaxComment);
    entry.author = fields.optional_text("author", kMaxLabelBytes);
    entry.comment = fields.optional_text("comment", kMaxComment);
    entry.empty_layer = fields.flag("empty_layer");
    if (!entry.empty_layer) ++with_layer;
    image.history.push_back(std::move(entry));
  }
  if (!error && !image.history.empty() && with_layer != image.layers.size()) {
    error =
        Error(ErrorCode::kCorrupt, "history tells of " + std::to_string(with_layer) +
                                       " layers; there are " + std::to_string(image.layers.size()));
  }
}

void read_diff_ids(JsonFields& rootfs, const ManifestParts& manifest, Image& image,
                   std::optional<Error>& error) {
  const Json& ids = rootfs.array("diff_ids", kMaxLayersPerImage);
  if (error) return;
  if (ids.size() != manifest.layers.size()) {
    error = Error(ErrorCode::kCorrupt, "the config has " + std::to_string(ids.size()) +
                                           " diff_ids, the manifest " +
                                           std::to_string(manifest.layers.size()) + " layers");
    return;
  }
  for (std::size_t i = 0; i < ids.size(); ++i) {
    std::optional<ContentDigest> content;
    if (ids[i].is_string())
      content = parse_digest<ContentDigest>(ids[i].get_ref<const std::string&>());
    if (!content) {
      error = Error(ErrorCode::kCorrupt, element("rootfs.diff_ids", i) + " is not a digest");
      return;
    }
    image.layers.push_back({manifest.layers[i].digest, *content, manifest.layers[i].size});
  }
}

/// Takes the labels of ours out of image.labels.
void read_own_labels(Image& image, std::optional<Error>& error) {
  const auto size = parse_number(image.labels[std::string(kSizeLabel)]);
  std::erase_if(image.labels,
                [](const auto& label) { return label.first.starts_with(kOwnLabelPrefix); });
  if (!size || *size == 0 || *size > kMaxVolumeSize || *size % kSectorSize != 0) {
    if (!error)
      error = Error(ErrorCode::kCorrupt, "label " + std::string(kSizeLabel) + " is not a size");
    return;
  }
  image.size = *size;
}

Error not_ours(BlobDigest manifest) {
  return Error(ErrorCode::kUnsupported,
               "the image of manifest " + manifest.str() +
                   " is not made of snapctl's block layers (a container image?)");
}

Result<void> check_encodable(const Image& image) {
  for (const auto& [key, value] : image.labels) {
    if (!key.starts_with(kOwnLabelPrefix)) continue;
    return Error(ErrorCode::kInvalidArgument, "label " + shown(key) + ": names that begin with " +
                                                  std::string(kOwnLabelPrefix) + " are reserved");
  }
  return {};
}

}  // namespace

Result<EncodedImage> encode_image(const Image& image) {
  auto encodable = check_encodable(image);
  SNAP_RETURN_IF_ERROR(encodable);
  EncodedImage out;
  auto config = dump_json(config_json(image), -1);
  if (!config) return in("image config", config.error());
  out.config = std::move(*config);
  out.id = ImageId{sha256(std::as_bytes(std::span(out.config.data(), out.config.size())))};
  Json layers = Json::array();
  for (const LayerRef& layer : image.layers)
    layers.push_back(descriptor(kLayerMediaType, layer.blob.str(), layer.file_size));
  const Json manifest = {{"schemaVersion", 2},
                         {"mediaType", kManifestMediaType},
                         {"config", descriptor(kConfigMediaType, out.id.str(), out.config.size())},
                         {"layers", std::move(layers)}};
  out.manifest = manifest.dump();
  out.manifest_digest =
      BlobDigest{sha256(std::as_bytes(std::span(out.manifest.data(), out.manifest.size())))};
  // What is written can be read: the same checks, once.
  auto parts = decode_manifest(out.manifest);
  if (!parts) return parts.error().with_code(ErrorCode::kInvalidArgument);
  auto decoded = decode_image(out.manifest_digest, *parts, out.config);
  if (!decoded) return decoded.error().with_code(ErrorCode::kInvalidArgument);
  return out;
}

Result<ManifestParts> decode_manifest(std::string_view json) {
  auto parsed = parse_json(json);
  if (!parsed) return in("image manifest", parsed.error());
  std::optional<Error> error;
  JsonFields fields(*parsed, "", error);
  if (fields.number("schemaVersion") != 2) fields.fail("schemaVersion", "is not 2");
  ManifestParts out;
  out.config = read_blob(fields.object("config"), "config", error);
  const Json& layers = fields.array("layers", kMaxLayersPerImage);
  for (std::size_t i = 0; i < layers.size() && !error; ++i)
    out.layers.push_back(read_blob(layers[i], element("layers", i), error));
  if (error) return in("image manifest", *error);
  return out;
}

Result<Image> decode_image(BlobDigest manifest_digest, const ManifestParts& manifest,
                           std::string_view config) {
  const std::string what = "config " + manifest.config.digest.str();
  if (manifest.config.media_type != kConfigMediaType) return not_ours(manifest_digest);
  for (const auto& layer : manifest.layers) {
    if (layer.media_type != kLayerMediaType) return not_ours(manifest_digest);
  }
  auto parsed = parse_json(config);
  if (!parsed) return in(what, parsed.error());
  std::optional<Error> error;
  JsonFields fields(*parsed, "", error);
  Image image;
  image.id = ImageId{manifest.config.digest.bytes};
  image.manifest = manifest_digest;
  if (fields.has("config")) {
    JsonFields inner(fields.object("config"), "config", error);
    image.labels = inner.labels("Labels");
  }
  if (!error && !image.labels.contains(std::string(kSizeLabel))) return not_ours(manifest_digest);
  read_own_labels(image, error);
  image.created = fields.optional_time("created");
  image.author = fields.optional_text("author", kMaxLabelBytes);
  JsonFields rootfs(fields.object("rootfs"), "rootfs", error);
  if (rootfs.text("type", 16) != "layers") rootfs.fail("type", "is not 'layers'");
  read_diff_ids(rootfs, manifest, image, error);
  if (fields.has("history")) read_history(fields.array("history", kMaxHistory), image, error);
  if (error) return in(what, *error);
  return image;
}

IndexEntry make_index_entry(BlobDigest manifest, std::uint64_t size,
                            std::optional<Reference> reference) {
  IndexEntry entry;
  entry.manifest = manifest;
  entry.size = size;
  entry.media_type = kManifestMediaType;
  Json raw = descriptor(kManifestMediaType, manifest.str(), size);
  if (reference) {
    entry.ref_name = reference->str();
    raw["annotations"][std::string(kRefNameAnnotation)] = *entry.ref_name;
  }
  raw["annotations"][kChecksumAnnotation] = entry_checksum(entry);
  entry.reference = std::move(reference);
  entry.raw = raw.dump();
  return entry;
}

Result<std::vector<IndexEntry>> decode_index(std::string_view json) {
  auto entries = read_entries(json);
  if (!entries) return in("index.json", entries.error());
  std::set<Reference> seen;
  for (const IndexEntry& entry : *entries) {
    if (!entry.reference || seen.insert(*entry.reference).second) continue;
    return Error(ErrorCode::kCorrupt,
                 "index.json: two entries have the tag " + shown(entry.reference->str()));
  }
  return entries;
}

Result<std::vector<IndexEntry>> decode_nested_index(std::string_view json) {
  auto entries = read_entries(json);
  if (!entries) return in("image index", entries.error());
  return entries;
}

std::string encode_index(const std::vector<IndexEntry>& entries) {
  // Entries are printed one a line, so that a person can read and compare the file.
  std::string out =
      R"({"schemaVersion":2,"mediaType":")" + std::string(kIndexMediaType) + "\",\"manifests\":[";
  const char* separator = "\n";
  for (const IndexEntry& entry : entries) {
    out += separator + entry.raw;
    separator = ",\n";
  }
  return out + "\n]}\n";
}

}  // namespace snap
