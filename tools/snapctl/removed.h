// What a removal says: docker's "Untagged: ..." and "Deleted: ..." lines.
#pragma once

#include "snap/store.h"

namespace snap::cli {

class Context;

/// Prints what was (or, with `dry_run`, would be) removed; as JSON with --json; nothing with
/// --quiet.
void print_removed(Context& context, const Store::Removed& removed, bool dry_run);

}  // namespace snap::cli
