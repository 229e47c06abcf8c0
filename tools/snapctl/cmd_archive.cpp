// Commands save and load: images as an OCI image layout in a tar, with docker's words.
#include <fmt/format.h>
#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include <unistd.h>

#include "tools/snapctl/commands.h"
#include "tools/snapctl/context.h"
#include "tools/snapctl/exit_code.h"
#include "tools/snapctl/json_output.h"
#include "tools/snapctl/names.h"
#include "tools/snapctl/table.h"

namespace snap::cli {

namespace {

struct SaveOptions {
  std::string file = "-";
  std::vector<std::string> images;
};

Task<Result<int>> run_save(Context& context, SaveOptions options) {
  if (options.file == "-" && isatty(STDOUT_FILENO) == 1) {
    co_return Error(ErrorCode::kInvalidArgument,
                    "save: refusing to write an archive to a terminal; give -o FILE, or redirect");
  }
  auto store = co_await context.store();
  if (!store) co_return store.error();
  std::vector<std::string> names;
  for (const std::string& name : options.images) {
    auto image = co_await find_image(**store, name);
    if (!image) co_return image.error();
    names.push_back(parse_object_name(name).name);
  }
  auto saved = co_await (*store)->save(names, options.file, context.progress());
  if (!saved) co_return saved.error();
  co_return kExitOk;
}

struct LoadOptions {
  std::string file = "-";
};

Json loaded_json(const Store::Loaded& loaded) {
  Json images = Json::array();
  for (const Image& image : loaded.images)
    images.push_back(image_json(image));
  auto digests = [](const std::vector<BlobDigest>& list) {
    Json out = Json::array();
    for (const BlobDigest& digest : list)
      out.push_back(digest.str());
    return out;
  };
  return Json{{"images", images},
              {"layers_new", digests(loaded.layers_new)},
              {"layers_existing", digests(loaded.layers_existing)}};
}

Task<Result<int>> run_load(Context& context, LoadOptions options) {
  if (options.file == "-" && isatty(STDIN_FILENO) == 1) {
    co_return Error(ErrorCode::kInvalidArgument,
                    "load: standard input is a terminal; give -i FILE, or redirect");
  }
  auto store = co_await context.store();
  if (!store) co_return store.error();
  bool words = !context.options().json && !context.options().quiet;
  auto on_layer = [&context, words](const BlobDigest& digest, bool existed) {
    if (!words) return;
    context.print(fmt::format("{}: {}\n", context.short_id(digest.hex()),
                              existed ? "Already exists" : "Load complete"));
  };
  auto loaded = co_await (*store)->load(options.file, context.progress(), on_layer);
  if (!loaded) co_return loaded.error();
  if (context.options().json) {
    print_json(context, loaded_json(*loaded));
    co_return kExitOk;
  }
  for (const Image& image : loaded->images) {
    if (context.options().quiet) {
      context.print(image.id.str() + "\n");
    } else if (image.tags.empty()) {
      context.print(fmt::format("Loaded image ID: {}\n", image.id.str()));
    } else {
      for (const Reference& tag : image.tags)
        context.print(fmt::format("Loaded image: {}\n", printable(tag.str())));
    }
  }
  co_return kExitOk;
}

}  // namespace

void add_archive_commands(CLI::App& app, Context& context) {
  auto save_options = std::make_shared<SaveOptions>();
  CLI::App* save = app.add_subcommand("save", "Write images to a tar (an OCI image layout)")
                       ->group(kImagesGroup);
  save->add_option("-o,--output", save_options->file, "The tar; else standard output")
      ->type_name("FILE");
  save->add_option("images", save_options->images, "The images")->required()->type_name("IMAGE...");
  save->footer("Example:\n  " SNAPCTL_PROGRAM_NAME " save -o base.tar base:1 base:2");
  set_action(save, context, save_options, run_save);

  auto load_options = std::make_shared<LoadOptions>();
  CLI::App* load = app.add_subcommand("load", "Read images from a tar that save or skopeo wrote")
                       ->group(kImagesGroup);
  load->add_option("-i,--input", load_options->file,
                   "The tar, or a directory with an OCI image layout; else standard input")
      ->type_name("FILE");
  load->footer(
      "Layers that the store has already are skipped.\n"
      "Example:\n  " SNAPCTL_PROGRAM_NAME " load -i base.tar");
  set_action(load, context, load_options, run_load);
}

}  // namespace snap::cli
