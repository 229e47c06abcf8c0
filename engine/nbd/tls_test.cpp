// TLS: the rules of STARTTLS, and connections under TLS in good and in bad order. The names begin
// with the line of docs/nbd.md that they show.
#include <catch2/catch.hpp>
#include <fstream>

#include "engine/io/test_rig.h"
#include "engine/nbd/memory_export.h"
#include "engine/nbd/test_client.h"
#include "engine/nbd/test_tls_client.h"

namespace snap::nbd {
namespace {

using Mode = TlsPolicy::Mode;
using Kind = LoopOptions::Kind;

constexpr std::uint32_t kSize = 4u << 20;

/// What a client of the name alice shares with the server.
TlsPolicy policy(Mode mode) {
  TempDir dir;
  const std::string path = dir.path() + "/keys.psk";
  std::ofstream(path) << "bob:ffffffffffffffffffffffffffffffff\n"
                      << "alice:" << TlsClientOptions().key << "\n";
  return {mode, must(TlsCredentials::from_psk(path))};
}

struct Fixture {
  FixedExports exports;
  std::shared_ptr<MemoryExport> disk = std::make_shared<MemoryExport>("disk", kSize);
  TlsPolicy allowed = policy(Mode::kAllowed);
  TlsPolicy required = policy(Mode::kRequired);
  Fixture() { exports.add(disk); }
};

/// A server for one client.
struct Served : ServedClient {
  Served(Fixture& fixture, const TlsPolicy& tls, ConnectionLimits limits = {},
         Kind kind = Kind::kAuto)
      : ServedClient(fixture.exports, limits, kind, SOCK_STREAM, tls) {}
};

std::string why(Served& served) {
  auto outcome = served.outcome();
  return outcome ? "a good end" : outcome.error().message();
}

Bytes pattern(std::size_t n) {
  Bytes out(n);
  for (std::size_t i = 0; i < n; ++i)
    out[i] = static_cast<std::byte>(i * 7 % 251 + 1);
  return out;
}

// ---- STARTTLS

TEST_CASE_METHOD(Fixture, "checklist 8: a server without TLS refuses STARTTLS by policy") {
  Served served(*this, {});
  Wire wire(served.client.get());
  wire.greet();
  wire.option(Option::kStartTls);
  CHECK(wire.option_reply(Option::kStartTls).type == OptionReply::kErrPolicy);
  wire.option(Option::kGo, Wire::info_data("disk"));
  wire.must_ack(Option::kGo);
}

TEST_CASE_METHOD(Fixture,
                 "checklist 8: required: all but STARTTLS and ABORT gets TLS_REQD, its payload "
                 "consumed") {
  Served served(*this, required);
  Wire wire(served.client.get());
  wire.greet();
  for (const std::uint32_t option : {3u, 4u, 6u, 7u, 8u, 9u, 10u, 11u, 77u}) {
    for (const Bytes& data : {Bytes(), Wire::info_data("disk"), Bytes(3000)}) {
      wire.send(Wire::option_bytes(option, data));
      CHECK(wire.option_reply(option).type == OptionReply::kErrTlsRequired);
    }
  }
  wire.option(Option::kAbort);
  CHECK(wire.option_reply(Option::kAbort).type == OptionReply::kAck);
  CHECK(wire.closed());
  CHECK(served.outcome());
}

TEST_CASE_METHOD(Fixture, "checklist 8: required: EXPORT_NAME, which has no error reply, closes") {
  Served served(*this, required);
  Wire wire(served.client.get());
  wire.greet();
  wire.option(Option::kExportName, text_bytes("disk"));
  CHECK(wire.closed());
  CHECK(why(served).find("without TLS") != std::string::npos);
}

TEST_CASE_METHOD(Fixture, "checklist 8: allowed: a client may do without TLS") {
  Served served(*this, allowed);
  Wire wire(served.client.get());
  wire.enter("disk");
  wire.request(Command::kFlush, 1, 0, 0);
  CHECK(wire.chunk().cookie == 1);
}

TEST_CASE_METHOD(Fixture, "checklist 8: STARTTLS with data is refused, and another one works") {
  Served served(*this, required);
  TlsWire wire(served.client.get());
  wire.greet();
  wire.option(Option::kStartTls, text_bytes("data"));
  CHECK(wire.option_reply(Option::kStartTls).type == OptionReply::kErrInvalid);
  REQUIRE(wire.start() == 0);
  wire.option(Option::kGo, Wire::info_data("disk"));
  wire.must_ack(Option::kGo);
}

TEST_CASE_METHOD(Fixture,
                 "checklist 8: STARTTLS wipes what was negotiated, and a second one is refused") {
  const Option headers = GENERATE(Option::kStructuredReply, Option::kExtendedHeaders);
  Served served(*this, allowed);
  TlsWire wire(served.client.get());
  wire.greet();
  wire.option(headers);
  wire.must_ack(headers);
  wire.option(Option::kSetMetaContext, Wire::context_data("disk", {"base:allocation"}));
  wire.must_ack(Option::kSetMetaContext);
  REQUIRE(wire.start() == 0);
  wire.option(Option::kStartTls);
  CHECK(wire.option_reply(Option::kStartTls).type == OptionReply::kErrInvalid);
  // Without structured replies no contexts, and simple replies.
  wire.option(Option::kSetMetaContext, Wire::context_data("disk", {"base:allocation"}));
  CHECK(wire.option_reply(Option::kSetMetaContext).type == OptionReply::kErrInvalid);
  wire.option(Option::kGo, Wire::info_data("disk"));
  wire.must_ack(Option::kGo);
  wire.request(Command::kBlockStatus, 1, 0, 512);
  const auto status = wire.chunk();
  CHECK_FALSE(status.structured);
  CHECK(status.error == WireError::kInval);
}

TEST_CASE_METHOD(Fixture, "CVE-2021-3716: plaintext injected behind STARTTLS ends the connection") {
  const TlsPolicy& tls = GENERATE(0, 1) == 0 ? allowed : required;
  Served served(*this, tls);
  Wire wire(served.client.get());
  wire.greet();
  Bytes both = Wire::option_bytes(5, {});
  const Bytes injected = Wire::option_bytes(7, Wire::info_data("disk"));
  SECTION("an option") {
    both.insert(both.end(), injected.begin(), injected.end());
  }
  SECTION("its first byte") {
    both.push_back(injected[0]);
  }
  wire.send(both);
  CHECK(wire.closed());
  CHECK(why(served) == "the client sent plaintext behind STARTTLS");
}

TEST_CASE_METHOD(Fixture, "plaintext in place of a TLS handshake ends the connection") {
  for (const Bytes& garbage :
       {Wire::option_bytes(7, Wire::info_data("disk")), pattern(5), pattern(70000)}) {
    Served served(*this, required);
    Wire wire(served.client.get());
    wire.greet();
    wire.option(Option::kStartTls);
    wire.must_ack(Option::kStartTls);
    try {
      wire.send(garbage);
    } catch (const std::runtime_error&) {  // it did not wait for all of that
    }
    ::shutdown(served.client.get(), SHUT_WR);
    CHECK(why(served).find("TLS handshake: ") == 0);
  }
}

// ---- The TLS handshake

TEST_CASE_METHOD(Fixture, "checklist 8: TLS 1.2 and 1.3 are spoken, older ones refused") {
  const auto outcome_of = [&](const char* versions) {
    Served served(*this, required);
    TlsWire wire(served.client.get(), {.versions = versions});
    wire.greet();
    return wire.start();
  };
  CHECK(outcome_of("+VERS-TLS1.3") == 0);
  CHECK(outcome_of("+VERS-TLS1.2") == 0);
  CHECK(outcome_of("+VERS-TLS1.1") != 0);
  CHECK(outcome_of("+VERS-TLS1.0") != 0);
}

TEST_CASE_METHOD(Fixture, "a client with a wrong key is refused as one that no one knows") {
  const char* versions = GENERATE("+VERS-TLS1.3", "+VERS-TLS1.2");
  const auto refusal = [&](const std::string& name, const std::string& key) {
    Served served(*this, required);
    TlsWire wire(served.client.get(), {.name = name, .key = key, .versions = versions});
    wire.greet();
    CHECK(wire.start() != 0);
    served.client.reset();
    return why(served);
  };
  const std::string wrong(32, '7');
  const std::string said = refusal("alice", wrong);
  CHECK(said.find("TLS handshake: ") == 0);
  CHECK(refusal("mallory", wrong) == said);
  CHECK(refusal(std::string(3000, 'm'), wrong) == said);
}

TEST_CASE_METHOD(Fixture, "a client may leave at any byte of the TLS handshake") {
  const auto run = [&](std::size_t most_sent, std::string& outcome) {
    Served served(*this, required, {}, Kind::kThreads);
    TlsWire wire(served.client.get(), {.most_sent = most_sent});
    wire.greet();
    const int code = wire.start();
    served.client.reset();
    outcome = why(served);
    return code == 0 ? wire.sent() : 0;
  };
  std::string outcome;
  const std::size_t whole = run(~std::size_t{0}, outcome);
  CHECK(outcome == "a good end");
  REQUIRE(whole > 100);
  for (std::size_t cut = 0; cut < whole; ++cut) {
    INFO("cut at byte " << cut << " of " << whole);
    run(cut, outcome);
    CHECK(outcome == "TLS handshake: the client hung up");
  }
}

TEST_CASE_METHOD(Fixture, "the time limit of the handshake covers that of TLS") {
  ConnectionLimits limits;
  limits.handshake = std::chrono::milliseconds(50);
  const std::size_t said = GENERATE(0, 1, 5, 6);
  Served served(*this, required, limits);
  Wire wire(served.client.get());
  wire.greet();
  wire.option(Option::kStartTls);
  wire.must_ack(Option::kStartTls);
  const std::array<std::byte, 6> hello{std::byte{22}, std::byte{3}, std::byte{1},
                                       std::byte{2},  std::byte{0}, std::byte{1}};
  wire.send(std::span(hello).first(said));
  CHECK(wire.closed());
  CHECK(why(served) == "the handshake took too long");
}

// ---- Under TLS

TEST_CASE_METHOD(Fixture, "under TLS what is written is read back, small and large") {
  const auto kind = GENERATE(Kind::kAuto, Kind::kThreads);
  const char* versions = GENERATE("+VERS-TLS1.3", "+VERS-TLS1.2");
  Served served(*this, required, {}, kind);
  TlsWire wire(served.client.get(), {.versions = versions});
  wire.enter_encrypted("disk");
  for (const std::uint32_t size : {1u, 512u, 16384u, 16385u, 65536u, 100000u, kSize}) {
    const Bytes data = pattern(size);
    wire.request(Command::kWrite, size, 0, size, 0, data);
    CHECK(wire.chunk().error == WireError::kNone);
    wire.request(Command::kRead, size, 0, size);
    CHECK(wire.chunk().cookie == size);
    CHECK(wire.receive(size) == data);
  }
}

TEST_CASE_METHOD(Fixture, "under TLS many requests in one send are all answered") {
  Served served(*this, required);
  TlsWire wire(served.client.get());
  wire.enter_encrypted("disk");
  constexpr std::uint64_t kMany = 2000;
  Bytes all;
  for (std::uint64_t cookie = 0; cookie < kMany; ++cookie) {
    const Bytes one = Wire::request_bytes(0, 0, cookie, cookie * 512, 512);
    all.insert(all.end(), one.begin(), one.end());
  }
  std::thread sender([&] { wire.send(all); });
  std::vector<bool> seen(kMany, false);
  for (std::uint64_t i = 0; i < kMany; ++i) {
    const auto reply = wire.chunk();
    REQUIRE(reply.cookie < kMany);
    seen[reply.cookie] = true;
    wire.receive(512);
  }
  sender.join();
  CHECK(std::count(seen.begin(), seen.end(), true) == kMany);
}

TEST_CASE_METHOD(Fixture, "the server ends with a close_notify") {
  Served served(*this, required);
  TlsWire wire(served.client.get());
  wire.enter_encrypted("disk");
  SECTION("to a client that says good-bye") {
    wire.request(Command::kDisconnect, 1, 0, 0);
  }
  SECTION("to a client that closes its side") {
    gnutls_bye(wire.session(), GNUTLS_SHUT_WR);
  }
  SECTION("when it drains") {
    served.drain();
  }
  CHECK(wire.ended_in_order());
  CHECK(served.outcome());
}

TEST_CASE_METHOD(Fixture, "a connection cut without a close_notify is a client that has left") {
  Served served(*this, required);
  TlsWire wire(served.client.get());
  wire.greet();
  REQUIRE(wire.start() == 0);
  SECTION("between options") {
    served.client.reset();
    CHECK(served.outcome());
  }
  SECTION("in the middle of a payload") {
    wire.option(Option::kGo, Wire::info_data("disk"));
    wire.must_ack(Option::kGo);
    Bytes write = Wire::request_bytes(1, 0, 1, 0, 65536);
    write.resize(write.size() + 1000);
    wire.send(write);
    served.client.reset();
    CHECK(why(served) == "the client hung up in the middle of a payload");
  }
  SECTION("in the middle of a record") {
    const char half[] = {23, 3, 3, 1, 0, 'x'};
    ::send(served.client.get(), half, sizeof half, MSG_NOSIGNAL);
    served.client.reset();
    CHECK(served.outcome());
  }
}

TEST_CASE_METHOD(Fixture, "a record that was changed on the way ends the connection") {
  Served served(*this, required);
  TlsWire wire(served.client.get());
  wire.greet();
  REQUIRE(wire.start() == 0);
  char forged[5 + 64] = {23, 3, 3, 0, 64};
  ::send(served.client.get(), forged, sizeof forged, MSG_NOSIGNAL);
  CHECK(wire.closed());
  CHECK(why(served).find("TLS: ") == 0);
}

TEST_CASE_METHOD(Fixture,
                 "under TLS a drain answers what has arrived with ESHUTDOWN, then closes") {
  Served served(*this, required);
  TlsWire wire(served.client.get());
  wire.enter_encrypted("disk");
  wire.request(Command::kFlush, 1, 0, 0);
  CHECK(wire.chunk().error == WireError::kNone);
  // Sent while the server is about to drain: each is either done or refused, none is forgotten.
  for (std::uint64_t i = 0; i < 20; ++i)
    wire.request(Command::kFlush, i, 0, 0);
  served.drain();
  for (std::size_t i = 0; i < 20; ++i) {
    const WireError error = wire.chunk().error;
    CHECK((error == WireError::kNone || error == WireError::kShutdown));
  }
  CHECK(wire.ended_in_order());
  CHECK(served.outcome());
}

TEST_CASE_METHOD(Fixture, "under TLS replies to what was in flight come after a half-close") {
  Served served(*this, required);
  TlsWire wire(served.client.get());
  wire.enter_encrypted("disk");
  disk->hold_reads();
  for (std::uint64_t i = 0; i < 20; ++i)
    wire.request(Command::kRead, i, 0, 512);
  SECTION("with a close_notify") {
    gnutls_bye(wire.session(), GNUTLS_SHUT_WR);
  }
  SECTION("without") {
    ::shutdown(served.client.get(), SHUT_WR);
  }
  while (disk->reading() < 20)
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  std::this_thread::sleep_for(std::chrono::milliseconds(5));  // the end is seen, too
  disk->let_reads_go();
  for (std::size_t i = 0; i < 20; ++i) {
    CHECK(wire.chunk().error == WireError::kNone);
    wire.receive(512);
  }
  CHECK(wire.ended_in_order());
  CHECK(served.outcome());
}

TEST_CASE_METHOD(Fixture, "under TLS a client that does not read stops only itself") {
  ConnectionLimits limits;
  limits.requests = 8;
  Served stuck(*this, required, limits);
  TlsWire silent(stuck.client.get());
  silent.enter_encrypted("disk");
  for (std::uint64_t cookie = 0; cookie < 200; ++cookie)
    silent.request(Command::kRead, cookie, 0, 1u << 20);

  Served served(*this, required);
  TlsWire wire(served.client.get());
  wire.enter_encrypted("disk");
  wire.request(Command::kFlush, 7, 0, 0);
  CHECK(wire.chunk().cookie == 7);

  SECTION("and leaves") {
    stuck.client.reset();
  }
  SECTION("and is drained, then leaves") {
    stuck.drain();
    stuck.client.reset();
  }
  (void)why(stuck);  // it ends
}

TEST_CASE_METHOD(Fixture, "a client may ask for new keys within TLS 1.3, and gets them") {
  static int answers;
  answers = 0;
  Served served(*this, required);
  TlsWire wire(served.client.get(), {.versions = "+VERS-TLS1.3"});
  wire.enter_encrypted("disk");
  const auto count = [](gnutls_session_t, unsigned, unsigned, unsigned incoming,
                        const gnutls_datum_t*) {
    answers += incoming != 0 ? 1 : 0;
    return 0;
  };
  gnutls_handshake_set_hook_function(wire.session(), GNUTLS_HANDSHAKE_KEY_UPDATE, GNUTLS_HOOK_POST,
                                     count);
  for (std::uint64_t cookie = 1; cookie <= 3; ++cookie) {
    REQUIRE(gnutls_session_key_update(wire.session(), GNUTLS_KU_PEER) == 0);
    wire.request(Command::kRead, cookie, 0, 4096);
    CHECK(wire.chunk().cookie == cookie);
    wire.receive(4096);
    CHECK(answers == static_cast<int>(cookie));
  }
}

TEST_CASE_METHOD(Fixture, "a second handshake within TLS 1.2 ends the connection") {
  Served served(*this, required);
  TlsWire wire(served.client.get(), {.versions = "+VERS-TLS1.2"});
  wire.greet();
  REQUIRE(wire.start() == 0);
  CHECK(gnutls_handshake(wire.session()) != 0);
  served.client.reset();
  CHECK(why(served).find("TLS: ") == 0);
}

}  // namespace
}  // namespace snap::nbd
