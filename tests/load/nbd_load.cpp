// nbd_load: a lean NBD load generator, for measuring servers: what fio's client costs a request
// would hide what they do.
//
//   nbd_load --address unix:PATH|HOST:PORT [--export NAME] [--seconds S] [--depth D] ...
//
// Prints requests a second, MiB/s, latencies, and with --pid the server's CPU time a request;
// --json as JSON. Exit code 1 if a request fails or a read does not give what was written.
#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>
#include <thread>

#include "tests/load/load_client.h"

namespace {

using namespace snap;
using namespace snap::load;
using Clock = std::chrono::steady_clock;

struct Options {
  std::string address, export_name;
  unsigned connections = 1;
  double seconds = 4;
  std::uint64_t size = 0;  ///< of the part of the export that is used; 0: all
  int pid = 0;
  bool json = false;
  Workload work;
};

/// User and system time of a process so far, in seconds (proc(5), fields 14 and 15 of stat).
double cpu_seconds(int pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/stat");
  std::string text((std::istreambuf_iterator<char>(file)), {});
  std::istringstream fields(text.substr(std::min(text.size(), text.rfind(')') + 2)));
  std::string skipped;
  for (int i = 0; i < 11; ++i)
    fields >> skipped;
  double user = 0, system = 0;
  fields >> user >> system;
  return (user + system) / static_cast<double>(::sysconf(_SC_CLK_TCK));
}

struct Outcome {
  Tally tally;
  double seconds = 0;
  double cpu = 0;  ///< of the server
  std::optional<Error> error;
};

Outcome measure(const Options& options, std::vector<LoadClient>& clients, std::uint64_t size) {
  Outcome out;
  std::vector<std::thread> threads;
  std::vector<Result<void>> results(clients.size());
  const double cpu_before = options.pid != 0 ? cpu_seconds(options.pid) : 0;
  const auto begin = Clock::now();
  const auto deadline = begin + std::chrono::duration_cast<Clock::duration>(
                                    std::chrono::duration<double>(options.seconds));
  const std::uint64_t share = size / clients.size() / options.work.block * options.work.block;
  for (std::size_t i = 0; i < clients.size(); ++i) {
    Workload work = options.work;
    work.begin = i * share;
    work.end = work.begin + share;
    work.seed += i;
    threads.emplace_back([&, work, i] { results[i] = clients[i].run(work, deadline); });
  }
  for (std::thread& thread : threads)
    thread.join();
  out.seconds = std::chrono::duration<double>(Clock::now() - begin).count();
  if (options.pid != 0) out.cpu = cpu_seconds(options.pid) - cpu_before;
  for (std::size_t i = 0; i < clients.size(); ++i) {
    out.tally.add(clients[i].tally());
    if (!results[i]) out.error = results[i].error();
  }
  return out;
}

nlohmann::json numbers(const Outcome& outcome, const Options& options) {
  const Tally& t = outcome.tally;
  const auto requests = static_cast<double>(t.reads + t.writes);
  nlohmann::json out{
      {"reads", t.reads},
      {"writes", t.writes},
      {"flushes", t.flushes},
      {"compared", t.compared},
      {"seconds", outcome.seconds},
      {"per_second", requests / outcome.seconds},
      {"mib_per_second", requests * options.work.block / outcome.seconds / (1 << 20)},
      {"p50_us", t.requests.percentile(0.5)},
      {"p99_us", t.requests.percentile(0.99)},
      {"p999_us", t.requests.percentile(0.999)},
      {"worst_us", t.requests.worst()}};
  if (t.flushes != 0) {
    out["flush_p50_us"] = t.flush_times.percentile(0.5);
    out["flush_p99_us"] = t.flush_times.percentile(0.99);
    out["flush_worst_us"] = t.flush_times.worst();
  }
  if (options.pid != 0 && requests != 0) out["server_cpu_us"] = outcome.cpu / requests * 1e6;
  return out;
}

std::string line(const nlohmann::json& n) {
  std::string out = fmt::format(
      "{:.0f} /s, {:.0f} MiB/s, p50 {:.0f} us, p99 {:.0f} us, p99.9 {:.0f} us, worst {:.0f} us",
      n["per_second"].get<double>(), n["mib_per_second"].get<double>(), n["p50_us"].get<double>(),
      n["p99_us"].get<double>(), n["p999_us"].get<double>(), n["worst_us"].get<double>());
  if (n.contains("flush_p50_us"))
    out += fmt::format("; {} flushes, p50 {:.0f} us, p99 {:.0f} us, worst {:.0f} us",
                       n["flushes"].get<std::uint64_t>(), n["flush_p50_us"].get<double>(),
                       n["flush_p99_us"].get<double>(), n["flush_worst_us"].get<double>());
  if (n.contains("server_cpu_us"))
    out += fmt::format("; server CPU {:.1f} us a request", n["server_cpu_us"].get<double>());
  return out;
}

int fail(const Error& error) {
  fmt::print(stderr, "nbd_load: {}\n", error.message());
  return 1;
}

int run(const Options& options) {
  std::vector<LoadClient> clients(options.connections);
  std::uint64_t size = 0;
  for (LoadClient& client : clients) {
    auto connected = client.connect(options.address, options.export_name);
    if (!connected) return fail(connected.error());
    size = *connected;
  }
  if (options.size != 0) size = std::min(size, options.size);
  if (size / options.work.block / options.connections <= options.work.depth * std::uint64_t{2})
    return fail(Error(ErrorCode::kInvalidArgument, "the export is too small for so many requests"));
  const Outcome outcome = measure(options, clients, size);
  if (outcome.error) return fail(*outcome.error);
  const nlohmann::json result = numbers(outcome, options);
  fmt::print("{}\n", options.json ? result.dump() : line(result));
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("A lean NBD load generator");
  Options options;
  app.add_option("--address", options.address, "unix:PATH or HOST:PORT")->required();
  app.add_option("--export", options.export_name, "Its name; else the default one");
  app.add_option("--connections", options.connections)->check(CLI::Range(1, 64));
  app.add_option("--seconds", options.seconds);
  app.add_option("--depth", options.work.depth, "Requests in flight a connection")
      ->check(CLI::Range(1, 256));
  app.add_option("--block", options.work.block, "Bytes a request")
      ->transform(CLI::AsSizeValue(false));
  app.add_option("--size", options.size, "Bytes of the export that are used; else all")
      ->transform(CLI::AsSizeValue(false));
  app.add_option("--read-percent", options.work.read_percent)->check(CLI::Range(0, 100));
  app.add_flag("--sequential", options.work.sequential);
  app.add_flag("--once", options.work.once, "No block twice; ends when each had its turn");
  app.add_option("--flush-every", options.work.flush_every,
                 "After so many requests all are awaited, and then a flush");
  app.add_flag("--verify", options.work.verify, "Compare reads with what was written");
  app.add_option("--seed", options.work.seed);
  app.add_option("--pid", options.pid, "The server, for its CPU time");
  app.add_flag("--json", options.json);
  CLI11_PARSE(app, argc, argv);
  return run(options);
}
