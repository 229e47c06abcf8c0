// Commands about images: images, history, tag, rmi.
#include <fmt/format.h>
#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include <chrono>
#include <set>

#include "tools/snapctl/commands.h"
#include "tools/snapctl/context.h"
#include "tools/snapctl/device_access.h"
#include "tools/snapctl/exit_code.h"
#include "tools/snapctl/json_output.h"
#include "tools/snapctl/names.h"
#include "tools/snapctl/prompts.h"
#include "tools/snapctl/removed.h"
#include "tools/snapctl/size_format.h"
#include "tools/snapctl/table.h"

namespace snap::cli {

namespace {

constexpr std::size_t kCommandWidth = 45;  // as docker history

// ---- images

struct ImagesOptions {
  std::string name;
};

bool shows(const ImagesOptions& options, const Reference& tag) {
  return options.name.empty() || options.name == tag.name || options.name == tag.str();
}

void print_image_table(Context& context, const std::vector<Image>& images,
                       const ImagesOptions& options) {
  Table table({"REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE", "LAYERS"});
  auto now = std::chrono::system_clock::now();
  for (const Image& image : images) {
    auto row = [&](const std::string& name, const std::string& tag) {
      std::string id =
          context.options().no_trunc ? image.id.str() : context.short_id(image.id.hex());
      table.add({name, tag, id, print_age(image.created, now), print_size(image.stored_size()),
                 std::to_string(image.layers.size())});
    };
    if (image.tags.empty() && options.name.empty()) row("<none>", "<none>");
    for (const Reference& tag : image.tags) {
      if (shows(options, tag)) row(tag.name, tag.tag);
    }
  }
  context.print(table.str());
}

Task<Result<int>> run_images(Context& context, ImagesOptions options) {
  auto store = co_await context.store();
  if (!store) co_return store.error();
  std::vector<Error> damaged;
  auto listed = co_await (*store)->images(&damaged);
  if (!listed) co_return listed.error();
  std::vector<Image> images;
  for (Image& image : *listed) {
    bool shown = options.name.empty();
    for (const Reference& tag : image.tags)
      shown = shown || shows(options, tag);
    if (shown) images.push_back(std::move(image));
  }
  if (context.options().json) {
    Json out = Json::array();
    for (const Image& image : images)
      out.push_back(image_json(image));
    print_json(context, "images", std::move(out));
  } else if (context.options().quiet) {
    for (const Image& image : images) {
      context.print(
          (context.options().no_trunc ? image.id.str() : context.short_id(image.id.hex())) + "\n");
    }
  } else {
    print_image_table(context, images, options);
  }
  co_return context.report_all(damaged);
}

// ---- history

struct HistoryRow {
  const LayerRef* layer = nullptr;      // null: an entry without a layer
  const HistoryEntry* entry = nullptr;  // null: a layer that the history does not mention
};

/// Pairs history entries with layers, oldest first (OCI image spec, config: the entries without
/// empty_layer stand for the layers in order).
std::vector<HistoryRow> history_rows(const Image& image) {
  std::vector<HistoryRow> rows;
  std::size_t next_layer = 0;
  for (const HistoryEntry& entry : image.history) {
    HistoryRow row;
    row.entry = &entry;
    if (!entry.empty_layer && next_layer < image.layers.size())
      row.layer = &image.layers[next_layer++];
    rows.push_back(row);
  }
  while (next_layer < image.layers.size()) {
    HistoryRow row;
    row.layer = &image.layers[next_layer++];
    rows.push_back(row);
  }
  return rows;
}

struct HistoryOptions {
  std::string image;
};

void print_history_json(Context& context, const std::vector<HistoryRow>& rows) {
  Json out = Json::array();
  for (auto row = rows.rbegin(); row != rows.rend(); ++row) {
    Json item = history_json(row->entry == nullptr ? HistoryEntry{} : *row->entry);
    item["layer"] = nullptr;
    item["size"] = row->layer == nullptr ? 0 : row->layer->file_size;
    if (row->layer != nullptr) item["layer"] = row->layer->blob.str();
    out.push_back(std::move(item));
  }
  print_json(context, "history", std::move(out));
}

Task<Result<int>> run_history(Context& context, HistoryOptions options) {
  auto store = co_await context.store();
  if (!store) co_return store.error();
  auto image = co_await find_image(**store, options.image);
  if (!image) co_return image.error();
  std::vector<HistoryRow> rows = history_rows(*image);
  if (context.options().json) {
    print_history_json(context, rows);
    co_return kExitOk;
  }
  Table table({"LAYER ID", "CREATED", "CREATED BY", "SIZE", "COMMENT"});
  auto now = std::chrono::system_clock::now();
  HistoryEntry unknown;
  for (auto row = rows.rbegin(); row != rows.rend(); ++row) {
    const HistoryEntry& entry = row->entry == nullptr ? unknown : *row->entry;
    std::string id = row->layer == nullptr ? "<none>" : context.short_id(row->layer->blob.hex());
    if (context.options().quiet) {
      context.print(id + "\n");
      continue;
    }
    std::string by = printable(entry.created_by);
    if (!context.options().no_trunc) by = shorten(by, kCommandWidth);
    table.add({id, print_age(entry.created, now), by,
               print_size(row->layer == nullptr ? 0 : row->layer->file_size), entry.comment});
  }
  if (!context.options().quiet) context.print(table.str());
  co_return kExitOk;
}

// ---- tag

struct TagOptions {
  std::string source, target;
};

Task<Result<int>> run_tag(Context& context, TagOptions options) {
  auto target = Reference::parse(options.target);
  if (!target) co_return target.error();
  auto store = co_await context.store();
  if (!store) co_return store.error();
  auto source = co_await find_image(**store, options.source);
  if (!source) co_return source.error();
  auto tagged = co_await (*store)->tag(source->id.hex(), *target);
  if (!tagged) co_return tagged.error();
  co_return kExitOk;
}

// ---- rmi

struct RmiOptions {
  std::vector<std::string> images;
  bool force = false;
  bool dry_run = false;
};

Task<Result<Store::Removed>> remove_image(Store& store, std::string name, RmiOptions options) {
  const ObjectName wanted = parse_object_name(name);
  if (wanted.kind == ObjectName::Kind::kVolume) {
    co_return Error(ErrorCode::kInvalidArgument,
                    "'" + name + "' is a volume; rm removes volumes, rmi images");
  }
  // Looked up first for the better message when there is none.
  auto image = co_await find_image(store, name);
  if (!image) co_return image.error();
  auto detached = co_await refuse_attached_image(store, image->id);
  if (!detached) co_return detached.error();
  co_return co_await store.remove_image(wanted.name, options.force, options.dry_run);
}

Task<Result<int>> run_rmi(Context& context, RmiOptions options) {
  auto store = co_await context.store();
  if (!store) co_return store.error();
  if (!options.dry_run) {
    auto agreed = confirm(context, "rmi",
                          "Remove " + fmt::format("{}", fmt::join(options.images, ", ")) + "?");
    if (!agreed) co_return agreed.error();
  }
  Store::Removed all;
  std::vector<Error> errors;
  for (const std::string& name : options.images) {
    auto removed = co_await remove_image(**store, name, options);
    if (removed) {
      add_removed(all, *removed);
    } else {
      errors.push_back(removed.error());
    }
  }
  print_removed(context, all, options.dry_run);
  co_return context.report_all(errors);
}

}  // namespace

void add_image_commands(CLI::App& app, Context& context) {
  auto images_options = std::make_shared<ImagesOptions>();
  CLI::App* images = app.add_subcommand("images", "List images")->group(kImagesGroup);
  images->add_option("name", images_options->name, "Only those of this name")
      ->type_name("NAME[:TAG]");
  set_action(images, context, images_options, run_images);

  auto history_options = std::make_shared<HistoryOptions>();
  CLI::App* history = app.add_subcommand("history", "Show the layers of an image, newest first")
                          ->group(kImagesGroup);
  history->add_option("image", history_options->image, "The image")->required()->type_name("IMAGE");
  set_action(history, context, history_options, run_history);

  auto tag_options = std::make_shared<TagOptions>();
  CLI::App* tag = app.add_subcommand("tag", "Give an image another name")->group(kImagesGroup);
  tag->add_option("source", tag_options->source, "The image")->required()->type_name("IMAGE");
  tag->add_option("target", tag_options->target, "Its further name")
      ->required()
      ->type_name("NAME[:TAG]");
  tag->footer("Example:\n  " SNAPCTL_PROGRAM_NAME " tag base:1 registry.example.org/team/base:1");
  set_action(tag, context, tag_options, run_tag);

  auto rmi_options = std::make_shared<RmiOptions>();
  CLI::App* rmi = app.add_subcommand("rmi", "Untag images, and delete what nothing uses any more")
                      ->group(kImagesGroup);
  rmi->add_option("images", rmi_options->images, "The images")->required()->type_name("IMAGE...");
  rmi->add_flag("-f,--force", rmi_options->force, "By id: all tags of the image");
  rmi->add_flag("--dry-run", rmi_options->dry_run, "Only say what it would remove");
  rmi->footer("An image that a volume uses is not removed: remove the volume first.");
  set_action(rmi, context, rmi_options, run_rmi);
}

}  // namespace snap::cli
