#include "engine/store/feature_masks.h"

#include "snap/version.h"

namespace snap {

namespace {

// No feature bit but that of unfinished backups has been given out yet.
constexpr std::uint64_t kKnownRoCompat = 0;
constexpr std::uint32_t kVersion = 1;

Error refuse(ErrorCode code, const Features& features, const std::string& what,
             const std::string& why) {
  return Error(code, what + " " + why + "; this is snapctl " + std::string(kRelease) +
                         ", use release " + features.needs + " or later");
}

std::string bits(std::uint64_t mask) {
  std::string out;
  for (int i = 0; i < 64; ++i) {
    if ((mask >> i & 1) == 0) continue;
    if (!out.empty()) out += ", ";
    out += std::to_string(i);
  }
  return out;
}

}  // namespace

Features own_features() {
  Features out;
  out.version = kVersion;
  out.needs = kFormatRelease;
  return out;
}

Result<std::optional<Error>> check_features(const Features& features, const std::string& what,
                                            std::uint64_t known) {
  if (features.version != kVersion) {
    return refuse(ErrorCode::kUnsupported, features, what,
                  "has format version " + std::to_string(features.version) + ", not " +
                      std::to_string(kVersion));
  }
  const std::uint64_t incompat = features.incompat & ~known;
  if (incompat != 0) {
    return refuse(
        ErrorCode::kUnsupported, features, what,
        "uses a feature that this release does not know (incompat bit " + bits(incompat) + ")");
  }
  const std::uint64_t ro_compat = features.ro_compat & ~kKnownRoCompat;
  if (ro_compat == 0) return std::optional<Error>();
  return std::optional<Error>(
      refuse(ErrorCode::kReadOnly, features, what,
             "may only be read by this release (ro-compat bit " + bits(ro_compat) + ")"));
}

}  // namespace snap
