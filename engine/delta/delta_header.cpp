// The first 4 KiB of a delta's map and journal (docs/format.md, Delta, Headers).
#include <algorithm>
#include <string>

#include "engine/base/codec.h"
#include "engine/delta/delta_format.h"
#include "snap/version.h"

namespace snap {

namespace {

constexpr std::string_view kMapMagic = "SNAPDMAP";
constexpr std::string_view kJournalMagic = "SNAPJRNL";
constexpr std::uint32_t kVersion = 1;
constexpr std::size_t kReleaseBytes = 16;
constexpr std::size_t kHeaderChecksumAt = kDeltaHeaderBytes - 8;

/// What both headers begin with.
struct Preamble {
  FeatureMasks masks;
  Uuid id;
};

/// Magic, version, masks, release, UUID. This release writes no optional feature.
void encode_preamble(Encoder& e, std::string_view magic, const Uuid& id) {
  const FeatureMasks masks;
  e.text(magic);
  e.le(kVersion);
  e.le(std::uint32_t{0});
  e.le(masks.compat);
  e.le(masks.ro_compat);
  e.le(masks.incompat);
  e.text(kFormatRelease);
  e.zeros(kReleaseBytes - kFormatRelease.size());
  e.bytes(std::as_bytes(std::span(id.bytes)));
}

void seal_header(std::vector<std::byte>& bytes) {
  store_le(bytes.data() + kHeaderChecksumAt, xxh3(std::span(bytes).first(kHeaderChecksumAt)));
}

Error header_error(ErrorCode code, std::string_view path, const std::string& what) {
  return Error(code, std::string(path) + ", header at 0: " + what);
}

/// The release that a file says it needs, made fit for a terminal.
std::string printable_release(std::span<const std::byte> raw) {
  std::string out;
  for (std::byte b : raw) {
    const char c = static_cast<char>(b);
    if (c == '\0') break;
    out += (c > ' ' && c < '\x7f') ? c : '?';
  }
  return out.empty() ? "newer than this one" : out + " or newer";
}

Result<void> check_magic_and_checksum(Decoder& d, std::span<const std::byte> bytes,
                                      std::string_view magic, std::string_view path) {
  if (bytes.size() != kDeltaHeaderBytes) {
    return header_error(ErrorCode::kCorrupt, path,
                        "has " + std::to_string(bytes.size()) + " of 4096 bytes");
  }
  const auto found = d.bytes(magic.size());
  const auto wanted = std::as_bytes(std::span(magic.data(), magic.size()));
  if (!std::equal(found.begin(), found.end(), wanted.begin(), wanted.end())) {
    return header_error(ErrorCode::kCorrupt, path,
                        "does not begin with \"" + std::string(magic) + "\"");
  }
  // The checksum comes before the masks, so that damage is not mistaken for a newer release.
  if (load_le<std::uint64_t>(bytes.data() + kHeaderChecksumAt) !=
      xxh3(bytes.first(kHeaderChecksumAt))) {
    return header_error(ErrorCode::kCorrupt, path, "checksum does not match");
  }
  return {};
}

Result<Preamble> decode_preamble(Decoder& d, std::span<const std::byte> bytes,
                                 std::string_view magic, std::string_view path, bool writable) {
  auto begin = check_magic_and_checksum(d, bytes, magic, path);
  SNAP_RETURN_IF_ERROR(begin);
  Preamble out;
  const auto version = d.le<std::uint32_t>();
  const auto reserved = d.le<std::uint32_t>();
  out.masks.compat = d.le<std::uint64_t>();
  out.masks.ro_compat = d.le<std::uint64_t>();
  out.masks.incompat = d.le<std::uint64_t>();
  const std::string release = printable_release(d.bytes(kReleaseBytes));
  if (version != kVersion || out.masks.incompat != 0) {
    return header_error(ErrorCode::kUnsupported, path,
                        "format version " + std::to_string(version) + ", incompatible features " +
                            std::to_string(out.masks.incompat) + ": needs release " + release +
                            " of snapctl");
  }
  if (writable && out.masks.ro_compat != 0) {
    return header_error(ErrorCode::kUnsupported, path,
                        "features " + std::to_string(out.masks.ro_compat) +
                            ": to write to it needs release " + release + " of snapctl");
  }
  if (reserved != 0) {
    return header_error(ErrorCode::kCorrupt, path, "reserved bytes are not zero");
  }
  const auto raw = d.bytes(out.id.bytes.size());
  std::transform(raw.begin(), raw.end(), out.id.bytes.begin(),
                 [](std::byte b) { return std::to_integer<std::uint8_t>(b); });
  return out;
}

/// Reserved bytes are zero, unless a feature that may be ignored could have put something there.
Result<void> check_rest(const Decoder& d, std::span<const std::byte> bytes,
                        const FeatureMasks& masks, std::string_view path) {
  const auto rest = bytes.first(kHeaderChecksumAt).subspan(d.position());
  if (masks.compat == 0 && masks.ro_compat == 0 && !is_zero(rest)) {
    return header_error(ErrorCode::kCorrupt, path, "reserved bytes are not zero");
  }
  return {};
}

}  // namespace

std::vector<std::byte> encode_map_header(const MapHeader& header) {
  std::vector<std::byte> bytes(kDeltaHeaderBytes);
  Encoder e(bytes);
  encode_preamble(e, kMapMagic, header.id);
  e.le(header.base_end);
  e.bytes(header.secret);
  seal_header(bytes);
  return bytes;
}

Result<MapHeader> decode_map_header(std::span<const std::byte> bytes, std::string_view path,
                                    bool writable) {
  Decoder d(bytes);
  auto preamble = decode_preamble(d, bytes, kMapMagic, path, writable);
  SNAP_RETURN_IF_ERROR(preamble);
  MapHeader header;
  header.id = preamble->id;
  header.base_end = d.le<std::uint64_t>();
  const auto secret = d.bytes(header.secret.size());
  std::copy(secret.begin(), secret.end(), header.secret.begin());
  auto rest = check_rest(d, bytes, preamble->masks, path);
  SNAP_RETURN_IF_ERROR(rest);
  if (header.base_end <= kDeltaHeaderBytes || header.base_end % kFrameAlign != 0) {
    return header_error(ErrorCode::kCorrupt, path,
                        "base ends at " + std::to_string(header.base_end));
  }
  return header;
}

std::vector<std::byte> encode_journal_header(const JournalHeader& header) {
  std::vector<std::byte> bytes(kDeltaHeaderBytes);
  Encoder e(bytes);
  encode_preamble(e, kJournalMagic, header.id);
  e.le(header.area_length);
  seal_header(bytes);
  return bytes;
}

Result<JournalHeader> decode_journal_header(std::span<const std::byte> bytes,
                                            std::string_view path) {
  Decoder d(bytes);
  auto preamble = decode_preamble(d, bytes, kJournalMagic, path, true);
  SNAP_RETURN_IF_ERROR(preamble);
  JournalHeader header;
  header.id = preamble->id;
  header.area_length = d.le<std::uint64_t>();
  auto rest = check_rest(d, bytes, preamble->masks, path);
  SNAP_RETURN_IF_ERROR(rest);
  if (header.area_length == 0 || header.area_length % kFrameAlign != 0 ||
      header.area_length > kJournalMax / 2) {
    return header_error(ErrorCode::kCorrupt, path,
                        "area length " + std::to_string(header.area_length));
  }
  return header;
}

}  // namespace snap
