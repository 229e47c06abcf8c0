// Command bench: fio profiles against a clone of a volume, as a table, JSON and a chart.
#include <fmt/format.h>
#include <time.h>
#include <unistd.h>
#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdio>

#include "engine/store/names.h"
#include "snap/event_loop.h"
#include "snap/limits.h"
#include "tools/snapctl/bench_chart.h"
#include "tools/snapctl/bench_profiles.h"
#include "tools/snapctl/bench_report.h"
#include "tools/snapctl/bench_volume.h"
#include "tools/snapctl/commands.h"
#include "tools/snapctl/context.h"
#include "tools/snapctl/exit_code.h"
#include "tools/snapctl/fio.h"
#include "tools/snapctl/interrupt.h"
#include "tools/snapctl/json_output.h"
#include "tools/snapctl/progress_bar.h"

namespace snap::cli {

namespace {

constexpr const char* kDefaultDepths = "1,4,16,64,250,1000";
/// What reads are measured by over the depth of a chain.
constexpr const char* kDepthProfiles[] = {"randread-4k-qd1", "randread-4k-qd32"};

struct BenchCommand {
  std::string volume, chart;
  std::vector<std::string> profiles;
  std::string depths;  ///< "1,4,16"; empty: as the volume is
  double runtime = 4;
  bool all = false, device = false;
};

/// What a run is to do, all of it checked.
struct Plan {
  std::vector<Profile> profiles;
  std::vector<std::size_t> depths;  ///< ascending; none: as the volume is
  double runtime = 4;
  bool device = false;
};

struct Measured {
  std::string volume;  ///< its name
  std::vector<Figures> figures;
  std::vector<DepthFigures> depths;
  std::optional<Error> failed;  ///< why there is no more
};

// ---- Before

/// "1,4,16", ascending and each once.
Result<std::vector<std::size_t>> parse_depths(const std::string& text) {
  std::vector<std::size_t> out;
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = std::min(text.find(',', begin), text.size());
    std::size_t depth = 0;
    const auto parsed = std::from_chars(text.data() + begin, text.data() + end, depth);
    if (parsed.ec != std::errc() || parsed.ptr != text.data() + end || depth < 1 ||
        depth > kMaxLayersPerImage)
      return Error(ErrorCode::kInvalidArgument,
                   fmt::format("--depths takes numbers of layers from 1 to {}, as in {}; not {}",
                               kMaxLayersPerImage, kDefaultDepths, shown(text)));
    out.push_back(depth);
    begin = end + 1;
  }
  std::sort(out.begin(), out.end());
  out.erase(std::unique(out.begin(), out.end()), out.end());
  return out;
}

Result<Plan> make_plan(BenchCommand command) {
  Plan plan;
  plan.runtime = command.runtime;
  plan.device = command.device;
  auto depths = parse_depths(command.depths);
  if (!depths) return depths.error();
  plan.depths = *depths;
  const bool chosen = command.all || !command.profiles.empty();
  if (!plan.depths.empty() && chosen)
    return Error(ErrorCode::kInvalidArgument,
                 "--depths has profiles of its own: leave PROFILE and --all away");
  if (command.all && !command.profiles.empty())
    return Error(ErrorCode::kInvalidArgument, "--all is every profile: leave PROFILE away");
  auto fio = find_fio();
  if (!fio) return fio.error();
  if (!command.chart.empty()) {
    auto drawable = check_chart(command.chart);
    if (!drawable) return drawable.error();
  }
  auto profiles = Profiles::open(command.device);
  if (!profiles) return profiles.error();
  if (command.all) {
    plan.profiles = profiles->all();
    return plan;
  }
  std::vector<std::string> names = command.profiles;
  if (!plan.depths.empty()) names.assign(std::begin(kDepthProfiles), std::end(kDepthProfiles));
  if (names.empty()) names = default_profiles();
  for (const std::string& name : names) {
    auto found = profiles->find(name);
    if (!found) return found.error();
    plan.profiles.push_back(std::move(*found));
  }
  return plan;
}

// ---- Measuring

/// User and system time of all threads of a process so far.
Result<double> cpu_seconds(int pid) {
  clockid_t clock{};
  timespec now{};
  const int error = ::clock_getcpuclockid(pid, &clock);
  if (error != 0 || ::clock_gettime(clock, &now) != 0)
    return Error::from_errno(error != 0 ? error : errno,
                             fmt::format("read the CPU time of the server, pid {}", pid));
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) / 1e9;
}

