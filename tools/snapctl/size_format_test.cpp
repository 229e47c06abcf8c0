// Sizes and times as people write and read them.
#include "tools/snapctl/size_format.h"

#include <catch2/catch.hpp>

using namespace snap;
using namespace snap::cli;

namespace {
std::uint64_t bytes_of(const char* text) {
  auto size = parse_size(text);
  INFO(text);
  REQUIRE(size.has_value());
  return *size;
}
}  // namespace

TEST_CASE("sizes are read with the letters K M G T as powers of 1024") {
  CHECK(bytes_of("0") == 0);
  CHECK(bytes_of("512") == 512);
  CHECK(bytes_of("7B") == 7);
  CHECK(bytes_of("4K") == 4096);
  CHECK(bytes_of("4k") == 4096);
  CHECK(bytes_of("4KB") == 4096);
  CHECK(bytes_of("4KiB") == 4096);
  CHECK(bytes_of("3M") == 3u << 20);
  CHECK(bytes_of("10G") == std::uint64_t{10} << 30);
  CHECK(bytes_of("2TiB") == std::uint64_t{2} << 40);
  CHECK(bytes_of("1.5G") == (std::uint64_t{3} << 30) / 2);
  CHECK(bytes_of("0.25K") == 256);
  CHECK(bytes_of("18446744073709551615") == ~std::uint64_t{0});
}

TEST_CASE("what is no size is refused with what would be one") {
  for (const char* text : {"",
                           "G",
                           "-1",
                           "+1",
                           " 1",
                           "1 G",
                           "1.G",
                           ".5G",
                           "1.5",
                           "1.5B",
                           "1e9",
                           "0x10",
                           "10P",
                           "10GG",
                           "10GiBs",
                           "10iB",
                           "18446744073709551616",
                           "16777216T",
                           "18446744073709551615K",
                           "1,5G"}) {
    auto size = parse_size(text);
    INFO(text);
    REQUIRE_FALSE(size.has_value());
    CHECK(size.error().code() == ErrorCode::kInvalidArgument);
    CHECK(size.error().message().find("10G") != std::string::npos);
  }
}

TEST_CASE("sizes are printed with three digits at most and no space") {
  CHECK(print_size(0) == "0B");
  CHECK(print_size(1023) == "1023B");
  CHECK(print_size(1024) == "1KiB");
  CHECK(print_size(1536) == "1.5KiB");
  CHECK(print_size(1000 * 1024) == "1000KiB");
  CHECK(print_size((1u << 20) - 1) == "1MiB");
  CHECK(print_size(10u << 20) == "10MiB");
  CHECK(print_size((std::uint64_t{1} << 30) + (1u << 28)) == "1.25GiB");
  CHECK(print_size(std::uint64_t{1} << 40) == "1TiB");
  CHECK(print_size(~std::uint64_t{0}) == "16EiB");
}

TEST_CASE("what is printed as a size with a letter is read back near to it") {
  for (std::uint64_t size = 1024; size < (std::uint64_t{1} << 44); size = size * 3 + 1) {
    auto back = parse_size(print_size(size));
    INFO(print_size(size));
    REQUIRE(back.has_value());
    double ratio = static_cast<double>(*back) / static_cast<double>(size);
    CHECK(ratio > 0.99);
    CHECK(ratio < 1.01);
  }
}

TEST_CASE("durations use the words of docker") {
  using std::chrono::seconds;
  CHECK(print_duration(seconds(0)) == "Less than a second");
  CHECK(print_duration(seconds(-5)) == "Less than a second");
  CHECK(print_duration(seconds(1)) == "1 second");
  CHECK(print_duration(seconds(59)) == "59 seconds");
  CHECK(print_duration(seconds(60)) == "About a minute");
  CHECK(print_duration(seconds(59 * 60)) == "59 minutes");
  CHECK(print_duration(seconds(3600)) == "About an hour");
  CHECK(print_duration(seconds(2 * 3600)) == "2 hours");
  CHECK(print_duration(seconds(3 * 86400)) == "3 days");
  CHECK(print_duration(seconds(21 * 86400)) == "3 weeks");
  CHECK(print_duration(seconds(100 * 86400)) == "3 months");
  CHECK(print_duration(seconds(800 * std::int64_t{86400})) == "2 years");
}

TEST_CASE("elapsed times are printed with a unit that fits") {
  using std::chrono::microseconds;
  CHECK(print_elapsed(microseconds(850)) == "850 us");
  CHECK(print_elapsed(microseconds(12345)) == "12.3 ms");
  CHECK(print_elapsed(microseconds(4210000)) == "4.21 s");
  CHECK(print_elapsed(microseconds(192000000)) == "3 min 12 s");
}

TEST_CASE("RFC 3339 times are read with fractions and offsets, and nothing else is") {
  CHECK(parse_rfc3339("1970-01-01T00:00:00Z") == 0);
  CHECK(parse_rfc3339("2026-11-24T05:23:32Z") == 1795497812);
  CHECK(parse_rfc3339("2026-11-24T05:23:32.123456789Z") == 1795497812);
  CHECK(parse_rfc3339("2026-11-24T06:23:32+01:00") == 1795497812);
  CHECK(parse_rfc3339("2026-11-23T23:53:32-05:30") == 1795497812);
  for (const char* text : {"", "2026", "2026-11-24", "2026-11-24T05:23:32", "2026-13-24T05:23:32Z",
                           "2026-02-30T05:23:32Z", "2026-11-24T25:23:32Z", "2026-11-24T05:23:32ZZ",
                           "2026-11-24T05:23:32+0100", "2026/11/24T05:23:32Z"}) {
    INFO(text);
    CHECK_FALSE(parse_rfc3339(text).has_value());
  }
}

TEST_CASE("ages are told from now, and a text that is no time is shown as it is") {
  auto now = std::chrono::system_clock::time_point(std::chrono::seconds(1795497812));
  CHECK(print_age("2026-11-24T03:23:32Z", now) == "2 hours ago");
  CHECK(print_age("2026-11-24T06:00:00Z", now) == "Less than a second ago");
  CHECK(print_age("", now) == "-");
  CHECK(print_age("long ago", now) == "long ago");
}
