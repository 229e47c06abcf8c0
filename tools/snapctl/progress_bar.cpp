// See progress_bar.h.
#include "tools/snapctl/progress_bar.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "tools/snapctl/size_format.h"
#include "tools/snapctl/table.h"

namespace snap::cli {

namespace {

constexpr std::chrono::milliseconds kRedraw{100};
constexpr std::chrono::seconds kPlainEvery{5};
constexpr std::size_t kStageWidth = 28;
constexpr std::size_t kWidestBar = 40;

std::size_t terminal_width() {
  winsize size{};
  if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col == 0) return 80;
  return size.ws_col;
}

std::string bar_of(std::uint64_t done, std::uint64_t total, std::size_t cells) {
  double share = static_cast<double>(std::min(done, total)) / static_cast<double>(total);
  auto filled = static_cast<std::size_t>(share * static_cast<double>(cells));
  std::string bar(filled, '=');
  if (filled < cells) bar += '>';
  bar.resize(cells, ' ');
  return "[" + bar + "]";
}

}  // namespace

std::string progress_line(std::string_view stage, std::uint64_t done, std::uint64_t total,
                          std::chrono::duration<double> elapsed, std::size_t width) {
  std::string head = shorten(printable(stage), kStageWidth);
  std::string numbers;
  double seconds = elapsed.count();
  double rate = seconds > 0 ? static_cast<double>(done) / seconds : 0;
  if (total > 0) {
    double share = static_cast<double>(std::min(done, total)) / static_cast<double>(total);
    numbers = fmt::format("{:3}%  {} / {}", static_cast<int>(share * 100), print_size(done),
                          print_size(total));
  } else {
    numbers = print_size(done);
  }
  if (rate >= 1) numbers += fmt::format("  {}/s", print_size(static_cast<std::uint64_t>(rate)));
  if (total > done && rate >= 1) {
    auto left = static_cast<std::int64_t>(static_cast<double>(total - done) / rate);
    numbers += fmt::format("  {} left", print_elapsed(std::chrono::seconds(left + 1)));
  }
  std::size_t taken = head.size() + numbers.size() + 6;
  if (width > taken + 8 && total > 0) {
    return head + "  " + bar_of(done, total, std::min(kWidestBar, width - taken)) + "  " + numbers;
  }
  return head + "  " + numbers;
}

ProgressBar::ProgressBar(Mode mode) : mode_(mode) {}

ProgressBar::~ProgressBar() {
  end();
}

void ProgressBar::report(std::string_view stage, std::uint64_t done, std::uint64_t total) {
  if (mode_ == Mode::kNone) return;
  auto now = Clock::now();
  if (stage != stage_) {
    stage_ = stage;
    stage_began_ = now;
    last_drawn_ = now;  // nothing is said about a stage that ends within a moment
    return;
  }
  if (mode_ == Mode::kBar) {
    if (now - last_drawn_ < kRedraw) return;
    std::string line = progress_line(stage, done, total, now - stage_began_, terminal_width());
    std::fprintf(stderr, "\r\033[K%s", line.c_str());
    std::fflush(stderr);
    drawn_ = true;
  } else {
    if (now - last_drawn_ < kPlainEvery) return;
    std::fprintf(stderr, "%s\n", progress_line(stage, done, total, now - stage_began_, 0).c_str());
  }
  last_drawn_ = now;
}

void ProgressBar::end() {
  if (drawn_) {
    std::fputs("\r\033[K", stderr);
    std::fflush(stderr);
    drawn_ = false;
  }
}

ProgressBar::Mode progress_mode(std::string_view word, bool quiet, bool terminal) {
  if (word == "plain") return ProgressBar::Mode::kPlain;
  if (word != "auto" || quiet) return ProgressBar::Mode::kNone;
  return terminal ? ProgressBar::Mode::kBar : ProgressBar::Mode::kPlain;
}

}  // namespace snap::cli
