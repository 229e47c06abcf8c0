// The state of what a server has open, and had open before.
#pragma once

#include <string>
#include <vector>

#include "engine/server/open_items.h"
#include "engine/server/server_stat.h"

namespace snap::server {

/// Of the export called `name`; empty: of all. With `counts` their requests, and those of exports
/// that are closed again. `read_only`: the server refuses writes to everything.
std::vector<ServedStat> stat_of_exports(const OpenItems& open, const std::string& name, bool counts,
                                        bool read_only);

}  // namespace snap::server
