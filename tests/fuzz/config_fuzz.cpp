// The text files of a store, and of what load takes: image manifests and configs, index.json and
// nested indexes, volume.json, settings.json, the events, and the file format (docs/format.md,
// Store).
//
// Input: a byte that says which file, with a bit that asks for right checksums, and its text; a
// manifest's and a config's have a zero byte between them.
#include <nlohmann/json.hpp>
#include <string>

#include "engine/store/event_log.h"
#include "engine/store/format_file.h"
#include "engine/store/image_codec.h"
#include "engine/store/settings.h"
#include "engine/store/text_sum.h"
#include "engine/store/volume_codec.h"
#include "fuzz.h"
#include "json_mutator.h"

namespace snap::fuzz {

namespace {

using Json = nlohmann::json;

enum Kind : unsigned { kImage, kIndex, kNestedIndex, kVolume, kFormat, kSettings, kEvent, kKinds };
constexpr unsigned kFixChecksum = 0x80;

constexpr int kMostIndent = 1;

/// In a form that can be compared.
std::string layers_text(const Image& image) {
  std::string out;
  for (const LayerRef& layer : image.layers)
    out += layer.blob.str() + layer.content.str() + std::to_string(layer.file_size) + ",";
  return out;
}

void check_image(std::string_view text) {
  const std::size_t end = text.find('\0');
  const std::string_view config =
      end == std::string_view::npos ? std::string_view() : text.substr(end + 1);
  auto manifest = decode_manifest(text.substr(0, end));
  if (!manifest) return;
  auto image = decode_image(BlobDigest{}, *manifest, config);
  if (!image) return;
  if (image->layers.size() != manifest->layers.size()) broken("an image has its manifest's layers");
  auto encoded = encode_image(*image);
  if (!encoded) broken("an image that was read can be written: " + encoded.error().message());
  auto parts = decode_manifest(encoded->manifest);
  if (!parts) broken("a manifest that was written can be read: " + parts.error().message());
  auto again = decode_image(encoded->manifest_digest, *parts, encoded->config);
  if (!again) broken("a config that was written can be read: " + again.error().message());
  if (again->size != image->size || again->labels != image->labels ||
      layers_text(*again) != layers_text(*image) || again->history.size() != image->history.size())
    broken("an image is the same after writing and reading");
}

void check_index(std::string_view text) {
  auto entries = decode_index(text);
  if (!entries) return;
  auto again = decode_index(encode_index(*entries));
  if (!again) broken("an index that was written can be read: " + again.error().message());
  if (again->size() != entries->size()) broken("an index keeps its entries");
  for (std::size_t i = 0; i < entries->size(); ++i) {
    const IndexEntry& a = (*entries)[i];
    const IndexEntry& b = (*again)[i];
    if (a.manifest != b.manifest || a.size != b.size || a.ref_name != b.ref_name ||
        a.reference != b.reference || a.raw != b.raw)
      broken("an index entry is the same after writing and reading");
  }
}

void check_volume(std::string_view text) {
  auto volume = decode_volume("vm1", text);
  // One of a later release may be read, and is not written.
  if (!volume || volume->read_only) return;
  auto encoded = encode_volume(*volume);
  if (!encoded) broken("a volume that was read can be written: " + encoded.error().message());
  auto again = decode_volume("vm1", *encoded);
  if (!again) broken("a volume that was written can be read: " + again.error().message());
  if (encode_volume(*again).value() != *encoded)
    broken("a volume is the same after writing and reading");
}

void check_format(std::string_view text) {
  auto features = decode_format(text);
  if (features && encode_format(*features) != text)
    broken("a format file is the same after reading and writing");
}

void check_settings(std::string_view text) {
  auto settings = decode_settings(text);
  if (!settings || settings->read_only) return;
  auto again = decode_settings(encode_settings(*settings));
  if (!again) broken("settings that were written can be read: " + again.error().message());
  if (again->limits.limit != settings->limits.limit ||
      again->limits.low_water != settings->limits.low_water)
    broken("settings are the same after writing and reading");
}

void check_event(std::string_view text) {
  const auto event = decode_event(text);
  if (!event) return;
  const std::string line = encode_event(*event);
  if (line.size() > EventLog::kMaxLine) return;  // escapes make it longer: it is not written
  const auto again = decode_event(line);
  if (!again || again->time != event->time || again->kind != event->kind ||
      again->numbers != event->numbers)
    broken("an event is the same after writing and reading");
}

/// volume.json and settings.json: the last field is the checksum of the others.
std::string fixed_object(std::string_view text) {
  Json value = Json::parse(text, nullptr, false);
  if (!value.is_object()) return std::string(text);
  value.erase("checksum");
  const auto keep = Json::error_handler_t::replace;
  value["checksum"] = checksum_hex(value.dump(-1, ' ', false, keep));
  return value.dump(kMostIndent, ' ', false, keep);
}

std::string fixed_format(std::string_view text) {
  const std::size_t line = text.rfind("checksum ");
  const std::string body(text.substr(0, line));
  return body + "checksum " + checksum_hex(body) + "\n";
}

/// An entry's checksum is that of four of its fields (docs/format.md, index.json).
std::string fixed_index(std::string_view text) {
  Json value = Json::parse(text, nullptr, false);
  if (!value.is_object() || !value["manifests"].is_array()) return std::string(text);
  for (Json& entry : value["manifests"]) {
    if (!entry.is_object() || !entry["annotations"].is_object()) continue;
    Json& notes = entry["annotations"];
    if (!notes.contains("dev.snapctl.checksum")) continue;
    const auto text_field = [](const Json& object, const char* name) {
      const auto found = object.find(name);
      return found != object.end() && found->is_string() ? found->get<std::string>()
                                                         : std::string();
    };
    const std::string size = entry.contains("size") ? entry["size"].dump() : std::string();
    notes["dev.snapctl.checksum"] =
        checksum_hex(text_field(entry, "mediaType") + "\n" + text_field(entry, "digest") + "\n" +
                     size + "\n" + text_field(notes, std::string(kRefNameAnnotation).c_str()));
  }
  return value.dump(-1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace

void run(std::span<const std::byte> input) {
  const unsigned first = take_byte(input);
  const bool fix = (first & kFixChecksum) != 0;
  const std::string_view text = text_of(input);
  switch ((first & ~kFixChecksum) % kKinds) {
    case kImage:
      check_image(text);
      break;
    case kIndex:
      check_index(fix ? fixed_index(text) : std::string(text));
      break;
    case kNestedIndex:
      (void)decode_nested_index(text);
      break;
    case kVolume:
      check_volume(fix ? fixed_object(text) : std::string(text));
      break;
    case kSettings:
      check_settings(fix ? fixed_object(text) : std::string(text));
      break;
    case kEvent:
      check_event(text);
      break;
    default:
      check_format(fix ? fixed_format(text) : std::string(text));
  }
}

namespace {

Seed seed(std::string name, unsigned kind, std::string_view text) {
  Bytes bytes{static_cast<std::byte>(kind)};
  const Bytes rest = bytes_of_text(text);
  bytes.insert(bytes.end(), rest.begin(), rest.end());
  return {std::move(name), std::move(bytes)};
}

VolumeRecord example_volume() {
  VolumeRecord record;
  record.name = "vm1";
  record.id = "f38af89a-19b9-48b9-a711-906925bc3a16";
  record.created = "2026-11-24T07:01:01Z";
  record.size = 1048576;
  record.delta = "405bdca5-9f72-4de6-8376-1ec4b135a16e";
  record.floor = 1048576;
  record.sealed = {{"505bdca5-9f72-4de6-8376-1ec4b135a16e", 4096}};
  record.manifest = BlobDigest{sha256({})};
  record.image = ImageId{sha256({})};
  record.image_name = "base:1";
  record.labels["team"] = "storage";
  SnapshotRecord snapshot;
  snapshot.name = "before";
  snapshot.created = record.created;
  snapshot.size = 4096;
  snapshot.sealed = {{"605bdca5-9f72-4de6-8376-1ec4b135a16e", 4096}};
  record.snapshots.push_back(snapshot);
  return record;
}

}  // namespace

std::vector<Seed> seeds() {
  Image image;
  image.size = 1048576;
  image.created = "2024-05-01T12:00:00Z";
  image.author = "pakho";
  image.labels["team"] = "storage";
  image.layers = {{BlobDigest{sha256({})}, ContentDigest{sha256({})}, 81920}};
  HistoryEntry entry;
  entry.created = image.created;
  entry.created_by = "import disk.raw";
  entry.author = image.author;
  entry.comment = "the base";
  image.history = {entry};
  const EncodedImage encoded = encode_image(image).value();
  const auto tag = Reference::parse("localhost:5000/team/base:2").value();
  const std::string index =
      encode_index({make_index_entry(encoded.manifest_digest, 392, tag),
                    make_index_entry(encoded.manifest_digest, 392, std::nullopt)});
  StoredVolume volume;
  volume.record = example_volume();
  volume.generation = 3;
  StoredSettings settings;
  settings.limits.limit = 1 << 30;
  settings.limits.low_water = 4096;
  StoreEvent event;
  event.time = image.created;
  event.kind = "low-water";
  event.volume = "vm1";
  event.message = "nearly full";
  event.numbers["left"] = 4096;
  return {seed("image", kImage, encoded.manifest + std::string(1, '\0') + encoded.config),
          seed("index", kIndex, index),
          seed("index_fixed", kIndex | kFixChecksum, index),
          seed("nested", kNestedIndex, index),
          seed("volume", kVolume, encode_volume(volume).value()),
          seed("volume_fixed", kVolume | kFixChecksum, encode_volume(volume).value()),
          seed("settings", kSettings | kFixChecksum, encode_settings(settings)),
          seed("event", kEvent, encode_event(event)),
          seed("format", kFormat, encode_format(own_features())),
          seed("format_fixed", kFormat | kFixChecksum, encode_format(own_features()))};
}

}  // namespace snap::fuzz

extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size,
                                               std::size_t room, unsigned seed) {
  return snap::fuzz::mutate_json_or_bytes(data, size, room, '\0', seed);
}
