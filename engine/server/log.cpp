#include "engine/server/log.h"

#include <fcntl.h>
#include <spdlog/sinks/base_sink.h>
#include <spdlog/spdlog.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <memory>
#include <utility>

#include "engine/io/unique_fd.h"

namespace snap::server {

namespace {

constexpr const char* kPattern = "%Y-%m-%dT%H:%M:%S.%e%z %l %v";

/// Made here for its mode; spdlog's own would go by the umask alone.
Result<UniqueFd> open_log(const std::string& path) {
  UniqueFd fd(::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600));
  if (!fd) return Error::from_errno(errno, "open log file " + path);
  return fd;
}

bool same_file(int a, int b) {
  struct stat first {};
  struct stat second {};
  return ::fstat(a, &first) == 0 && ::fstat(b, &second) == 0 && first.st_dev == second.st_dev &&
         first.st_ino == second.st_ino;
}

/// Each line is one write, so that those of several processes do not mix. Lines may come while the
/// file is opened anew.
class LogSink final : public spdlog::sinks::base_sink<std::mutex> {
 public:
  void use(UniqueFd fd, std::string path) {
    std::lock_guard guard(mutex_);
    file_ = std::move(fd);
    path_ = std::move(path);
  }
  Result<void> reopen() {
    std::lock_guard guard(mutex_);
    if (!file_) return {};
    auto fresh = open_log(path_);
    if (!fresh) return fresh.error();
    for (const int standard : {STDOUT_FILENO, STDERR_FILENO}) {
      if (same_file(standard, file_.get()) && ::dup2(fresh->get(), standard) < 0)
        return Error::from_errno(errno, "redirect the standard outputs to " + path_);
    }
    file_ = std::move(*fresh);
    return {};
  }

 protected:
  void sink_it_(const spdlog::details::log_msg& message) override {
    spdlog::memory_buf_t line;
    formatter_->format(message, line);
    std::string_view left(line.data(), line.size());
    while (!left.empty()) {
      const ssize_t n = ::write(file_ ? file_.get() : STDERR_FILENO, left.data(), left.size());
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) return;  // a log that cannot be written is no reason to stop serving
      left.remove_prefix(static_cast<std::size_t>(n));
    }
  }
  void flush_() override {}

 private:
  UniqueFd file_;  ///< none: standard error
  std::string path_;
};

/// The one of the process, as its standard error is.
const std::shared_ptr<LogSink>& sink() {
  static const auto instance = std::make_shared<LogSink>();
  return instance;
}

void log_line(spdlog::level::level_enum level, std::string_view text) {
  static const std::shared_ptr<spdlog::logger> logger = [] {
    auto made = std::make_shared<spdlog::logger>("snapctl", sink());
    made->set_pattern(kPattern);
    return made;
  }();
  constexpr char kHex[] = "0123456789abcdef";
  std::string clean;
  clean.reserve(text.size());
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x20 && byte != 0x7f) {
      clean += c;
    } else {
      clean += {'\\', 'x', kHex[byte >> 4], kHex[byte & 15]};
    }
  }
  logger->log(level, std::string_view(clean));
}

}  // namespace

Result<void> log_to_file(const std::string& path) {
  auto fd = open_log(path);
  if (!fd) return fd.error();
  sink()->use(std::move(*fd), path);
  return {};
}

Result<void> reopen_log() {
  return sink()->reopen();
}

void log_info(std::string_view line) {
  log_line(spdlog::level::info, line);
}
void log_warning(std::string_view line) {
  log_line(spdlog::level::warn, line);
}
void log_error(std::string_view line) {
  log_line(spdlog::level::err, line);
}

void log_limited(RateLimit& limit, std::string line) {
  const auto decision = limit.ask(std::chrono::steady_clock::now());
  if (!decision.pass) return;
  if (decision.suppressed != 0)
    line += " (" + std::to_string(decision.suppressed) + " lines like this were left out)";
  log_warning(line);
}

RateLimit::Decision RateLimit::ask(std::chrono::steady_clock::time_point now) {
  std::lock_guard guard(lock_);
  const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(now - since_).count();
  if (seconds > 0) {
    const std::size_t earned = static_cast<std::size_t>(seconds) * per_second_;
    used_ -= std::min(used_, earned);
    since_ = now;
  }
  if (used_ >= burst_) {
    ++suppressed_;
    return {};
  }
  ++used_;
  return {true, std::exchange(suppressed_, 0)};
}

}  // namespace snap::server
