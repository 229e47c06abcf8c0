// Sizes and times as people write and read them.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "snap/result.h"

namespace snap::cli {

/// Bytes of "512", "64K", "1.5G", "2TiB", "10gb": K, M, G and T are powers of 1024 whatever their
/// case, with or without "B" or "iB". InvalidArgument, saying what is understood, for all else,
/// for fractions of a byte and for what does not fit 64 bits.
Result<std::uint64_t> parse_size(std::string_view text);

/// As parse_size; "none" is no limit.
Result<std::optional<std::uint64_t>> parse_limit(std::string_view text);

/// "0B", "999B", "4KiB", "1.5GiB", "10GiB": three digits at most, no space, so that columns stay
/// columns for awk.
std::string print_size(std::uint64_t bytes);

/// "Less than a second", "5 minutes", "About an hour", "3 weeks": the words of docker.
std::string print_duration(std::chrono::seconds how_long);

/// "850us", "12.3 ms", "4.21 s", "3 min 12 s".
std::string print_elapsed(std::chrono::microseconds how_long);

/// Seconds since 1970 of an RFC 3339 time ("2026-11-24T05:23:32.5Z", "...+01:00"); nothing if it is
/// not one.
std::optional<std::int64_t> parse_rfc3339(std::string_view text);

/// "2 hours ago" for an RFC 3339 time; the text as it is if it is not one; "-" if it is empty.
std::string print_age(std::string_view rfc3339, std::chrono::system_clock::time_point now);

}  // namespace snap::cli