/// Blocks.
Result<Figures> measure(const BenchVolume::Served& served, const Profile& profile, double runtime) {
  FioRun run;
  run.job_file = profile.file;
  run.uri = served.uri;
  if (served.device) run.device = served.device->device;
  run.seconds = runtime;
  auto before = cpu_seconds(served.pid);
  if (!before) return before.error();
  auto result = run_fio(std::move(run));
  if (!result) return result.error().with_context("profile " + profile.name);
  auto after = cpu_seconds(served.pid);
  if (!after) return after.error();
  Figures out;
  out.profile = profile;
  out.fio = std::move(*result);
  const std::uint64_t requests =
      out.fio.data().requests + out.fio.kinds[FioResult::kFlush].requests;
  out.server_cpu_us = (*after - *before) / static_cast<double>(requests) * 1e6;
  return out;
}

/// A line for a person who waits; nothing elsewhere, unless it is asked for.
void say(Context& context, const std::string& line) {
  const std::string& how = context.options().progress;
  const auto mode = progress_mode(how, context.options().quiet, isatty(STDERR_FILENO) == 1);
  if (mode == ProgressBar::Mode::kBar || how == "plain") context.note(line);
}

/// `out` has what was measured, also if something fails then.
Task<Result<void>> measure_all(Context& context, BenchVolume& volume, Plan plan, std::string what,
                               std::vector<Figures>* out) {
  auto served = co_await volume.serve(plan.device);
  if (!served) co_return served.error();
  Result<void> done;
  for (std::size_t i = 0; i < plan.profiles.size() && done; ++i) {
    const Profile& profile = plan.profiles[i];
    say(context, fmt::format("{}{} ({} of {}), {:g} s", what, profile.name, i + 1,
                             plan.profiles.size(), plan.runtime));
    auto figures = co_await offload([&] { return measure(*served, profile, plan.runtime); });
    if (figures) out->push_back(std::move(*figures));
    if (!figures) done = figures.error();
    if (done && interrupted()) done = Error(ErrorCode::kCancelled, "interrupted");
  }
  auto stopped = co_await volume.stop(std::move(*served));
  if (done && !stopped) co_return stopped.error();
  co_return done;
}

/// The same; `out` has the depths that were measured whole.
Task<Result<void>> measure_depths(Context& context, BenchVolume& volume, Plan plan,
                                  std::vector<DepthFigures>* out) {
  const std::size_t least = volume.least_depth();
  if (plan.depths.back() < least)
    co_return Error(ErrorCode::kInvalidArgument,
                    fmt::format("volume '{}' has {} layers already: give --depths beyond that",
                                volume.volume(), least));
  for (const std::size_t depth : plan.depths) {
    if (depth < least) {
      context.note(fmt::format("depth {} is left out: volume '{}' has {} layers already", depth,
                               volume.volume(), least));
      continue;
    }
    say(context, fmt::format("layers up to {}", depth));
    auto grown = co_await volume.grow(depth);
    if (!grown) co_return grown.error();
    std::vector<Figures> figures;
    auto done =
        co_await measure_all(context, volume, plan, fmt::format("{} layers: ", depth), &figures);
    if (!done) co_return done.error();
    out->push_back({depth, std::move(figures)});
  }
  co_return Result<void>();
}

/// From the making of the clone to its end, whatever happens in between.
Task<Result<Measured>> run_on_clone(Context& context, std::string name, Plan plan) {
  // The clone must go, so nothing may end this process before.
  hold_interrupts(true);
  auto volume = co_await BenchVolume::make(context, std::move(name));
  if (!volume) co_return volume.error();
  Measured out;
  out.volume = volume->volume();
  Result<void> done;
  if (plan.depths.empty()) {
    done = co_await measure_all(context, *volume, plan, std::string(), &out.figures);
  } else {
    done = co_await measure_depths(context, *volume, plan, &out.depths);
  }
  if (!done) out.failed = done.error();
  auto removed = co_await volume->remove();
  hold_interrupts(false);
  // What is left in the store comes first.
  if (!removed) {
    if (out.failed) context.report(*out.failed);
    out.failed = removed.error();
  }
  co_return out;
}

