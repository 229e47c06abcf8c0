// Command backup: a copy of the store, also of one in use, that is a store itself.
#include <fmt/format.h>
#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "snap/backup.h"
#include "tools/snapctl/commands.h"
#include "tools/snapctl/context.h"
#include "tools/snapctl/exit_code.h"
#include "tools/snapctl/json_output.h"
#include "tools/snapctl/size_format.h"
#include "tools/snapctl/table.h"
#include "tools/snapctl/volume_access.h"

namespace snap::cli {

namespace {

struct BackupCommand {
  std::string directory;
  bool remove = false;
};

Task<Result<void>> freeze(Store* store, std::string name) {
  auto access = co_await VolumeAccess::open(*store, name);
  if (!access) co_return access.error();
  auto frozen = co_await access->freeze();
  auto closed = co_await access->close();
  if (!frozen) co_return frozen;
  co_return closed;
}

void print_report(Context& context, const BackupReport& report) {
  if (context.options().json) {
    Json failed = Json::array();
    for (const Error& error : report.failed)
      failed.push_back(error.message());
    print_json(context, {{"images", report.images},
                         {"volumes", report.volumes},
                         {"blobs_copied", report.blobs_copied},
                         {"deltas_copied", report.deltas_copied},
                         {"bytes_copied", report.bytes_copied},
                         {"removed", report.removed},
                         {"failed", failed}});
    return;
  }
  if (context.options().quiet) return;
  for (const std::string& name : report.removed)
    context.print(fmt::format("Removed: {}\n", printable(name)));
  context.print(
      fmt::format("{} images and {} volumes backed up; {} blobs and {} deltas were new, "
                  "{} copied\n",
                  report.images, report.volumes, report.blobs_copied, report.deltas_copied,
                  print_size(report.bytes_copied)));
}

Task<Result<int>> run_backup(Context& context, BackupCommand command) {
  Store::OpenOptions open;
  open.create = false;
  auto source = co_await context.store(open);
  if (!source) co_return source.error();
  auto target = co_await open_backup(command.directory, **source);
  if (!target) co_return target.error();
  BackupOptions options;
  Store* store = *source;
  options.freeze = [store](std::string volume) { return freeze(store, std::move(volume)); };
  options.remove = command.remove;
  auto report = co_await backup_store(**source, **target, options, context.progress());
  context.end_progress();
  if (!report) co_return report.error().with_context("backup");
  print_report(context, *report);
  if (report->failed.empty()) co_return kExitOk;
  const Error& first = report->failed.front();
  std::string more;
  if (report->failed.size() > 1)
    more = fmt::format(" (and {} more; --json lists them)", report->failed.size() - 1);
  context.report(
      Error(first.code(), "backup: not all could be backed up: " + first.message() + more));
  co_return exit_code_of(first.code());
}

}  // namespace

void add_backup_commands(CLI::App& app, Context& context) {
  auto command = std::make_shared<BackupCommand>();
  CLI::App* backup =
      app.add_subcommand("backup", "Copy the store, also while it is in use")->group(kStoreGroup);
  backup->add_option("directory", command->directory, "A new directory, or that of an earlier run")
      ->required()
      ->type_name("DIR");
  backup->add_flag("--delete", command->remove,
                   "Remove from it what the store does not have any more; where a record of the\n"
                   "store cannot be read, nothing");
  backup->footer(
      "DIR becomes a store with the same images and volumes: '" SNAPCTL_PROGRAM_NAME
      " --store DIR ls'. Volumes are\n"
      "copied as they are at one moment, also those that are being served. Run again it copies "
      "only\n"
      "what is new, or is seen to be missing or cut short in DIR; '" SNAPCTL_PROGRAM_NAME
      " --store DIR scrub'\n"
      "finds any damage. Broken off it goes on where it was, and what the run before made stays as "
      "it was.\n"
      "Examples:\n"
      "  " SNAPCTL_PROGRAM_NAME
      " backup /mnt/backup\n"
      "  " SNAPCTL_PROGRAM_NAME " --store /mnt/backup dump web disk.raw");
  set_action(backup, context, command, run_backup);
}

}  // namespace snap::cli
