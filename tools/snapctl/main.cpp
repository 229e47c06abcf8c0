// snapctl: the command line. Parses, runs one command, maps its error to an exit code.
//
// CLI11 does the parsing; what it does otherwise than docker, or than cli conventions ask, is put
// right here: `-a=x` means x, usage errors exit with 64 on one line, an unknown command suggests
// the nearest.
#include <CLI/CLI.hpp>

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <string>
#include <string_view>
#include <vector>

#include "engine/store/names.h"
#include "tools/snapctl/commands.h"
#include "tools/snapctl/context.h"
#include "tools/snapctl/exit_code.h"
#include "tools/snapctl/interrupt.h"
#include "tools/snapctl/short_options.h"

namespace snap::cli {

void set_action(CLI::App* command, Context& context, Context::Action action) {
  command->callback([&context, action = std::move(action)] { context.set_action(action); });
}

namespace {

constexpr const char* kDescription =
    "Copy-on-write snapshots of block devices, with docker's image model: an image is a stack of\n"
    "layers, a volume is an image plus a thin writable layer, served over NBD.";
constexpr const char* kFooter =
    "A day with it:\n"
    "  " SNAPCTL_PROGRAM_NAME
    " import disk.raw base:1\n"
    "  " SNAPCTL_PROGRAM_NAME
    " create web --from base:1\n"
    "  " SNAPCTL_PROGRAM_NAME
    " export web\n"
    "  " SNAPCTL_PROGRAM_NAME
    " commit -a me -m \"add nginx\" web base:2\n"
    "\n"
    "'" SNAPCTL_PROGRAM_NAME " help COMMAND' tells about one command.";

void add_global_options(CLI::App& app, GlobalOptions& options) {
  const char* group = "Options of every command";
  app.add_option("--store", options.store,
                 "Where the store is (else SNAPCTL_STORE, else /var/lib/snapctl for root, "
                 "~/.local/share/snapctl for others)")
      ->type_name("DIR")
      ->group(group);
  app.add_flag("--json", options.json, "Print JSON: bytes as integers, times as RFC 3339")
      ->group(group);
  app.add_flag("-q,--quiet", options.quiet, "Print names or ids alone, and no progress")
      ->group(group);
  app.add_flag("--no-trunc", options.no_trunc, "Print ids whole")->group(group);
  app.add_flag("-y,--yes", options.yes, "Do not ask before what cannot be undone")->group(group);
  app.add_option("--progress", options.progress, "How to show progress: auto, plain or none")
      ->check(CLI::IsMember({"auto", "plain", "none"}))
      ->type_name("HOW")
      ->group(group);
}

void add_help_command(CLI::App& app, std::string& topic) {
  CLI::App* help = app.add_subcommand("help", "Tell about a command")->group(kStoreGroup);
  help->add_option("command", topic, "The command")->type_name("COMMAND");
}

std::vector<std::string> command_names(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::App* command : app.get_subcommands({}))
    names.push_back(command->get_name());
  return names;
}

int usage_error(std::string message) {
  std::fprintf(stderr, "%s\n", error_line(message).c_str());
  return kExitUsage;
}

int unknown_command(const CLI::App& app, const std::string& word) {
  return usage_error("no command " + shown(word) + did_you_mean(word, command_names(app)) +
                     "; '" SNAPCTL_PROGRAM_NAME " help' lists them");
}

/// The first word that is no option and no value of one: the command, or what was meant to be one.
std::string first_word(const std::vector<std::string>& words) {
  for (std::size_t i = 0; i < words.size(); ++i) {
    if (words[i] == "--store" || words[i] == "--progress") {
      ++i;
    } else if (!words[i].starts_with("-")) {
      return words[i];
    }
  }
  return {};
}

int print_help(const CLI::App& app) {
  // Not app.help(): that of the program would print that of the command that was parsed.
  const std::string text =
      app.get_formatter()->make_help(&app, app.get_name(), CLI::AppFormatMode::Normal);
  std::fputs(text.c_str(), stdout);
  return std::fflush(stdout) == 0 ? kExitOk : kExitFailure;
}

int show_help(const CLI::App& app, const std::string& topic) {
  if (topic.empty()) return print_help(app);
  for (const CLI::App* command : app.get_subcommands({})) {
    if (command->get_name() == topic) return print_help(*command);
  }
  return unknown_command(app, topic);
}

int parse_failed(const CLI::App& app, const CLI::ParseError& error) {
  auto used = app.get_subcommands();
  if (error.get_exit_code() == static_cast<int>(CLI::ExitCodes::Success))
    return print_help(used.empty() ? app : *used.front());
  std::string message = error.what();
  if (!used.empty()) {
    std::string name = used.front()->get_name();
    message = name + ": " + message + "; see '" SNAPCTL_PROGRAM_NAME " help " + name + "'";
  }
  return usage_error(message);
}

/// A standard descriptor that is closed would be the number of what is opened next, and that be
/// read or written for it. Opened the wrong way round, so that its use fails as if it were closed.
bool fill_standard_descriptors() {
  for (const int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    if (fcntl(fd, F_GETFD) >= 0) continue;
    // It becomes fd, the lowest that is free. Programs that are run inherit it.
    if (open("/dev/null", fd == STDIN_FILENO ? O_WRONLY : O_RDONLY) != fd) return false;
  }
  return true;
}

/// Puts right what whoever started this process may have left it; before anything is opened.
bool put_start_right() {
  // Ignored, the exit codes of programs that are run would be lost.
  signal(SIGCHLD, SIG_DFL);
  return fill_standard_descriptors();
}

int run_program(int argc, char** argv) {
  remember_command_line(argc, argv);
  Context context;
  CLI::App app{kDescription, SNAPCTL_PROGRAM_NAME};
  app.footer(kFooter);
  app.set_help_flag("-h,--help", "Print this help");
  app.require_subcommand(0, 1);
  add_global_options(app, context.options());
  add_import_commands(app, context);
  add_image_commands(app, context);
  add_commit_commands(app, context);
  add_inspect_commands(app, context);
  add_content_commands(app, context);
  add_dump_commands(app, context);
  add_archive_commands(app, context);
  add_volume_commands(app, context);
  add_snapshot_commands(app, context);
  add_export_commands(app, context);
  add_serve_commands(app, context);
  add_attach_commands(app, context);
  add_mount_commands(app, context);
  add_run_commands(app, context);
  add_doctor_commands(app, context);
  add_stat_commands(app, context);
  add_store_commands(app, context);
  add_set_commands(app, context);
  add_event_commands(app, context);
  add_check_commands(app, context);
  add_backup_commands(app, context);
  add_bench_commands(app, context);
  std::string topic;
  add_help_command(app, topic);
  for (CLI::App* command : app.get_subcommands({})) {
    add_global_options(*command, context.options());
    plain_values(*command);
  }

  std::vector<std::string> words(argv + 1, argv + argc);
  std::string first = first_word(words);
  auto names = command_names(app);
  if (!first.empty() && std::find(names.begin(), names.end(), first) == names.end())
    return unknown_command(app, first);
  if (first == "run") {
    // Whatever it is, it is not ours to understand.
    const auto end = std::find(words.begin(), words.end(), "--");
    if (end != words.end()) context.program().assign(end + 1, words.end());
    words.erase(end, words.end());
  }
  mark_values(words);
  std::vector<std::string> reversed(words.rbegin(), words.rend());  // as CLI11 wants them
  try {
    app.parse(reversed);
  } catch (const CLI::ParseError& error) {
    return parse_failed(app, error);
  }
  if (app.got_subcommand("help")) return show_help(app, topic);
  if (!context.has_action()) return print_help(app);
  catch_interrupts();
  return context.run();
}

}  // namespace
}  // namespace snap::cli

int main(int argc, char** argv) {
  if (!snap::cli::put_start_right()) return snap::cli::kExitFailure;  // nowhere to say why
  return snap::cli::run_program(argc, argv);
}
