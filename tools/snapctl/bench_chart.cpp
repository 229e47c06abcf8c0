// See bench_chart.h.
#include "tools/snapctl/bench_chart.h"

#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <filesystem>

#include "engine/io/unique_fd.h"
#include "engine/store/names.h"
#include "engine/store/program.h"
#include "tools/snapctl/child_process.h"

namespace snap::cli {

namespace {

/// In single quotes of gnuplot, where only these mean anything.
std::string quoted(const std::string& text) {
  std::string out = "'";
  for (const char c : text)
    out += c == '\'' ? "''" : std::string(1, c);
  return out + "'";
}

/// In double quotes of a table of data.
std::string cell(std::string text) {
  std::replace_if(
      text.begin(), text.end(), [](char c) { return c == '"' || c == '\\' || c == '\n'; }, '_');
  return "\"" + text + "\"";
}

Result<std::string> find_gnuplot() {
  const auto found = find_program("gnuplot");
  if (found) return *found;
  return Error(ErrorCode::kNotFound,
               "gnuplot is not installed, which draws charts; it is in the package gnuplot-nox");
}

std::string head(const std::string& file) {
  const std::string terminal = file.ends_with(".svg") ? "svg" : "pngcairo";
  return fmt::format(
      "set terminal {} noenhanced size 1200,800 font 'sans,11' background 'white'\n"
      "set output {}\n"
      "set grid ytics\n",
      terminal, quoted(file));
}

}  // namespace

Result<void> check_chart(const std::string& file) {
  if (!file.ends_with(".png") && !file.ends_with(".svg"))
    return Error(ErrorCode::kInvalidArgument,
                 "a chart is a .png or .svg file; " + shown(file) + " is neither");
  const std::filesystem::path folder = std::filesystem::path(file).parent_path();
  if (::access(folder.empty() ? "." : folder.c_str(), W_OK | X_OK) != 0)
    return Error::from_errno(errno, "make the chart " + file);
  auto program = find_gnuplot();
  if (!program) return program.error();
  return {};
}

std::string chart_script(const std::string& file, const std::vector<Figures>& all) {
  std::string out = head(file);
  out += "$data << END\n";
  for (const Figures& figures : all)
    out += fmt::format("{} {:.1f} {:.1f}\n", cell(figures.profile.name), figures.iops(),
                       figures.fio.data().latency.quantile_us(0.99));
  out +=
      "END\n"
      "set style fill solid 0.7\n"
      "set boxwidth 0.7\n"
      "set xtics rotate by -35\n"
      "set logscale y\n"
      "set rmargin 8\n"
      "set multiplot layout 2,1\n"
      "set yrange [1:*]\n"
      "set ylabel 'IOPS'\n"
      "plot $data using 0:2:xtic(1) with boxes notitle\n"
      "set ylabel 'p99 (us)'\n"
      "plot $data using 0:3:xtic(1) with boxes linecolor 2 notitle\n"
      "unset multiplot\n";
  return out;
}

std::string chart_script(const std::string& file, const std::vector<DepthFigures>& all) {
  std::string out = head(file);
  std::vector<std::string> lines;
  std::vector<std::size_t> depths;
  for (const DepthFigures& one : all)
    depths.push_back(one.depth);
  const std::size_t profiles = all.empty() ? 0 : all.front().figures.size();
  for (std::size_t p = 0; p < profiles; ++p) {
    const std::string name = all.front().figures[p].profile.name;
    out += fmt::format("$data{} << END\n", p);
    for (const DepthFigures& one : all) {
      const FioLatency latency = one.figures[p].fio.data().latency;
      out += fmt::format("{} {:.1f} {:.1f}\n", one.depth, latency.quantile_us(0.5),
                         latency.quantile_us(0.99));
    }
    out += "END\n";
    for (const auto& [column, share] : {std::pair{2, "p50"}, std::pair{3, "p99"}})
      lines.push_back(fmt::format("$data{} using 1:{} with linespoints title {}", p, column,
                                  quoted(name + " " + share)));
  }
  out += fmt::format(
      "set logscale xy\n"
      "set yrange [1:*]\n"
      "set xtics ({})\n"
      "set xlabel 'layers'\n"
      "set ylabel 'latency (us)'\n"
      "set key outside bottom center horizontal\n"
      "plot {}\n",
      fmt::join(depths, ", "), fmt::join(lines, ", "));
  return out;
}

Result<void> draw_chart(std::string script) {
  auto program = find_gnuplot();
  if (!program) return program.error();
  UniqueFd input(::memfd_create("script", MFD_CLOEXEC));
  UniqueFd errors(::memfd_create("errors", MFD_CLOEXEC));
  if (!input || !errors) return Error::from_errno(errno, "keep a script for gnuplot");
  const ssize_t written = ::pwrite(input.get(), script.data(), script.size(), 0);
  if (written != static_cast<ssize_t>(script.size()))
    return Error::from_errno(errno, "keep a script for gnuplot");
  ChildProcess::Options options;
  options.input = input.get();
  options.output = errors.get();
  options.errors = errors.get();
  options.own_group = true;
  auto gnuplot = ChildProcess::start({*program, "/dev/stdin"}, std::move(options));
  if (!gnuplot) return gnuplot.error();
  auto code = gnuplot->wait_unless_interrupted();
  if (!code) return code.error();
  if (*code == 0) return {};
  std::array<char, 4096> said{};
  const ssize_t n = ::pread(errors.get(), said.data(), said.size(), 0);
  const std::string why(said.data(), static_cast<std::size_t>(std::max(n, ssize_t{0})));
  return Error(ErrorCode::kIo, fmt::format("gnuplot ended with {}: {}", *code, why));
}

}  // namespace snap::cli
