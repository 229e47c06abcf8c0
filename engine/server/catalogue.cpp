#include "engine/server/catalogue.h"

#include <utility>

#include "snap/limits.h"

namespace snap::server {

namespace {

ServedItem served_volume(ServeItem item, const VolumeRecord& record) {
  ServedItem out;
  out.name = export_name_of(item);
  out.item = std::move(item);
  out.item.name = record.name;  // also if it was asked for by a prefix of its id
  out.description = "volume " + record.name;
  if (!record.image_name.empty()) out.description += " of " + record.image_name;
  if (out.description.size() > kMaxNbdName) out.description.resize(kMaxNbdName);
  out.size = record.size;
  out.identity = "volume " + record.name;
  out.content = std::string(kVolumeContent) + record.id;
  return out;
}

Result<ServedItem> served_snapshot(ServeItem item, const VolumeRecord& record) {
  for (const SnapshotRecord& snapshot : record.snapshots) {
    if (snapshot.name != item.snapshot) continue;
    ServedItem out;
    out.name = export_name_of(item);
    out.description = "snapshot " + item.snapshot + " of volume " + record.name;
    out.size = snapshot.size;
    // One that was removed and taken anew may have the same second, too, but not the same layers.
    out.identity = "snapshot " + record.id + " " + item.snapshot + " " + snapshot.created;
    if (!snapshot.sealed.empty()) out.identity += " " + snapshot.sealed.front().delta;
    if (snapshot.manifest) out.identity += " " + snapshot.manifest->hex();
    out.content = out.identity;
    out.item = std::move(item);
    out.item.name = record.name;
    return out;
  }
  return Error(ErrorCode::kNotFound, "volume " + record.name + " has no snapshot " + item.snapshot);
}

ServedItem served_image(ServeItem item, const Image& image) {
  ServedItem out;
  out.name = export_name_of(item);
  out.description = "image " + (image.tags.empty() ? image.id.str() : out.name);
  out.size = image.size;
  out.identity = "image " + image.id.hex() + " " + out.name;
  out.content = std::string(kImageContent) + image.id.hex();
  out.item = std::move(item);
  out.item.name = image.id.hex();
  return out;
}

Error no_export(const std::string& name) {
  return Error(ErrorCode::kNotFound, name.empty() ? std::string("there is no default export")
                                                  : "no such export: " + name);
}

}  // namespace

std::string export_name_of(const ServeItem& item) {
  if (!item.export_name.empty()) return item.export_name;
  return item.kind == ServeItem::Kind::kSnapshot ? item.name + "@" + item.snapshot : item.name;
}

const char* kind_name(ServeItem::Kind kind) noexcept {
  switch (kind) {
    case ServeItem::Kind::kVolume:
      return "volume";
    case ServeItem::Kind::kImage:
      return "image";
    case ServeItem::Kind::kSnapshot:
      return "snapshot";
  }
  return "";
}

Task<Result<ServedItem>> Catalogue::look_at(ServeItem item) {
  if (item.kind == ServeItem::Kind::kImage) {
    auto image = co_await store_.image(item.name);
    if (!image) co_return image.error();
    co_return served_image(std::move(item), *image);
  }
  auto volume = co_await store_.volume(item.name);
  if (!volume) co_return volume.error();
  if (item.kind == ServeItem::Kind::kSnapshot)
    co_return served_snapshot(std::move(item), volume->record);
  co_return served_volume(std::move(item), volume->record);
}

Task<Result<ServedItem>> Catalogue::add(ServeItem item) {
  auto served = co_await look_at(std::move(item));
  if (served) items_.push_back(*served);
  co_return served;
}

Task<Result<std::vector<ServedItem>>> Catalogue::list() {
  std::vector<ServedItem> out;
  if (!whole_store_) co_return items_;
  std::vector<Error> damaged;  // `check` tells of these
  auto volumes = co_await store_.volumes(&damaged);
  if (!volumes) co_return volumes.error();
  auto images = co_await store_.images(&damaged);
  if (!images) co_return images.error();
  for (const VolumeSummary& volume : *volumes) {
    ServeItem item;
    item.name = volume.record.name;
    out.push_back(served_volume(std::move(item), volume.record));
  }
  for (const Image& image : *images) {
    for (const Reference& tag : image.tags) {
      ServeItem item;
      item.kind = ServeItem::Kind::kImage;
      item.export_name = tag.str();
      out.push_back(served_image(std::move(item), image));
    }
  }
  if (out.size() > kMaxListedExports) out.resize(kMaxListedExports);
  co_return out;
}

Task<Result<ServedItem>> Catalogue::find(std::string name) {
  if (whole_store_) co_return co_await find_in_store(std::move(name));
  for (const ServedItem& item : items_) {
    if (name.empty() || item.name == name) co_return item;
  }
  co_return no_export(name);
}

Task<Result<ServedItem>> Catalogue::find_again(std::string name, std::string content) {
  auto named = co_await find(name);
  if (named && named->content == content) co_return named;
  for (const ServedItem& item : items_) {
    if (item.content == content) co_return item;
  }
  if (whole_store_ && content.starts_with(kImageContent)) {
    ServeItem image;
    image.kind = ServeItem::Kind::kImage;
    image.name = content.substr(kImageContent.size());
    image.export_name = name;
    auto found = co_await look_at(std::move(image));
    if (found || found.error().code() != ErrorCode::kNotFound) co_return found;
  }
  if (!named) co_return named;
  co_return Error(ErrorCode::kExists, "there is another '" + name + "' now than there was");
}

Task<Result<ServedItem>> Catalogue::find_in_store(std::string name) {
  ServeItem item;
  const std::size_t at = name.find('@');
  if (name.find(':') != std::string::npos) {
    const auto reference = Reference::parse(name);
    if (!reference || reference->str() != name) co_return no_export(name);
    item.kind = ServeItem::Kind::kImage;
    item.export_name = name;
    item.name = std::move(name);
  } else if (at != std::string::npos) {
    item.kind = ServeItem::Kind::kSnapshot;
    item.name = name.substr(0, at);
    item.snapshot = name.substr(at + 1);
  } else {
    item.name = std::move(name);
  }
  const std::string asked = item.name;
  if (item.kind != ServeItem::Kind::kImage && !check_volume_name(asked)) co_return no_export(asked);
  auto found = co_await look_at(std::move(item));
  if (!found) co_return found;
  // The store also takes prefixes of ids; a client names what it was shown.
  if (found->item.kind != ServeItem::Kind::kImage && found->item.name != asked)
    co_return no_export(asked);
  co_return found;
}

}  // namespace snap::server
