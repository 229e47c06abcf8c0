#include "engine/server/metrics.h"

#include <fmt/format.h>

#include <iterator>

namespace snap::server {

namespace {

// Bounds of the histogram: powers of two, so that they are bounds of our buckets.
constexpr unsigned kFirstBound = 3;  // 8 us
constexpr unsigned kLastBound = 24;  // 16.8 s

using Out = std::back_insert_iterator<std::string>;

/// Quoted as a label's value.
std::string label(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c == '\n') {
      out += "\\n";
      continue;
    }
    if (c == '\\' || c == '"') out += '\\';
    out += c;
  }
  return out;
}

double seconds(std::chrono::nanoseconds time) {
  return std::chrono::duration<double>(time).count();
}

void family(Out out, const char* name, const char* type, const char* help) {
  fmt::format_to(out, "# HELP snapctl_{0} {2}\n# TYPE snapctl_{0} {1}\n", name, type, help);
}

void server_value(Out out, const char* name, const char* type, const char* help,
                  std::uint64_t value) {
  family(out, name, type, help);
  fmt::format_to(out, "snapctl_{} {}\n", name, value);
}

template <class F>
void of_each_volume(Out out, const ServerStat& stat, const char* name, const char* help, F value) {
  family(out, name, "gauge", help);
  for (const ServedStat& v : stat.volumes)
    fmt::format_to(out, "snapctl_{}{{volume=\"{}\"}} {}\n", name, label(v.name), value(v));
}

template <class F>
void of_each_kind(Out out, const ServerStat& stat, const char* name, const char* help, F value) {
  family(out, name, "counter", help);
  for (const ServedStat& v : stat.volumes) {
    for (std::size_t k = 0; k < Volume::kRequestKinds; ++k) {
      const auto kind = static_cast<Volume::RequestKind>(k);
      fmt::format_to(out, "snapctl_{}{{volume=\"{}\",kind=\"{}\"}} {}\n", name, label(v.name),
                     kind_name(kind), value(v.stats.kinds[k]));
    }
  }
}

void histogram(Out out, const std::string& volume, std::string_view kind,
               const LatencyHistogram& latency) {
  constexpr const char* kName = "snapctl_request_duration_seconds";
  const std::string labels = fmt::format("volume=\"{}\",kind=\"{}\"", label(volume), kind);
  const std::uint64_t count = latency.count();
  for (unsigned bound = kFirstBound; bound <= kLastBound; ++bound) {
    const std::chrono::microseconds end(std::int64_t{1} << bound);
    fmt::format_to(out, "{}_bucket{{{},le=\"{:.6f}\"}} {}\n", kName, labels, seconds(end),
                   latency.below(end));
  }
  fmt::format_to(out, "{}_bucket{{{},le=\"+Inf\"}} {}\n", kName, labels, count);
  fmt::format_to(out, "{}_sum{{{}}} {:.9f}\n", kName, labels, seconds(latency.total));
  fmt::format_to(out, "{}_count{{{}}} {}\n", kName, labels, count);
}

void histograms(Out out, const ServerStat& stat) {
  family(out, "request_duration_seconds", "histogram",
         "How long requests took, from their last byte in to their reply.");
  for (const ServedStat& v : stat.volumes) {
    for (std::size_t k = 0; k < Volume::kRequestKinds; ++k) {
      const LatencyHistogram& latency = v.stats.kinds[k].latency;
      if (latency.count() != 0)
        histogram(out, v.name, kind_name(static_cast<Volume::RequestKind>(k)), latency);
    }
  }
}

}  // namespace

std::string metrics_text(const ServerStat& stat) {
  std::string text;
  const Out out(text);
  server_value(out, "uptime_seconds", "gauge", "Time since the server has started.",
               static_cast<std::uint64_t>(stat.uptime.count()));
  server_value(out, "connections", "gauge", "NBD clients that are connected.", stat.connections);
  server_value(out, "connections_accepted_total", "counter", "NBD connections since the start.",
               stat.accepted);
  server_value(out, "connections_turned_away_total", "counter",
               "NBD connections that were refused because there were too many.", stat.turned_away);
  server_value(out, "connections_ended_badly_total", "counter",
               "NBD connections that broke the protocol or broke off.", stat.ended_badly);
  const auto number = [](auto member) {
    return [member](const ServedStat& v) { return v.*member; };
  };
  of_each_volume(out, stat, "volume_size_bytes", "Size of the export.", number(&ServedStat::size));
  of_each_volume(out, stat, "volume_connections", "Clients that have the export.",
                 number(&ServedStat::connections));
  of_each_volume(out, stat, "volume_dirty_bytes",
                 "What a flush would make durable, in whole chunks of 64 KiB.",
                 number(&ServedStat::dirty));
  of_each_volume(out, stat, "volume_allocated_bytes", "Data in the writable layer.",
                 number(&ServedStat::allocated));
  of_each_volume(out, stat, "requests_in_flight", "Requests that are not answered yet.",
                 [](const ServedStat& v) { return v.stats.in_flight; });
  of_each_kind(out, stat, "requests_total", "Requests that were answered.",
               [](const Volume::RequestStats& r) { return r.requests(); });
  of_each_kind(out, stat, "request_errors_total", "Requests that were answered with an error.",
               [](const Volume::RequestStats& r) { return r.errors; });
  of_each_kind(out, stat, "request_bytes_total", "Bytes that requests were about.",
               [](const Volume::RequestStats& r) { return r.bytes; });
  histograms(out, stat);
  return text;
}

}  // namespace snap::server
