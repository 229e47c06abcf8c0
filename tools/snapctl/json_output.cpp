// See json_output.h.
#include "tools/snapctl/json_output.h"

#include <nlohmann/json.hpp>

#include "tools/snapctl/context.h"

namespace snap::cli {

Json history_json(const HistoryEntry& entry) {
  return Json{{"created", entry.created},
              {"created_by", entry.created_by},
              {"author", entry.author},
              {"comment", entry.comment},
              {"empty_layer", entry.empty_layer}};
}

Json image_json(const Image& image) {
  Json layers = Json::array();
  for (const LayerRef& layer : image.layers) {
    layers.push_back({{"digest", layer.blob.str()},
                      {"diff_id", layer.content.str()},
                      {"size", layer.file_size}});
  }
  Json history = Json::array();
  for (const HistoryEntry& entry : image.history)
    history.push_back(history_json(entry));
  Json tags = Json::array();
  for (const Reference& tag : image.tags)
    tags.push_back(tag.str());
  return Json{{"id", image.id.str()},
              {"tags", tags},
              {"manifest", image.manifest.str()},
              {"created", image.created},
              {"author", image.author},
              {"virtual_size", image.size},
              {"stored_size", image.stored_size()},
              {"labels", image.labels},
              {"layers", layers},
              {"history", history}};
}

Json snapshot_json(const SnapshotRecord& snapshot) {
  Json out{{"name", snapshot.name}, {"created", snapshot.created}, {"size", snapshot.size}};
  if (snapshot.manifest) out["manifest"] = snapshot.manifest->str();
  return out;
}

Json record_json(const VolumeRecord& record) {
  Json snapshots = Json::array();
  for (const SnapshotRecord& snapshot : record.snapshots)
    snapshots.push_back(snapshot_json(snapshot));
  Json sealed = Json::array();
  for (const SealedLink& link : record.sealed)
    sealed.push_back(link.delta);
  Json out{{"name", record.name},        {"id", record.id},
           {"created", record.created},  {"size", record.size},
           {"image", record.image_name}, {"image_id", nullptr},
           {"delta", record.delta},      {"sealed", sealed},
           {"snapshots", snapshots},     {"labels", record.labels}};
  if (record.image) out["image_id"] = record.image->str();
  out["limit"] = nullptr;
  if (record.limit) out["limit"] = *record.limit;
  return out;
}

Json volume_json(const VolumeSummary& volume) {
  Json out = record_json(volume.record);
  out["allocated"] = volume.allocated;
  out["served_by"] = nullptr;
  if (volume.holder) {
    out["served_by"] = {{"pid", volume.holder->pid},
                        {"control_socket", volume.holder->control_socket}};
  }
  return out;
}

Json removed_json(const Store::Removed& removed) {
  Json out{{"untagged", removed.untagged}, {"deleted", removed.deleted}, {"freed", removed.freed}};
  if (removed.kept) out["kept"] = removed.kept->message();
  return out;
}

void print_bare_json(Context& context, const Json& value) {
  context.print(value.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
}

void print_json(Context& context, const char* key, Json value) {
  Json out;
  out["schema"] = kJsonSchema;
  out[key] = std::move(value);
  print_bare_json(context, out);
}

void print_json(Context& context, Json value) {
  Json out;
  out["schema"] = kJsonSchema;
  out.update(value);
  print_bare_json(context, out);
}

}  // namespace snap::cli
