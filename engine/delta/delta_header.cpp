// The first 4 KiB of a delta's map and journal (docs/format.md, Delta, Headers).
#include <algorithm>
#include <string>

#include "engine/delta/delta_format.h"

namespace snap {

namespace {

constexpr std::string_view kMapMagic = "SNAPDMAP";
constexpr std::string_view kJournalMagic = "SNAPJRNL";
std::string header_of(std::string_view path) {
  return std::string(path) + ", header at 0";
}

Error corrupt(std::string_view path, const std::string& what) {
  return Error(ErrorCode::kCorrupt, header_of(path) + ": " + what);
}

/// A header's page, what was decoded of it so far, and how to go on.
struct Header {
  std::span<const std::byte, kPageBytes> page;
  Decoder in;
  FeatureMasks features;
  Uuid id;
};

Result<Header> open_header(std::span<const std::byte> bytes, std::string_view magic,
                           std::string_view path, bool writable) {
  if (bytes.size() != kPageBytes) {
    return corrupt(path, "has " + std::to_string(bytes.size()) + " of 4096 bytes");
  }
  Header h{bytes.first<kPageBytes>(), Decoder(bytes), {}, {}};
  auto preamble = decode_preamble(h.page, h.in, magic, header_of(path));
  SNAP_RETURN_IF_ERROR(preamble);
  h.features = preamble->features;
  if (writable && h.features.ro_compat != 0) {
    return Error(ErrorCode::kUnsupported,
                 header_of(path) + ": features " + std::to_string(h.features.ro_compat) +
                     ": to write to it needs release " + preamble->release + " of snapctl");
  }
  const auto raw = h.in.bytes(h.id.bytes.size());
  std::transform(raw.begin(), raw.end(), h.id.bytes.begin(),
                 [](std::byte b) { return std::to_integer<std::uint8_t>(b); });
  return h;
}

/// A page that begins with the preamble and the id of the delta.
template <class Rest>
std::vector<std::byte> make_header(std::string_view magic, const Uuid& id, Rest rest) {
  std::vector<std::byte> bytes(kPageBytes);
  Encoder e(bytes);
  encode_preamble(e, magic, {});
  e.bytes(std::as_bytes(std::span(id.bytes)));
  rest(e);
  seal_page(std::span<std::byte, kPageBytes>(bytes));
  return bytes;
}

}  // namespace

std::vector<std::byte> encode_map_header(const MapHeader& header) {
  return make_header(kMapMagic, header.id, [&header](Encoder& e) {
    e.le(header.base_end);
    e.bytes(header.secret);
  });
}

Result<MapHeader> decode_map_header(std::span<const std::byte> bytes, std::string_view path,
                                    bool writable) {
  auto h = open_header(bytes, kMapMagic, path, writable);
  SNAP_RETURN_IF_ERROR(h);
  MapHeader header;
  header.id = h->id;
  header.base_end = h->in.le<std::uint64_t>();
  const auto secret = h->in.bytes(header.secret.size());
  std::copy(secret.begin(), secret.end(), header.secret.begin());
  auto rest = check_reserved(h->page, h->in.position(), h->features, header_of(path));
  SNAP_RETURN_IF_ERROR(rest);
  if (header.base_end <= kDeltaHeaderBytes || header.base_end % kFrameAlign != 0) {
    return corrupt(path, "base ends at " + std::to_string(header.base_end));
  }
  return header;
}

std::vector<std::byte> encode_journal_header(const JournalHeader& header) {
  return make_header(kJournalMagic, header.id, [&header](Encoder& e) {
    e.le(header.area_length);
    e.le(header.closed);
  });
}

Result<JournalHeader> decode_journal_header(std::span<const std::byte> bytes,
                                            std::string_view path) {
  auto h = open_header(bytes, kJournalMagic, path, true);
  SNAP_RETURN_IF_ERROR(h);
  JournalHeader header;
  header.id = h->id;
  header.area_length = h->in.le<std::uint64_t>();
  header.closed = h->in.le<std::uint64_t>();
  auto rest = check_reserved(h->page, h->in.position(), h->features, header_of(path));
  SNAP_RETURN_IF_ERROR(rest);
  if (header.area_length == 0 || header.area_length % kFrameAlign != 0 ||
      header.area_length > kJournalMax / 2) {
    return corrupt(path, "area length " + std::to_string(header.area_length));
  }
  return header;
}

}  // namespace snap
