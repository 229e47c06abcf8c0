// See compression.h.
#include "tools/snapctl/compression.h"

#include <fmt/format.h>

#include <charconv>

namespace snap::cli {

Result<Compression> parse_compression(std::string_view text) {
  constexpr int kMaxLevel = 19;  // levels above need more memory to decompress
  Compression out;
  if (text.empty() || text == "none") return out;
  out.enabled = true;
  if (text == "zstd") return out;
  if (text.starts_with("zstd:")) {
    std::string_view level = text.substr(5);
    auto [end, failed] = std::from_chars(level.data(), level.data() + level.size(), out.zstd_level);
    if (failed == std::errc() && end == level.data() + level.size() && out.zstd_level >= 1 &&
        out.zstd_level <= kMaxLevel)
      return out;
  }
  return Error(ErrorCode::kInvalidArgument,
               fmt::format("--compress takes zstd or zstd:1 to zstd:{}, not '{}'", kMaxLevel,
                           text.substr(0, 80)));
}

}  // namespace snap::cli
