// The server's log: one line an event, to standard error or to a file. Thread-safe. Control
// characters, which may come from clients and file names, are escaped: an event is one line.
#pragma once

#include <chrono>
#include <cstddef>
#include <mutex>
#include <string>
#include <string_view>

#include "snap/result.h"

namespace snap::server {

/// Appends to the file at `path` (made with mode 0600) from now on, instead of standard error.
Result<void> log_to_file(const std::string& path);
/// Opens the file anew by its path, after someone has renamed it; the standard outputs too, where
/// they are that file. Nothing if the log goes elsewhere. On failure the old one goes on.
Result<void> reopen_log();

void log_info(std::string_view line);
void log_warning(std::string_view line);
void log_error(std::string_view line);

/// Lets through a burst of lines and then a few a second, so that a hostile client cannot fill the
/// disk with its complaints. Thread-safe.
class RateLimit {
 public:
  RateLimit(std::size_t burst, std::size_t per_second) : burst_(burst), per_second_(per_second) {}

  struct Decision {
    bool pass = false;
    std::size_t suppressed = 0;  ///< lines that were held back before this one
  };
  Decision ask(std::chrono::steady_clock::time_point now);

 private:
  const std::size_t burst_;
  const std::size_t per_second_;
  std::mutex lock_;
  std::size_t used_ = 0;
  std::size_t suppressed_ = 0;
  std::chrono::steady_clock::time_point since_{};
};

/// A warning, if `limit` lets it through. The next one that it does says how many it did not.
void log_limited(RateLimit& limit, std::string line);

}  // namespace snap::server
