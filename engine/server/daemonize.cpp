#include "engine/server/daemonize.h"

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <string_view>

namespace snap::server {

namespace {

// A report is a letter and a text; an error's text begins with its code and errno.
constexpr char kReady = 'R';
constexpr char kFailed = 'E';
constexpr std::size_t kMaxReport = 64u << 10;

std::string how_it_ended(int status) {
  if (WIFSIGNALED(status)) return "was killed by signal " + std::to_string(WTERMSIG(status));
  return "ended with status " + std::to_string(WEXITSTATUS(status));
}

Error parse_error(std::string_view text) {
  const std::size_t first = text.find(' ');
  const std::size_t second = text.find(' ', first + 1);
  if (second == std::string_view::npos) return Error(ErrorCode::kIo, std::string(text));
  const int code = std::atoi(std::string(text.substr(0, first)).c_str());
  const int sys = std::atoi(std::string(text.substr(first + 1, second - first)).c_str());
  return Error(static_cast<ErrorCode>(code), std::string(text.substr(second + 1)), sys);
}

Result<std::string> wait_for_report(pid_t child, int pipe, const std::string& log_path) {
  std::string report;
  char piece[1024];
  while (report.size() < kMaxReport) {
    const ssize_t n = ::read(pipe, piece, sizeof piece);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) break;
    report.append(piece, static_cast<std::size_t>(n));
  }
  if (report.starts_with(kReady)) return report.substr(1);
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  if (report.starts_with(kFailed)) return parse_error(std::string_view(report).substr(1));
  return Error(ErrorCode::kIo, "the background process " + how_it_ended(status) +
                                   " before it was ready; see " + log_path);
}

Result<void> become_background(int log) {
  if (::setsid() < 0) return Error::from_errno(errno, "start a session");
  const UniqueFd null(::open("/dev/null", O_RDWR | O_CLOEXEC));
  if (!null) return Error::from_errno(errno, "open /dev/null");
  if (::dup2(null.get(), 0) < 0 || ::dup2(log, 1) < 0 || ::dup2(log, 2) < 0)
    return Error::from_errno(errno, "redirect the standard descriptors");
  return {};
}

}  // namespace

void Readiness::send(char kind, const std::string& text) {
  const std::string report = kind + text;
  // The parent may be gone (Ctrl-C): then no one asks any more. SIGPIPE must not end us.
  struct sigaction ignore {};
  struct sigaction before {};
  ignore.sa_handler = SIG_IGN;
  ::sigaction(SIGPIPE, &ignore, &before);
  std::string_view left = report;
  while (!left.empty()) {
    const ssize_t n = ::write(pipe_.get(), left.data(), left.size());
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) break;
    left.remove_prefix(static_cast<std::size_t>(n));
  }
  ::sigaction(SIGPIPE, &before, nullptr);
  pipe_.reset();
}

void Readiness::ready(const std::string& text) {
  send(kReady, text);
}

void Readiness::failed(const Error& error) {
  send(kFailed, std::to_string(static_cast<int>(error.code())) + " " +
                    std::to_string(error.sys_errno()) + " " + error.message());
}

Result<std::variant<Readiness, std::string>> detach(const std::string& log_path) {
  using Outcome = std::variant<Readiness, std::string>;
  UniqueFd log(::open(log_path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600));
  if (!log) return Error::from_errno(errno, "open log file " + log_path);
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return Error::from_errno(errno, "make a pipe");
  UniqueFd read_end(ends[0]);
  UniqueFd write_end(ends[1]);
  const pid_t child = ::fork();
  if (child < 0) return Error::from_errno(errno, "start a background process");
  if (child != 0) {
    write_end.reset();
    auto report = wait_for_report(child, read_end.get(), log_path);
    if (!report) return report.error();
    return Outcome(std::move(*report));
  }
  read_end.reset();
  auto done = become_background(log.get());
  log.reset();
  // Whoever started us may wait for the end of a pipe that we would hold open.
  const auto kept = static_cast<unsigned>(write_end.get());
  if (kept > 3) (void)::close_range(3, kept - 1, 0);
  (void)::close_range(kept + 1, ~0U, 0);
  Readiness readiness(std::move(write_end));
  if (!done) {
    readiness.failed(done.error());
    ::_exit(1);
  }
  return Outcome(std::move(readiness));
}

}  // namespace snap::server
