// The checksum of text files of ours (format, volume.json, entries of index.json).
#pragma once

#include <string>
#include <string_view>

namespace snap {

/// XXH3-64 of `text` as 16 hex digits.
std::string checksum_hex(std::string_view text);

}  // namespace snap
