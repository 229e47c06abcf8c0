#include "engine/server/log.h"

#include <fcntl.h>
#include <spdlog/sinks/basic_file_sink.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <cerrno>
#include <memory>

#include "engine/io/unique_fd.h"

namespace snap::server {

namespace {

constexpr const char* kPattern = "%Y-%m-%dT%H:%M:%S.%e%z %l %v";

/// The logger in use: one for the process, as its standard error is.
std::shared_ptr<spdlog::logger>& logger() {
  static std::shared_ptr<spdlog::logger> instance = [] {
    auto made = std::make_shared<spdlog::logger>("snapctl",
                                                 std::make_shared<spdlog::sinks::stderr_sink_mt>());
    made->set_pattern(kPattern);
    return made;
  }();
  return instance;
}

}  // namespace

Result<void> log_to_file(const std::string& path) {
  // Made here for its mode; spdlog would go by the umask alone.
  UniqueFd fd(::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600));
  if (!fd) return Error::from_errno(errno, "open log file " + path);
  try {
    auto made = std::make_shared<spdlog::logger>(
        "snapctl", std::make_shared<spdlog::sinks::basic_file_sink_mt>(path));
    made->set_pattern(kPattern);
    made->flush_on(spdlog::level::info);
    logger() = std::move(made);
  } catch (const spdlog::spdlog_ex& e) {
    return Error(ErrorCode::kIo, "open log file " + path + ": " + e.what());
  }
  return {};
}

void log_info(std::string_view line) {
  logger()->log(spdlog::level::info, line);
}
void log_warning(std::string_view line) {
  logger()->log(spdlog::level::warn, line);
}
void log_error(std::string_view line) {
  logger()->log(spdlog::level::err, line);
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
