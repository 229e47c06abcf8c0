// Extended headers (doc/proto.md of the branch extension-ext-header) and metadata contexts.
#include <catch2/catch.hpp>

#include "engine/nbd/memory_export.h"
#include "engine/nbd/test_client.h"
#include "snap/limits.h"

namespace snap::nbd {
namespace {

constexpr std::uint64_t kSize = std::uint64_t{1} << 40;
constexpr std::uint64_t kBeyond32 = (std::uint64_t{5} << 30) + 4096;
constexpr std::uint32_t kHole = kStateHole | kStateZero;

struct Fixture {
  FixedExports exports;
  std::shared_ptr<MemoryExport> disk = std::make_shared<MemoryExport>("disk", kSize);
  Fixture() {
    exports.add(disk);
    exports.add(std::make_shared<MemoryExport>("image", kSize, true));
  }
};

struct Status {
  std::uint32_t id = 0;
  std::vector<std::pair<std::uint64_t, std::uint64_t>> extents;  ///< length, flags
  bool operator==(const Status&) const = default;
};

Status decode_status(const Wire::Chunk& chunk) {
  REQUIRE((chunk.type == ChunkType::kBlockStatusExt) == chunk.extended);
  REQUIRE((chunk.type == ChunkType::kBlockStatus) == !chunk.extended);
  Decoder in(chunk.body);
  Status status;
  status.id = in.be<std::uint32_t>();
  if (chunk.extended) {
    const std::size_t count = in.be<std::uint32_t>();
    CHECK(chunk.body.size() == 8 + 16 * count);
  }
  while (in.remaining() != 0) {
    const std::uint64_t length = chunk.extended ? in.be<std::uint64_t>() : in.be<std::uint32_t>();
    const std::uint64_t flags = chunk.extended ? in.be<std::uint64_t>() : in.be<std::uint32_t>();
    status.extents.emplace_back(length, flags);
  }
  REQUIRE(in.ok());
  return status;
}

/// The chunks of a BLOCK_STATUS reply: one a context.
std::vector<Status> all_status(Wire& wire) {
  std::vector<Status> all;
  for (;;) {
    const auto chunk = wire.chunk();
    if (chunk.error != WireError::kNone) throw std::runtime_error("BLOCK_STATUS failed");
    all.push_back(decode_status(chunk));
    if (chunk.done) return all;
  }
}

Bytes status_payload(std::uint64_t length, std::vector<std::uint32_t> ids) {
  Bytes out;
  append_u64(out, length);
  for (const std::uint32_t id : ids)
    append_u32(out, id);
  return out;
}

TEST_CASE_METHOD(Fixture,
                 "checklist 9: EXTENDED_HEADERS: once, without data, and then nothing older") {
  ServedClient served(exports);
  Wire wire(served.client.get());
  wire.greet();
  wire.option(Option::kExtendedHeaders, text_bytes("x"));
  CHECK(wire.option_reply(Option::kExtendedHeaders).type == OptionReply::kErrInvalid);
  wire.option(Option::kStructuredReply);
  wire.must_ack(Option::kStructuredReply);
  wire.option(Option::kExtendedHeaders);
  wire.must_ack(Option::kExtendedHeaders);
  wire.option(Option::kExtendedHeaders);
  CHECK(wire.option_reply(Option::kExtendedHeaders).type == OptionReply::kErrInvalid);
  wire.option(Option::kStructuredReply);
  CHECK(wire.option_reply(Option::kStructuredReply).type ==
        OptionReply::kErrExtendedHeadersRequired);
  wire.option(Option::kInfo, Wire::info_data("disk"));
  const auto flags = load_be<std::uint16_t>(wire.option_replies(Option::kInfo)[0].data.data() + 10);
  CHECK((flags & kBlockStatusPayload) != 0);
  CHECK((flags & kSendDf) != 0);
  SECTION("EXPORT_NAME ends the connection") {
    wire.option(Option::kExportName, text_bytes("disk"));
    CHECK(wire.closed());
    CHECK_FALSE(served.outcome());
  }
  SECTION("GO goes on") {
    wire.option(Option::kGo, Wire::info_data("disk"));
    wire.must_ack(Option::kGo);
    wire.send(Wire::extended_bytes(Command::kFlush, 0, 77, 0, 0));
    const auto chunk = wire.chunk();
    CHECK(chunk.extended);
    CHECK(chunk.cookie == 77);
    CHECK(chunk.type == ChunkType::kNone);
  }
  SECTION("a compact request ends the connection") {
    wire.option(Option::kGo, Wire::info_data("disk"));
    wire.must_ack(Option::kGo);
    wire.send(Bytes(Wire::request_bytes(3, 0, 1, 0, 0)));
    wire.send(Bytes(4));
    CHECK(wire.closed());
    CHECK_FALSE(served.outcome());
  }
}

TEST_CASE_METHOD(Fixture, "checklist 9: the status payload flag is not offered before") {
  ServedClient served(exports);
  Wire wire(served.client.get());
  wire.greet();
  wire.option(Option::kStructuredReply);
  wire.must_ack(Option::kStructuredReply);
  wire.option(Option::kInfo, Wire::info_data("disk"));
  const auto flags = load_be<std::uint16_t>(wire.option_replies(Option::kInfo)[0].data.data() + 10);
  CHECK((flags & kBlockStatusPayload) == 0);
}

TEST_CASE_METHOD(Fixture,
                 "checklist 9: reads and writes carry offsets, and lengths beyond 4 GiB work") {
  ServedClient served(exports);
  Wire wire(served.client.get());
  wire.enter("disk", Headers::kExtended);
  const std::uint64_t at = kBeyond32;
  const Bytes data(70000, std::byte{7});
  wire.send(
      Wire::extended_bytes(Command::kWrite, kCmdPayloadLen | kCmdFua, 1, at, data.size(), data));
  auto chunk = wire.chunk();
  CHECK((chunk.error == WireError::kNone && chunk.offset == at && chunk.extended));

  wire.send(Wire::extended_bytes(Command::kRead, 0, 2, at - 100, 70100));
  ReadAssembly assembly(at - 100, 70100);
  do {
    chunk = wire.chunk();
    CHECK(chunk.offset == at - 100);
    CHECK(chunk.cookie == 2);
    assembly.add(chunk);
  } while (!chunk.done);
  CHECK(Bytes(assembly.data().begin() + 100, assembly.data().end()) == data);

  wire.send(Wire::extended_bytes(Command::kBlockStatus, 0, 3, 0, kSize));
  using Extents = decltype(Status::extents);
  // The written blocks whole.
  CHECK(all_status(wire)[0].extents ==
        Extents{{at, kHole}, {73728, 0}, {kSize - at - 73728, kHole}});
  wire.send(Wire::extended_bytes(Command::kBlockStatus, kCmdReqOne, 3, 0, kSize));
  CHECK(all_status(wire)[0].extents == Extents{{at, kHole}});

  for (const Command c : {Command::kTrim, Command::kWriteZeroes, Command::kCache}) {
    wire.send(Wire::extended_bytes(c, 0, 4, 4096, kSize - 4096));
    CHECK(wire.chunk().error == WireError::kNone);
  }
  wire.send(Wire::extended_bytes(Command::kBlockStatus, 0, 5, 0, kSize));
  CHECK(all_status(wire)[0].extents == Extents{{kSize, kHole}});
}

TEST_CASE_METHOD(Fixture, "checklist 12: CACHE reads ahead, for as long as its client is there") {
  disk->set_slow(true);
  ServedClient served(exports);
  Wire wire(served.client.get());
  wire.enter("disk", Headers::kExtended);
  wire.send(Wire::extended_bytes(Command::kCache, 0, 1, 4096, 100u << 20));
  CHECK(wire.chunk().error == WireError::kNone);
  CHECK(disk->prefetched() == 100u << 20);
  for (std::uint64_t cookie = 2; cookie < 100; ++cookie)
    wire.send(Wire::extended_bytes(Command::kCache, 0, cookie, 0, kSize));
  // A terabyte and more each.
  SECTION("a client that leaves") {
    served.client.reset();
  }
  SECTION("a server that shuts down") {
    served.drain();
  }
  CHECK(served.outcome());
  CHECK(disk->prefetched() < kSize);
}

TEST_CASE_METHOD(Fixture, "checklist 9: a range that wraps or ends beyond is refused") {
  ServedClient served(exports);
  Wire wire(served.client.get());
  wire.enter("disk", Headers::kExtended);
  const std::uint64_t all = ~std::uint64_t{0};
  const auto error = [&](Command command, std::uint64_t offset, std::uint64_t length) {
    wire.send(Wire::extended_bytes(command, 0, 1, offset, length));
    const auto chunk = wire.chunk();
    CHECK(chunk.extended);
    CHECK(chunk.offset == offset);
    return chunk.error;
  };
  CHECK(error(Command::kTrim, 0, kSize + 1) == WireError::kInval);
  CHECK(error(Command::kTrim, 4096, all) == WireError::kInval);
  CHECK(error(Command::kTrim, all, all) == WireError::kInval);
  CHECK(error(Command::kWriteZeroes, all - 4095, 4096) == WireError::kNoSpace);
  CHECK(error(Command::kWriteZeroes, 4096, all - 4095) == WireError::kNoSpace);
  CHECK(error(Command::kBlockStatus, 4096, all) == WireError::kInval);
  CHECK(error(Command::kCache, 0, all) == WireError::kInval);
  CHECK(error(Command::kRead, 0, kMaxNbdPayload + 1) == WireError::kInval);
  CHECK(error(Command::kRead, 0, kSize) == WireError::kInval);
  CHECK(error(Command::kFlush, 0, 1) == WireError::kInval);
}

TEST_CASE_METHOD(Fixture, "checklist 9: a payload follows exactly where its flag says so") {
  ServedClient served(exports);
  Wire wire(served.client.get());
  wire.enter("disk", Headers::kExtended);
  // A WRITE without the flag has none.
  wire.send(Wire::extended_bytes(Command::kWrite, 0, 1, 0, 4096));
  CHECK(wire.chunk().error == WireError::kInval);
  // On a command that takes none it is consumed, and the command refused.
  for (const Command c : {Command::kRead, Command::kTrim, Command::kWriteZeroes, Command::kCache,
                          Command::kFlush, Command{99}}) {
    wire.send(Wire::extended_bytes(c, kCmdPayloadLen, 2, 0, 5000, Bytes(5000, std::byte{0x42})));
    CHECK(wire.chunk().error == WireError::kInval);
  }
  wire.send(Wire::extended_bytes(Command::kFlush, 0, 9, 0, 0));
  CHECK(wire.chunk().cookie == 9);
  // The largest is taken, one byte more ends the connection.
  wire.send(Wire::extended_bytes(Command::kWrite, kCmdPayloadLen, 3, 0, kMaxNbdPayload,
                                 Bytes(kMaxNbdPayload, std::byte{1})));
  CHECK(wire.chunk().error == WireError::kNone);
  SECTION("one more") {
    wire.send(Wire::extended_bytes(Command::kWrite, kCmdPayloadLen, 4, 0, kMaxNbdPayload + 1));
  }
  SECTION("64 bits of it") {
    wire.send(Wire::extended_bytes(Command::kTrim, kCmdPayloadLen, 4, 0, ~std::uint64_t{0}));
  }
  CHECK(wire.closed());
  CHECK_FALSE(served.outcome());
}

TEST_CASE_METHOD(Fixture,
                 "checklist 9: a flag for payloads means nothing without extended headers") {
  ServedClient served(exports);
  Wire wire(served.client.get());
  wire.enter("disk");
  wire.request(Command::kWrite, 1, 0, 512, kCmdPayloadLen, Bytes(512));
  CHECK(wire.chunk().error == WireError::kInval);
  wire.request(Command::kBlockStatus, 1, 0, 12, kCmdPayloadLen);
  CHECK(wire.chunk().error == WireError::kInval);
}

TEST_CASE_METHOD(Fixture, "checklist 10: three contexts are told, each in a chunk of its own") {
  const Headers headers = GENERATE(Headers::kStructured, Headers::kExtended);
  ServedClient served(exports);
  Wire wire(served.client.get());
  wire.enter("disk", headers, {"base:allocation", "snap:delta", "qemu:allocation-depth"});
  const auto ask = [&](std::uint16_t flags) {
    if (headers == Headers::kExtended) {
      wire.send(Wire::extended_bytes(Command::kBlockStatus, flags, 1, 0, 1u << 20));
    } else {
      wire.request(Command::kBlockStatus, 1, 0, 1u << 20, flags);
    }
    return all_status(wire);
  };
  if (headers == Headers::kExtended) {
    wire.send(Wire::extended_bytes(Command::kWrite, kCmdPayloadLen, 1, 8192, 4096, Bytes(4096)));
  } else {
    wire.request(Command::kWrite, 1, 8192, 4096, 0, Bytes(4096));
  }
  CHECK(wire.chunk().error == WireError::kNone);
  const std::uint64_t rest = (1u << 20) - 12288;
  CHECK(ask(0) == std::vector<Status>{{1, {{8192, kHole}, {4096, 0}, {rest, kHole}}},
                                      {2, {{8192, 0}, {4096, 1}, {rest, 0}}},
                                      {3, {{8192, 0}, {4096, 1}, {rest, 0}}}});
  CHECK(ask(kCmdReqOne) ==
        std::vector<Status>{{1, {{8192, kHole}}}, {2, {{8192, 0}}}, {3, {{8192, 0}}}});
}

TEST_CASE_METHOD(Fixture, "checklist 9: a BLOCK_STATUS payload chooses among the contexts") {
  ServedClient served(exports);
  Wire wire(served.client.get());
  wire.enter("disk", Headers::kExtended, {"base:allocation", "snap:delta"});
  const auto ask = [&](std::uint64_t offset, const Bytes& payload) {
    wire.send(Wire::extended_bytes(Command::kBlockStatus, kCmdPayloadLen, 1, offset, payload.size(),
                                   payload));
  };
  ask(4096, status_payload(kSize - 4096, {3}));
  CHECK(all_status(wire) == std::vector<Status>{{3, {{kSize - 4096, 0}}}});
  ask(0, status_payload(kSize, {3, 1}));
  CHECK(all_status(wire).size() == 2);
  const std::vector<Bytes> wrong = {
      Bytes(),                         // nothing
      Bytes(7),                        // not even a length
      status_payload(4096, {}),        // no id
      Bytes(13),                       // half an id
      status_payload(4096, {2}),       // not chosen in the handshake
      status_payload(4096, {0}),       // no such id
      status_payload(4096, {77}),      //
      status_payload(4096, {1, 1}),    // twice
      status_payload(0, {1}),          // no bytes
      status_payload(kSize + 1, {1}),  // beyond the end
      status_payload(~std::uint64_t{0}, {1}),
      status_payload(4096, {1, 1, 1, 1}),  // longer than any right one
      Bytes(1u << 20),
  };
  for (const Bytes& payload : wrong) {
    INFO("payload of " << payload.size());
    ask(0, payload);
    CHECK(wire.chunk().error == WireError::kInval);
  }
  ask(kSize, status_payload(1, {1}));
  CHECK(wire.chunk().error == WireError::kInval);
}

}  // namespace
}  // namespace snap::nbd
