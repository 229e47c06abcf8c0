// Charts of what bench has measured, drawn by gnuplot.
#pragma once

#include <string>
#include <vector>

#include "snap/result.h"
#include "tools/snapctl/bench_report.h"

namespace snap::cli {

/// That the file can be a chart, its folder is there, and gnuplot, too: before anything is
/// measured.
Result<void> check_chart(const std::string& file);

/// What gnuplot is told: bars of IOPS and of p99.
std::string chart_script(const std::string& file, const std::vector<Figures>& all);
/// Lines of p50 and p99 over the depth of the chain.
std::string chart_script(const std::string& file, const std::vector<DepthFigures>& all);

/// Blocks.
Result<void> draw_chart(std::string script);

}  // namespace snap::cli
