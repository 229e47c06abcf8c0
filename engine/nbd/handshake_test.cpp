// The handshake, byte by byte, over a socketpair.
#include "engine/nbd/handshake.h"

#include <catch2/catch.hpp>

#include "engine/nbd/memory_export.h"
#include "engine/nbd/test_client.h"

namespace snap::nbd {
namespace {

struct Fixture {
  FixedExports exports;
  Fixture() {
    exports.add(std::make_shared<MemoryExport>("disk", 1u << 20, false, "the first"));
    exports.add(std::make_shared<MemoryExport>("image", 4096, true));
  }
};

constexpr std::uint16_t kWritableFlags = kHasFlags | kSendFlush | kSendFua | kSendTrim |
                                         kSendWriteZeroes | kCanMultiConn | kSendCache |
                                         kSendFastZero;
constexpr std::uint16_t kReadOnlyFlags =
    kHasFlags | kReadOnly | kSendFlush | kSendFua | kCanMultiConn | kSendCache;

TEST_CASE_METHOD(
    Fixture, "checklist 1: the greeting offers fixed newstyle without zeroes, and nothing else") {
  ServedClient served(exports);
  Wire wire(served.client.get());
  Bytes expected = text_bytes("NBDMAGICIHAVEOPT");
  append_u16(expected, 3);
  CHECK(wire.receive(kGreetingBytes) == expected);
}

TEST_CASE_METHOD(Fixture, "checklist 1: unknown client flags end the connection") {
  for (const std::uint32_t flags : {4u, 7u, 0x80000001u}) {
    ServedClient served(exports);
    Wire wire(served.client.get());
    wire.greet(flags);
    CHECK(wire.closed());
    CHECK_FALSE(served.outcome());
  }
}

TEST_CASE_METHOD(
    Fixture, "checklist 4: EXPORT_NAME answers with size and flags, and 124 zeroes unless waived") {
  for (const bool no_zeroes : {true, false}) {
    ServedClient served(exports);
    Wire wire(served.client.get());
    wire.greet(no_zeroes ? 3 : 1);
    wire.option(Option::kExportName, text_bytes("disk"));
    Bytes expected;
    append_u64(expected, 1u << 20);
    append_u16(expected, kWritableFlags);
    if (!no_zeroes) expected.resize(134);
    CHECK(wire.receive(expected.size()) == expected);
    wire.request(Command::kRead, 5, 0, 512);
    CHECK(wire.chunk().cookie == 5);
    CHECK(wire.receive(512) == Bytes(512));
  }
}

TEST_CASE_METHOD(Fixture, "checklist 4: the empty name is the first export") {
  ServedClient served(exports);
  Wire wire(served.client.get());
  wire.greet();
  wire.option(Option::kExportName);
  CHECK(load_be<std::uint64_t>(wire.receive(10).data()) == 1u << 20);
}

TEST_CASE_METHOD(Fixture, "checklist 4: EXPORT_NAME of an unknown export closes") {
  for (const std::string& name : {std::string("nosuch"), std::string(3000, 'x'),
                                  std::string(5000, 'x'), std::string("di\0sk", 5)}) {
    ServedClient served(exports);
    Wire wire(served.client.get());
    wire.greet();
    wire.option(Option::kExportName, text_bytes(name));
    CHECK(wire.closed());
    auto outcome = served.outcome();
    REQUIRE_FALSE(outcome);
    CHECK(outcome.error().message().size() < 200);
  }
}

TEST_CASE_METHOD(Fixture,
                 "checklist 3: ABORT is acknowledged, then the connection ends without complaint") {
  ServedClient served(exports);
  Wire wire(served.client.get());
  wire.greet();
  wire.option(Option::kAbort);
  CHECK(wire.option_reply(Option::kAbort).type == OptionReply::kAck);
  CHECK(wire.closed());
  CHECK(served.outcome());
}

TEST_CASE_METHOD(Fixture, "checklist 3: LIST names every export, and takes no data") {
  ServedClient served(exports);
  Wire wire(served.client.get());
  wire.greet();
  wire.option(Option::kList);
  const auto replies = wire.option_replies(Option::kList);
  REQUIRE(replies.size() == 3);
  CHECK(replies[0].type == OptionReply::kServer);
  Bytes first;
  append_u32(first, 4);
  append_text(first, "diskthe first");
  CHECK(replies[0].data == first);
  Bytes second;
  append_u32(second, 5);
  append_text(second, "image");
  CHECK(replies[1].data == second);
  CHECK(replies[2].type == OptionReply::kAck);
  wire.option(Option::kList, text_bytes("x"));
  CHECK(wire.option_reply(Option::kList).type == OptionReply::kErrInvalid);
}

TEST_CASE_METHOD(Fixture,
                 "checklist 2: an unknown option is refused, and the next one still parses") {
  ServedClient served(exports);
  Wire wire(served.client.get());
  wire.greet();
  for (const std::uint32_t number : {0u, 4u, 12u, 4711u, 0xffffffffu}) {
    wire.send(Wire::option_bytes(number, text_bytes(std::string(kMaxNbdOption, 'p'))));
    CHECK(wire.option_reply(number).type == OptionReply::kErrUnsupported);
  }
  wire.option(Option::kStartTls);
  CHECK(wire.option_reply(Option::kStartTls).type == OptionReply::kErrPolicy);
  wire.option(Option::kList);
  CHECK(wire.option_replies(Option::kList).size() == 3);
}

TEST_CASE_METHOD(Fixture,
                 "checklist 2: a wrong option magic or a huge option ends the connection") {
  SECTION("magic") {
    ServedClient served(exports);
    Wire wire(served.client.get());
    wire.greet();
    Bytes option = Wire::option_bytes(3, {});
    option[7] ^= std::byte{1};
    wire.send(option);
    CHECK(wire.closed());
    CHECK_FALSE(served.outcome());
  }
  for (const std::uint32_t length : {std::uint32_t{kMaxNbdOption + 1}, 0xffffffffu}) {
    ServedClient served(exports);
    Wire wire(served.client.get());
    wire.greet();
    Bytes option = Wire::option_bytes(7, {});
    store_be(option.data() + 12, length);
    wire.send(option);
    CHECK(wire.closed());
    CHECK_FALSE(served.outcome());
  }
}

TEST_CASE_METHOD(Fixture, "checklist 5: GO answers as INFO did, with what was asked for") {
  ServedClient served(exports);
  Wire wire(served.client.get());
  wire.greet();
  const Bytes data =
      Wire::info_data("", {Info::kBlockSize, Info::kName, Info::kDescription, Info{77}});
  wire.option(Option::kInfo, data);
  const auto info = wire.option_replies(Option::kInfo);
  wire.option(Option::kGo, data);
  const auto go = wire.option_replies(Option::kGo);
  REQUIRE(info.size() == 5);
  REQUIRE(go.size() == info.size());
  for (std::size_t i = 0; i < go.size(); ++i)
    CHECK((go[i].type == info[i].type && go[i].data == info[i].data));

  Bytes expected;
  append_u16(expected, 0);
  append_u64(expected, 1u << 20);
  append_u16(expected, kWritableFlags);
  CHECK(go[0].data == expected);
  expected.clear();
  append_u16(expected, 1);
  append_text(expected, "disk");  // the canonical name of ""
  CHECK(go[1].data == expected);
  expected.clear();
  append_u16(expected, 2);
  append_text(expected, "the first");
  CHECK(go[2].data == expected);
  expected.clear();
  append_u16(expected, 3);
  append_u32(expected, 1);
  append_u32(expected, 4096);
  append_u32(expected, 32u << 20);
  CHECK(go[3].data == expected);
  wire.request(Command::kFlush, 9, 0, 0);
  CHECK(wire.chunk().cookie == 9);
}

TEST_CASE_METHOD(
    Fixture,
    "checklist 6, 12: a read-only export says so; DF is offered once replies are structured") {
  ServedClient served(exports);
  Wire wire(served.client.get());
  wire.greet();
  wire.option(Option::kInfo, Wire::info_data("image"));
  CHECK(load_be<std::uint16_t>(wire.option_replies(Option::kInfo)[0].data.data() + 10) ==
        kReadOnlyFlags);
  wire.option(Option::kStructuredReply, text_bytes("x"));
  CHECK(wire.option_reply(Option::kStructuredReply).type == OptionReply::kErrInvalid);
  wire.option(Option::kInfo, Wire::info_data("image"));
  CHECK(load_be<std::uint16_t>(wire.option_replies(Option::kInfo)[0].data.data() + 10) ==
        kReadOnlyFlags);
  wire.option(Option::kStructuredReply);
  CHECK(wire.option_reply(Option::kStructuredReply).type == OptionReply::kAck);
  wire.option(Option::kInfo, Wire::info_data("image"));
  CHECK(load_be<std::uint16_t>(wire.option_replies(Option::kInfo)[0].data.data() + 10) ==
        (kReadOnlyFlags | kSendDf));
}

TEST_CASE_METHOD(Fixture,
                 "checklist 5: INFO and GO with bad lengths, long or unknown names are refused") {
  ServedClient served(exports);
  Wire wire(served.client.get());
  wire.greet();
  Bytes bad = Wire::info_data("disk");
  store_be(bad.data(), std::uint32_t{0xffffffff});
  const std::vector<std::pair<Bytes, OptionReply>> cases = {
      {bad, OptionReply::kErrInvalid},
      {Bytes(), OptionReply::kErrInvalid},
      {text_bytes("abc"), OptionReply::kErrInvalid},
      {Wire::info_data("nosuch"), OptionReply::kErrUnknown},
      {Wire::info_data(std::string(255, 'n')), OptionReply::kErrUnknown},
      {Wire::info_data(std::string(256, 'n')), OptionReply::kErrUnknown},
      {Wire::info_data(std::string(4096, 'n')), OptionReply::kErrUnknown},
      {Wire::info_data(std::string(4097, 'n')), OptionReply::kErrTooBig},
  };
  for (const Option option : {Option::kInfo, Option::kGo}) {
    for (const auto& [data, answer] : cases) {
      wire.option(option, data);
      CHECK(wire.option_reply(option).type == answer);
    }
  }
  wire.option(Option::kGo, Wire::info_data("disk"));
  wire.must_ack(Option::kGo);
}

TEST_CASE("checklist 5: export names and descriptions of up to 4096 bytes are served") {
  for (const std::size_t length : {255u, 256u, 4096u}) {
    const std::string name(length, 'n');
    FixedExports exports;
    exports.add(std::make_shared<MemoryExport>(name, 4096, false, name));
    ServedClient served(exports);
    Wire wire(served.client.get());
    wire.greet();
    wire.option(Option::kList);
    CHECK(wire.option_replies(Option::kList)[0].data.size() == 4 + length + length);
    wire.option(Option::kGo, Wire::info_data(name, {Info::kName, Info::kDescription}));
    const auto replies = wire.option_replies(Option::kGo);
    CHECK(replies[1].data.size() == 2 + length);
    CHECK(replies[2].data.size() == 2 + length);
  }
}

TEST_CASE_METHOD(Fixture, "checklist 7: contexts need structured replies") {
  ServedClient served(exports);
  Wire wire(served.client.get());
  wire.greet();
  for (const Option option : {Option::kListMetaContext, Option::kSetMetaContext}) {
    wire.option(option, Wire::context_data("disk", {"base:allocation"}));
    CHECK(wire.option_reply(option).type == OptionReply::kErrInvalid);
  }
}

TEST_CASE_METHOD(Fixture,
                 "checklist 7: LIST_META_CONTEXT knows a wildcard, SET_META_CONTEXT does not") {
  ServedClient served(exports);
  Wire wire(served.client.get());
  wire.greet();
  wire.option(Option::kStructuredReply);
  wire.must_ack(Option::kStructuredReply);
  using Queries = std::vector<std::string_view>;
  const std::vector<std::tuple<Option, Queries, std::size_t>> cases = {
      {Option::kListMetaContext, {}, 3},
      {Option::kListMetaContext, {"qemu:"}, 1},
      {Option::kListMetaContext, {"snap:", "snap:delta", "base:"}, 2},
      {Option::kListMetaContext, {"base:"}, 1},
      {Option::kListMetaContext, {"base:allocation"}, 1},
      {Option::kListMetaContext, {"base:allo"}, 0},
      {Option::kListMetaContext, {"qemu", "x-other:y"}, 0},
      {Option::kSetMetaContext, {}, 0},
      {Option::kSetMetaContext, {"base:"}, 0},
      {Option::kSetMetaContext, {"qemu:", "snap:"}, 0},
      {Option::kSetMetaContext, {"snap:delta", "qemu:allocation-depth", "base:allocation"}, 3},
      {Option::kSetMetaContext, {"x:y", "base:allocation", "base:allocation"}, 1},
      {Option::kSetMetaContext, {std::string_view()}, 0},
  };
  for (const auto& [option, queries, found] : cases) {
    wire.option(option, Wire::context_data("disk", queries));
    const auto replies = wire.option_replies(option);
    CHECK(replies.back().type == OptionReply::kAck);
    REQUIRE(replies.size() == found + 1);
    if (found != 1 || queries.empty() || !queries.back().starts_with("base")) continue;
    CHECK(replies[0].type == OptionReply::kMetaContext);
    CHECK(Bytes(replies[0].data.begin() + 4, replies[0].data.end()) ==
          text_bytes("base:allocation"));
  }
  const std::string long_query(4097, 'q');
  wire.option(Option::kSetMetaContext, Wire::context_data("disk", {long_query}));
  CHECK(wire.option_reply(Option::kSetMetaContext).type == OptionReply::kErrInvalid);
  wire.option(Option::kSetMetaContext, Wire::context_data("nosuch", {"base:allocation"}));
  CHECK(wire.option_reply(Option::kSetMetaContext).type == OptionReply::kErrUnknown);
}

TEST_CASE_METHOD(
    Fixture, "checklist 7: a SET_META_CONTEXT that fails, or is for another export, leaves none") {
  using Data = Bytes;
  const std::vector<std::pair<std::vector<Data>, bool>> cases = {
      {{Wire::context_data("disk", {"base:allocation"})}, true},
      {{Wire::context_data("", {"base:allocation"})}, true},
      {{Wire::context_data("image", {"base:allocation"})}, false},
      {{Wire::context_data("disk", {"base:allocation"}), Wire::context_data("disk", {})}, false},
      {{Wire::context_data("disk", {"base:allocation"}), text_bytes("junk")}, false},
  };
  for (const auto& [sets, works] : cases) {
    ServedClient served(exports);
    Wire wire(served.client.get());
    wire.greet();
    wire.option(Option::kStructuredReply);
    wire.must_ack(Option::kStructuredReply);
    for (const Data& data : sets) {
      wire.option(Option::kSetMetaContext, data);
      wire.option_replies(Option::kSetMetaContext);
    }
    wire.option(Option::kGo, Wire::info_data("disk"));
    wire.must_ack(Option::kGo);
    wire.request(Command::kBlockStatus, 1, 0, 4096);
    const auto chunk = wire.chunk();
    CHECK((chunk.type == ChunkType::kBlockStatus) == works);
    CHECK((chunk.error == WireError::kInval) == !works);
  }
}

TEST_CASE_METHOD(Fixture,
                 "CVE-2013-7441, CVE-2017-9524: a client may leave at any byte of the handshake") {
  // Every prefix of a whole dialogue, sent at once: the server ends, soon and in order.
  Bytes dialogue;
  append_u32(dialogue, 3);
  std::vector<std::size_t> polite = {0, 4};
  const auto add = [&](Option option, const Bytes& data) {
    const Bytes bytes = Wire::option_bytes(static_cast<std::uint32_t>(option), data);
    dialogue.insert(dialogue.end(), bytes.begin(), bytes.end());
    polite.push_back(dialogue.size());
  };
  add(Option::kStructuredReply, {});
  add(Option::kList, {});
  add(Option::kSetMetaContext, Wire::context_data("disk", {"base:allocation"}));
  add(Option::kGo, Wire::info_data("disk", {Info::kBlockSize}));
  const Bytes request = Wire::request_bytes(0, 0, 1, 0, 512);
  dialogue.insert(dialogue.end(), request.begin(), request.end());
  polite.push_back(dialogue.size());

  for (std::size_t cut = 0; cut <= dialogue.size(); ++cut) {
    ServedClient served(exports, {}, LoopOptions::Kind::kThreads);
    Wire wire(served.client.get());
    wire.send(std::span(dialogue).first(cut));
    ::shutdown(served.client.get(), SHUT_WR);
    const bool at_boundary = std::find(polite.begin(), polite.end(), cut) != polite.end();
    INFO("cut at byte " << cut);
    auto outcome = served.outcome();
    CHECK(outcome.has_value() == at_boundary);
    if (outcome) continue;
    CHECK(outcome.error().message().find("hung up") != std::string::npos);
  }
}

TEST_CASE_METHOD(Fixture, "limits: a client that says nothing is let go when its time is up") {
  ConnectionLimits limits;
  limits.handshake = std::chrono::milliseconds(50);
  ServedClient served(exports, limits);
  Wire wire(served.client.get());
  wire.greet();
  const Bytes go = Wire::option_bytes(7, Wire::info_data("disk"));
  wire.send(std::span(go).first(20));
  CHECK(wire.closed());
  auto outcome = served.outcome();
  REQUIRE_FALSE(outcome);
  CHECK(outcome.error().message() == "the handshake took too long");
}

TEST_CASE_METHOD(Fixture, "limits: the time limit ends with the handshake") {
  ConnectionLimits limits;
  limits.handshake = std::chrono::milliseconds(50);
  ServedClient served(exports, limits);
  Wire wire(served.client.get());
  wire.enter("disk");
  std::this_thread::sleep_for(std::chrono::milliseconds(120));
  wire.request(Command::kFlush, 1, 0, 0);
  CHECK(wire.chunk().cookie == 1);
}

TEST_CASE("what a client wrote goes into messages escaped and cut") {
  CHECK(quoted("a\nb\x1b\"\\\xff") == "\"a\\x0ab\\x1b\\x22\\x5c\\xff\"");
  CHECK(quoted(std::string(5000, 'a')).size() < 80);
}

}  // namespace
}  // namespace snap::nbd
