#include "engine/server/server_stat.h"

#include "engine/base/json_value.h"

namespace snap::server {

namespace {

using nlohmann::json;

constexpr std::array<std::string_view, Volume::kRequestKinds> kKindNames = {
    "read", "write", "zero", "trim", "flush", "map", "cache"};

std::uint64_t number(const json& object, const char* name) {
  return json_field(object, name, std::uint64_t{0});
}

json requests_json(const Volume::RequestStats& stats) {
  json latency = json::array();
  for (std::size_t i = 0; i < LatencyHistogram::kBuckets; ++i) {
    if (stats.latency.counts[i] != 0) latency.push_back({i, stats.latency.counts[i]});
  }
  return {{"errors", stats.errors},
          {"bytes", stats.bytes},
          {"total_ns", static_cast<std::uint64_t>(stats.latency.total.count())},
          {"latency", std::move(latency)}};
}

Volume::RequestStats requests_of(const json& value) {
  Volume::RequestStats stats;
  stats.errors = number(value, "errors");
  stats.bytes = number(value, "bytes");
  stats.latency.total = std::chrono::nanoseconds(
      static_cast<std::int64_t>(number(value, "total_ns") & ~(std::uint64_t{1} << 63)));
  const auto latency = value.find("latency");
  if (latency == value.end() || !latency->is_array()) return stats;
  for (const json& pair : *latency) {
    const bool sound = pair.is_array() && pair.size() == 2 && pair[0].is_number_unsigned() &&
                       pair[1].is_number_unsigned();
    if (!sound) continue;
    const auto bucket = pair[0].get<std::uint64_t>();
    if (bucket < LatencyHistogram::kBuckets)
      stats.latency.counts[bucket] += pair[1].get<std::uint64_t>();
  }
  return stats;
}

json volume_json(const ServedStat& v, bool counts) {
  json out = {
      {"name", v.name},           {"kind", v.kind},           {"size", v.size},
      {"read_only", v.read_only}, {"open", v.open},           {"connections", v.connections},
      {"dirty", v.dirty},         {"allocated", v.allocated}, {"in_flight", v.stats.in_flight}};
  if (!counts) return out;
  json requests = json::object();
  for (std::size_t k = 0; k < Volume::kRequestKinds; ++k)
    requests[std::string(kKindNames[k])] = requests_json(v.stats.kinds[k]);
  out["requests"] = std::move(requests);
  return out;
}

ServedStat volume_of(const json& value) {
  ServedStat out;
  out.name = json_field(value, "name", std::string());
  out.kind = json_field(value, "kind", out.kind);
  out.size = number(value, "size");
  out.read_only = json_field(value, "read_only", false);
  out.open = json_field(value, "open", true);
  out.connections = number(value, "connections");
  out.dirty = number(value, "dirty");
  out.allocated = number(value, "allocated");
  out.stats.in_flight = number(value, "in_flight");
  const auto requests = value.find("requests");
  if (requests == value.end() || !requests->is_object()) return out;
  for (std::size_t k = 0; k < Volume::kRequestKinds; ++k) {
    const auto one = requests->find(std::string(kKindNames[k]));
    if (one != requests->end() && one->is_object()) out.stats.kinds[k] = requests_of(*one);
  }
  return out;
}

json clients_json(const std::vector<ClientStat>& clients) {
  json out = json::array();
  for (const ClientStat& c : clients)
    out.push_back({{"name", c.name},
                   {"export", c.export_name},
                   {"tls", c.tls},
                   {"connected", c.connected.count()}});
  return out;
}

}  // namespace

std::string_view kind_name(Volume::RequestKind kind) noexcept {
  return kKindNames[static_cast<std::size_t>(kind)];
}

std::string encode_stat(const ServerStat& stat, bool counts) {
  json list = json::array();
  for (const ServedStat& v : stat.volumes)
    list.push_back(volume_json(v, counts));
  return json_text({{"command", stat.command},
                    {"store", stat.store},
                    {"uptime", stat.uptime.count()},
                    {"addresses", stat.addresses},
                    {"connections", stat.connections},
                    {"accepted", stat.accepted},
                    {"turned_away", stat.turned_away},
                    {"ended_badly", stat.ended_badly},
                    {"volumes", std::move(list)},
                    {"clients", clients_json(stat.clients)}});
}

Result<ServerStat> decode_stat(std::string_view text) {
  const json value = json::parse(text, nullptr, false);
  if (!value.is_object())
    return Error(ErrorCode::kProtocol, "the JSON of a server's state is no object");
  ServerStat stat;
  stat.command = json_field(value, "command", std::string());
  stat.store = json_field(value, "store", std::string());
  stat.uptime = std::chrono::seconds(json_field(value, "uptime", std::int64_t{0}));
  stat.connections = number(value, "connections");
  stat.accepted = number(value, "accepted");
  stat.turned_away = number(value, "turned_away");
  stat.ended_badly = number(value, "ended_badly");
  if (const auto addresses = value.find("addresses");
      addresses != value.end() && addresses->is_array()) {
    for (const json& one : *addresses) {
      if (one.is_string()) stat.addresses.push_back(one.get<std::string>());
    }
  }
  const auto list = value.find("volumes");
  if (list == value.end() || !list->is_array()) return stat;
  for (const json& v : *list) {
    if (v.is_object()) stat.volumes.push_back(volume_of(v));
  }
  const auto clients = value.find("clients");
  if (clients == value.end() || !clients->is_array()) return stat;
  for (const json& c : *clients) {
    if (!c.is_object()) continue;
    stat.clients.push_back({json_field(c, "name", std::string()),
                            json_field(c, "export", std::string()), json_field(c, "tls", false),
                            std::chrono::seconds(json_field(c, "connected", std::int64_t{0}))});
  }
  return stat;
}

}  // namespace snap::server
