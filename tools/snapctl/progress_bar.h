// How long work comes along, on standard error: a bar with rate and time left on a terminal, a
// plain line now and then otherwise, and nothing for work that is done within a moment.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>

namespace snap::cli {

/// "import  [=====>    ]  52%  1.04GiB / 2GiB  512MiB/s  2 s left"; without a total the bar and the
/// time left are missing. `width` is that of the terminal, 0 for a plain line without a bar.
std::string progress_line(std::string_view stage, std::uint64_t done, std::uint64_t total,
                          std::chrono::duration<double> elapsed, std::size_t width);

class ProgressBar {
 public:
  enum class Mode { kBar, kPlain, kNone };
  explicit ProgressBar(Mode mode);
  ~ProgressBar();

  void report(std::string_view stage, std::uint64_t done, std::uint64_t total);
  /// Wipes the bar.
  void end();

 private:
  using Clock = std::chrono::steady_clock;
  Mode mode_;
  std::string stage_;
  Clock::time_point stage_began_{};
  Clock::time_point last_drawn_{};
  bool drawn_ = false;
};

/// What --progress auto|plain|none means here. kNone for any other word.
ProgressBar::Mode progress_mode(std::string_view word, bool quiet, bool terminal);

}  // namespace snap::cli
