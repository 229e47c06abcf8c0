// See removed.h.
#include "tools/snapctl/removed.h"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "tools/snapctl/context.h"
#include "tools/snapctl/json_output.h"
#include "tools/snapctl/table.h"

namespace snap::cli {

void print_removed(Context& context, const Store::Removed& removed, bool dry_run) {
  if (context.options().json) {
    Json out = removed_json(removed);
    out["dry_run"] = dry_run;
    print_json(context, std::move(out));
    return;
  }
  if (context.options().quiet) return;
  for (const std::string& reference : removed.untagged)
    context.print(
        fmt::format("{}: {}\n", dry_run ? "Would untag" : "Untagged", printable(reference)));
  for (const std::string& object : removed.deleted)
    context.print(fmt::format("{}: {}\n", dry_run ? "Would delete" : "Deleted", printable(object)));
}

}  // namespace snap::cli
