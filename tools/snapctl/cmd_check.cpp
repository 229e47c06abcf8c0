// Commands check and scrub: is the store what was written?
#include <fmt/format.h>
#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "snap/check.h"
#include "tools/snapctl/commands.h"
#include "tools/snapctl/context.h"
#include "tools/snapctl/exit_code.h"
#include "tools/snapctl/json_output.h"
#include "tools/snapctl/size_format.h"
#include "tools/snapctl/table.h"

namespace snap::cli {

namespace {

struct CheckCommand {
  bool repair = false;
  std::string rate;
};

const char* word_of(Finding::Kind kind) {
  switch (kind) {
    case Finding::Kind::kDamage:
      return "damage";
    case Finding::Kind::kLeak:
      return "leak";
    case Finding::Kind::kUnchecked:
      return "unchecked";
  }
  return "damage";
}

Json report_json(const CheckReport& report) {
  Json findings = Json::array();
  for (const Finding& finding : report.findings) {
    Json lost = Json::array();
    for (const Finding::Lost& range : finding.lost) {
      Json length;  // null: not known
      if (range.length) length = *range.length;
      lost.push_back({{"object", range.object}, {"offset", range.offset}, {"length", length}});
    }
    Json one{{"kind", word_of(finding.kind)},
             {"object", finding.object},
             {"what", finding.what},
             {"users", finding.users},
             {"lost", lost},
             {"bytes", finding.bytes}};
    one["reclaimed"] = finding.reclaimed;
    findings.push_back(std::move(one));
  }
  return Json{{"findings", findings},
              {"damage", report.count(Finding::Kind::kDamage)},
              {"leaks", report.leaks_left()},
              {"unchecked", report.count(Finding::Kind::kUnchecked)},
              {"leaks_known", report.leaks_known},
              {"images", report.images},
              {"volumes", report.volumes},
              {"layers", report.layers},
              {"deltas", report.deltas},
              {"bytes_read", report.bytes_read}};
}

void print_finding(Context& context, const Finding& finding) {
  std::string line = fmt::format("{}: {}", finding.reclaimed ? "reclaimed" : word_of(finding.kind),
                                 printable(finding.object));
  if (context.options().quiet) {
    context.print(line + "\n");
    return;
  }
  line += ": " + printable(finding.what);
  if (finding.bytes != 0) line += fmt::format(" ({})", print_size(finding.bytes));
  context.print(line + "\n");
  if (!finding.users.empty()) {
    std::vector<std::string> users;
    for (const std::string& user : finding.users)
      users.push_back(printable(user));
    context.print(fmt::format("  used by {}\n", fmt::join(users, ", ")));
  }
  for (const Finding::Lost& range : finding.lost) {
    context.print(fmt::format("  lost: {}, offset {}, length {}\n", printable(range.object),
                              range.offset,
                              range.length ? std::to_string(*range.length) : "unknown"));
  }
}

std::string count(std::size_t n, const char* one, const char* many) {
  return fmt::format("{} {}", n, n == 1 ? one : many);
}

/// `no_leaks`: what to say where leaks were not looked for.
void print_report(Context& context, const CheckReport& report, const char* no_leaks) {
  if (context.options().json) {
    print_json(context, report_json(report));
    return;
  }
  for (const Finding& finding : report.findings)
    print_finding(context, finding);
  if (context.options().quiet) return;
  std::string line =
      fmt::format("{}, {}, {}, {} checked", count(report.images, "image", "images"),
                  count(report.volumes, "volume", "volumes"),
                  count(report.layers, "layer", "layers"), count(report.deltas, "delta", "deltas"));
  if (report.bytes_read != 0) line += fmt::format(", {} read", print_size(report.bytes_read));
  if (report.findings.empty()) line += ": all is well";
  context.print(line + "\n");
  if (!report.leaks_known) context.print(std::string(no_leaks) + "\n");
}

/// What the exit code says, in a line.
Task<Result<int>> conclude(Context& context, std::string name, const CheckReport& report,
                           const char* no_leaks) {
  print_report(context, report, no_leaks);
  const std::size_t damage = report.count(Finding::Kind::kDamage);
  const std::size_t unchecked = report.count(Finding::Kind::kUnchecked);
  const std::size_t leaks = report.leaks_left();
  if (damage != 0) {
    context.report(Error(ErrorCode::kCorrupt,
                         fmt::format("{}: {}; restore what is named from a copy, or remove what "
                                     "uses it",
                                     name, count(damage, "damaged object", "damaged objects"))));
    co_return kExitDamage;
  }
  if (unchecked != 0) {
    context.report(Error(
        ErrorCode::kUnsupported,
        fmt::format("{}: {} could not be checked", name, count(unchecked, "object", "objects"))));
    co_return kExitFailure;
  }
  if (leaks != 0) {
    context.report(Error(
        ErrorCode::kInvalidArgument,
        fmt::format("{}: {}, harmless; '" SNAPCTL_PROGRAM_NAME " check --repair' reclaims them",
                    name, count(leaks, "leak", "leaks"))));
    co_return kExitLeaks;
  }
  co_return kExitOk;
}

Task<Result<int>> run(Context& context, std::string name, CheckOptions options) {
  Store::OpenOptions open;
  open.create = false;
  open.sweep = false;
  auto store = co_await context.store(open);
  if (!store) co_return store.error();
  auto report = co_await check_store(**store, options, context.progress());
  context.end_progress();
  if (!report) co_return report.error();
  const char* no_leaks =
      options.leaks ? "leaks were not looked for: not all that may name something can be read"
                    : "leaks were not looked for: 'check' does that";
  co_return co_await conclude(context, name, *report, no_leaks);
}

Task<Result<int>> run_check(Context& context, CheckCommand command) {
  CheckOptions options;
  options.repair = command.repair;
  co_return co_await run(context, "check", options);
}

Task<Result<int>> run_scrub(Context& context, CheckCommand command) {
  CheckOptions options;
  options.data = true;
  options.leaks = false;
  if (!command.rate.empty()) {
    auto rate = parse_size(command.rate);
    if (!rate) co_return rate.error().with_context("--rate");
    options.rate = *rate;
  }
  co_return co_await run(context, "scrub", options);
}

}  // namespace

void add_check_commands(CLI::App& app, Context& context) {
  auto check_command = std::make_shared<CheckCommand>();
  CLI::App* check = app.add_subcommand("check", "Check that the store is whole, also while in use")
                        ->group(kStoreGroup);
  check->add_flag("--repair", check_command->repair,
                  "Reclaim leaks; damage is named and left as it is");
  check->footer(
      "Checks the records, the images, the tables of layers, and the maps and journals of deltas;\n"
      "'scrub' reads all stored bytes. Of a volume that is being served only the map is looked "
      "at.\n"
      "Exit code 0: all is well, 2: damage, 3: leaks and nothing else, 1: something could not be\n"
      "checked.");
  set_action(check, context, check_command, run_check);

  auto scrub_command = std::make_shared<CheckCommand>();
  CLI::App* scrub = app.add_subcommand("scrub", "Read all stored bytes and verify their checksums")
                        ->group(kStoreGroup);
  scrub->add_option("--rate", scrub_command->rate, "Read at most so much a second")
      ->type_name("SIZE");
  scrub->footer(
      "Layers, configs and manifests are compared with their digests, read from the disk and not\n"
      "from the page cache. The data of deltas has no checksums: it is read, to find what the "
      "disk\n"
      "cannot read any more. Exit codes as of 'check'.\n"
      "Example:\n"
      "  " SNAPCTL_PROGRAM_NAME " scrub --rate 50M");
  set_action(scrub, context, scrub_command, run_scrub);
}

}  // namespace snap::cli
