// What a removal says: docker's "Untagged: ..." and "Deleted: ..." lines.
#pragma once

#include "snap/store.h"

namespace snap::cli {

class Context;

/// Adds `more` to what earlier removals of one command did.
void add_removed(Store::Removed& all, const Store::Removed& more);
/// Prints what was (or, with `dry_run`, would be) removed; as JSON with --json; nothing with
/// --quiet.
void print_removed(Context& context, const Store::Removed& removed, bool dry_run);

}  // namespace snap::cli
