// Commands about volumes: create, clone, ls, rm, rename, resize.
#include <fmt/format.h>
#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <chrono>

#include "tools/snapctl/commands.h"
#include "tools/snapctl/context.h"
#include "tools/snapctl/device_access.h"
#include "tools/snapctl/exit_code.h"
#include "tools/snapctl/file_system_pause.h"
#include "tools/snapctl/json_output.h"
#include "tools/snapctl/names.h"
#include "tools/snapctl/new_volume.h"
#include "tools/snapctl/prompts.h"
#include "tools/snapctl/removed.h"
#include "tools/snapctl/size_format.h"
#include "tools/snapctl/table.h"
#include "tools/snapctl/volume_access.h"

namespace snap::cli {

namespace {

// ---- create

struct CreateCommand {
  std::string name, from, size, limit;
  std::vector<std::string> labels;
};

Result<Store::CreateOptions> create_options(const CreateCommand& command) {
  Store::CreateOptions out;
  if (command.name.find_first_of(":/") != std::string::npos) {
    return Error(ErrorCode::kInvalidArgument,
                 fmt::format("create: '{0}' looks like an image; to make a volume of it write "
                             "'" SNAPCTL_PROGRAM_NAME " create [NAME] --from {0}'",
                             command.name));
  }
  if (!command.name.empty()) {
    auto valid = check_volume_name(command.name);
    if (!valid) return valid.error();
  }
  if (command.from.empty() && command.size.empty()) {
    return Error(
        ErrorCode::kInvalidArgument,
        "create: give --from IMAGE for a volume of an image, or --size N for an empty one");
  }
  if (!command.size.empty()) {
    auto size = parse_size(command.size);
    if (!size) return size.error();
    if (*size == 0)
      return Error(ErrorCode::kInvalidArgument, "create: --size 0 makes no volume; give its bytes");
    out.size = *size;
  }
  if (!command.limit.empty()) {
    auto limit = parse_size(command.limit);
    if (!limit) return limit.error();
    out.limit = *limit;
  }
  auto labels = parse_labels(command.labels);
  if (!labels) return labels.error();
  out.labels = *labels;
  out.name = command.name;
  return out;
}

Task<Result<int>> run_create(Context& context, CreateCommand command) {
  auto options = create_options(command);
  if (!options) co_return options.error();
  auto store = co_await context.store();
  if (!store) co_return store.error();
  if (!command.from.empty()) {
    auto taken = co_await take_image(**store, command.from, &*options);
    if (!taken) co_return taken.error();
  }
  auto record = co_await create_named(**store, *options);
  if (!record) co_return record.error();
  if (context.options().json) {
    print_json(context, record_json(*record));
  } else {
    context.print(record->name + "\n");
  }
  co_return kExitOk;
}

// ---- clone

struct CloneCommand {
  std::string volume, name;
  bool pause = false;
};

Task<Result<int>> run_clone(Context& context, CloneCommand command) {
  auto valid = check_volume_name(command.name);
  if (!valid) co_return valid.error();
  auto store = co_await context.store();
  if (!store) co_return store.error();
  auto access = co_await VolumeAccess::open(**store, command.volume);
  if (!access) co_return access.error();
  auto frozen = co_await FileSystemPause::begin(context, *access, command.pause);
  if (!frozen) co_return co_await given_back(std::move(*access), frozen.error());
  auto cloned = co_await access->clone(command.name);
  frozen->end();
  auto closed = co_await access->close();
  if (!cloned) co_return cloned.error();
  if (!closed) co_return closed.error();
  auto made = co_await (*store)->volume(command.name);
  if (!made) co_return made.error();
  if (context.options().json) {
    print_json(context, volume_json(*made));
  } else {
    context.print(command.name + "\n");
  }
  co_return kExitOk;
}

// ---- ls

std::string image_cell(const VolumeRecord& record) {
  if (record.image_name.starts_with("sha256:")) return record.image_name.substr(7, 12);
  if (!record.image_name.empty()) return record.image_name;
  return record.image ? record.image->hex().substr(0, 12) : "-";
}

Task<Result<int>> run_ls(Context& context) {
  auto store = co_await context.store();
  if (!store) co_return store.error();
  std::vector<Error> damaged;
  auto volumes = co_await (*store)->volumes(&damaged);
  if (!volumes) co_return volumes.error();
  if (context.options().json) {
    Json out = Json::array();
    for (const VolumeSummary& volume : *volumes)
      out.push_back(volume_json(volume));
    print_json(context, "volumes", std::move(out));
    co_return context.report_all(damaged);
  }
  Table table({"NAME", "IMAGE", "SIZE", "ALLOCATED", "SNAPSHOTS", "CREATED", "STATUS"});
  auto now = std::chrono::system_clock::now();
  for (const VolumeSummary& volume : *volumes) {
    const VolumeRecord& record = volume.record;
    if (context.options().quiet) context.print(record.name + "\n");
    table.add({record.name, image_cell(record), print_size(record.size),
               print_size(volume.allocated), std::to_string(record.snapshots.size()),
               print_age(record.created, now),
               volume.holder ? fmt::format("in use by pid {}", volume.holder->pid) : "at rest"});
  }
  if (!context.options().quiet) context.print(table.str());
  co_return context.report_all(damaged);
}

// ---- rm

struct RmCommand {
  std::vector<std::string> volumes;
  bool dry_run = false;
};

/// A volume, or a snapshot (VOL@SNAP) of one.
Task<Result<Store::Removed>> remove_one(Store& store, std::string text, bool dry_run) {
  ObjectName wanted = parse_object_name(text);
  auto volume = co_await find_volume(store, "volume:" + wanted.name);
  if (!volume) co_return volume.error();
  if (!dry_run) co_await release_idle(&*volume);
  const VolumeRecord& record = volume->record;
  auto detached = co_await refuse_attached(store, record.name);
  if (!detached) co_return detached.error();
  if (wanted.snapshot.empty()) co_return co_await store.remove_volume(record.name, dry_run);
  Store::Removed removed;
  removed.deleted.push_back(record.name + "@" + wanted.snapshot);
  auto has = [&wanted](const SnapshotRecord& s) { return s.name == wanted.snapshot; };
  if (std::none_of(record.snapshots.begin(), record.snapshots.end(), has)) {
    co_return Error(ErrorCode::kNotFound,
                    fmt::format("volume '{0}' has no snapshot '{1}'; '" SNAPCTL_PROGRAM_NAME
                                " snapshots {0}' lists them",
                                record.name, wanted.snapshot));
  }
  if (!dry_run) {
    auto done = co_await store.remove_snapshot(record.name, wanted.snapshot);
    if (!done) co_return done.error();
  }
  co_return removed;
}

Task<Result<int>> run_rm(Context& context, RmCommand command) {
  auto store = co_await context.store();
  if (!store) co_return store.error();
  if (!command.dry_run) {
    auto agreed = confirm(
        context, "rm",
        fmt::format("Remove {} and what was written there?", fmt::join(command.volumes, ", ")));
    if (!agreed) co_return agreed.error();
  }
  Store::Removed all;
  std::vector<Error> errors;
  for (const std::string& name : command.volumes) {
    auto removed = co_await remove_one(**store, name, command.dry_run);
    if (removed) {
      add_removed(all, *removed);
    } else {
      errors.push_back(removed.error());
    }
  }
  print_removed(context, all, command.dry_run);
  co_return context.report_all(errors);
}

// ---- rename, resize

struct RenameCommand {
  std::string volume, name;
};

Task<Result<int>> run_rename(Context& context, RenameCommand command) {
  auto valid = check_volume_name(command.name);
  if (!valid) co_return valid.error();
  auto store = co_await context.store();
  if (!store) co_return store.error();
  auto volume = co_await find_volume(**store, command.volume);
  if (!volume) co_return volume.error();
  co_await release_idle(&*volume);
  auto detached = co_await refuse_attached(**store, volume->record.name);
  if (!detached) co_return detached.error();
  auto renamed = co_await (*store)->rename_volume(volume->record.name, command.name);
  if (!renamed) co_return renamed.error();
  co_return kExitOk;
}

struct ResizeCommand {
  std::string volume, size;
  bool dry_run = false;
};

Task<Result<int>> run_resize(Context& context, ResizeCommand command) {
  auto size = parse_size(command.size);
  if (!size) co_return size.error();
  auto store = co_await context.store();
  if (!store) co_return store.error();
  auto volume = co_await find_volume(**store, command.volume);
  if (!volume) co_return volume.error();
  std::uint64_t before = volume->record.size;
  std::string change =
      fmt::format("{} from {} to {}", volume->record.name, print_size(before), print_size(*size));
  if (command.dry_run) {
    context.print("Would resize " + change + "\n");
    co_return kExitOk;
  }
  if (*size < before) {
    auto agreed = confirm(context, "resize", "Shrink " + change + " and lose what lies beyond?");
    if (!agreed) co_return agreed.error();
  }
  auto access = co_await VolumeAccess::open(**store, command.volume);
  if (!access) co_return access.error();
  // What serves it tells its device; a device without a server would not learn of it.
  Result<void> resized;
  if (!access->served()) resized = co_await refuse_attached(**store, access->name());
  if (resized) resized = co_await access->resize(*size);
  auto closed = co_await access->close();
  if (!resized) co_return resized.error();
  if (!closed) co_return closed.error();
  co_return kExitOk;
}

void add_create(CLI::App& app, Context& context) {
  auto command = std::make_shared<CreateCommand>();
  CLI::App* create = app.add_subcommand("create", "Make a volume of an image, or an empty one")
                         ->group(kVolumesGroup);
  create->add_option("name", command->name, "Its name; without one, a name is made up")
      ->type_name("NAME");
  create->add_option("--from", command->from, "The image")->type_name("IMAGE");
  create->add_option("--size", command->size, "Its size; with --from, at least the image's")
      ->type_name("N");
  create->add_option("--limit", command->limit, "Most bytes that its writable layer may take")
      ->type_name("N");
  create->add_option("--label", command->labels, "Label of the volume; may be given again")
      ->type_name("KEY=VALUE");
  create->footer(
      "Takes milliseconds and next to no space, whatever the size. Prints the name.\n"
      "Examples:\n"
      "  " SNAPCTL_PROGRAM_NAME
      " create web --from base:1\n"
      "  " SNAPCTL_PROGRAM_NAME " create scratch --size 1T");
  set_action(create, context, command, run_create);
}

}  // namespace

void add_volume_commands(CLI::App& app, Context& context) {
  add_create(app, context);

  auto clone_command = std::make_shared<CloneCommand>();
  CLI::App* clone =
      app.add_subcommand("clone",
                         "Make a second volume of the same content, at once, also of one in use")
          ->group(kVolumesGroup);
  clone->add_option("volume", clone_command->volume, "The volume")->required()->type_name("VOL");
  clone->add_option("new", clone_command->name, "Name of the new one")
      ->required()
      ->type_name("NEW");
  clone->add_flag("--pause", clone_command->pause, "Freeze what is mounted of it for that moment");
  set_action(clone, context, clone_command, run_clone);

  CLI::App* ls = app.add_subcommand("ls", "List volumes")->group(kVolumesGroup);
  set_action(ls, context, run_ls);

  auto rm_command = std::make_shared<RmCommand>();
  CLI::App* rm =
      app.add_subcommand("rm", "Remove volumes, or snapshots of them")->group(kVolumesGroup);
  rm->add_option("volumes", rm_command->volumes, "Volumes, or VOL@SNAP for snapshots")
      ->required()
      ->type_name("VOL...");
  rm->add_flag("--dry-run", rm_command->dry_run, "Only say what it would remove");
  set_action(rm, context, rm_command, run_rm);

  auto rename_command = std::make_shared<RenameCommand>();
  CLI::App* rename =
      app.add_subcommand("rename", "Give a volume another name")->group(kVolumesGroup);
  rename->add_option("volume", rename_command->volume, "The volume")->required()->type_name("VOL");
  rename->add_option("new", rename_command->name, "Its new name")->required()->type_name("NEW");
  set_action(rename, context, rename_command, run_rename);

  auto resize_command = std::make_shared<ResizeCommand>();
  CLI::App* resize = app.add_subcommand("resize", "Grow or shrink a volume")->group(kVolumesGroup);
  resize->add_option("volume", resize_command->volume, "The volume")->required()->type_name("VOL");
  resize->add_option("size", resize_command->size, "Its new size")->required()->type_name("SIZE");
  resize->add_flag("--dry-run", resize_command->dry_run, "Only say what it would do");
  resize->footer("Shrinking loses what lies beyond the new size.\nExample:\n  " SNAPCTL_PROGRAM_NAME
                 " resize web 20G");
  set_action(resize, context, resize_command, run_resize);
}

}  // namespace snap::cli
