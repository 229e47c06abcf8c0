// What is read from fio's output.
#include <catch2/catch.hpp>

#include "tools/snapctl/fio.h"

using namespace snap;
using namespace snap::cli;

namespace {

/// As fio 3.33 writes it, without what nobody reads.
constexpr const char* kTwoJobs = R"(fio: connected to NBD server {twice}
{
  "fio version" : "fio-3.33",
  "jobs" : [
    {
      "jobname" : "pages",
      "error" : 0,
      "read" : {"io_bytes" : 12288, "runtime" : 500, "iops" : 1.0, "total_ios" : 3,
                "lat_ns" : {"min" : 900, "bins" : {"10000" : 2, "30000" : 1}},
                "clat_ns" : {"min" : 900}},
      "write" : {"io_bytes" : 4096, "runtime" : 400, "total_ios" : 1,
                 "lat_ns" : {"bins" : {"20000" : 1}}},
      "trim" : {"io_bytes" : 0, "runtime" : 0, "total_ios" : 0, "lat_ns" : {"min" : 0}},
      "sync" : {"total_ios" : 0, "lat_ns" : {"min" : 0}}
    },
    {
      "jobname" : "log",
      "error" : 0,
      "read" : {"io_bytes" : 0, "runtime" : 0, "total_ios" : 0},
      "write" : {"io_bytes" : 8192, "runtime" : 250, "total_ios" : 2,
                 "clat_ns" : {"bins" : {"20000" : 1, "40000" : 1}}},
      "trim" : {"io_bytes" : 0, "runtime" : 0, "total_ios" : 0},
      "sync" : {"total_ios" : 2, "lat_ns" : {"bins" : {"500000" : 2}}}
    }
  ]
}
)";

ErrorCode code_of(std::string_view output) {
  return parse_fio(output).error().code();
}

}  // namespace

TEST_CASE("the jobs of a job file are added up, whatever text comes before the JSON") {
  auto parsed = parse_fio(kTwoJobs);
  REQUIRE(parsed.has_value());
  CHECK(parsed->seconds == 0.5);
  CHECK(parsed->kinds[FioResult::kRead].requests == 3);
  CHECK(parsed->kinds[FioResult::kWrite].requests == 3);
  CHECK(parsed->kinds[FioResult::kWrite].bytes == 12288);
  CHECK(parsed->kinds[FioResult::kTrim].requests == 0);
  CHECK(parsed->kinds[FioResult::kFlush].requests == 2);
  CHECK(parsed->kinds[FioResult::kFlush].latency.quantile_us(0.5) == 500);
}

TEST_CASE("latencies are those of reads, writes and trims of all jobs, without flushes") {
  const FioRequests data = parse_fio(kTwoJobs)->data();
  CHECK(data.requests == 6);
  CHECK(data.bytes == 24576);
  CHECK(data.latency.quantile_us(0.01) == 10);
  CHECK(data.latency.quantile_us(0.5) == 20);
  CHECK(data.latency.quantile_us(0.8) == 30);
  CHECK(data.latency.quantile_us(0.99) == 40);
  CHECK(data.latency.quantile_us(1) == 40);
  CHECK(FioLatency().quantile_us(0.5) == 0);
}

TEST_CASE("a job that failed, nothing done, and what is no such output are errors") {
  CHECK(code_of("") == ErrorCode::kIo);
  CHECK(code_of("fio: no such file") == ErrorCode::kIo);
  CHECK(code_of("{\"jobs\": 3}") == ErrorCode::kIo);
  CHECK(code_of("{\"jobs\": [3]}") == ErrorCode::kIo);
  CHECK(code_of("{\"jobs\": [{\"error\": 0}]}") == ErrorCode::kIo);
  CHECK(code_of("{\"jobs\": [") == ErrorCode::kIo);
  std::string failed = kTwoJobs;
  failed.replace(failed.rfind("\"error\" : 0"), 11, "\"error\" : 28");
  CHECK(code_of(failed) == ErrorCode::kNoSpace);
}