// ---- After

void print_measured(Context& context, const BenchCommand& command, const Measured& measured) {
  const bool depths = !measured.depths.empty();
  if (context.options().json) {
    Json out{{"volume", measured.volume}, {"device", command.device}};
    if (depths) out["depths"] = bench_json(measured.depths);
    if (!depths) out["profiles"] = bench_json(measured.figures);
    print_json(context, std::move(out));
  } else {
    context.print(depths ? bench_table(measured.depths) : bench_table(measured.figures));
  }
}

Task<Result<int>> run_bench(Context& context, BenchCommand command) {
  auto plan = co_await offload([&command] { return make_plan(command); });
  if (!plan) co_return plan.error().with_context("bench");
  auto measured = co_await run_on_clone(context, command.volume, *plan);
  if (!measured) co_return measured.error().with_context("bench");
  if (!measured->figures.empty() || !measured->depths.empty())
    print_measured(context, command, *measured);
  if (measured->failed) co_return measured->failed->with_context("bench");
  if (command.chart.empty()) co_return kExitOk;
  std::string script = measured->depths.empty() ? chart_script(command.chart, measured->figures)
                                                : chart_script(command.chart, measured->depths);
  auto drawn = co_await offload([&script] { return draw_chart(script); });
  if (!drawn) co_return drawn.error().with_context("bench");
  co_return kExitOk;
}

}  // namespace

void add_bench_commands(CLI::App& app, Context& context) {
  auto command = std::make_shared<BenchCommand>();
  CLI::App* bench = app.add_subcommand("bench", "Measure how fast a volume is, by fio profiles")
                        ->group(kStoreGroup);
  bench->add_option("volume", command->volume, "The volume; it stays as it is")
      ->required()
      ->type_name("VOL");
  bench->add_option("profile", command->profiles, "What to run; else a few that tell the most")
      ->type_name("PROFILE");
  bench->add_flag("--all", command->all, "Every profile");
  bench->add_flag("--device", command->device, "Attach it, and measure the block device");
  bench->add_option("--runtime", command->runtime, "How long each profile runs (default 4)")
      ->check(CLI::Range(0.1, 86400.0))
      ->type_name("SECONDS");
  bench->add_option("--chart", command->chart, "Draw a chart, too: a .png or .svg file")
      ->type_name("FILE");
  bench
      ->add_option_function<std::string>(
          "--depths",
          [command](const std::string& text) {
            command->depths = text.empty() ? kDefaultDepths : text;
          },
          std::string("Measure reads through so many layers (default ") + kDefaultDepths + ")")
      ->expected(0, 1)
      ->type_name("[N,N...]");
  bench->footer(
      "Works on a clone, which is removed in the end, and takes as much space as the profiles\n"
      "write. (As any clone it seals what VOL has uncommitted: inspect counts a delta more.)\n"
      "A PROFILE is the name of a file in fio-profiles/ without nbd- and .fio, or the path\n"
      "of a job file of your own, which finds the volume by ${URI} (with --device ${DEVICE}).\n"
      "IOPS are reads, writes and trims. CPU/REQUEST is the server's user and system time, over\n"
      "these and the flushes; where 'serve' has the store, its other clients are in it.\n"
      "--depths writes random blocks and commits them, layer upon layer; 1000 of them take "
      "minutes.\n"
      "Examples:\n"
      "  " SNAPCTL_PROGRAM_NAME
      " bench web\n"
      "  " SNAPCTL_PROGRAM_NAME
      " bench web randread-4k-qd32 database --runtime 10\n"
      "  " SNAPCTL_PROGRAM_NAME
      " bench web --depths --chart depths.svg\n"
      "  " SNAPCTL_PROGRAM_NAME " bench web --all --json > web.json");
  set_action(bench, context, command, run_bench);
}

}  // namespace snap::cli
