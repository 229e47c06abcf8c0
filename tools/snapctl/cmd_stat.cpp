// Commands about servers: stat (how a volume fares), ps (what serves what).
#include <dirent.h>

#include <fmt/format.h>
#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <chrono>
#include <memory>

#include "engine/io/sync.h"
#include "engine/server/control_client.h"
#include "engine/server/endpoint.h"
#include "engine/server/remote.h"
#include "tools/snapctl/commands.h"
#include "tools/snapctl/context.h"
#include "tools/snapctl/device_access.h"
#include "tools/snapctl/exit_code.h"
#include "tools/snapctl/interrupt.h"
#include "tools/snapctl/json_output.h"
#include "tools/snapctl/names.h"
#include "tools/snapctl/size_format.h"
#include "tools/snapctl/table.h"
#include "tools/snapctl/volume_access.h"

namespace snap::cli {

namespace {

using Clock = std::chrono::steady_clock;

// ---- stat

struct StatCommand {
  std::string volume;
  double watch = 0;  ///< seconds; 0: once
};

/// A volume at one moment.
struct Sample {
  Clock::time_point at;
  int pid = 0;  ///< of the server; 0: it is at rest
  std::uint64_t size = 0, on_disk = 0;
  server::ServedStat served;
};

Task<Result<Sample>> take_sample(Context& context, std::string text) {
  auto store = co_await context.store();
  if (!store) co_return store.error();
  auto volume = co_await find_volume(**store, text);
  if (!volume) co_return volume.error();
  Sample out;
  out.size = volume->record.size;
  out.on_disk = volume->allocated;
  std::unique_ptr<server::ControlClient> client;
  if (volume->holder && !volume->holder->control_socket.empty()) {
    auto connected = co_await server::ControlClient::connect(volume->holder->control_socket);
    if (connected) client = std::move(*connected);
  } else if (!volume->holder) {
    // It may remember what it has served and closed again.
    client = co_await store_server((*store)->path());
  }
  if (client) {
    auto stat = co_await server::remote_stat(*client, volume->record.name);
    if (!stat) co_return stat.error();
    if (!stat->volumes.empty()) {
      out.served = std::move(stat->volumes.front());
      if (out.served.open) out.pid = client->server().pid;
    }
  }
  out.served.name = volume->record.name;
  out.at = Clock::now();
  co_return out;
}

/// What happened between two samples.
struct Rates {
  double seconds = 1;
  Volume::Stats stats;
  double per_second(Volume::RequestKind kind) const {
    return static_cast<double>(stats.of(kind).requests()) / seconds;
  }
  double mib_per_second(Volume::RequestKind kind) const {
    return static_cast<double>(stats.of(kind).bytes) / seconds / (1 << 20);
  }
};

Rates rates_of(const Sample& before, const Sample& after) {
  Rates out;
  out.seconds = std::max(std::chrono::duration<double>(after.at - before.at).count(), 1e-6);
  out.stats = after.served.stats;
  // Another server, or none: what it counts has begun anew.
  const auto requests = [](const Sample& s) {
    std::uint64_t sum = 0;
    for (const Volume::RequestStats& kind : s.served.stats.kinds)
      sum += kind.requests();
    return sum;
  };
  if (requests(before) <= requests(after)) out.stats -= before.served.stats;
  return out;
}

std::string quantiles(const LatencyHistogram& latency) {
  if (latency.count() == 0) return "-";
  return print_elapsed(latency.quantile(0.5)) + "/" + print_elapsed(latency.quantile(0.99));
}

constexpr const char* kStatRow = "{:>8} {:>9} {:>17} {:>8} {:>9} {:>17} {:>8} {:>8} {:>9} {:>7}\n";

std::string stat_heading() {
  return fmt::format(kStatRow, "READ/S", "MIB/S", "P50/P99", "WRITE/S", "MIB/S", "P50/P99",
                     "FLUSH/S", "DIRTY", "ALLOCATED", "CLIENTS");
}

std::string stat_row(const Sample& now, const Rates& rates) {
  using Kind = Volume::RequestKind;
  const auto number = [](double value) {
    return fmt::format("{:.{}f}", value, value < 10 ? 1 : 0);
  };
  return fmt::format(
      kStatRow, number(rates.per_second(Kind::kRead)), number(rates.mib_per_second(Kind::kRead)),
      quantiles(rates.stats.of(Kind::kRead).latency), number(rates.per_second(Kind::kWrite)),
      number(rates.mib_per_second(Kind::kWrite)), quantiles(rates.stats.of(Kind::kWrite).latency),
      number(rates.per_second(Kind::kFlush)), print_size(now.served.dirty), print_size(now.on_disk),
      now.served.connections);
}

/// The counts since the server has started, and the rates between the samples.
Json stat_json(const Sample& now, const Rates& rates) {
  Json requests = Json::object();
  for (std::size_t k = 0; k < Volume::kRequestKinds; ++k) {
    const auto kind = static_cast<Volume::RequestKind>(k);
    const Volume::RequestStats& all = now.served.stats.of(kind);
    const LatencyHistogram& lately = rates.stats.of(kind).latency;
    requests[std::string(server::kind_name(kind))] = {
        {"requests", all.requests()},
        {"errors", all.errors},
        {"bytes", all.bytes},
        {"requests_per_second", rates.per_second(kind)},
        {"bytes_per_second", static_cast<double>(rates.stats.of(kind).bytes) / rates.seconds},
        {"p50_us", lately.quantile(0.5).count()},
        {"p99_us", lately.quantile(0.99).count()}};
  }
  return {{"schema", kJsonSchema},
          {"volume", now.served.name},
          {"served_by", now.pid == 0 ? Json(nullptr) : Json(now.pid)},
          {"size", now.size},
          {"allocated", now.on_disk},
          {"dirty", now.served.dirty},
          {"connections", now.served.connections},
          {"in_flight", now.served.stats.in_flight},
          {"seconds", rates.seconds},
          {"requests", requests}};
}

/// Ctrl-C ends it.
Task<void> wait_seconds(double seconds) {
  const auto end = Clock::now() + std::chrono::duration_cast<Clock::duration>(
                                      std::chrono::duration<double>(seconds));
  while (Clock::now() < end && !interrupted()) {
    Sleep pause(std::min<Clock::duration>(end - Clock::now(), std::chrono::milliseconds(100)));
    co_await pause;
  }
}

Task<Result<int>> run_stat(Context& context, StatCommand command) {
  constexpr int kRowsToAHeading = 20;
  const bool json = context.options().json;
  auto before = co_await take_sample(context, command.volume);
  if (!before) co_return before.error();
  for (int row = 0;; ++row) {
    co_await wait_seconds(command.watch > 0 ? command.watch : 1.0);
    if (interrupted()) co_return kExitOk;
    auto now = co_await take_sample(context, command.volume);
    if (!now) co_return now.error();
    const Rates rates = rates_of(*before, *now);
    if (json) {
      const int indent = command.watch > 0 ? -1 : 2;  // watched: an object a line
      context.print(
          stat_json(*now, rates).dump(indent, ' ', false, Json::error_handler_t::replace) + "\n");
    } else {
      if (row % kRowsToAHeading == 0) context.print(stat_heading());
      context.print(stat_row(*now, rates));
      if (now->pid == 0 && row == 0)
        context.note(
            fmt::format("volume '{}' is at rest: no server has it open", now->served.name));
    }
    auto printed = context.finish_output();
    if (!printed) co_return printed.error();
    if (command.watch <= 0) co_return kExitOk;
    *before = std::move(*now);
  }
}

// ---- ps

constexpr std::chrono::seconds kPsPatience{5};

/// A server that was found by its control socket.
struct Found {
  std::string socket;
  int pid = 0;
  Result<server::ServerStat> stat = Error(ErrorCode::kCancelled, "not asked");
  std::vector<attach::Attachment> devices;  ///< of it
};

/// Every path that may be a control socket, ascending.
Result<std::vector<std::string>> control_sockets(const std::string& dir) {
  constexpr std::string_view kEnd = ".control";
  std::vector<std::string> out;
  const std::unique_ptr<DIR, int (*)(DIR*)> open(::opendir(dir.c_str()), &::closedir);
  if (!open) return Error::from_errno(errno, "list " + dir);
  while (const dirent* entry = ::readdir(open.get())) {
    const std::string_view name = entry->d_name;
    if (name.size() > kEnd.size() && name.ends_with(kEnd)) out.push_back(dir + "/" + entry->d_name);
  }
  std::sort(out.begin(), out.end());
  return out;
}

Task<Found> ask(std::string socket) {
  Found out;
  out.socket = std::move(socket);
  auto client = co_await server::ControlClient::connect(out.socket, kPsPatience);
  if (!client) {
    out.stat = client.error();
    co_return out;
  }
  out.pid = (*client)->server().pid;
  out.stat = co_await server::remote_stat(**client, std::string(), kPsPatience);
  co_return out;
}

Json server_json(const Found& found) {
  const server::ServerStat& stat = *found.stat;
  Json exports = Json::array();
  for (const server::ServedStat& v : stat.volumes) {
    exports.push_back({{"name", v.name},
                       {"kind", v.kind},
                       {"size", v.size},
                       {"read_only", v.read_only},
                       {"connections", v.connections}});
  }
  Json clients = Json::array();
  for (const server::ClientStat& c : stat.clients) {
    clients.push_back({{"name", c.name},
                       {"export", c.export_name.empty() ? Json(nullptr) : Json(c.export_name)},
                       {"tls", c.tls},
                       {"connected", c.connected.count()}});
  }
  Json devices = Json::array();
  for (const attach::Attachment& d : found.devices) {
    devices.push_back({{"device", d.device},
                       {"via", attach::via_name(d.via)},
                       {"export", d.name},
                       {"since", d.since}});
  }
  return {{"pid", found.pid},
          {"command", stat.command},
          {"store", stat.store},
          {"uptime", stat.uptime.count()},
          {"control_socket", found.socket},
          {"addresses", stat.addresses},
          {"connections", stat.connections},
          {"exports", exports},
          {"devices", devices},
          {"clients", clients}};
}

/// "pid 7" of "client with pid 7", "[::1]:5000" of "client [::1]:5000".
std::string short_name(std::string_view name) {
  for (const std::string_view prefix : {"client ", "with "})
    if (name.starts_with(prefix)) name.remove_prefix(prefix.size());
  return printable(std::string(name));
}

/// Whom an export has: the names of some, and how many more.
std::string clients_of(const server::ServerStat& stat, const std::string& name) {
  constexpr std::size_t kNamed = 3;
  std::vector<std::string> named;
  std::size_t count = 0;
  for (const server::ClientStat& client : stat.clients) {
    if (client.export_name != name) continue;
    if (++count <= kNamed) named.push_back(short_name(client.name) + (client.tls ? " (TLS)" : ""));
  }
  if (count == 0) return "-";
  std::string out = fmt::format("{}", fmt::join(named, ", "));
  if (count > kNamed) out += fmt::format(" and {} more", count - kNamed);
  return out;
}

std::string devices_of(const Found& found, const std::string& name) {
  std::vector<std::string> named;
  for (const attach::Attachment& device : found.devices)
    if (device.name == name) named.push_back(device.device);
  return named.empty() ? "-" : fmt::format("{}", fmt::join(named, ", "));
}

void add_rows(Table& table, const Found& found) {
  const server::ServerStat& stat = *found.stat;
  std::vector<std::string> row{std::to_string(found.pid), stat.command, print_duration(stat.uptime),
                               printable(fmt::format("{}", fmt::join(stat.addresses, ", ")))};
  const std::size_t own = row.size();
  for (const server::ServedStat& v : stat.volumes) {
    row.resize(own);
    row.insert(row.end(),
               {v.kind, printable(v.name), devices_of(found, v.name), clients_of(stat, v.name)});
    table.add(row);
  }
  if (!stat.volumes.empty()) return;
  row.insert(row.end(), {"-", "-", "-", clients_of(stat, std::string())});
  table.add(row);
}

Task<Result<int>> run_ps(Context& context) {
  auto dir = co_await server::runtime_dir();
  if (!dir) co_return dir.error();
  auto sockets = co_await offload([&dir] { return control_sockets(*dir); });
  if (!sockets) co_return sockets.error();
  std::vector<Task<Found>> questions;
  for (std::string& socket : *sockets)
    questions.push_back(ask(std::move(socket)));
  std::vector<Found> all = co_await gather(std::move(questions));
  auto devices = co_await all_attachments();
  if (!devices) context.report(devices.error());
  for (Found& found : all) {
    const auto of_it = [&found](const attach::Attachment& d) { return d.control == found.socket; };
    if (devices)
      std::copy_if(devices->begin(), devices->end(), std::back_inserter(found.devices), of_it);
  }
  Table table({"PID", "COMMAND", "UPTIME", "SOCKET", "KIND", "EXPORT", "DEVICE", "CLIENTS"});
  Json servers = Json::array();
  for (const Found& found : all) {
    if (!found.stat) {
      // A socket that a killed server left is no server, and one that hangs up is about to end.
      const Error& error = found.stat.error();
      const int err = error.sys_errno();
      const bool gone = err == ECONNREFUSED || err == ENOENT || err == ECONNRESET;
      if (!gone && error.code() != ErrorCode::kCancelled) context.report(error);
      continue;
    }
    if (context.options().quiet) context.print(std::to_string(found.pid) + "\n");
    servers.push_back(server_json(found));
    add_rows(table, found);
  }
  if (context.options().json) {
    print_json(context, "servers", std::move(servers));
  } else if (!context.options().quiet) {
    context.print(table.str());
  }
  co_return kExitOk;
}

}  // namespace

void add_stat_commands(CLI::App& app, Context& context) {
  auto command = std::make_shared<StatCommand>();
  CLI::App* stat =
      app.add_subcommand("stat", "Show what a volume's clients do with it")->group(kVolumesGroup);
  stat->add_option("volume", command->volume, "The volume")->required()->type_name("VOL");
  stat->add_option("--watch", command->watch, "Go on, a line every so many seconds, until Ctrl-C")
      ->check(CLI::Range(0.1, 86400.0))
      ->type_name("SEC");
  stat->footer(
      "Measures for a second: requests and MiB a second, how long they took (half of them, 99 of\n"
      "100), what a flush would make durable, and what the volume takes on the disk. --json adds\n"
      "the counts since the server has started; with --watch an object a line.\n"
      "Example:\n  " SNAPCTL_PROGRAM_NAME " stat web --watch 1");
  set_action(stat, context, command, run_stat);

  CLI::App* ps = app.add_subcommand("ps", "List servers, what they have open, and for whom")
                     ->group(kAccessGroup);
  ps->footer(
      "Finds servers of this user, of every store, by their control sockets. Clients on a unix\n"
      "socket are told by their pid, others by their address; --json tells of all of them.");
  set_action(ps, context, run_ps);
}

}  // namespace snap::cli
