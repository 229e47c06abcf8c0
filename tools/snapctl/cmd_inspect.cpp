// Command inspect: all that is known of images, volumes and layers, as JSON in docker's shape.
#include <fmt/format.h>
#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include <set>

#include "tools/snapctl/commands.h"
#include "tools/snapctl/context.h"
#include "tools/snapctl/exit_code.h"
#include "tools/snapctl/json_output.h"
#include "tools/snapctl/names.h"

namespace snap::cli {

namespace {

struct InspectCommand {
  std::vector<std::string> objects;
};

Json inspect_image(const Image& image) {
  Json tags = Json::array(), layers = Json::array(), blobs = Json::array(), history = Json::array();
  for (const Reference& tag : image.tags)
    tags.push_back(tag.str());
  for (const LayerRef& layer : image.layers) {
    layers.push_back(layer.content.str());
    blobs.push_back({{"Digest", layer.blob.str()}, {"Size", layer.file_size}});
  }
  for (const HistoryEntry& entry : image.history)
    history.push_back(history_json(entry));
  std::string comment = image.history.empty() ? "" : image.history.back().comment;
  return Json{{"Schema", kJsonSchema},
              {"Kind", "image"},
              {"Id", image.id.str()},
              {"RepoTags", tags},
              {"Manifest", image.manifest.str()},
              {"Created", image.created},
              {"Author", image.author},
              {"Comment", comment},
              {"VirtualSize", image.size},
              {"Size", image.stored_size()},
              {"Labels", image.labels},
              {"RootFS", {{"Type", "layers"}, {"Layers", layers}}},
              {"Blobs", blobs},
              {"History", history}};
}

Json inspect_volume(const VolumeSummary& volume) {
  const VolumeRecord& record = volume.record;
  Json snapshots = Json::array(), sealed = Json::array();
  for (const SnapshotRecord& snapshot : record.snapshots)
    snapshots.push_back(snapshot_json(snapshot));
  for (const SealedLink& link : record.sealed)
    sealed.push_back(link.delta);
  Json out{{"Schema", kJsonSchema},
           {"Kind", "volume"},
           {"Name", record.name},
           {"Id", record.id},
           {"Created", record.created},
           {"VirtualSize", record.size},
           {"Allocated", volume.allocated},
           {"Limit", nullptr},
           {"Image", record.image_name},
           {"ImageId", nullptr},
           {"Delta", record.delta},
           {"Sealed", sealed},
           {"Snapshots", snapshots},
           {"Labels", record.labels},
           {"ServedBy", nullptr}};
  if (record.limit) out["Limit"] = *record.limit;
  if (record.image) out["ImageId"] = record.image->str();
  if (volume.holder) {
    out["ServedBy"] = {{"Pid", volume.holder->pid},
                       {"ControlSocket", volume.holder->control_socket}};
  }
  return out;
}

bool begins(const std::string& hex, std::string_view prefix) {
  return prefix.size() >= 2 && std::string_view(hex).starts_with(prefix);
}

/// The layer whose file digest or diff id begins with `text`, as JSON; null if there is none,
/// InvalidArgument if there are several.
Task<Result<Json>> inspect_layer(Store& store, std::string text) {
  std::string_view prefix = text;
  if (prefix.starts_with("sha256:")) prefix.remove_prefix(7);
  auto images = co_await store.images();
  if (!images) co_return images.error();
  std::optional<LayerRef> found;
  Json users = Json::array();
  for (const Image& image : *images) {
    for (const LayerRef& layer : image.layers) {
      if (!begins(layer.blob.hex(), prefix) && !begins(layer.content.hex(), prefix)) continue;
      if (found && found->blob != layer.blob) {
        co_return Error(ErrorCode::kInvalidArgument,
                        fmt::format("'{}' begins the id of several layers; give more of it", text));
      }
      found = layer;
      users.push_back(image.id.str());
    }
  }
  if (!found) co_return Json(nullptr);
  co_return Json{{"Schema", kJsonSchema},
                 {"Kind", "layer"},
                 {"Digest", found->blob.str()},
                 {"DiffId", found->content.str()},
                 {"Size", found->file_size},
                 {"Path", store.path() + "/blobs/sha256/" + found->blob.hex()},
                 {"Images", users}};
}

Task<Result<Json>> inspect_one(Store& store, std::string text) {
  auto object = co_await find_object(store, text);
  if (object && object->image) co_return inspect_image(*object->image);
  if (object && object->volume) co_return inspect_volume(*object->volume);
  if (object.error().code() != ErrorCode::kNotFound) co_return object.error();
  auto layer = co_await inspect_layer(store, text);
  if (!layer) co_return layer.error();
  if (layer->is_null()) co_return object.error();
  co_return std::move(*layer);
}

Task<Result<int>> run_inspect(Context& context, InspectCommand command) {
  auto store = co_await context.store();
  if (!store) co_return store.error();
  Json all = Json::array();
  std::vector<Error> errors;
  for (const std::string& text : command.objects) {
    auto one = co_await inspect_one(**store, text);
    if (one) {
      all.push_back(std::move(*one));
    } else {
      errors.push_back(one.error());
    }
  }
  print_bare_json(context, all);
  co_return context.report_all(errors);
}

}  // namespace

void add_inspect_commands(CLI::App& app, Context& context) {
  auto command = std::make_shared<InspectCommand>();
  CLI::App* inspect =
      app.add_subcommand("inspect", "Show all about images, volumes or layers, as JSON")
          ->group(kImagesGroup);
  inspect->add_option("objects", command->objects, "Names or ids")->required()->type_name("OBJ...");
  inspect->footer("A name that is both: say volume:NAME or image:NAME.");
  set_action(inspect, context, command, run_inspect);
}

}  // namespace snap::cli
