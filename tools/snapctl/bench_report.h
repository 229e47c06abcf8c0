// What bench has measured, as a table and as JSON.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "tools/snapctl/bench_profiles.h"
#include "tools/snapctl/fio.h"
#include "tools/snapctl/json_output.h"

namespace snap::cli {

/// Of one profile.
struct Figures {
  Profile profile;
  FioResult fio;
  double server_cpu_us = 0;  ///< user and system time of the server, a request or flush
  double iops() const { return static_cast<double>(fio.data().requests) / fio.seconds; }
};

/// Of a volume whose image has so many layers.
struct DepthFigures {
  std::size_t depth = 1;
  std::vector<Figures> figures;
};

std::string bench_table(const std::vector<Figures>& all);
std::string bench_table(const std::vector<DepthFigures>& all);
Json bench_json(const std::vector<Figures>& all);
Json bench_json(const std::vector<DepthFigures>& all);

}  // namespace snap::cli
