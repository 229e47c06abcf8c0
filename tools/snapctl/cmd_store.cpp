// Commands about the store as a whole: init, df, prune, info, version.
#include <fmt/format.h>
#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include <unistd.h>

#include "engine/store/settings.h"
#include "tools/snapctl/commands.h"
#include "tools/snapctl/context.h"
#include "tools/snapctl/exit_code.h"
#include "tools/snapctl/json_output.h"
#include "tools/snapctl/prompts.h"
#include "tools/snapctl/removed.h"
#include "tools/snapctl/size_format.h"
#include "tools/snapctl/table.h"

namespace snap::cli {

namespace {

struct InitOptions {
  bool force = false;
  std::string limit, low_water;
};

Task<Result<int>> run_init(Context& context, InitOptions options) {
  Store::Limits limits;
  if (!options.limit.empty()) {
    auto limit = parse_limit(options.limit);
    if (!limit) co_return limit.error();
    limits.limit = *limit;
  }
  if (!options.low_water.empty()) {
    auto low_water = parse_limit(options.low_water);
    if (!low_water) co_return low_water.error();
    limits.low_water = *low_water;
  }
  auto valid = check_limits(limits);
  if (!valid) co_return valid.error().with_context("init");
  const bool limited = limits.limit || limits.low_water;
  if (limited && ::access((context.store_path() + "/format").c_str(), F_OK) == 0) {
    co_return Error(ErrorCode::kExists,
                    "init: there is a store at " + context.store_path() +
                        " already; change its limits with '" SNAPCTL_PROGRAM_NAME
                        " set --limit N --low-water N'");
  }
  Store::OpenOptions open;
  open.force = options.force;
  auto store = co_await context.store(open);
  if (!store) co_return store.error();
  if (limited) {
    auto set = co_await (*store)->set_limits(limits);
    if (!set) co_return set.error();
  }
  auto info = co_await (*store)->info();
  if (!info) co_return info.error();
  if (context.options().json) {
    print_json(context, {{"path", info->path}, {"format_version", info->format_version}});
  } else {
    context.print(info->path + "\n");
  }
  co_return kExitOk;
}

struct DfOptions {
  bool verbose = false;
};

Json usage_json(const Store::Usage& usage) {
  Json rows = Json::array();
  for (const auto& row : usage.rows) {
    rows.push_back({{"kind", row.kind},
                    {"name", row.name},
                    {"size", row.size},
                    {"shared", row.shared},
                    {"unique", row.unique}});
  }
  return Json{{"layer_bytes", usage.layer_bytes},     {"delta_bytes", usage.delta_bytes},
              {"other_bytes", usage.other_bytes},     {"reclaimable", usage.reclaimable},
              {"shared_saving", usage.shared_saving}, {"objects", rows}};
}

Task<Result<int>> run_df(Context& context, DfOptions options) {
  auto store = co_await context.store();
  if (!store) co_return store.error();
  auto usage = co_await (*store)->usage();
  if (!usage) co_return usage.error();
  if (context.options().json) {
    print_json(context, usage_json(*usage));
    co_return kExitOk;
  }
  Table table({"TYPE", "SIZE"});
  table.align_right({1});
  table.add({"Layers of images", print_size(usage->layer_bytes)});
  table.add({"Deltas of volumes", print_size(usage->delta_bytes)});
  table.add({"Other", print_size(usage->other_bytes)});
  table.add({"Reclaimable by prune", print_size(usage->reclaimable)});
  table.add({"Saved by sharing", print_size(usage->shared_saving)});
  context.print(table.str());
  if (options.verbose) {
    Table rows({"KIND", "NAME", "SIZE", "SHARED", "UNIQUE"});
    rows.align_right({2, 3, 4});
    for (const auto& row : usage->rows) {
      rows.add({row.kind, row.name, print_size(row.size), print_size(row.shared),
                print_size(row.unique)});
    }
    context.print("\n" + rows.str());
  }
  co_return kExitOk;
}

struct PruneOptions {
  bool dry_run = false;
};

Task<Result<int>> run_prune(Context& context, PruneOptions options) {
  auto store = co_await context.store();
  if (!store) co_return store.error();
  if (!options.dry_run) {
    auto agreed =
        confirm(context, "prune", "Remove every layer and delta that no image or volume uses?");
    if (!agreed) co_return agreed.error();
  }
  auto removed = co_await (*store)->prune(options.dry_run);
  if (!removed) co_return removed.error();
  print_removed(context, *removed, options.dry_run);
  if (!context.options().json && !context.options().quiet) {
    context.print(fmt::format("Total {}: {}\n",
                              options.dry_run ? "that would be reclaimed" : "reclaimed space",
                              print_size(removed->freed)));
  }
  co_return kExitOk;
}

Json bytes_json(const std::optional<std::uint64_t>& bytes) {
  return bytes ? Json(*bytes) : Json(nullptr);
}

Task<Result<int>> run_info(Context& context) {
  auto store = co_await context.store();
  if (!store) co_return store.error();
  auto info = co_await (*store)->info();
  if (!info) co_return info.error();
  auto room = co_await (*store)->room();
  if (!room) co_return room.error();
  const char* io = EventLoop::current()->name();
  if (context.options().json) {
    print_json(context, {{"path", info->path},
                         {"format_version", info->format_version},
                         {"program_version", SNAPCTL_VERSION},
                         {"file_system", info->file_system},
                         {"direct_io", info->direct_io},
                         {"punch_hole", info->punch_hole},
                         {"locks", info->locks},
                         {"rename_noreplace", info->rename_noreplace},
                         {"total", info->total},
                         {"available", info->available},
                         {"limit", bytes_json(room->limits.limit)},
                         {"low_water", bytes_json(room->limits.low_water)},
                         {"left", room->left()},
                         {"images", info->images},
                         {"volumes", info->volumes},
                         {"io", io}});
    co_return kExitOk;
  }
  auto yes_no = [](bool value) { return value ? "yes" : "no"; };
  std::string out;
  out += fmt::format("Store:            {}\n", printable(info->path));
  out += fmt::format("Format version:   {}\n", info->format_version);
  out += fmt::format("Images:           {}\n", info->images);
  out += fmt::format("Volumes:          {}\n", info->volumes);
  out += fmt::format("File system:      {}, {} of {} available\n", info->file_system,
                     print_size(info->available), print_size(info->total));
  out += fmt::format("  direct I/O:     {}\n", yes_no(info->direct_io));
  out += fmt::format("  punch hole:     {}\n", yes_no(info->punch_hole));
  out += fmt::format("  locks:          {}\n", yes_no(info->locks));
  out += fmt::format("  exclusive rename: {}\n", yes_no(info->rename_noreplace));
  out += fmt::format(
      "Limit:            {}\n",
      room->limits.limit
          ? fmt::format("{}, {} used", print_size(*room->limits.limit), print_size(room->used))
          : "none");
  out += fmt::format("Low-water mark:   {}\n",
                     room->limits.low_water ? print_size(*room->limits.low_water) : "none");
  out += fmt::format("I/O through:      {}\n", io);
  out += fmt::format("Program version:  {}\n", SNAPCTL_VERSION);
  context.print(out);
  co_return kExitOk;
}

Task<Result<int>> run_version(Context& context) {
  const char* io = EventLoop::current()->name();
  if (context.options().json) {
    print_json(context, {{"version", SNAPCTL_VERSION}, {"io", io}});
  } else {
    context.print(SNAPCTL_PROGRAM_NAME " " SNAPCTL_VERSION
                                       ", copy-on-write snapshots of block devices\n");
    context.print(fmt::format("I/O through {}\n", io));
  }
  co_return kExitOk;
}

}  // namespace

void add_store_commands(CLI::App& app, Context& context) {
  auto init_options = std::make_shared<InitOptions>();
  CLI::App* init = app.add_subcommand("init", "Make the store (also made on first use)");
  init->group(kStoreGroup);
  init->add_flag("--force", init_options->force, "On a network file system all the same");
  init->add_option("--limit", init_options->limit, "Most bytes that the store may take on its disk")
      ->type_name("N");
  init->add_option("--low-water", init_options->low_water,
                   "Warn (events, the servers' logs) when it has fewer bytes left than this")
      ->type_name("N");
  init->footer("Both can be changed later: '" SNAPCTL_PROGRAM_NAME
               " set'.\nExample:\n  " SNAPCTL_PROGRAM_NAME " init --limit 500G --low-water 50G");
  set_action(init, context, init_options, run_init);

  auto df_options = std::make_shared<DfOptions>();
  CLI::App* df = app.add_subcommand("df", "Show what takes space, and what is shared");
  df->group(kStoreGroup);
  df->add_flag("-v,--verbose", df_options->verbose, "One line for each image and volume too");
  set_action(df, context, df_options, run_df);

  auto prune_options = std::make_shared<PruneOptions>();
  CLI::App* prune = app.add_subcommand("prune", "Remove layers and deltas that nothing uses");
  prune->group(kStoreGroup);
  prune->add_flag("--dry-run", prune_options->dry_run, "Only say what it would remove");
  set_action(prune, context, prune_options, run_prune);

  CLI::App* info = app.add_subcommand("info", "Show where the store is and what its disk can do");
  info->group(kStoreGroup);
  set_action(info, context, run_info);

  CLI::App* version = app.add_subcommand("version", "Show the version of this program");
  version->group(kStoreGroup);
  set_action(version, context, run_version);
  app.add_flag_callback(
      "--version", [&context] { context.set_action(run_version); },
      "Show the version of this program");
}

}  // namespace snap::cli
