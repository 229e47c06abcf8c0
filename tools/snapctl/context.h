// Context: what every command gets: the global options, the event loop, the store (opened at first
// use), standard output, progress, and whether the user pressed Ctrl-C.
//
// A command parses its options with CLI11 and leaves an Action; main runs it on the loop. Standard
// output carries data and standard error the rest.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "snap/event_loop.h"
#include "snap/result.h"
#include "snap/store.h"
#include "snap/task.h"

namespace snap::cli {

class ProgressBar;

struct GlobalOptions {
  std::string store;  ///< path; empty: SNAPCTL_STORE, then default_store_path()
  bool json = false;
  bool quiet = false;
  bool no_trunc = false;
  bool yes = false;               ///< do not ask before what cannot be undone
  std::string progress = "auto";  ///< auto, plain or none
};

class Context {
 public:
  /// Does the work of a command; gives the exit code.
  using Action = std::function<Task<Result<int>>(Context&)>;

  Context();
  ~Context();
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;

  GlobalOptions& options() noexcept { return options_; }
  const GlobalOptions& options() const noexcept { return options_; }

  void set_action(Action action) { action_ = std::move(action); }
  bool has_action() const noexcept { return action_ != nullptr; }
  /// Has failures end with this exit code at least: for a command that means something by others.
  void set_least_failure(int code) noexcept { least_failure_ = code; }
  /// What comes before the event loop and the first thread; an exit code ends the program there.
  using Preparation = std::function<std::optional<int>(Context&)>;
  void set_preparation(Preparation preparation) { preparation_ = std::move(preparation); }
  /// Runs preparation and action; prints the error; gives the exit code.
  int run();

  /// A program to run and its arguments: the words behind `--` of a command that takes one.
  std::vector<std::string>& program() noexcept { return program_; }

  /// Where the store is, by flag, environment, or default.
  std::string store_path() const;
  /// The store; made if it is not there. The pointer lives as long as this Context.
  Task<Result<Store*>> store();
  Task<Result<Store*>> store(Store::OpenOptions options);

  /// Writes to standard output, once the progress line has ended. Failures show in finish_output().
  void print(std::string_view text);
  /// Prints an error as the program does; for commands that go on after one.
  void report(const Error& error);
  /// Reports each, for commands that show what is left; gives the exit code.
  int report_all(const std::vector<Error>& errors);
  /// Writes one line to standard error, unless --quiet.
  void note(std::string_view line);
  /// Flushes standard output. Io if anything written was lost.
  Result<void> finish_output();

  /// A progress that draws on standard error as --progress says and is cancelled by Ctrl-C.
  Progress progress();
  /// Ends the progress line, so that other output starts on its own.
  void end_progress();

  /// "0123456789ab" of an id, or all of it with --no-trunc.
  std::string short_id(const std::string& hex) const;

 private:
  int failed(const Error& error);

  GlobalOptions options_;
  std::vector<std::string> program_;
  int least_failure_ = 0;
  Action action_;
  Preparation preparation_;
  std::unique_ptr<EventLoop> loop_;
  std::unique_ptr<Store> store_;
  std::unique_ptr<ProgressBar> bar_;
};

/// /var/lib/snapctl for root, else ~/.local/share/snapctl.
std::string default_store_path();

/// This command line as a person would type it, for history entries ("created by").
void remember_command_line(int argc, char** argv);
const std::string& command_line();

}  // namespace snap::cli
