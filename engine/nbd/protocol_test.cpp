#include "engine/nbd/protocol.h"

#include <catch2/catch.hpp>
#include <set>

#include "engine/nbd/request.h"
#include "snap/limits.h"

namespace snap::nbd {
namespace {

std::vector<std::byte> bytes(std::initializer_list<unsigned> values) {
  std::vector<std::byte> out;
  for (const unsigned v : values)
    out.push_back(static_cast<std::byte>(v));
  return out;
}

TEST_CASE("a request is decoded field by field, big-endian") {
  const auto wire = bytes({0x25, 0x60, 0x95, 0x13, 0x00, 0x11, 0x00, 0x06, 1, 2, 3, 4, 5, 6,
                           7,    8,    0,    0,    0,    1,    0,    0,    0, 2, 0, 1, 0, 0});
  const RequestHeader h = decode_request(wire, Headers::kStructured);
  CHECK(h.magic == kRequestMagic);
  CHECK(h.flags == (kCmdFua | kCmdFastZero));
  CHECK(h.type == static_cast<std::uint16_t>(Command::kWriteZeroes));
  CHECK(h.cookie == 0x0102030405060708);
  CHECK(h.offset == ByteOffset(0x100000002));
  CHECK(h.length == 65536);
}

TEST_CASE("replies are encoded as the protocol document has them") {
  const auto simple = encode_simple_reply(WireError::kNoSpace, 0x0102030405060708);
  CHECK(std::vector(simple.begin(), simple.end()) ==
        bytes({0x67, 0x44, 0x66, 0x98, 0, 0, 0, 28, 1, 2, 3, 4, 5, 6, 7, 8}));
  RequestHeader request;
  request.cookie = 0x0102030405060708;
  request.offset = ByteOffset(0x1112131415161718);
  std::vector<std::byte> chunk;
  append_chunk_header(chunk, Headers::kStructured, ChunkType::kOffsetHole, true, request, 12);
  CHECK(chunk == bytes({0x66, 0x8e, 0x33, 0xef, 0, 1, 0, 2, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 12}));
  chunk.clear();
  append_chunk_header(chunk, Headers::kExtended, ChunkType::kBlockStatusExt, false, request, 12);
  CHECK(chunk == bytes({0x6e, 0x8a, 0x27, 0x8c, 0,    0,    0,    6,    1, 2, 3, 4, 5, 6, 7, 8,
                        0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18, 0, 0, 0, 0, 0, 0, 0, 12}));
}

TEST_CASE("an extended request header is decoded as the protocol document has it") {
  const auto wire = bytes({0x21, 0xe4, 0x1c, 0x71, 0, 0x20, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8,
                           0,    0,    0,    1,    0, 0,    0, 2, 0, 0, 0, 9, 0, 0, 0, 5});
  const RequestHeader h = decode_request(wire, Headers::kExtended);
  CHECK(h.magic == kExtendedRequestMagic);
  CHECK(h.flags == kCmdPayloadLen);
  CHECK(h.type == static_cast<std::uint16_t>(Command::kWrite));
  CHECK(h.cookie == 0x0102030405060708);
  CHECK(h.offset == ByteOffset(0x100000002));
  CHECK(h.length == 0x900000005);
}

TEST_CASE("CVE-2022-26496: an option whose inner lengths do not add up is no option") {
  const auto good = bytes({0, 0, 0, 2, 'a', 'b', 0, 1, 0, 3});
  REQUIRE(decode_info_request(good));
  CHECK(decode_info_request(good)->name == "ab");
  CHECK(decode_info_request(good)->infos == std::vector<std::uint16_t>{3});
  for (std::size_t cut = 0; cut < good.size(); ++cut)
    CHECK_FALSE(decode_info_request(std::span(good).first(cut)));
  auto longer = good;
  longer.push_back(std::byte{0});
  CHECK_FALSE(decode_info_request(longer));
  CHECK_FALSE(decode_info_request(bytes({0xff, 0xff, 0xff, 0xff, 'a', 'b', 0, 0})));

  const auto contexts = bytes({0, 0, 0, 1, 'v', 0, 0, 0, 2, 0, 0, 0, 1, 'x', 0, 0, 0, 0});
  REQUIRE(decode_meta_context_request(contexts));
  CHECK(decode_meta_context_request(contexts)->queries ==
        std::vector<std::string_view>{"x", std::string_view()});
  for (std::size_t cut = 0; cut < contexts.size(); ++cut)
    CHECK_FALSE(decode_meta_context_request(std::span(contexts).first(cut)));
  // A count that would take 16 GiB of memory if it were believed.
  CHECK_FALSE(decode_meta_context_request(bytes({0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff})));
}

TEST_CASE("checklist 21: every error code has a wire error of the protocol's eight") {
  const std::set<WireError> allowed = {
      WireError::kPerm,    WireError::kIo,       WireError::kNoMem,  WireError::kInval,
      WireError::kNoSpace, WireError::kOverflow, WireError::kNotSup, WireError::kShutdown};
  for (int code = 0; code <= static_cast<int>(ErrorCode::kProtocol); ++code)
    CHECK(allowed.count(wire_error(static_cast<ErrorCode>(code))) == 1);
  CHECK(wire_error(ErrorCode::kNoSpace) == WireError::kNoSpace);
  CHECK(wire_error(ErrorCode::kReadOnly) == WireError::kPerm);
  CHECK(wire_error(ErrorCode::kUnsupported) == WireError::kNotSup);
  CHECK(wire_error(ErrorCode::kCorrupt) == WireError::kIo);
  CHECK(wire_error(ErrorCode::kOutOfMemory) == WireError::kNoMem);
}

// ---- The rules for request headers

RequestHeader header(Command command, std::uint64_t offset, std::uint32_t length,
                     std::uint16_t flags = 0) {
  RequestHeader h;
  h.magic = kRequestMagic;
  h.type = static_cast<std::uint16_t>(command);
  h.flags = flags;
  h.offset = ByteOffset(offset);
  h.length = length;
  return h;
}

RequestRules rules_of(std::uint64_t size) {
  RequestRules rules;
  rules.size = size;
  rules.headers = Headers::kStructured;
  rules.has_contexts = true;
  return rules;
}

TEST_CASE(
    "checklist 14: a range that ends beyond the export is refused, also where offset + length "
    "wraps") {
  const RequestRules rules = rules_of(1u << 20);
  const std::uint64_t wrap = ~std::uint64_t{0} - 4095;
  for (const std::uint64_t offset :
       {std::uint64_t{(1u << 20) - 4095}, std::uint64_t{1u << 20} + 1, wrap}) {
    for (const Command c : {Command::kRead, Command::kTrim, Command::kCache, Command::kBlockStatus})
      CHECK(check_request(header(c, offset, 4096), rules).error == WireError::kInval);
    for (const Command c : {Command::kWrite, Command::kWriteZeroes})
      CHECK(check_request(header(c, offset, 4096), rules).error == WireError::kNoSpace);
  }
  CHECK(check_request(header(Command::kRead, (1u << 20) - 4096, 4096), rules).error ==
        WireError::kNone);
  CHECK(check_request(header(Command::kRead, 1u << 20, 0), rules).error == WireError::kNone);
  CHECK(check_request(header(Command::kTrim, 0, 0xffffffff), rules).error == WireError::kInval);
}

TEST_CASE(
    "checklist 13: FUA is taken on every command, other flags only where they mean something") {
  const RequestRules rules = rules_of(1u << 20);
  const Command all[] = {Command::kRead,  Command::kWrite,       Command::kTrim,
                         Command::kCache, Command::kWriteZeroes, Command::kBlockStatus};
  for (const Command c : all) {
    CHECK(check_request(header(c, 0, 512, kCmdFua), rules).error == WireError::kNone);
    CHECK(check_request(header(c, 0, 512, 1 << 9), rules).error == WireError::kInval);
    const bool zeroes = c == Command::kWriteZeroes;
    for (const std::uint16_t flag : {kCmdNoHole, kCmdFastZero})
      CHECK((check_request(header(c, 0, 512, flag), rules).error == WireError::kNone) == zeroes);
    CHECK((check_request(header(c, 0, 512, kCmdDf), rules).error == WireError::kNone) ==
          (c == Command::kRead));
    CHECK((check_request(header(c, 0, 512, kCmdReqOne), rules).error == WireError::kNone) ==
          (c == Command::kBlockStatus));
  }
  CHECK(check_request(header(Command::kFlush, 0, 0, kCmdFua), rules).error == WireError::kNone);
  RequestRules simple = rules;
  simple.headers = Headers::kSimple;
  CHECK(check_request(header(Command::kRead, 0, 512, kCmdDf), simple).error == WireError::kInval);
}

TEST_CASE("checklist 15: payloads of 32 MiB are taken, larger ones end the connection") {
  const RequestRules rules = rules_of(std::uint64_t{1} << 40);
  CHECK_FALSE(check_request(header(Command::kWrite, 0, kMaxNbdPayload), rules).fatal);
  CHECK(check_request(header(Command::kWrite, 0, kMaxNbdPayload + 1), rules).fatal);
  CHECK(check_request(header(Command::kWrite, 0, 0xffffffff), rules).fatal);
  CHECK(check_request(header(Command::kRead, 0, kMaxNbdPayload + 1), rules).error ==
        WireError::kInval);
  CHECK(check_request(header(Command::kTrim, 0, 0xffffffff), rules).error == WireError::kNone);
}

TEST_CASE("a server without memory refuses everything but the good-bye") {
  RequestRules rules = rules_of(1u << 20);
  rules.no_memory = true;
  const Verdict write = check_request(header(Command::kWrite, 0, 512), rules);
  CHECK(write.error == WireError::kNoMem);
  CHECK(write.payload == 512);
  CHECK(check_request(header(Command::kFlush, 0, 0), rules).error == WireError::kNoMem);
  CHECK(check_request(header(Command::kDisconnect, 0, 0), rules).disconnect);
}

TEST_CASE("checklist 21: a server that shuts down refuses everything but the good-bye") {
  RequestRules rules = rules_of(1u << 20);
  rules.draining = true;
  const Verdict write = check_request(header(Command::kWrite, 0, 512), rules);
  CHECK(write.error == WireError::kShutdown);
  CHECK(write.payload == 512);
  CHECK(check_request(header(Command::kFlush, 0, 0), rules).error == WireError::kShutdown);
  CHECK(check_request(header(Command::kDisconnect, 0, 0), rules).disconnect);
}

}  // namespace
}  // namespace snap::nbd
