// Commands about content: map (where each extent comes from), compare (the same or not), diff (what
// is not the same).
#include <fmt/format.h>
#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include <algorithm>

#include "engine/store/compare.h"
#include "tools/snapctl/commands.h"
#include "tools/snapctl/content_source.h"
#include "tools/snapctl/context.h"
#include "tools/snapctl/exit_code.h"
#include "tools/snapctl/interrupt.h"
#include "tools/snapctl/json_output.h"
#include "tools/snapctl/size_format.h"
#include "tools/snapctl/table.h"

namespace snap::cli {

namespace {

constexpr std::size_t kExtentsAtOnce = 4096;

// ---- map

struct MapCommand {
  std::string object;
};

std::string link_of(const ContentSource& source, const Extent& extent) {
  if (extent.depth < 0 || static_cast<std::size_t>(extent.depth) >= source.links.size()) return "";
  return source.links[static_cast<std::size_t>(extent.depth)];
}

/// "delta" or the short id of a layer.
std::string short_link(const Context& context, const std::string& link) {
  if (link.starts_with("sha256:")) return context.short_id(link.substr(7));
  if (context.options().no_trunc || link.empty()) return link.empty() ? "-" : link;
  return "delta";
}

/// Gives every extent of `source` to `row`, in order.
Task<Result<void>> each_extent(const ContentSource* source,
                               std::function<void(const Extent&)> row) {
  std::uint64_t at = 0, size = source->volume->size();
  while (at < size) {
    if (interrupted()) co_return Error(ErrorCode::kCancelled, "map: cancelled");
    auto extents = co_await source->volume->extents(ByteOffset(at), size - at, kExtentsAtOnce);
    if (!extents) co_return extents.error();
    std::uint64_t before = at;
    for (const Extent& extent : *extents) {
      row(extent);
      at = extent.offset.value + extent.length;
    }
    if (at <= before) co_return Error(ErrorCode::kIo, "map: the volume names no extents");
  }
  co_return Result<void>();
}

Task<Result<int>> run_map(Context& context, MapCommand command) {
  auto store = co_await context.store();
  if (!store) co_return store.error();
  auto source = co_await open_content(**store, command.object);
  if (!source) co_return source.error();
  Json rows = Json::array();
  Table table({"OFFSET", "LENGTH", "TYPE", "LAYER", "DEPTH"});
  table.align_right({0, 1, 4});
  bool json = context.options().json;
  auto add = [&](const Extent& extent) {
    std::string link = link_of(*source, extent);
    const char* type = extent.data ? "data" : "zero";
    if (json) {
      rows.push_back({{"offset", extent.offset.value},
                      {"length", extent.length},
                      {"type", type},
                      {"allocated", extent.allocated},
                      {"layer", nullptr},
                      {"depth", extent.depth}});
      if (!link.empty()) rows.back()["layer"] = link;
    } else {
      table.add({std::to_string(extent.offset.value), std::to_string(extent.length), type,
                 short_link(context, link), extent.depth < 0 ? "-" : std::to_string(extent.depth)});
    }
  };
  auto done = co_await each_extent(&*source, add);
  if (!done) co_return done.error();
  if (json) {
    print_json(context, "extents", std::move(rows));
  } else {
    context.print(table.str());
  }
  co_return kExitOk;
}

// ---- compare

struct CompareCommand {
  std::string a, b;
};

struct CompareOutcome {
  Comparison comparison;
  std::optional<std::uint64_t> first;  ///< offset of the first difference
  std::uint64_t size_a = 0, size_b = 0;
};

Task<Result<CompareOutcome>> compare_objects(Context& context, CompareCommand command) {
  auto store = co_await context.store();
  if (!store) co_return store.error();
  auto a = co_await open_content(**store, command.a);
  if (!a) co_return a.error();
  auto b = co_await open_content(**store, command.b);
  if (!b) co_return b.error();
  CompareOutcome out;
  out.size_a = a->volume->size();
  out.size_b = b->volume->size();
  CompareOptions options;
  options.on_difference = [&out](Difference difference) {
    out.first = difference.offset.value;
    return false;  // one is enough to know
  };
  auto compared = co_await compare_volumes(*a->volume, *b->volume, options, context.progress());
  if (!compared) co_return compared.error();
  out.comparison = *compared;
  co_return out;
}

Task<Result<int>> run_compare(Context& context, CompareCommand command) {
  auto outcome = co_await compare_objects(context, command);
  if (!outcome) co_return outcome.error();
  bool same = outcome->comparison.same();
  context.end_progress();
  if (context.options().json) {
    Json out{{"same", same},
             {"same_size", outcome->comparison.same_size},
             {"first_difference", nullptr}};
    if (outcome->first) out["first_difference"] = *outcome->first;
    print_json(context, std::move(out));
  } else if (!context.options().quiet) {
    if (outcome->first) {
      context.print(fmt::format("Content differs, first at offset {}\n", *outcome->first));
    } else if (!same) {
      context.print(
          fmt::format("Sizes differ ({} and {} bytes); the rest of the larger reads zero\n",
                      outcome->size_a, outcome->size_b));
    } else {
      context.print("The content is the same\n");
    }
  }
  co_return same ? kExitOk : kExitFailure;
}

// ---- diff

struct DiffCommand {
  std::string a, b;
};

Task<Result<int>> run_diff(Context& context, DiffCommand command) {
  auto store = co_await context.store();
  if (!store) co_return store.error();
  auto a = co_await open_content(**store, command.a);
  if (!a) co_return a.error();
  auto opening_b =
      command.b.empty() ? open_image_below(**store, command.a) : open_content(**store, command.b);
  auto b = co_await std::move(opening_b);
  if (!b) co_return b.error();
  Table table({"OFFSET", "LENGTH"});
  table.align_right({0, 1});
  Json extents = Json::array();
  bool json = context.options().json;
  CompareOptions options;
  options.on_difference = [&](Difference difference) {
    if (json) {
      extents.push_back({{"offset", difference.offset.value}, {"length", difference.length}});
    } else {
      table.add({std::to_string(difference.offset.value), std::to_string(difference.length)});
    }
    return true;
  };
  auto compared = co_await compare_volumes(*a->volume, *b->volume, options, context.progress());
  context.end_progress();
  if (!compared) co_return compared.error();
  if (json) {
    print_json(context, {{"extents", extents},
                         {"changed", compared->bytes},
                         {"sizes", {a->volume->size(), b->volume->size()}}});
    co_return kExitOk;
  }
  if (!context.options().quiet) context.print(table.str());
  context.print(fmt::format("{} changed in {} extent{}\n", print_size(compared->bytes),
                            compared->extents, compared->extents == 1 ? "" : "s"));
  co_return kExitOk;
}

}  // namespace

void add_content_commands(CLI::App& app, Context& context) {
  auto map_command = std::make_shared<MapCommand>();
  CLI::App* map =
      app.add_subcommand("map", "Show which layer each extent comes from")->group(kImagesGroup);
  map->add_option("object", map_command->object, "A volume, an image, or VOL@SNAP")
      ->required()
      ->type_name("OBJ");
  map->footer("Offsets and lengths in bytes. Depth 0 is the top of the chain.");
  set_action(map, context, map_command, run_map);

  auto compare_command = std::make_shared<CompareCommand>();
  CLI::App* compare =
      app.add_subcommand("compare", "Tell whether two have the same content")->group(kImagesGroup);
  compare->add_option("a", compare_command->a, "An image, a volume, or VOL@SNAP")
      ->required()
      ->type_name("A");
  compare->add_option("b", compare_command->b, "Another one")->required()->type_name("B");
  compare->footer("Exits with 0 if they are the same, 1 if not, 2 and up if it cannot tell.");
  compare->callback([&context, compare_command] {
    // 1 is "not the same": failures start at 2, as those of qemu-img compare.
    context.set_least_failure(kExitDamage);
    context.set_action([compare_command](Context& c) { return run_compare(c, *compare_command); });
  });

  auto diff_command = std::make_shared<DiffCommand>();
  CLI::App* diff = app.add_subcommand("diff", "Show where two differ, or a volume and its image")
                       ->group(kImagesGroup);
  diff->add_option("a", diff_command->a, "An image, a volume, or VOL@SNAP")
      ->required()
      ->type_name("A");
  diff->add_option("b", diff_command->b, "Another one; else the image that the volume stands on")
      ->type_name("B");
  diff->footer(
      "Offsets and lengths in bytes. By content: a block that was written anew with what it "
      "held is no difference.");
  set_action(diff, context, diff_command, run_diff);
}

}  // namespace snap::cli
