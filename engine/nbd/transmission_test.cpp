// Requests and replies over a socketpair: what honest clients ask, and what others send.
#include "engine/nbd/test_client.h"

#include <catch2/catch.hpp>
#include <numeric>
#include <set>

#include "engine/nbd/memory_budget.h"
#include "engine/nbd/memory_export.h"

namespace snap::nbd {
namespace {

constexpr std::uint32_t kSize = 1u << 20;

struct Fixture {
  FixedExports exports;
  std::shared_ptr<MemoryExport> disk = std::make_shared<MemoryExport>("disk", kSize);
  Fixture() {
    exports.add(disk);
    exports.add(std::make_shared<MemoryExport>("image", kSize, true));
  }
};

Bytes pattern(std::size_t n, unsigned seed) {
  Bytes out(n);
  for (std::size_t i = 0; i < n; ++i)
    out[i] = static_cast<std::byte>((i * 7 + seed) % 251 + 1);  // never zero
  return out;
}

/// A structured READ.
ReadAssembly read_all(Wire& wire, std::uint64_t offset, std::uint32_t length,
                      std::uint16_t flags = 0) {
  wire.request(Command::kRead, 4242, offset, length, flags);
  ReadAssembly assembly(offset, length);
  for (;;) {
    const auto chunk = wire.chunk();
    if (chunk.cookie != 4242 || chunk.error != WireError::kNone)
      throw std::runtime_error("READ failed");
    assembly.add(chunk);
    if (chunk.done) return assembly;
  }
}

TEST_CASE_METHOD(Fixture, "what is written is read back, with simple and with structured replies") {
  const auto kind = GENERATE(LoopOptions::Kind::kAuto, LoopOptions::Kind::kThreads);
  const bool structured = GENERATE(false, true);
  disk->set_quick(GENERATE(false, true));
  ServedClient served(exports, {}, kind);
  Wire wire(served.client.get());
  wire.enter("disk", structured);
  // Sizes around block, receive-in-place and buffer limits, at odd offsets.
  for (const std::uint32_t size : {1u, 511u, 4096u, 32767u, 32768u, 262144u, 300000u, 700000u}) {
    const Bytes data = pattern(size, size);
    wire.request(Command::kWrite, size, 13, size, 0, data);
    const auto written = wire.chunk();
    CHECK(written.cookie == size);
    CHECK(written.error == WireError::kNone);
    if (structured) {
      CHECK(read_all(wire, 13, size).data() == data);
    } else {
      wire.request(Command::kRead, 1, 13, size);
      CHECK(wire.chunk().error == WireError::kNone);
      CHECK(wire.receive(size) == data);
    }
  }
}

TEST_CASE_METHOD(Fixture, "a write with FUA is not done at once, nor is what is refused") {
  const bool structured = GENERATE(false, true);
  disk->set_quick(true);
  ServedClient served(exports);
  Wire wire(served.client.get());
  wire.enter("disk", structured);
  const Bytes data = pattern(4096, 1);
  const auto answer = [&](Command command, std::uint64_t at, std::uint16_t flags = 0) {
    const bool writes = command == Command::kWrite;
    const std::size_t payload = writes ? data.size() : 0;
    wire.request(command, 9, at, 4096, flags, std::span(data).first(payload));
    const auto chunk = wire.chunk();
    if (command == Command::kRead && !structured && chunk.error == WireError::kNone)
      CHECK(wire.receive(4096) == data);
    return chunk.error;
  };
  CHECK(answer(Command::kWrite, 0) == WireError::kNone);
  CHECK(answer(Command::kRead, 0) == WireError::kNone);
  CHECK(disk->done_at_once() == 2);
  CHECK(answer(Command::kWrite, 4096, kCmdFua) == WireError::kNone);
  CHECK(disk->fua_writes() == 1);
  CHECK(answer(Command::kWrite, kSize) == WireError::kNoSpace);
  CHECK(answer(Command::kRead, kSize) == WireError::kInval);
  disk->set_fault(Error(ErrorCode::kIo, "the test says so"));
  CHECK(disk->done_at_once() == 2);
  CHECK(answer(Command::kWrite, 0) == WireError::kIo);
  CHECK(disk->done_at_once() == 3);
  CHECK(answer(Command::kRead, 0) == WireError::kIo);
  CHECK(disk->done_at_once() == 3);
}

TEST_CASE_METHOD(Fixture, "checklist 17: holes are told as holes, and DF brings one chunk") {
  ServedClient served(exports);
  Wire wire(served.client.get());
  wire.enter("disk");
  const Bytes data = pattern(65536, 1);
  wire.request(Command::kWrite, 1, 131072, 65536, 0, data);
  wire.chunk();
  const ReadAssembly some = read_all(wire, 100, 500000);
  CHECK(some.chunks() == 3);
  CHECK(some.hole_bytes() == 500000 - 65536);
  const ReadAssembly whole = read_all(wire, 100, 500000, kCmdDf);
  CHECK(whole.chunks() == 1);
  CHECK(whole.hole_bytes() == 0);
  CHECK(some.data() == whole.data());
  CHECK(Bytes(whole.data().begin() + 131072 - 100, whole.data().begin() + 131072 - 100 + 65536) ==
        data);
  CHECK(read_all(wire, 300000, 4096).hole_bytes() == 4096);
}

TEST_CASE_METHOD(Fixture, "checklist 15: requests of no bytes succeed") {
  for (const bool structured : {false, true}) {
    ServedClient served(exports);
    Wire wire(served.client.get());
    wire.enter("disk", structured);
    for (const Command c : {Command::kRead, Command::kWrite, Command::kTrim, Command::kWriteZeroes,
                            Command::kCache}) {
      wire.request(c, 8, kSize, 0);
      const auto chunk = wire.chunk();
      CHECK(chunk.cookie == 8);
      CHECK(chunk.error == WireError::kNone);
      CHECK(chunk.done);
      CHECK(chunk.structured == (structured && c == Command::kRead));
    }
  }
}

TEST_CASE_METHOD(Fixture,
                 "checklist 13: refused requests get their error, and the connection lives on") {
  const bool structured = GENERATE(false, true);
  ServedClient served(exports);
  Wire wire(served.client.get());
  wire.enter("disk", structured);
  std::uint64_t cookie = 100;
  const auto expect = [&](WireError error) {
    const auto chunk = wire.chunk();
    CHECK(chunk.cookie == cookie++);
    CHECK(chunk.error == error);
    CHECK(chunk.structured == structured);
    if (!chunk.structured) return;
    CHECK(chunk.done);
    // errno, length of the words, words
    CHECK(load_be<std::uint16_t>(chunk.body.data() + 4) + 6u == chunk.body.size());
  };
  wire.send(Wire::request_bytes(99, 0, cookie, 0, 4096));  // unknown command
  expect(WireError::kInval);
  wire.send(Wire::request_bytes(0, 0x8000, cookie, 0, 4096));  // unknown flag
  expect(WireError::kInval);
  wire.request(Command::kRead, cookie, kSize - 1, 2);
  expect(WireError::kInval);
  wire.request(Command::kRead, cookie, ~std::uint64_t{0} - 100, 200);
  expect(WireError::kInval);
  wire.request(Command::kWrite, cookie, kSize - 1, 2, 0, Bytes(2));
  expect(WireError::kNoSpace);
  wire.request(Command::kWrite, cookie, ~std::uint64_t{0}, 300000, 0, pattern(300000, 3));
  expect(WireError::kNoSpace);
  wire.request(Command::kWriteZeroes, cookie, 0, 0xffffffff);
  expect(WireError::kNoSpace);
  wire.request(Command::kBlockStatus, cookie, 0, 0xffffffff);
  expect(WireError::kInval);
  wire.request(Command::kBlockStatus, cookie, 0, 0);
  expect(WireError::kInval);
  wire.request(Command::kFlush, cookie, 1, 0);
  expect(WireError::kInval);
  wire.request(Command::kFlush, 7, 0, 0);
  CHECK(wire.chunk().cookie == 7);
}

TEST_CASE_METHOD(
    Fixture, "checklist 16: a read-only export takes no change, and its payloads are consumed") {
  ServedClient served(exports);
  Wire wire(served.client.get());
  wire.enter("image");
  wire.request(Command::kWrite, 1, 0, 300000, 0, pattern(300000, 1));
  CHECK(wire.chunk().error == WireError::kPerm);
  wire.request(Command::kTrim, 2, 0, 4096);
  CHECK(wire.chunk().error == WireError::kPerm);
  wire.request(Command::kWriteZeroes, 3, 0, 4096);
  CHECK(wire.chunk().error == WireError::kPerm);
  wire.request(Command::kFlush, 4, 0, 0);
  CHECK(wire.chunk().error == WireError::kNone);
  CHECK(read_all(wire, 0, 4096).data() == Bytes(4096));
}

TEST_CASE_METHOD(Fixture,
                 "checklist 11: what breaks the stream ends the connection, with a reason") {
  ServedClient served(exports);
  Wire wire(served.client.get());
  wire.enter("disk");
  SECTION("a bad magic") {
    wire.send(Wire::request_bytes(0, 0, 1, 0, 512, 0x25609514));
  }
  SECTION("a reply's magic") {
    wire.send(Wire::request_bytes(0, 0, 1, 0, 512, 0x67446698));
  }
  SECTION("a payload beyond 32 MiB") {
    wire.send(Wire::request_bytes(1, 0, 1, 0, (32u << 20) + 1));
  }
  SECTION("a payload of 4 GiB") {
    wire.send(Wire::request_bytes(1, 0, 1, 0, 0xffffffff));
  }
  CHECK(wire.closed());
  auto outcome = served.outcome();
  REQUIRE_FALSE(outcome);
  CHECK(outcome.error().code() == ErrorCode::kProtocol);
}

TEST_CASE_METHOD(Fixture, "a client that hangs up inside a request is reported, between them not") {
  const Bytes write = [] {
    Bytes out = Wire::request_bytes(1, 0, 1, 0, 100);
    out.resize(out.size() + 100);
    return out;
  }();
  for (std::size_t cut = 0; cut <= write.size(); ++cut) {
    ServedClient served(exports, {}, LoopOptions::Kind::kThreads);
    Wire wire(served.client.get());
    wire.enter("disk");
    wire.send(std::span(write).first(cut));
    ::shutdown(served.client.get(), SHUT_WR);
    INFO("cut at byte " << cut);
    CHECK(served.outcome().has_value() == (cut == 0 || cut == write.size()));
  }
}

TEST_CASE_METHOD(
    Fixture,
    "checklist 21: replies to what was in flight come before the end: DISC and half-close") {
  const bool disc = GENERATE(true, false);
  disk->set_slow(true);
  ServedClient served(exports);
  Wire wire(served.client.get());
  wire.enter("disk", false);
  for (std::uint64_t i = 0; i < 50; ++i)
    wire.request(Command::kTrim, i, 0, 4096);
  if (disc) {
    wire.request(Command::kDisconnect, 0, 0, 0);
  } else {
    ::shutdown(served.client.get(), SHUT_WR);
  }
  std::set<std::uint64_t> cookies;
  for (int i = 0; i < 50; ++i)
    cookies.insert(wire.chunk().cookie);
  CHECK(cookies.size() == 50);
  CHECK(wire.closed());
  CHECK(served.outcome());
}

TEST_CASE_METHOD(
    Fixture, "checklist 19, 20: FUA and FLUSH reach the export, and flags of WRITE_ZEROES hold") {
  ServedClient served(exports);
  Wire wire(served.client.get());
  wire.enter("disk");
  wire.request(Command::kWrite, 1, 0, 4096, kCmdFua, pattern(4096, 1));
  CHECK(wire.chunk().error == WireError::kNone);
  wire.request(Command::kTrim, 1, 8192, 4096, kCmdFua);
  CHECK(wire.chunk().error == WireError::kNone);
  wire.request(Command::kWriteZeroes, 1, 8192, 4096, kCmdFua | kCmdNoHole);
  CHECK(wire.chunk().error == WireError::kNone);
  CHECK(disk->fua_writes() == 3);
  wire.request(Command::kFlush, 1, 0, 0);
  CHECK(wire.chunk().error == WireError::kNone);
  CHECK(disk->flushes() == 1);
  wire.request(Command::kWriteZeroes, 1, 100, 100, kCmdFastZero);
  CHECK(wire.chunk().error == WireError::kNotSup);
  CHECK(read_all(wire, 0, 4096).data() == pattern(4096, 1));  // unchanged
  // An offset that its own length does not divide, with a whole block in front.
  wire.request(Command::kWrite, 1, 8192, 6144, 0, pattern(6144, 2));
  CHECK(wire.chunk().error == WireError::kNone);
  wire.request(Command::kWriteZeroes, 1, 8192, 6144, kCmdFastZero);
  CHECK(wire.chunk().error == WireError::kNotSup);
  CHECK(read_all(wire, 8192, 6144).data() == pattern(6144, 2));
  wire.request(Command::kWriteZeroes, 1, 0, 4096, kCmdFastZero);
  CHECK(wire.chunk().error == WireError::kNone);
  CHECK(read_all(wire, 0, 4096).data() == Bytes(4096));
}

TEST_CASE_METHOD(Fixture, "checklist 17: errors of the export become errors of the protocol") {
  ServedClient served(exports);
  Wire wire(served.client.get());
  wire.enter("disk");
  disk->set_fault(Error(ErrorCode::kNoSpace, "the disk is full"));
  wire.request(Command::kWrite, 1, 0, 512, 0, Bytes(512));
  const auto chunk = wire.chunk();
  CHECK(chunk.error == WireError::kNoSpace);
  CHECK(Bytes(chunk.body.begin() + 6, chunk.body.end()) == text_bytes("the disk is full"));
  disk->set_fault(Error(ErrorCode::kCorrupt, "damaged"));
  for (const Command c : {Command::kRead, Command::kFlush, Command::kTrim, Command::kWriteZeroes,
                          Command::kCache, Command::kBlockStatus}) {
    wire.request(c, 2, 0, c == Command::kFlush ? 0 : 512);
    CHECK(wire.chunk().error == WireError::kIo);
  }
  disk->set_fault({});
  CHECK(read_all(wire, 0, 512).data() == Bytes(512));
}

struct Status {
  std::uint32_t length;
  std::uint32_t flags;
  bool operator==(const Status&) const = default;
};
std::vector<Status> block_status(Wire& wire, std::uint64_t offset, std::uint32_t length,
                                 std::uint16_t flags = 0) {
  wire.request(Command::kBlockStatus, 3, offset, length, flags);
  const auto chunk = wire.chunk();
  if (chunk.type != ChunkType::kBlockStatus || !chunk.done) throw std::runtime_error("status");
  Decoder in(chunk.body);
  CHECK(in.be<std::uint32_t>() == wire_id(MetaContext::kBaseAllocation));
  std::vector<Status> out;
  while (in.remaining() != 0) {
    const auto extent = in.be<std::uint32_t>();
    out.push_back({extent, in.be<std::uint32_t>()});
  }
  return out;
}

TEST_CASE_METHOD(
    Fixture, "checklist 18: BLOCK_STATUS tells data and holes, and one extent if asked for one") {
  ServedClient served(exports);
  Wire wire(served.client.get());
  wire.enter("disk");
  wire.request(Command::kWrite, 1, 8192, 8192, 0, pattern(8192, 1));
  wire.chunk();
  const std::uint32_t hole = kStateHole | kStateZero;
  using All = std::vector<Status>;
  CHECK(block_status(wire, 0, kSize) == All{{8192, hole}, {8192, 0}, {kSize - 16384, hole}});
  CHECK(block_status(wire, 0, kSize, kCmdReqOne) == All{{8192, hole}});
  CHECK(block_status(wire, 9000, 100) == All{{100, 0}});
  CHECK(block_status(wire, kSize - 1, 1) == All{{1, hole}});
}

TEST_CASE_METHOD(Fixture, "a client that does not read stops only itself, in bounded memory") {
  // With room for 8 requests, 1,000 are sent and nothing is read; others are served meanwhile.
  ConnectionLimits limits;
  limits.requests = 8;
  limits.bytes = 1u << 20;
  ServedClient stuck(exports, limits);
  Wire stuck_wire(stuck.client.get());
  stuck_wire.enter("disk", false);
  const Bytes read = Wire::request_bytes(0, 0, 1, 0, 262144);
  for (int i = 0; i < 1000; ++i)
    ::send(stuck.client.get(), read.data(), read.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
  ServedClient other(exports);
  Wire wire(other.client.get());
  wire.enter("disk");
  for (int i = 0; i < 100; ++i)
    CHECK(read_all(wire, 0, 4096).data() == Bytes(4096));
  // It hangs up with everything queued: its requests end, and so does its connection.
  stuck.client.reset();
  (void)stuck.outcome();
}

TEST_CASE_METHOD(Fixture,
                 "limits: clients that take all memory and never read leave others their share") {
  // Two clients that do not read hold the whole budget; a third is served within its share, its
  // larger request waits and then gets ENOMEM, payload and all; when they go there is room again.
  MemoryBudget budget(2u << 20);
  ConnectionLimits limits;
  limits.budget = &budget;
  limits.memory_patience = std::chrono::milliseconds(50);
  std::vector<std::unique_ptr<ServedClient>> stuck;
  for (int i = 0; i < 2; ++i) {
    stuck.push_back(std::make_unique<ServedClient>(exports, limits));
    Wire wire(stuck.back()->client.get());
    wire.enter("disk", false);
    for (int n = 0; n < 16; ++n)
      wire.request(Command::kRead, 1, 0, 512u << 10);
  }
  while (budget.claim(512u << 10)) {  // until they have got all of it
    budget.release(512u << 10);
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  CHECK(budget.scarce());
  ServedClient other(exports, limits);
  Wire wire(other.client.get());
  wire.enter("disk", false);
  for (int i = 0; i < 20; ++i) {
    wire.request(Command::kRead, 2, 0, 256u << 10);
    CHECK(wire.chunk().error == WireError::kNone);
    wire.receive(256u << 10);
  }
  const std::uint32_t large = kSize;
  wire.request(Command::kWrite, 3, 0, large, 0, pattern(large, 9));
  CHECK(wire.chunk().error == WireError::kNone);  // exactly its share
  stuck.clear();
  wire.request(Command::kRead, 4, 0, large);
  CHECK(wire.chunk().error == WireError::kNone);
  CHECK(wire.receive(large) == pattern(large, 9));
}

TEST_CASE("limits: a request that gets no memory gets ENOMEM, and its payload is consumed") {
  FixedExports big;
  big.add(std::make_shared<MemoryExport>("disk", 8u << 20));
  MemoryBudget budget(64u << 10);
  ConnectionLimits limits;
  limits.budget = &budget;
  limits.memory_patience = std::chrono::milliseconds(20);
  ServedClient served(big, limits);
  Wire wire(served.client.get());
  wire.enter("disk");
  for (const Command c : {Command::kWrite, Command::kRead}) {
    const Bytes payload = c == Command::kWrite ? pattern(4u << 20, 1) : Bytes();
    wire.request(c, 1, 0, 4u << 20, 0, payload);
    CHECK(wire.chunk().error == WireError::kNoMem);
  }
  wire.request(Command::kFlush, 7, 0, 0);
  CHECK(wire.chunk().cookie == 7);
  // What is kept unused makes way for another size.
  wire.request(Command::kWrite, 2, 0, 1u << 20, 0, pattern(1u << 20, 2));
  CHECK(wire.chunk().error == WireError::kNone);
  wire.request(Command::kWrite, 2, 0, 300000, 0, pattern(300000, 2));
  CHECK(wire.chunk().error == WireError::kNone);
}

TEST_CASE("limits: an account asks its budget only for what goes beyond its share") {
  MemoryBudget budget(100);
  {
    MemoryAccount a(&budget, 50);
    MemoryAccount b(&budget, 50);
    CHECK(a.add(150));      // at the limit
    CHECK_FALSE(a.add(1));  // one beyond
    CHECK(a.scarce());
    CHECK(b.add(50));
    CHECK_FALSE(b.scarce());  // it holds no more than its share
    CHECK_FALSE(b.add(1));
    a.remove(120);
    CHECK(b.add(100));
    CHECK_FALSE(b.add(1));
  }
  CHECK(budget.claim(100));
  CHECK_FALSE(budget.claim(1));
}

TEST_CASE_METHOD(Fixture,
                 "checklist 11: many requests in one send are all answered, in any order") {
  const auto kind = GENERATE(LoopOptions::Kind::kAuto, LoopOptions::Kind::kThreads);
  ConnectionLimits limits;
  limits.requests = 16;
  limits.bytes = 64u << 10;
  disk->set_slow(true);
  ServedClient served(exports, limits, kind);
  Wire wire(served.client.get());
  wire.enter("disk", false);
  Bytes batch;
  for (std::uint64_t i = 0; i < 1000; ++i) {
    const Bytes one = Wire::request_bytes(5, 0, i, 0, 4096);
    batch.insert(batch.end(), one.begin(), one.end());
  }
  wire.send(batch);
  std::set<std::uint64_t> cookies;
  for (int i = 0; i < 1000; ++i)
    cookies.insert(wire.chunk().cookie);
  CHECK(cookies.size() == 1000);
  // One request larger than the whole limit still goes through, alone.
  wire.request(Command::kRead, 1, 0, 300000);
  CHECK(wire.chunk().error == WireError::kNone);
  CHECK(wire.receive(300000) == Bytes(300000));
}

TEST_CASE_METHOD(Fixture, "what a client had queued when it hung up is not read any more") {
  ConnectionLimits limits;
  limits.requests = 8;
  ServedClient served(exports, limits);
  Wire wire(served.client.get());
  wire.enter("disk", false);
  Bytes batch;
  for (std::uint64_t i = 0; i < 4000; ++i) {
    const Bytes one = Wire::request_bytes(0, 0, i, 0, kSize);
    batch.insert(batch.end(), one.begin(), one.end());
  }
  wire.send(batch);
  wire.receive(1);
  served.client.reset();
  (void)served.outcome().has_value();
  CHECK(disk->reads() < 100);
}

TEST_CASE_METHOD(Fixture, "limits: requests and payload in flight reach their limits exactly") {
  ConnectionLimits limits;
  std::uint32_t size = 0;
  std::size_t most = 0;
  SECTION("requests") {
    limits.requests = most = 16;
    size = 1;
  }
  SECTION("bytes") {
    limits.bytes = 80u << 10;
    size = 8u << 10;
    most = 10;
  }
  SECTION("bytes, less one") {
    limits.bytes = (80u << 10) - 1;
    size = 8u << 10;
    most = 9;
  }
  disk->hold_reads();
  ServedClient served(exports, limits);
  Wire wire(served.client.get());
  wire.enter("disk", false);
  for (std::uint64_t i = 0; i < 20; ++i)
    wire.request(Command::kRead, i, 0, size);
  while (disk->reading() < most)
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  std::this_thread::sleep_for(std::chrono::milliseconds(20));  // for one more, were it let in
  CHECK(disk->reading() == most);
  disk->let_reads_go();
  for (std::uint64_t i = 0; i < 20; ++i) {
    CHECK(wire.chunk().error == WireError::kNone);
    wire.receive(size);
  }
}

/// What one send of the server brought, on a socket of records.
Bytes record(int fd) {
  Bytes out(1u << 20);
  ssize_t got;
  do {
    got = ::recv(fd, out.data(), out.size(), 0);
  } while (got < 0 && errno == EINTR);
  if (got <= 0) throw std::runtime_error("no record");
  out.resize(static_cast<std::size_t>(got));
  return out;
}

/// A handshake on a socket of records, for simple replies.
void enter_by_records(int fd, std::string_view name) {
  record(fd);  // the greeting
  Wire wire(fd);
  Bytes flags;
  append_u32(flags, kFlagFixedNewstyle | kFlagNoZeroes);
  wire.send(flags);
  wire.option(Option::kGo, Wire::info_data(name));
  // The last reply to the option is its acknowledgement, which has no data.
  Bytes last;
  do {
    last = record(fd);
  } while (load_be<std::uint32_t>(last.data() + last.size() - 8) !=
           static_cast<std::uint32_t>(OptionReply::kAck));
}

TEST_CASE_METHOD(Fixture, "a long write is told that others have come behind it") {
  ServedClient served(exports);
  Wire wire(served.client.get());
  wire.enter("disk");
  const auto write_two = [&wire](std::uint32_t length) {
    const Bytes payload = pattern(length, 1);
    Bytes both;
    for (std::uint64_t i = 0; i < 2; ++i) {
      const Bytes head = Wire::request_bytes(static_cast<std::uint16_t>(Command::kWrite), 0, i,
                                             i * length, length);
      both.insert(both.end(), head.begin(), head.end());
      both.insert(both.end(), payload.begin(), payload.end());
    }
    wire.send(both);
    for (int i = 0; i < 2; ++i)
      CHECK(wire.chunk().error == WireError::kNone);
  };
  write_two(4096);
  CHECK(disk->crowded_writes() == 0);
  wire.request(Command::kWrite, 7, 0, 65536, 0, pattern(65536, 2));
  CHECK(wire.chunk().error == WireError::kNone);
  CHECK(disk->crowded_writes() == 0);
  write_two(65536);
  CHECK(disk->crowded_writes() >= 1);
}

TEST_CASE_METHOD(Fixture, "the replies of requests that arrive together leave in one send") {
  // On a socket that keeps records apart, so that what the client receives is what was sent at
  // once.
  const auto kind = GENERATE(LoopOptions::Kind::kAuto, LoopOptions::Kind::kThreads);
  const auto command = GENERATE(Command::kRead, Command::kTrim, Command::kFlush);
  constexpr std::uint64_t kRequests = 100;
  ServedClient served(exports, {}, kind, SOCK_SEQPACKET);
  enter_by_records(served.client.get(), "disk");
  const std::uint32_t length = command == Command::kFlush ? 0 : 512;
  Bytes batch;
  for (std::uint64_t i = 0; i < kRequests; ++i) {
    const Bytes one =
        Wire::request_bytes(static_cast<std::uint16_t>(command), 0, i, i * length, length);
    batch.insert(batch.end(), one.begin(), one.end());
  }
  for (int round = 0; round < 3; ++round) {
    Wire(served.client.get()).send(batch);
    const std::size_t reply = kSimpleReplyBytes + (command == Command::kRead ? length : 0);
    CHECK(record(served.client.get()).size() == kRequests * reply);
  }
}

}  // namespace
}  // namespace snap::nbd
