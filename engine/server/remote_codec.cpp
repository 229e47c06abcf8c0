#include "engine/server/remote_codec.h"

#include "engine/base/json_value.h"

namespace snap::server {

namespace {

using nlohmann::json;

Result<json> object_of(std::string_view text) {
  json value = json::parse(text, nullptr, false);
  if (!value.is_object())
    return Error(ErrorCode::kProtocol, "the JSON of a control operation is no object");
  return value;
}

std::string text_field(const json& object, const char* name) {
  return json_field(object, name, std::string());
}

std::uint64_t number_field(const json& object, const char* name) {
  return json_field(object, name, std::uint64_t{0});
}

std::chrono::microseconds time_field(const json& object, const char* name) {
  return std::chrono::microseconds(json_field(object, name, std::int64_t{0}));
}

template <class D>
Result<D> digest_field(const json& object, const char* name) {
  const auto digest = parse_digest<D>(text_field(object, name));
  if (!digest)
    return Error(ErrorCode::kProtocol,
                 std::string("a control reply has no digest \"") + name + "\"");
  return *digest;
}

}  // namespace

std::string encode_volume_args(const VolumeArgs& args) {
  return json_text({{"volume", args.volume}, {"name", args.name}, {"size", args.size}});
}

Result<VolumeArgs> decode_volume_args(std::string_view text) {
  auto value = object_of(text);
  if (!value) return value.error();
  return VolumeArgs{text_field(*value, "volume"), text_field(*value, "name"),
                    number_field(*value, "size")};
}

std::string encode_commit_args(const std::string& volume, const Store::CommitOptions& options) {
  json value = {{"volume", volume},
                {"comment", options.comment},
                {"author", options.author},
                {"created_by", options.created_by},
                {"labels", options.labels},
                {"compress", options.compress},
                {"zstd_level", options.zstd_level},
                {"rate_limit", options.rate_limit}};
  if (options.name) value["name"] = options.name->str();
  return json_text(value);
}

Result<CommitArgs> decode_commit_args(std::string_view text) {
  auto value = object_of(text);
  if (!value) return value.error();
  CommitArgs args;
  args.volume = text_field(*value, "volume");
  Store::CommitOptions& options = args.options;
  if (value->contains("name")) {
    auto name = Reference::parse(text_field(*value, "name"));
    if (!name) return name.error();
    options.name = std::move(*name);
  }
  options.comment = text_field(*value, "comment");
  options.author = text_field(*value, "author");
  options.created_by = text_field(*value, "created_by");
  options.compress = json_field(*value, "compress", options.compress);
  options.zstd_level = json_field(*value, "zstd_level", options.zstd_level);
  options.rate_limit = number_field(*value, "rate_limit");
  if (const auto labels = value->find("labels"); labels != value->end() && labels->is_object()) {
    for (const auto& [key, label] : labels->items()) {
      if (label.is_string()) options.labels[key] = label.get<std::string>();
    }
  }
  return args;
}

std::string encode_committed(const Store::Committed& c) {
  json tags = json::array();
  for (const Reference& tag : c.image.tags)
    tags.push_back(tag.str());
  return json_text({{"image", c.image.id.str()},
                    {"manifest", c.image.manifest.str()},
                    {"size", c.image.size},
                    {"created", c.image.created},
                    {"author", c.image.author},
                    {"tags", std::move(tags)},
                    {"layer",
                     {{"blob", c.layer.blob.str()},
                      {"content", c.layer.content.str()},
                      {"file_size", c.layer.file_size}}},
                    {"pause", c.pause.count()},
                    {"total", c.total.count()},
                    {"packed", c.packed}});
}

Result<Store::Committed> decode_committed(std::string_view text) {
  auto value = object_of(text);
  if (!value) return value.error();
  const json layer = value->value("layer", json::object());
  auto id = digest_field<ImageId>(*value, "image");
  auto manifest = digest_field<BlobDigest>(*value, "manifest");
  auto blob = digest_field<BlobDigest>(layer, "blob");
  auto content = digest_field<ContentDigest>(layer, "content");
  SNAP_RETURN_IF_ERROR(id);
  SNAP_RETURN_IF_ERROR(manifest);
  SNAP_RETURN_IF_ERROR(blob);
  SNAP_RETURN_IF_ERROR(content);
  Store::Committed c;
  c.image.id = *id;
  c.image.manifest = *manifest;
  c.image.size = number_field(*value, "size");
  c.image.created = text_field(*value, "created");
  c.image.author = text_field(*value, "author");
  if (const auto tags = value->find("tags"); tags != value->end() && tags->is_array()) {
    for (const json& tag : *tags) {
      if (!tag.is_string()) continue;
      auto reference = Reference::parse(tag.get<std::string>());
      SNAP_RETURN_IF_ERROR(reference);
      c.image.tags.push_back(std::move(*reference));
    }
  }
  c.layer = LayerRef{*blob, *content, number_field(layer, "file_size")};
  c.pause = time_field(*value, "pause");
  c.total = time_field(*value, "total");
  c.packed = number_field(*value, "packed");
  return c;
}

std::string encode_pause(const Volume::Pause& pause) {
  return json_text({{"pause", pause.writes.count()}});
}

Result<Volume::Pause> decode_pause(std::string_view text) {
  auto value = object_of(text);
  if (!value) return value.error();
  return Volume::Pause{time_field(*value, "pause")};
}

std::string encode_record(const VolumeRecord& record) {
  return json_text({{"name", record.name}, {"id", record.id}, {"size", record.size}});
}

Result<VolumeRecord> decode_record(std::string_view text) {
  auto value = object_of(text);
  if (!value) return value.error();
  VolumeRecord record;
  record.name = text_field(*value, "name");
  record.id = text_field(*value, "id");
  record.size = number_field(*value, "size");
  return record;
}

std::string encode_device_wish(const DeviceWish& wish) {
  return json_text({{"name", wish.name},
                    {"via", attach::via_name(wish.via)},
                    {"device", wish.device},
                    {"connections", wish.connections},
                    {"read_only", wish.read_only},
                    {"timeout", wish.timeout.count()},
                    {"dead_timeout", wish.dead_timeout.count()},
                    {"own_server", wish.own_server},
                    {"for_mount", wish.for_mount}});
}

Result<DeviceWish> decode_device_wish(std::string_view text) {
  auto value = object_of(text);
  if (!value) return value.error();
  DeviceWish wish;
  wish.name = text_field(*value, "name");
  wish.via = text_field(*value, "via") == attach::via_name(attach::Via::kFuse) ? attach::Via::kFuse
                                                                               : attach::Via::kNbd;
  wish.device = text_field(*value, "device");
  wish.connections = json_field(*value, "connections", wish.connections);
  wish.read_only = json_field(*value, "read_only", false);
  wish.timeout = std::chrono::seconds(json_field(*value, "timeout", std::int64_t{0}));
  wish.dead_timeout = std::chrono::seconds(json_field(*value, "dead_timeout", std::int64_t{0}));
  wish.own_server = json_field(*value, "own_server", false);
  wish.for_mount = json_field(*value, "for_mount", false);
  return wish;
}

std::string encode_uri(const std::string& uri) {
  return json_text({{"uri", uri}});
}

Result<std::string> decode_uri(std::string_view text) {
  auto value = object_of(text);
  if (!value) return value.error();
  return text_field(*value, "uri");
}

}  // namespace snap::server
