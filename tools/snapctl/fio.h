// fio: one run of a job file, and what it says of it.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>

#include "snap/result.h"

namespace snap::cli {

/// How many requests took how long, in the buckets that fio counts in: nanoseconds to requests.
struct FioLatency {
  std::map<std::uint64_t, std::uint64_t> requests;
  /// Microseconds within which a share of them (0 to 1) was answered; 0 if there are none.
  double quantile_us(double share) const;
  void add(const FioLatency& other);
};

struct FioRequests {
  std::uint64_t requests = 0, bytes = 0;
  FioLatency latency;
};

/// All jobs of a job file together.
struct FioResult {
  enum Kind { kRead, kWrite, kTrim, kFlush };
  static constexpr std::array<const char*, 4> kNames{"read", "write", "trim", "flush"};
  std::array<FioRequests, 4> kinds;
  double seconds = 0;  ///< of the longest job
  /// Reads, writes and trims; fio counts no flushes among its requests.
  FioRequests data() const;
};

/// Of fio's json+ output, which lines of text may precede. Io, with fio's reason, if a job failed.
Result<FioResult> parse_fio(std::string_view output);

/// The path of the program. NotFound, saying what to install, if it is not there.
Result<std::string> find_fio();

struct FioRun {
  std::string job_file;
  std::string uri, device;  ///< for the job file: ${URI}, ${DEVICE}
  double seconds = 4;       ///< unless the job file says how long
};
/// Blocks until it ends; Cancelled, with fio ended, on an interrupt.
Result<FioResult> run_fio(FioRun run);

}  // namespace snap::cli
