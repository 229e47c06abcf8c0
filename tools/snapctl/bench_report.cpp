// See bench_report.h.
#include "tools/snapctl/bench_report.h"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <chrono>
#include <cmath>

#include "tools/snapctl/size_format.h"
#include "tools/snapctl/table.h"

namespace snap::cli {

namespace {

constexpr double kMiB = 1 << 20;

std::vector<std::string> heading() {
  return {"PROFILE", "IOPS",      "MIB/S",     "P50",        "P99",
          "P99.9",   "FLUSH P50", "FLUSH P99", "CPU/REQUEST"};
}

std::string latency_cell(const FioRequests& requests, double share) {
  if (requests.requests == 0) return "-";
  const auto us = std::llround(requests.latency.quantile_us(share));
  return print_elapsed(std::chrono::microseconds(us));
}

std::vector<std::string> row_of(const Figures& figures) {
  const FioRequests data = figures.fio.data();
  const FioRequests& flushes = figures.fio.kinds[FioResult::kFlush];
  return {printable(figures.profile.name),
          fmt::format("{:.0f}", figures.iops()),
          fmt::format("{:.1f}", static_cast<double>(data.bytes) / figures.fio.seconds / kMiB),
          latency_cell(data, 0.5),
          latency_cell(data, 0.99),
          latency_cell(data, 0.999),
          latency_cell(flushes, 0.5),
          latency_cell(flushes, 0.99),
          fmt::format("{:.1f} us", figures.server_cpu_us)};
}

double rounded(double value) {
  return std::round(value * 10) / 10;
}

/// Rates and latencies; of flushes there are no bytes.
Json requests_json(const FioRequests& requests, double seconds) {
  const FioLatency& latency = requests.latency;
  return {{"requests", requests.requests},
          {"requests_per_second", rounded(static_cast<double>(requests.requests) / seconds)},
          {"bytes_per_second", std::llround(static_cast<double>(requests.bytes) / seconds)},
          {"p50_us", rounded(latency.quantile_us(0.5))},
          {"p99_us", rounded(latency.quantile_us(0.99))},
          {"p999_us", rounded(latency.quantile_us(0.999))}};
}

Json figures_json(const Figures& figures) {
  Json out{{"profile", figures.profile.name},
           {"file", figures.profile.file},
           {"seconds", figures.fio.seconds}};
  out.update(requests_json(figures.fio.data(), figures.fio.seconds));
  out["server_cpu_us_per_request"] = rounded(figures.server_cpu_us);
  for (std::size_t k = 0; k < figures.fio.kinds.size(); ++k) {
    const FioRequests& kind = figures.fio.kinds[k];
    out[FioResult::kNames[k]] =
        kind.requests == 0 ? Json(nullptr) : requests_json(kind, figures.fio.seconds);
  }
  return out;
}

}  // namespace

std::string bench_table(const std::vector<Figures>& all) {
  Table table(heading());
  table.align_right({1, 2, 3, 4, 5, 6, 7, 8});
  for (const Figures& figures : all)
    table.add(row_of(figures));
  return table.str();
}

std::string bench_table(const std::vector<DepthFigures>& all) {
  std::vector<std::string> columns = heading();
  columns.insert(columns.begin(), "DEPTH");
  Table table(std::move(columns));
  table.align_right({0, 2, 3, 4, 5, 6, 7, 8, 9});
  for (const DepthFigures& one : all) {
    for (const Figures& figures : one.figures) {
      std::vector<std::string> row = row_of(figures);
      row.insert(row.begin(), std::to_string(one.depth));
      table.add(std::move(row));
    }
  }
  return table.str();
}

Json bench_json(const std::vector<Figures>& all) {
  Json out = Json::array();
  for (const Figures& figures : all)
    out.push_back(figures_json(figures));
  return out;
}

Json bench_json(const std::vector<DepthFigures>& all) {
  Json out = Json::array();
  for (const DepthFigures& one : all)
    out.push_back({{"depth", one.depth}, {"profiles", bench_json(one.figures)}});
  return out;
}

}  // namespace snap::cli
