#include "engine/base/preamble.h"

#include <algorithm>

#include "engine/base/checksum.h"
#include "snap/version.h"

namespace snap {

namespace {

constexpr std::uint32_t kVersion = 1;

std::string printable_release(std::span<const std::byte> raw) {
  std::string out;
  for (std::byte b : raw) {
    const char c = static_cast<char>(b);
    if (c == '\0') break;
    out += (c > ' ' && c < '\x7f') ? c : '?';
  }
  return out.empty() ? "newer than this one" : out + " or newer";
}

Error page_error(ErrorCode code, std::string_view what, const std::string& why) {
  return Error(code, std::string(what) + ": " + why);
}

}  // namespace

void encode_preamble(Encoder& out, std::string_view magic, const FeatureMasks& features) {
  out.text(magic);
  out.le(kVersion);
  out.le(std::uint32_t{0});
  out.le(features.compat);
  out.le(features.ro_compat);
  out.le(features.incompat);
  out.text(kFormatRelease);
  out.zeros(kReleaseBytes - kFormatRelease.size());
}

void seal_page(std::span<std::byte, kPageBytes> page) {
  store_le(page.data() + kPageChecksumAt, xxh3(page.first(kPageChecksumAt)));
}

Result<Preamble> decode_preamble(std::span<const std::byte, kPageBytes> page, Decoder& in,
                                 std::string_view magic, std::string_view what) {
  const auto found = in.bytes(magic.size());
  const auto wanted = std::as_bytes(std::span(magic.data(), magic.size()));
  if (!std::ranges::equal(found, wanted)) {
    return page_error(ErrorCode::kCorrupt, what,
                      "does not begin with \"" + std::string(magic) +
                          "\": it is another file, or truncated, or damaged");
  }
  // The checksum comes before the masks, so that damage is not mistaken for a newer release.
  if (load_le<std::uint64_t>(page.data() + kPageChecksumAt) != xxh3(page.first(kPageChecksumAt)))
    return page_error(ErrorCode::kCorrupt, what, "its checksum does not match: it is damaged");
  const auto version = in.le<std::uint32_t>();
  const auto reserved = in.le<std::uint32_t>();
  Preamble out;
  out.features.compat = in.le<std::uint64_t>();
  out.features.ro_compat = in.le<std::uint64_t>();
  out.features.incompat = in.le<std::uint64_t>();
  out.release = printable_release(in.bytes(kReleaseBytes));
  if (version != kVersion || out.features.incompat != 0) {
    return page_error(ErrorCode::kUnsupported, what,
                      "format version " + std::to_string(version) + ", incompatible features " +
                          std::to_string(out.features.incompat) + ": needs release " + out.release +
                          " of snapctl");
  }
  if (reserved != 0) return page_error(ErrorCode::kCorrupt, what, "reserved bytes are not zero");
  return out;
}

Result<void> check_reserved(std::span<const std::byte, kPageBytes> page, std::size_t begin,
                            const FeatureMasks& features, std::string_view what) {
  if (features.compat != 0 || features.ro_compat != 0) return {};
  if (is_zero(std::span(page).first(kPageChecksumAt).subspan(begin))) return {};
  return page_error(ErrorCode::kCorrupt, what, "reserved bytes are not zero");
}

}  // namespace snap
