// The NBD wire: constants and big-endian codecs, without state and without I/O. Names and numbers
// are those of the protocol document (NetworkBlockDevice/nbd, doc/proto.md).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "snap/result.h"
#include "snap/units.h"

namespace snap::nbd {

// ---- Handshake

inline constexpr std::uint64_t kGreetingMagic = 0x4e42444d41474943;     // "NBDMAGIC"
inline constexpr std::uint64_t kOptionMagic = 0x49484156454f5054;       // "IHAVEOPT"
inline constexpr std::uint64_t kOptionReplyMagic = 0x0003e889045565a9;  // NBD_OPT reply

// Handshake flags, server's (16 bits) and client's (32 bits) alike.
inline constexpr std::uint16_t kFlagFixedNewstyle = 1 << 0;
inline constexpr std::uint16_t kFlagNoZeroes = 1 << 1;

enum class Option : std::uint32_t {
  kExportName = 1,
  kAbort = 2,
  kList = 3,
  kStartTls = 5,
  kInfo = 6,
  kGo = 7,
  kStructuredReply = 8,
  kListMetaContext = 9,
  kSetMetaContext = 10,
  kExtendedHeaders = 11,
};

enum class OptionReply : std::uint32_t {
  kAck = 1,
  kServer = 2,
  kInfo = 3,
  kMetaContext = 4,
  kErrUnsupported = 0x80000001,
  kErrPolicy = 0x80000002,
  kErrInvalid = 0x80000003,
  kErrTlsRequired = 0x80000005,
  kErrUnknown = 0x80000006,
  kErrShutdown = 0x80000007,
  kErrTooBig = 0x80000009,
  kErrExtendedHeadersRequired = 0x8000000a,
};

enum class Info : std::uint16_t { kExport = 0, kName = 1, kDescription = 2, kBlockSize = 3 };

inline constexpr std::size_t kGreetingBytes = 18;
inline constexpr std::size_t kClientFlagsBytes = 4;
inline constexpr std::size_t kOptionHeaderBytes = 16;

struct OptionHeader {
  std::uint64_t magic = 0;
  std::uint32_t option = 0;  ///< an Option, or one that we do not know
  std::uint32_t length = 0;  ///< bytes of data that follow
};
OptionHeader decode_option_header(std::span<const std::byte, kOptionHeaderBytes> bytes);

/// What INFO and GO carry. `name` points into the bytes.
struct InfoRequest {
  std::string_view name;
  std::vector<std::uint16_t> infos;
};
/// Nothing if the lengths inside do not add up to the bytes that are there.
std::optional<InfoRequest> decode_info_request(std::span<const std::byte> data);

/// What LIST_META_CONTEXT and SET_META_CONTEXT carry. Everything points into the bytes.
struct MetaContextRequest {
  std::string_view name;
  std::vector<std::string_view> queries;
};
/// Nothing if the lengths inside do not add up, or a query is longer than kMaxNbdName.
std::optional<MetaContextRequest> decode_meta_context_request(std::span<const std::byte> data);

/// Appends an option reply with `data` to `out`.
void append_option_reply(std::vector<std::byte>& out, std::uint32_t option, OptionReply type,
                         std::span<const std::byte> data = {});
/// Appends big-endian integers and text to `out`.
void append_u16(std::vector<std::byte>& out, std::uint16_t v);
void append_u32(std::vector<std::byte>& out, std::uint32_t v);
void append_u64(std::vector<std::byte>& out, std::uint64_t v);
void append_text(std::vector<std::byte>& out, std::string_view text);

// ---- Transmission

// Transmission flags (16 bits, of an export).
inline constexpr std::uint16_t kHasFlags = 1 << 0;
inline constexpr std::uint16_t kReadOnly = 1 << 1;
inline constexpr std::uint16_t kSendFlush = 1 << 2;
inline constexpr std::uint16_t kSendFua = 1 << 3;
inline constexpr std::uint16_t kSendTrim = 1 << 5;
inline constexpr std::uint16_t kSendWriteZeroes = 1 << 6;
inline constexpr std::uint16_t kSendDf = 1 << 7;
inline constexpr std::uint16_t kCanMultiConn = 1 << 8;
inline constexpr std::uint16_t kSendCache = 1 << 10;
inline constexpr std::uint16_t kSendFastZero = 1 << 11;
inline constexpr std::uint16_t kBlockStatusPayload = 1 << 12;

inline constexpr std::uint32_t kRequestMagic = 0x25609513;
inline constexpr std::uint32_t kSimpleReplyMagic = 0x67446698;
inline constexpr std::uint32_t kStructuredReplyMagic = 0x668e33ef;
inline constexpr std::uint32_t kExtendedRequestMagic = 0x21e41c71;
inline constexpr std::uint32_t kExtendedReplyMagic = 0x6e8a278c;

/// What the handshake agreed on for the headers of requests and replies.
enum class Headers {
  kSimple,      ///< 28-byte requests, simple replies
  kStructured,  ///< 28-byte requests, replies in chunks with 20-byte headers
  kExtended,    ///< 32-byte headers both ways, lengths of 64 bits
};

enum class Command : std::uint16_t {
  kRead = 0,
  kWrite = 1,
  kDisconnect = 2,
  kFlush = 3,
  kTrim = 4,
  kCache = 5,
  kWriteZeroes = 6,
  kBlockStatus = 7,
};

// Command flags.
inline constexpr std::uint16_t kCmdFua = 1 << 0;
inline constexpr std::uint16_t kCmdNoHole = 1 << 1;
inline constexpr std::uint16_t kCmdDf = 1 << 2;
inline constexpr std::uint16_t kCmdReqOne = 1 << 3;
inline constexpr std::uint16_t kCmdFastZero = 1 << 4;
inline constexpr std::uint16_t kCmdPayloadLen = 1 << 5;  ///< extended headers only

/// The errors that may cross the wire.
enum class WireError : std::uint32_t {
  kNone = 0,
  kPerm = 1,
  kIo = 5,
  kNoMem = 12,
  kInval = 22,
  kNoSpace = 28,
  kOverflow = 75,
  kNotSup = 95,
  kShutdown = 108,
};
/// The one table from our codes to the wire's.
WireError wire_error(ErrorCode code) noexcept;

inline constexpr std::size_t kRequestBytes = 28;
inline constexpr std::size_t kExtendedRequestBytes = 32;
inline constexpr std::size_t kSimpleReplyBytes = 16;
inline constexpr std::size_t kChunkHeaderBytes = 20;          ///< of a structured reply
inline constexpr std::size_t kExtendedChunkHeaderBytes = 32;  ///< of an extended reply

struct RequestHeader {
  std::uint32_t magic = 0;
  std::uint16_t flags = 0;
  std::uint16_t type = 0;  ///< a Command, or one that we do not know
  std::uint64_t cookie = 0;
  ByteOffset offset;
  /// Bytes: of the export that the request is about, or of the payload that follows where there is
  /// one (then the two are the same for WRITE, and the payload says the other for BLOCK_STATUS).
  std::uint64_t length = 0;
};
/// `bytes` holds at least a header of this kind.
RequestHeader decode_request(std::span<const std::byte> bytes, Headers headers);

/// The payload of a BLOCK_STATUS request.
struct BlockStatusPayload {
  std::uint64_t length = 0;        ///< bytes of the export that it is about
  std::vector<std::uint32_t> ids;  ///< of the contexts that are to be told
};
/// Nothing if the payload is not a length and at least one id.
std::optional<BlockStatusPayload> decode_block_status_payload(std::span<const std::byte> payload);

std::array<std::byte, kSimpleReplyBytes> encode_simple_reply(WireError error, std::uint64_t cookie);

inline constexpr std::uint16_t kChunkDone = 1 << 0;  ///< the last chunk of a reply

enum class ChunkType : std::uint16_t {
  kNone = 0,
  kOffsetData = 1,
  kOffsetHole = 2,
  kBlockStatus = 5,
  kBlockStatusExt = 6,  ///< extended headers only
  kError = 0x8001,
};

/// Appends the header of a chunk in reply to `request`. `length`: bytes of the chunk after this
/// header. `headers` is kStructured or kExtended.
void append_chunk_header(std::vector<std::byte>& out, Headers headers, ChunkType type, bool done,
                         const RequestHeader& request, std::uint32_t length);

}  // namespace snap::nbd
