// The value of --compress.
#pragma once

#include <string_view>

#include "snap/result.h"

namespace snap::cli {

struct Compression {
  bool enabled = false;
  int zstd_level = 3;
};
/// "" (none), "none", "zstd" or "zstd:1" to "zstd:19"; InvalidArgument otherwise.
Result<Compression> parse_compression(std::string_view text);

}  // namespace snap::cli
