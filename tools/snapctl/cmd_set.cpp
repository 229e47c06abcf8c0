// Command set: changes limits of a volume or of the store.
#include <fmt/format.h>
#include <CLI/CLI.hpp>

#include "tools/snapctl/commands.h"
#include "tools/snapctl/context.h"
#include "tools/snapctl/exit_code.h"
#include "tools/snapctl/size_format.h"
#include "tools/snapctl/volume_access.h"

namespace snap::cli {

namespace {

struct SetCommand {
  std::string volume, limit, low_water;
};

Task<Result<int>> set_volume(Context& context, SetCommand command) {
  if (!command.low_water.empty()) {
    co_return Error(ErrorCode::kInvalidArgument,
                    "set: --low-water is of the store; give no volume with it");
  }
  auto limit = parse_limit(command.limit);
  if (!limit) co_return limit.error();
  auto store = co_await context.store();
  if (!store) co_return store.error();
  auto access = co_await VolumeAccess::open(**store, command.volume);
  if (!access) co_return access.error();
  auto done = co_await access->set_limit(*limit);
  auto closed = co_await access->close();
  if (!done) co_return done.error();
  if (!closed) co_return closed.error();
  co_return kExitOk;
}

Task<Result<int>> set_store(Context& context, SetCommand command) {
  auto store = co_await context.store();
  if (!store) co_return store.error();
  Store::Limits limits;
  // Both given: what was there need not be readable.
  if (command.limit.empty() || command.low_water.empty()) {
    auto present = co_await (*store)->limits();
    if (!present) {
      co_return present.error().with_context("give both --limit and --low-water to set them anew");
    }
    limits = *present;
  }
  if (!command.limit.empty()) {
    auto limit = parse_limit(command.limit);
    if (!limit) co_return limit.error();
    limits.limit = *limit;
  }
  if (!command.low_water.empty()) {
    auto low_water = parse_limit(command.low_water);
    if (!low_water) co_return low_water.error();
    limits.low_water = *low_water;
  }
  auto done = co_await (*store)->set_limits(limits);
  if (!done) co_return done.error();
  co_return kExitOk;
}

Task<Result<int>> run_set(Context& context, SetCommand command) {
  if (command.limit.empty() && command.low_water.empty()) {
    co_return Error(ErrorCode::kInvalidArgument,
                    "set: give --limit SIZE of a volume, or --limit and --low-water of the store");
  }
  auto setting =
      command.volume.empty() ? set_store(context, command) : set_volume(context, command);
  auto done = co_await std::move(setting);
  co_return done;
}

}  // namespace

void add_set_commands(CLI::App& app, Context& context) {
  auto command = std::make_shared<SetCommand>();
  CLI::App* set = app.add_subcommand("set", "Change the limits of the store or of a volume")
                      ->group(kStoreGroup);
  set->add_option("volume", command->volume, "The volume; without one, the store")
      ->type_name("VOL");
  set->add_option("--limit", command->limit,
                  "Most bytes that the volume's writable layer, or the store, may take; or none")
      ->type_name("SIZE");
  set->add_option("--low-water", command->low_water,
                  "Warn when the store has fewer bytes left than this; or none")
      ->type_name("SIZE");
  set->footer(
      "Counts at once, also for a volume in use; for the store within a second or so.\n"
      "Examples:\n  " SNAPCTL_PROGRAM_NAME " set web --limit 20G\n  " SNAPCTL_PROGRAM_NAME
      " set --limit 500G --low-water 50G");
  set_action(set, context, command, run_set);
}

}  // namespace snap::cli
