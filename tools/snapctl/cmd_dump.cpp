// Command dump: the content of an image, volume or snapshot as a file or a stream.
#include <fmt/format.h>
#include <CLI/CLI.hpp>

#include <unistd.h>

#include <algorithm>

#include "engine/store/dump.h"
#include "tools/snapctl/commands.h"
#include "tools/snapctl/content_source.h"
#include "tools/snapctl/context.h"
#include "tools/snapctl/convert.h"
#include "tools/snapctl/exit_code.h"
#include "tools/snapctl/output_file.h"

namespace snap::cli {

namespace {

struct DumpCommand {
  std::string object, file;
  std::string format = "raw";
};

Result<void> check(const DumpCommand& command) {
  const auto& formats = convert_formats();
  if (command.format != "raw" &&
      std::find(formats.begin(), formats.end(), command.format) == formats.end()) {
    return Error(ErrorCode::kInvalidArgument,
                 fmt::format("dump: no format '{}'; -O takes raw, {}", command.format,
                             fmt::join(formats, ", ")));
  }
  if (command.file == "-" && command.format != "raw") {
    return Error(ErrorCode::kInvalidArgument,
                 fmt::format("dump: {} cannot be written to a pipe; give a file", command.format));
  }
  if (command.file == "-" && isatty(STDOUT_FILENO) == 1) {
    return Error(ErrorCode::kInvalidArgument,
                 "dump: refusing to write a disk to a terminal; give a file, or redirect");
  }
  return {};
}

Task<Result<int>> run_dump(Context& context, DumpCommand command) {
  auto valid = check(command);
  if (!valid) co_return valid.error();
  auto store = co_await context.store();
  if (!store) co_return store.error();
  auto source = co_await open_content(**store, command.object);
  if (!source) co_return source.error();
  if (command.file == "-") {
    auto streamed = co_await dump_to_stream(*source->volume, STDOUT_FILENO, context.progress());
    if (!streamed) co_return streamed.error();
    co_return kExitOk;
  }
  // Half a disk looks like a whole one to whoever finds it.
  auto out = co_await OutputFile::create(command.file);
  if (!out) co_return out.error();
  Result<void> written;
  if (command.format == "raw") {
    written = co_await dump_to_file(*source->volume, (*out)->file(), context.progress());
  } else {
    ConvertTarget target{command.format, (*out)->path(), (*out)->name()};
    written = co_await convert_volume(source->volume, std::move(target));
  }
  if (!written) co_return written.error();
  auto published = co_await (*out)->publish();
  if (!published) co_return published.error();
  co_return kExitOk;
}

}  // namespace

void add_dump_commands(CLI::App& app, Context& context) {
  auto command = std::make_shared<DumpCommand>();
  CLI::App* dump = app.add_subcommand("dump", "Write the content of an image or volume to a file")
                       ->group(kImagesGroup);
  dump->add_option("object", command->object, "An image, a volume, or VOL@SNAP")
      ->required()
      ->type_name("OBJ");
  dump->add_option("file", command->file, "A file, a block device, or - for standard output")
      ->required()
      ->type_name("FILE|-");
  dump->add_option("-O,--output-format", command->format,
                   fmt::format("raw, or through qemu-img: {}", fmt::join(convert_formats(), ", ")))
      ->type_name("FORMAT");
  dump->footer(
      "A raw file is sparse: what reads zero is a hole. A file has its name, and replaces what "
      "had\n"
      "it, once it is whole; meanwhile it is FILE.partial-..., beside it. One that cannot be\n"
      "replaced (mounted, or in a folder that takes no files) is written in place, as is a "
      "device.\n"
      "Examples:\n"
      "  " SNAPCTL_PROGRAM_NAME
      " dump base:1 disk.raw\n"
      "  " SNAPCTL_PROGRAM_NAME
      " dump web disk.qcow2 -O qcow2\n"
      "  " SNAPCTL_PROGRAM_NAME " dump web@before - | ssh host dd of=/dev/vg/disk");
  set_action(dump, context, command, run_dump);
}

}  // namespace snap::cli
