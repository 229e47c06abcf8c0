// See context.h.
#include "tools/snapctl/context.h"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include <unistd.h>

#include "tools/snapctl/exit_code.h"
#include "tools/snapctl/interrupt.h"
#include "tools/snapctl/progress_bar.h"

namespace snap::cli {

namespace {

constexpr std::size_t kShortId = 12;

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? std::string() : std::string(value);
}

std::string& stored_command_line() {
  static std::string line;
  return line;
}

/// Quotes a word for display where a shell would need it.
std::string quoted(std::string_view word) {
  constexpr std::string_view kPlain =
      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_@%+=:,./-";
  if (!word.empty() && word.find_first_not_of(kPlain) == std::string_view::npos)
    return std::string(word);
  std::string out = "'";
  for (char c : word)
    out += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return out + "'";
}

}  // namespace

std::string default_store_path() {
  if (geteuid() == 0) return "/var/lib/snapctl";
  std::string home = environment("HOME");
  return (home.empty() ? std::string("/") : home) + "/.local/share/snapctl";
}

void remember_command_line(int argc, char** argv) {
  std::string line = SNAPCTL_PROGRAM_NAME;
  for (int i = 1; i < argc; ++i)
    line += " " + quoted(argv[i]);
  stored_command_line() = std::move(line);
}

const std::string& command_line() {
  return stored_command_line();
}

Context::Context() = default;

Context::~Context() {
  store_.reset();  // before the loop that it works on
}

int Context::run() {
  if (preparation_) {
    auto ended = preparation_(*this);
    if (ended) return *ended;
  }
  if (!action_) return kExitOk;
  auto loop = make_event_loop();
  if (!loop) return failed(loop.error());
  loop_ = std::move(*loop);
  loop_->set_may_block(true);  // a server says otherwise
  Result<int> outcome = loop_->run(action_(*this));
  end_progress();
  auto flushed = finish_output();
  if (!outcome) return failed(outcome.error());
  if (!flushed) return failed(flushed.error());
  return *outcome;
}

int Context::failed(const Error& error) {
  report(error);
  return std::max(exit_code_of(error.code()), least_failure_);
}

std::string Context::store_path() const {
  if (!options_.store.empty()) return options_.store;
  std::string from_environment = environment("SNAPCTL_STORE");
  return from_environment.empty() ? default_store_path() : from_environment;
}

Task<Result<Store*>> Context::store() {
  return store(Store::OpenOptions{});
}

Task<Result<Store*>> Context::store(Store::OpenOptions options) {
  if (store_ == nullptr) {
    auto opened = co_await Store::open(store_path(), options);
    if (!opened) co_return opened.error();
    store_ = std::move(*opened);
  }
  co_return store_.get();
}

void Context::print(std::string_view text) {
  end_progress();
  std::fwrite(text.data(), 1, text.size(), stdout);
}

void Context::report(const Error& error) {
  end_progress();
  std::string message = error.message();
  if (error.code() == ErrorCode::kCancelled && interrupted())
    message = "cancelled; the store is as it was before";
  std::fprintf(stderr, "%s\n", error_line(message).c_str());
}

int Context::report_all(const std::vector<Error>& errors) {
  for (const Error& error : errors)
    report(error);
  return errors.empty() ? kExitOk : exit_code_of(errors.front().code());
}

void Context::note(std::string_view line) {
  if (options_.quiet) return;
  end_progress();
  std::fprintf(stderr, "%.*s\n", static_cast<int>(line.size()), line.data());
}

Result<void> Context::finish_output() {
  bool failed = std::fflush(stdout) != 0;
  int err = errno;
  if (failed) return Error::from_errno(err, "write to standard output");
  if (std::ferror(stdout) != 0)
    return Error(ErrorCode::kIo, "write to standard output: some of it was lost");
  return {};
}

Progress Context::progress() {
  if (bar_ == nullptr) {
    bar_ = std::make_unique<ProgressBar>(
        progress_mode(options_.progress, options_.quiet, isatty(STDERR_FILENO) == 1));
  }
  Progress progress;
  progress.report = [bar = bar_.get()](std::string_view stage, std::uint64_t done,
                                       std::uint64_t total) { bar->report(stage, done, total); };
  progress.cancelled = [] { return interrupted(); };
  return progress;
}

void Context::end_progress() {
  if (bar_ != nullptr) bar_->end();
}

std::string Context::short_id(const std::string& hex) const {
  return options_.no_trunc ? hex : hex.substr(0, kShortId);
}

}  // namespace snap::cli
