// See fio.h.
#include "tools/snapctl/fio.h"

#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <cerrno>
#include <charconv>

#include "engine/base/json_value.h"
#include "engine/io/unique_fd.h"
#include "engine/store/program.h"
#include "tools/snapctl/child_process.h"

namespace snap::cli {

namespace {

using nlohmann::json;

constexpr std::uint64_t kMostOutput = 256u << 20;  // of four jobs it is a megabyte

/// An object by its name; an empty one if it is not there.
json object_at(const json& in, const char* name) {
  const auto found = in.is_object() ? in.find(name) : in.end();
  return found != in.end() && found->is_object() ? *found : json::object();
}

/// "lat_ns" is the whole time of a request, which our command line asks for; a job file may have
/// asked for the time after its submission instead.
FioLatency latency_of(const json& kind) {
  FioLatency out;
  for (const char* name : {"lat_ns", "clat_ns"}) {
    const json bins = object_at(object_at(kind, name), "bins");
    for (const auto& [key, count] : bins.items()) {
      std::uint64_t nanoseconds = 0;
      const auto parsed = std::from_chars(key.data(), key.data() + key.size(), nanoseconds);
      if (parsed.ec == std::errc() && count.is_number_unsigned())
        out.requests[nanoseconds] += count.get<std::uint64_t>();
    }
    if (!out.requests.empty()) break;
  }
  return out;
}

/// What fio wrote last, without its name: where it fails, that is why.
std::string last_line(std::string_view text) {
  while (!text.empty() && (text.back() == '\n' || text.back() == ' '))
    text.remove_suffix(1);
  const std::size_t before = text.rfind('\n');
  if (before != std::string_view::npos) text.remove_prefix(before + 1);
  if (text.starts_with("fio: ")) text.remove_prefix(5);
  return std::string(text);
}

/// A file in memory for what a program writes.
Result<UniqueFd> make_output() {
  UniqueFd out(::memfd_create("fio", MFD_CLOEXEC));
  if (!out) return Error::from_errno(errno, "keep the output of fio");
  return out;
}

Result<std::string> content(const UniqueFd& file) {
  struct stat st {};
  if (::fstat(file.get(), &st) != 0) return Error::from_errno(errno, "read the output of fio");
  if (static_cast<std::uint64_t>(st.st_size) > kMostOutput)
    return Error(ErrorCode::kTooLarge, "fio has written more than can be read");
  std::string out(static_cast<std::size_t>(st.st_size), '\0');
  const ssize_t n = ::pread(file.get(), out.data(), out.size(), 0);
  if (n < 0) return Error::from_errno(errno, "read the output of fio");
  out.resize(static_cast<std::size_t>(n));
  return out;
}

}  // namespace

double FioLatency::quantile_us(double share) const {
  std::uint64_t all = 0;
  for (const auto& [nanoseconds, count] : requests)
    all += count;
  std::uint64_t seen = 0;
  for (const auto& [nanoseconds, count] : requests) {
    seen += count;
    if (static_cast<double>(seen) >= share * static_cast<double>(all))
      return static_cast<double>(nanoseconds) / 1e3;
  }
  return 0;
}

void FioLatency::add(const FioLatency& other) {
  for (const auto& [nanoseconds, count] : other.requests)
    requests[nanoseconds] += count;
}

FioRequests FioResult::data() const {
  FioRequests out;
  for (const Kind kind : {kRead, kWrite, kTrim}) {
    out.requests += kinds[kind].requests;
    out.bytes += kinds[kind].bytes;
    out.latency.add(kinds[kind].latency);
  }
  return out;
}

Result<FioResult> parse_fio(std::string_view output) {
  std::size_t begin = output.starts_with('{') ? 0 : output.find("\n{");
  if (begin == std::string_view::npos)
    return Error(ErrorCode::kIo, "fio says nothing of what it did: " + last_line(output));
  const json all = json::parse(output.substr(begin), nullptr, false);
  if (!all.is_object() || !all.contains("jobs") || !all["jobs"].is_array())
    return Error(ErrorCode::kIo, "what fio says of what it did is no JSON of its kind");
  FioResult out;
  std::uint64_t longest = 0;  // milliseconds
  for (const json& job : all["jobs"]) {
    const std::int64_t error = json_field(job, "error", std::int64_t{0});
    if (error != 0) return Error::from_errno(static_cast<int>(error), "fio");
    for (std::size_t k = 0; k < out.kinds.size(); ++k) {
      const json kind = object_at(job, k == FioResult::kFlush ? "sync" : FioResult::kNames[k]);
      FioRequests& sum = out.kinds[k];
      sum.requests += json_field(kind, "total_ios", std::uint64_t{0});
      sum.bytes += json_field(kind, "io_bytes", std::uint64_t{0});
      sum.latency.add(latency_of(kind));
      // fio's own rates are wrong where it verifies: it takes the time of the last reads alone.
      longest = std::max(longest, json_field(kind, "runtime", std::uint64_t{0}));
    }
  }
  out.seconds = static_cast<double>(longest) / 1e3;
  if (out.seconds <= 0 || out.data().requests == 0)
    return Error(ErrorCode::kIo, "fio has done nothing");
  return out;
}

Result<std::string> find_fio() {
  const auto found = find_program("fio");
  if (found) return *found;
  return Error(ErrorCode::kNotFound,
               "fio is not installed, which makes the load; it is in the package fio");
}

Result<FioResult> run_fio(FioRun run) {
  auto program = find_fio();
  if (!program) return program.error();
  auto output = make_output();
  if (!output) return output.error();
  auto errors = make_output();
  if (!errors) return errors.error();
  ChildProcess::Options options;
  options.environment = {{"URI", run.uri}, {"DEVICE", run.device}, {"LC_ALL", "C"}};
  options.output = output->get();
  options.errors = errors->get();
  options.own_group = true;
  auto fio = ChildProcess::start(
      {*program, "--output-format=json+", "--eta=never", "--thread", "--lat_percentiles=1",
       "--clat_percentiles=0", fmt::format("--runtime={:.0f}ms", run.seconds * 1000), run.job_file},
      std::move(options));
  if (!fio) return fio.error();
  auto code = fio->wait_unless_interrupted();
  if (!code) return code.error();
  auto said = content(*output);
  if (!said) return said.error();
  if (*code != 0) {
    auto why = content(*errors);
    if (!why) return why.error();
    return Error(ErrorCode::kIo, fmt::format("fio ended with {}: {}", *code,
                                             last_line(why->empty() ? *said : *why)));
  }
  return parse_fio(*said);
}

}  // namespace snap::cli
