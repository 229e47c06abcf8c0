// See removed.h.
#include "tools/snapctl/removed.h"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "tools/snapctl/context.h"
#include "tools/snapctl/exit_code.h"
#include "tools/snapctl/json_output.h"
#include "tools/snapctl/table.h"

namespace snap::cli {

void add_removed(Store::Removed& all, const Store::Removed& more) {
  all.untagged.insert(all.untagged.end(), more.untagged.begin(), more.untagged.end());
  all.deleted.insert(all.deleted.end(), more.deleted.begin(), more.deleted.end());
  all.freed += more.freed;
  if (!all.kept) all.kept = more.kept;
}

void print_removed(Context& context, const Store::Removed& removed, bool dry_run) {
  if (removed.kept) {
    context.note(error_line("what is not used any more stays until '" SNAPCTL_PROGRAM_NAME
                            " prune' can remove it: " +
                            removed.kept->message()));
  }
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
