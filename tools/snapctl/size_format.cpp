// See size_format.h.
#include "tools/snapctl/size_format.h"

#include <fmt/format.h>

#include <array>
#include <cctype>
#include <charconv>
#include <cmath>

namespace snap::cli {

namespace {

Error bad_size(std::string_view text) {
  return Error(
      ErrorCode::kInvalidArgument,
      fmt::format("'{}' is no size; write a number of bytes, or a number with K, M, G or T "
                  "(powers of 1024), such as 10G",
                  text.substr(0, 80)));
}

/// The factor of a suffix such as "", "B", "K", "KB" or "KiB"; 0 if it is none.
std::uint64_t factor_of(std::string_view suffix) {
  if (suffix.empty() || suffix == "B" || suffix == "b") return 1;
  constexpr std::string_view kLetters = "KMGT";
  auto letter =
      kLetters.find(static_cast<char>(std::toupper(static_cast<unsigned char>(suffix[0]))));
  if (letter == std::string_view::npos) return 0;
  std::string_view rest = suffix.substr(1);
  bool known = rest.empty() || rest == "B" || rest == "b" || rest == "iB" || rest == "ib";
  return known ? std::uint64_t{1} << (10 * (letter + 1)) : 0;
}

/// `count` decimal digits at text[at]; -1 if they are not digits.
int digits_at(std::string_view text, std::size_t at, std::size_t count) {
  if (at + count > text.size()) return -1;
  int value = 0;
  for (std::size_t i = at; i < at + count; ++i) {
    if (text[i] < '0' || text[i] > '9') return -1;
    value = value * 10 + (text[i] - '0');
  }
  return value;
}

}  // namespace

Result<std::uint64_t> parse_size(std::string_view text) {
  std::size_t digits = 0;
  while (digits < text.size() && text[digits] >= '0' && text[digits] <= '9')
    ++digits;
  if (digits == 0) return bad_size(text);
  std::uint64_t whole = 0;
  auto [end, failed] = std::from_chars(text.data(), text.data() + digits, whole);
  if (failed != std::errc() || end != text.data() + digits) return bad_size(text);

  std::size_t suffix_at = digits;
  double fraction = 0;
  if (suffix_at < text.size() && text[suffix_at] == '.') {
    double place = 0.1;
    std::size_t first = ++suffix_at;
    while (suffix_at < text.size() && text[suffix_at] >= '0' && text[suffix_at] <= '9') {
      fraction += (text[suffix_at++] - '0') * place;
      place /= 10;
    }
    if (suffix_at == first) return bad_size(text);
  }
  std::uint64_t factor = factor_of(text.substr(suffix_at));
  if (factor == 0 || (factor == 1 && fraction > 0)) return bad_size(text);
  std::uint64_t bytes = 0;
  if (__builtin_mul_overflow(whole, factor, &bytes)) return bad_size(text);
  auto extra = static_cast<std::uint64_t>(std::llround(fraction * static_cast<double>(factor)));
  if (__builtin_add_overflow(bytes, extra, &bytes)) return bad_size(text);
  return bytes;
}

Result<std::optional<std::uint64_t>> parse_limit(std::string_view text) {
  if (text == "none") return std::optional<std::uint64_t>();
  auto size = parse_size(text);
  if (!size) return size.error();
  return std::optional<std::uint64_t>(*size);
}

std::string print_size(std::uint64_t bytes) {
  constexpr std::array<const char*, 7> kUnits = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  if (bytes < 1024) return fmt::format("{}B", bytes);
  auto value = static_cast<double>(bytes);
  std::size_t unit = 0;
  // 1023.95 and up would be printed as "1024": the next unit says it better.
  while (value >= 1023.95 && unit + 1 < kUnits.size()) {
    value /= 1024;
    ++unit;
  }
  if (unit == 0) return fmt::format("1{}", kUnits[1]);
  int decimals = value < 10 ? 2 : (value < 100 ? 1 : 0);
  std::string number = fmt::format("{:.{}f}", value, decimals);
  if (number.find('.') != std::string::npos) {
    while (number.back() == '0')
      number.pop_back();
    if (number.back() == '.') number.pop_back();
  }
  return number + kUnits[unit];
}

std::string print_duration(std::chrono::seconds how_long) {
  auto seconds = how_long.count();
  if (seconds < 1) return "Less than a second";
  if (seconds == 1) return "1 second";
  if (seconds < 60) return fmt::format("{} seconds", seconds);
  auto minutes = seconds / 60;
  if (minutes == 1) return "About a minute";
  if (minutes < 60) return fmt::format("{} minutes", minutes);
  auto hours = (seconds + 1800) / 3600;
  if (hours == 1) return "About an hour";
  if (hours < 48) return fmt::format("{} hours", hours);
  if (hours < 24 * 7 * 2) return fmt::format("{} days", hours / 24);
  if (hours < 24 * 30 * 2) return fmt::format("{} weeks", hours / 24 / 7);
  if (hours < 24 * 365 * 2) return fmt::format("{} months", hours / 24 / 30);
  return fmt::format("{} years", hours / 24 / 365);
}

std::string print_elapsed(std::chrono::microseconds how_long) {
  auto us = how_long.count();
  if (us < 1000) return fmt::format("{} us", us);
  if (us < 1000000) return fmt::format("{:.1f} ms", static_cast<double>(us) / 1e3);
  if (us < 120000000) return fmt::format("{:.2f} s", static_cast<double>(us) / 1e6);
  return fmt::format("{} min {} s", us / 60000000, us / 1000000 % 60);
}

std::optional<std::int64_t> parse_rfc3339(std::string_view text) {
  // 2026-11-24T05:23:32[.fraction](Z|+hh:mm|-hh:mm), RFC 3339 section 5.6
  int year = digits_at(text, 0, 4), month = digits_at(text, 5, 2), day = digits_at(text, 8, 2);
  int hour = digits_at(text, 11, 2), minute = digits_at(text, 14, 2);
  int second = digits_at(text, 17, 2);
  if (year < 0 || month < 1 || month > 12 || day < 1 || hour < 0 || minute < 0 || second < 0 ||
      hour > 23 || minute > 59 || second > 60)
    return std::nullopt;
  if (text[4] != '-' || text[7] != '-' || text[13] != ':' || text[16] != ':') return std::nullopt;
  if (text[10] != 'T' && text[10] != 't' && text[10] != ' ') return std::nullopt;
  std::chrono::year_month_day date{std::chrono::year(year),
                                   std::chrono::month(static_cast<unsigned>(month)),
                                   std::chrono::day(static_cast<unsigned>(day))};
  if (!date.ok()) return std::nullopt;

  std::size_t at = 19;
  if (at < text.size() && text[at] == '.') {
    ++at;
    while (at < text.size() && text[at] >= '0' && text[at] <= '9')
      ++at;
  }
  std::int64_t offset = 0;
  if (at < text.size() && (text[at] == '+' || text[at] == '-')) {
    int hours = digits_at(text, at + 1, 2), minutes = digits_at(text, at + 4, 2);
    if (hours < 0 || minutes < 0 || text[at + 3] != ':' || at + 6 != text.size())
      return std::nullopt;
    offset = (hours * 60 + minutes) * 60 * (text[at] == '-' ? -1 : 1);
  } else if (at + 1 != text.size() || (text[at] != 'Z' && text[at] != 'z')) {
    return std::nullopt;
  }
  auto days = std::chrono::sys_days(date).time_since_epoch().count();
  return std::int64_t{days} * 86400 + hour * 3600 + minute * 60 + second - offset;
}

std::string print_age(std::string_view rfc3339, std::chrono::system_clock::time_point now) {
  if (rfc3339.empty()) return "-";
  auto then = parse_rfc3339(rfc3339);
  if (!then) return std::string(rfc3339);
  auto now_s = std::chrono::duration_cast<std::chrono::seconds>(now.time_since_epoch()).count();
  return print_duration(std::chrono::seconds(now_s - *then)) + " ago";
}

}  // namespace snap::cli
