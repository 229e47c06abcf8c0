// Command import: a file, device, directory, stream or NBD server becomes an image of one layer.
#include <fmt/format.h>
#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "engine/store/scratch.h"
#include "engine/store/space.h"
#include "engine/store/store_impl.h"
#include "tools/snapctl/commands.h"
#include "tools/snapctl/compression.h"
#include "tools/snapctl/context.h"
#include "tools/snapctl/exit_code.h"
#include "tools/snapctl/json_output.h"
#include "tools/snapctl/names.h"
#include "tools/snapctl/size_format.h"

namespace snap::cli {

namespace {

struct ImportCommand {
  std::string source, name;
  std::string format, size, message, author, compress;
  std::vector<std::string> labels;
};

Result<Store::ImportOptions> import_options(const ImportCommand& command) {
  Store::ImportOptions out;
  auto name = Reference::parse(command.name);
  if (!name) return name.error();
  auto labels = parse_labels(command.labels);
  if (!labels) return labels.error();
  auto compression = parse_compression(command.compress);
  if (!compression) return compression.error();
  out.name = *name;
  out.comment = command.message;
  out.author = command.author;
  out.created_by = command_line();
  out.labels = *labels;
  out.compress = compression->enabled;
  out.zstd_level = compression->zstd_level;
  return out;
}

/// The file system made from a directory is on the store's disk for a while. What of it the layer
/// takes is known when it is made, and asked for then.
Result<void> room_for_tree(Store::Room room, const std::string& store, std::uint64_t data) {
  if (data <= room.available) return {};
  room.limits.limit.reset();  // it does not count
  return no_room("about " + in_units(data) + " for a while", room, store);
}

Task<Result<Image>> import_from(Context& context, Store& store, ImportFrom from,
                                Store::ImportOptions options, Directory& scratch) {
  auto room = co_await store.room();
  if (!room) co_return room.error();
  from.room = [room = *room, path = store.path()](std::uint64_t data) {
    return room_for_tree(room, path, data);
  };
  auto source = co_await make_import_source(from, scratch);
  if (!source) co_return source.error();
  co_return co_await store.import(**source, options, context.progress());
}

Task<Result<int>> run_import(Context& context, ImportCommand command) {
  auto options = import_options(command);
  if (!options) co_return options.error();
  ImportFrom from;
  from.source = command.source;
  from.format = command.format;
  if (!command.size.empty()) {
    auto size = parse_size(command.size);
    if (!size) co_return size.error();
    from.size = *size;
  }
  auto store = co_await context.store();
  if (!store) co_return store.error();
  auto scratch = co_await (*store)->impl().scratch();
  if (!scratch) co_return scratch.error();
  auto image = co_await import_from(context, **store, from, *options, scratch->dir());
  auto cleaned = co_await scratch->remove();
  if (!image) co_return image.error();
  if (!cleaned) co_return cleaned.error();
  if (context.options().json) {
    print_json(context, image_json(*image));
  } else {
    context.print(image->id.str() + "\n");
  }
  co_return kExitOk;
}

}  // namespace

void add_import_commands(CLI::App& app, Context& context) {
  auto command = std::make_shared<ImportCommand>();
  CLI::App* import = app.add_subcommand("import", "Make an image of a disk, file or directory")
                         ->group(kImagesGroup);
  import
      ->add_option("source", command->source,
                   "A raw file, block device, qcow2, vmdk, vhdx, ... file, directory (becomes an "
                   "ext4 file system), NBD URI, or - for standard input")
      ->required()
      ->type_name("SRC");
  import->add_option("name", command->name, "Name of the image")
      ->required()
      ->type_name("NAME[:TAG]");
  import
      ->add_option("-f,--format", command->format,
                   "Format of the source (raw, qcow2, ...) instead of recognising it")
      ->type_name("FORMAT");
  import
      ->add_option("--size", command->size,
                   "Size of the file system made of a directory, or to grow to")
      ->type_name("N");
  import->add_option("-m,--message", command->message, "Comment for the history")
      ->type_name("TEXT");
  import->add_option("-a,--author", command->author, "Author for the history")->type_name("NAME");
  import->add_option("--compress", command->compress, "Compress the layer")
      ->type_name("zstd[:LEVEL]");
  import->add_option("--label", command->labels, "Label of the image; may be given again")
      ->type_name("KEY=VALUE");
  import->footer(
      "Holes of the source stay holes. Prints the image id.\n"
      "Examples:\n"
      "  " SNAPCTL_PROGRAM_NAME
      " import disk.raw base:1\n"
      "  " SNAPCTL_PROGRAM_NAME
      " import debian.qcow2 debian:12 -m \"cloud image\"\n"
      "  " SNAPCTL_PROGRAM_NAME
      " import ./rootfs app --size 4G\n"
      "  ssh host cat /dev/vg/disk | " SNAPCTL_PROGRAM_NAME " import - host:today");
  set_action(import, context, command, run_import);
}

}  // namespace snap::cli
