// Commands about the states of a volume: snapshot, snapshots, rollback, reset.
#include <fmt/format.h>
#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <chrono>

#include "engine/store/names.h"
#include "tools/snapctl/commands.h"
#include "tools/snapctl/context.h"
#include "tools/snapctl/device_access.h"
#include "tools/snapctl/exit_code.h"
#include "tools/snapctl/file_system_pause.h"
#include "tools/snapctl/json_output.h"
#include "tools/snapctl/names.h"
#include "tools/snapctl/prompts.h"
#include "tools/snapctl/size_format.h"
#include "tools/snapctl/table.h"
#include "tools/snapctl/volume_access.h"

namespace snap::cli {

namespace {

struct SnapshotCommand {
  std::string volume, name;
  bool pause = false;
};

Task<Result<int>> run_snapshot(Context& context, SnapshotCommand command) {
  std::string name = command.name.empty() ? name_of_now() : command.name;
  auto valid = check_volume_name(name);
  if (!valid) co_return valid.error();
  auto store = co_await context.store();
  if (!store) co_return store.error();
  auto access = co_await VolumeAccess::open(**store, command.volume);
  if (!access) co_return access.error();
  auto frozen = co_await FileSystemPause::begin(context, *access, command.pause);
  if (!frozen) co_return co_await given_back(std::move(*access), frozen.error());
  auto pause = co_await access->snapshot(name);
  frozen->end();
  auto closed = co_await access->close();
  if (!pause) co_return pause.error();
  if (!closed) co_return closed.error();
  if (context.options().json) {
    print_json(context, {{"volume", access->name()},
                         {"snapshot", name},
                         {"pause_us", static_cast<std::uint64_t>(pause->count())}});
  } else {
    context.print(name + "\n");
  }
  co_return kExitOk;
}

struct SnapshotsCommand {
  std::string volume;
};

Task<Result<int>> run_snapshots(Context& context, SnapshotsCommand command) {
  auto store = co_await context.store();
  if (!store) co_return store.error();
  auto volume = co_await find_volume(**store, command.volume);
  if (!volume) co_return volume.error();
  if (context.options().json) {
    Json out = Json::array();
    for (const SnapshotRecord& snapshot : volume->record.snapshots)
      out.push_back(snapshot_json(snapshot));
    print_json(context, "snapshots", std::move(out));
    co_return kExitOk;
  }
  Table table({"NAME", "CREATED", "SIZE"});
  auto now = std::chrono::system_clock::now();
  for (const SnapshotRecord& snapshot : volume->record.snapshots) {
    if (context.options().quiet) context.print(snapshot.name + "\n");
    table.add({snapshot.name, print_age(snapshot.created, now), print_size(snapshot.size)});
  }
  if (!context.options().quiet) context.print(table.str());
  co_return kExitOk;
}

// ---- rollback, reset

Error in_use(const VolumeSummary& volume, const char* what) {
  return Error(ErrorCode::kBusy,
               fmt::format("{}: volume '{}' is in use by pid {}; stop that first (kill {})", what,
                           volume.record.name, volume.holder->pid, volume.holder->pid));
}

Result<void> check_snapshot_exists(const VolumeRecord& record, const std::string& snapshot) {
  std::vector<std::string> names;
  for (const SnapshotRecord& s : record.snapshots)
    names.push_back(s.name);
  if (std::find(names.begin(), names.end(), snapshot) != names.end()) return {};
  return Error(ErrorCode::kNotFound,
               fmt::format("volume '{0}' has no snapshot '{1}'{2}; '" SNAPCTL_PROGRAM_NAME
                           " snapshots {0}' lists them",
                           record.name, snapshot, did_you_mean(snapshot, names)));
}

struct RollbackCommand {
  std::string volume, snapshot;
  bool dry_run = false;
};

Task<Result<int>> run_rollback(Context& context, RollbackCommand command) {
  auto store = co_await context.store();
  if (!store) co_return store.error();
  auto volume = co_await find_volume(**store, command.volume);
  if (!volume) co_return volume.error();
  auto exists = check_snapshot_exists(volume->record, command.snapshot);
  if (!exists) co_return exists.error();
  co_await release_idle(&*volume);
  if (volume->holder) co_return in_use(*volume, "rollback");
  auto detached = co_await refuse_attached(**store, volume->record.name);
  if (!detached) co_return detached.error();
  std::string change = fmt::format("{} to its snapshot {}", volume->record.name, command.snapshot);
  if (command.dry_run) {
    context.print("Would roll back " + change + "\n");
    co_return kExitOk;
  }
  auto agreed =
      confirm(context, "rollback", "Roll back " + change + " and lose what was written since?");
  if (!agreed) co_return agreed.error();
  auto done = co_await (*store)->rollback(volume->record.name, command.snapshot);
  if (!done) co_return done.error();
  co_return kExitOk;
}

struct ResetCommand {
  std::string volume;
  bool dry_run = false;
};

Task<Result<int>> run_reset(Context& context, ResetCommand command) {
  auto store = co_await context.store();
  if (!store) co_return store.error();
  auto volume = co_await find_volume(**store, command.volume);
  if (!volume) co_return volume.error();
  co_await release_idle(&*volume);
  if (volume->holder) co_return in_use(*volume, "reset");
  auto detached = co_await refuse_attached(**store, volume->record.name);
  if (!detached) co_return detached.error();
  std::string change =
      fmt::format("{} to {}", volume->record.name, volume->record.image ? "its image" : "zeros");
  if (command.dry_run) {
    context.print("Would reset " + change + "\n");
    co_return kExitOk;
  }
  auto agreed = confirm(context, "reset", "Reset " + change + " and lose what was written since?");
  if (!agreed) co_return agreed.error();
  auto done = co_await (*store)->reset(volume->record.name);
  if (!done) co_return done.error();
  co_return kExitOk;
}

}  // namespace

void add_snapshot_commands(CLI::App& app, Context& context) {
  auto snapshot_command = std::make_shared<SnapshotCommand>();
  CLI::App* snapshot =
      app.add_subcommand("snapshot",
                         "Keep the present state of a volume, at once, also of one in use")
          ->group(kVolumesGroup);
  snapshot->add_option("volume", snapshot_command->volume, "The volume")
      ->required()
      ->type_name("VOL");
  snapshot->add_option("name", snapshot_command->name, "Name of the snapshot; else the time")
      ->type_name("NAME");
  snapshot->add_flag("--pause", snapshot_command->pause,
                     "Freeze what is mounted of it for that moment");
  snapshot->footer(
      "Prints the name. map, dump, diff and compare take VOL@NAME.\nExample:\n "
      " " SNAPCTL_PROGRAM_NAME " snapshot web before-upgrade");
  set_action(snapshot, context, snapshot_command, run_snapshot);

  auto snapshots_command = std::make_shared<SnapshotsCommand>();
  CLI::App* snapshots =
      app.add_subcommand("snapshots", "List the snapshots of a volume")->group(kVolumesGroup);
  snapshots->add_option("volume", snapshots_command->volume, "The volume")
      ->required()
      ->type_name("VOL");
  set_action(snapshots, context, snapshots_command, run_snapshots);

  auto rollback_command = std::make_shared<RollbackCommand>();
  CLI::App* rollback = app.add_subcommand("rollback", "Put a volume back to one of its snapshots")
                           ->group(kVolumesGroup);
  rollback->add_option("volume", rollback_command->volume, "The volume, at rest")
      ->required()
      ->type_name("VOL");
  rollback->add_option("snapshot", rollback_command->snapshot, "The snapshot")
      ->required()
      ->type_name("SNAP");
  rollback->add_flag("--dry-run", rollback_command->dry_run, "Only say what it would do");
  set_action(rollback, context, rollback_command, run_rollback);

  auto reset_command = std::make_shared<ResetCommand>();
  CLI::App* reset =
      app.add_subcommand("reset", "Put a volume back to its image")->group(kVolumesGroup);
  reset->add_option("volume", reset_command->volume, "The volume, at rest")
      ->required()
      ->type_name("VOL");
  reset->add_flag("--dry-run", reset_command->dry_run, "Only say what it would do");
  set_action(reset, context, reset_command, run_reset);
}

}  // namespace snap::cli
