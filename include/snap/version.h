// The release.
#pragma once

#include <string_view>

namespace snap {

inline constexpr std::string_view kRelease = "0.1.0";
/// The first release that reads what this one writes.
inline constexpr std::string_view kFormatRelease = "0.1.0";

}  // namespace snap
