// The state of a server as Prometheus reads it (text exposition format 0.0.4).
#pragma once

#include <string>

#include "engine/server/server_stat.h"

namespace snap::server {

/// Families are named snapctl_*; those of an export have the label `volume`. Histograms of kinds of
/// requests that an export has never had are left out.
std::string metrics_text(const ServerStat& stat);

}  // namespace snap::server
