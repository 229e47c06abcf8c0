#include "engine/nbd/protocol.h"

#include "engine/base/codec.h"
#include "snap/limits.h"

namespace snap::nbd {

namespace {

std::string_view as_text(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

template <std::unsigned_integral T>
void append_be(std::vector<std::byte>& out, T v) {
  const std::size_t at = out.size();
  out.resize(at + sizeof v);
  store_be(out.data() + at, v);
}

}  // namespace

OptionHeader decode_option_header(std::span<const std::byte, kOptionHeaderBytes> bytes) {
  Decoder in(bytes);
  OptionHeader h;
  h.magic = in.be<std::uint64_t>();
  h.option = in.be<std::uint32_t>();
  h.length = in.be<std::uint32_t>();
  return h;
}

std::optional<InfoRequest> decode_info_request(std::span<const std::byte> data) {
  Decoder in(data);
  InfoRequest request;
  request.name = as_text(in.bytes(in.be<std::uint32_t>()));
  const std::size_t count = in.be<std::uint16_t>();
  // Exactly these bytes must be left; only then is anything allocated for them.
  if (!in.ok() || in.remaining() != count * sizeof(std::uint16_t)) return std::nullopt;
  request.infos.reserve(count);
  for (std::size_t i = 0; i < count; ++i)
    request.infos.push_back(in.be<std::uint16_t>());
  return request;
}

std::optional<MetaContextRequest> decode_meta_context_request(std::span<const std::byte> data) {
  Decoder in(data);
  MetaContextRequest request;
  request.name = as_text(in.bytes(in.be<std::uint32_t>()));
  const std::size_t count = in.be<std::uint32_t>();
  // A query takes at least its length field.
  if (!in.ok() || count > in.remaining() / sizeof(std::uint32_t)) return std::nullopt;
  request.queries.reserve(count);
  for (std::size_t i = 0; i < count; ++i) {
    const std::size_t length = in.be<std::uint32_t>();
    if (length > kMaxNbdName) return std::nullopt;
    request.queries.push_back(as_text(in.bytes(length)));
  }
  if (!in.ok() || in.remaining() != 0) return std::nullopt;
  return request;
}

void append_u16(std::vector<std::byte>& out, std::uint16_t v) {
  append_be(out, v);
}
void append_u32(std::vector<std::byte>& out, std::uint32_t v) {
  append_be(out, v);
}
void append_u64(std::vector<std::byte>& out, std::uint64_t v) {
  append_be(out, v);
}
void append_text(std::vector<std::byte>& out, std::string_view text) {
  const auto bytes = std::as_bytes(std::span(text.data(), text.size()));
  out.insert(out.end(), bytes.begin(), bytes.end());
}

void append_option_reply(std::vector<std::byte>& out, std::uint32_t option, OptionReply type,
                         std::span<const std::byte> data) {
  append_u64(out, kOptionReplyMagic);
  append_u32(out, option);
  append_u32(out, static_cast<std::uint32_t>(type));
  append_u32(out, static_cast<std::uint32_t>(data.size()));
  out.insert(out.end(), data.begin(), data.end());
}

WireError wire_error(ErrorCode code) noexcept {
  switch (code) {
    case ErrorCode::kInvalidArgument:
    case ErrorCode::kTooLarge:
      return WireError::kInval;
    case ErrorCode::kNoSpace:
      return WireError::kNoSpace;
    case ErrorCode::kUnsupported:
      return WireError::kNotSup;
    case ErrorCode::kPermission:
    case ErrorCode::kReadOnly:
      return WireError::kPerm;
    case ErrorCode::kCancelled:
      return WireError::kShutdown;
    case ErrorCode::kOutOfMemory:
      return WireError::kNoMem;
    case ErrorCode::kNotFound:
    case ErrorCode::kExists:
    case ErrorCode::kBusy:
    case ErrorCode::kIo:
    case ErrorCode::kCorrupt:
    case ErrorCode::kProtocol:
      return WireError::kIo;
  }
  return WireError::kIo;
}

RequestHeader decode_request(std::span<const std::byte> bytes, Headers headers) {
  Decoder in(bytes);
  RequestHeader h;
  h.magic = in.be<std::uint32_t>();
  h.flags = in.be<std::uint16_t>();
  h.type = in.be<std::uint16_t>();
  h.cookie = in.be<std::uint64_t>();
  h.offset = ByteOffset(in.be<std::uint64_t>());
  h.length = headers == Headers::kExtended ? in.be<std::uint64_t>() : in.be<std::uint32_t>();
  return h;
}

std::optional<BlockStatusPayload> decode_block_status_payload(std::span<const std::byte> payload) {
  Decoder in(payload);
  BlockStatusPayload decoded;
  decoded.length = in.be<std::uint64_t>();
  if (!in.ok() || in.remaining() == 0 || in.remaining() % sizeof(std::uint32_t) != 0)
    return std::nullopt;
  decoded.ids.reserve(in.remaining() / sizeof(std::uint32_t));
  while (in.remaining() != 0)
    decoded.ids.push_back(in.be<std::uint32_t>());
  return decoded;
}

std::array<std::byte, kSimpleReplyBytes> encode_simple_reply(WireError error,
                                                             std::uint64_t cookie) {
  std::array<std::byte, kSimpleReplyBytes> bytes;
  Encoder out(bytes);
  out.be(kSimpleReplyMagic);
  out.be(static_cast<std::uint32_t>(error));
  out.be(cookie);
  return bytes;
}

void append_chunk_header(std::vector<std::byte>& out, Headers headers, ChunkType type, bool done,
                         const RequestHeader& request, std::uint32_t length) {
  const bool extended = headers == Headers::kExtended;
  std::array<std::byte, kExtendedChunkHeaderBytes> bytes;
  Encoder to(bytes);
  to.be(extended ? kExtendedReplyMagic : kStructuredReplyMagic);
  to.be(done ? kChunkDone : std::uint16_t{0});
  to.be(static_cast<std::uint16_t>(type));
  to.be(request.cookie);
  if (extended) {
    to.be(request.offset.value);
    to.be(std::uint64_t{length});
  } else {
    to.be(length);
  }
  out.insert(out.end(), bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(to.position()));
}

}  // namespace snap::nbd
