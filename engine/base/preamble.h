// The 4 KiB page with which the binary files of ours begin (a layer's ends with one, too): magic,
// version, feature masks and the release that is needed, and last an XXH3 of the rest
// (docs/format.md, Preamble).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "engine/base/codec.h"
#include "snap/result.h"

namespace snap {

inline constexpr std::size_t kPageBytes = 4096;
inline constexpr std::size_t kPageChecksumAt = kPageBytes - 8;
/// Of the field with the release: ASCII, padded with zeros.
inline constexpr std::size_t kReleaseBytes = 16;

/// Unknown compat bits are ignored, unknown ro_compat bits forbid writing, unknown incompat bits
/// forbid opening. No bit of them is written by this release.
struct FeatureMasks {
  std::uint64_t compat = 0;
  std::uint64_t ro_compat = 0;
  std::uint64_t incompat = 0;
  friend bool operator==(const FeatureMasks&, const FeatureMasks&) = default;
};

struct Preamble {
  FeatureMasks features;
  /// The release that the file says it needs, fit for a terminal: "1.2.0 or newer".
  std::string release;
};

/// Version 1. `magic` has 8 bytes.
void encode_preamble(Encoder& out, std::string_view magic, const FeatureMasks& features);
/// Sets the checksum of a page that is complete.
void seal_page(std::span<std::byte, kPageBytes> page);

/// Checks magic, checksum, version and incompatible features; leaves `in`, which begins with the
/// page, behind the preamble. Corrupt or Unsupported. `what` begins the message: "header".
Result<Preamble> decode_preamble(std::span<const std::byte, kPageBytes> page, Decoder& in,
                                 std::string_view magic, std::string_view what);
/// Corrupt if the page is not zero from `begin` to its checksum, unless a feature that may be
/// ignored could have put something there.
Result<void> check_reserved(std::span<const std::byte, kPageBytes> page, std::size_t begin,
                            const FeatureMasks& features, std::string_view what);

}  // namespace snap
