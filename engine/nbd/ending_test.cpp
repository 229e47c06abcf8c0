// How connections end: drained, cut off, given up by a block device; and what of their requests is
// still done.
#include "engine/nbd/test_client.h"

#include <atomic>
#include <catch2/catch.hpp>

#include "engine/nbd/memory_export.h"

namespace snap::nbd {
namespace {

struct Fixture {
  FixedExports exports;
  Fixture() { exports.add(std::make_shared<MemoryExport>("disk", 1u << 20)); }
};

TEST_CASE_METHOD(Fixture,
                 "checklist 21: a drain answers what has arrived with ESHUTDOWN, then closes") {
  ServedClient served(exports);
  Wire wire(served.client.get());
  wire.enter("disk");
  wire.request(Command::kFlush, 1, 0, 0);
  CHECK(wire.chunk().error == WireError::kNone);
  // Sent while the server is about to drain: each is either done or refused, none is forgotten.
  for (std::uint64_t i = 0; i < 20; ++i)
    wire.request(Command::kFlush, i, 0, 0);
  served.drain();
  std::size_t answers = 0;
  try {
    for (;; ++answers) {
      const WireError error = wire.chunk().error;
      CHECK((error == WireError::kNone || error == WireError::kShutdown));
    }
  } catch (const std::runtime_error&) {
  }
  CHECK(answers == 20);
  CHECK(served.outcome());
}

TEST_CASE_METHOD(Fixture, "an idle client is let go by a drain") {
  ServedClient served(exports);
  Wire wire(served.client.get());
  SECTION("in the handshake") {
    wire.greet();
  }
  SECTION("in transmission") {
    wire.enter("disk");
  }
  served.drain();
  CHECK(wire.closed());
}

/// Of 4 PiB, and clearing a GiB takes it a while.
class HugeExport final : public Export {
 public:
  const std::string& name() const noexcept override { return name_; }
  const std::string& description() const noexcept override { return name_; }
  std::uint64_t size() const noexcept override { return std::uint64_t{1} << 52; }
  bool read_only() const noexcept override { return false; }
  Task<Result<void>> read(ByteOffset, std::span<std::byte>) override { return clear(0); }
  Task<Result<void>> write(ByteOffset, std::span<const std::byte>, Volume::WriteOptions) override {
    return clear(0);
  }
  Task<Result<void>> write_zeroes(ByteOffset, std::uint64_t length, Volume::ZeroOptions) override {
    return clear(length);
  }
  Task<Result<void>> trim(ByteOffset, std::uint64_t length, Volume::WriteOptions) override {
    return clear(length);
  }
  Task<Result<void>> flush() override { return clear(0); }
  Task<Result<std::vector<Extent>>> extents(ByteOffset, std::uint64_t, std::size_t) override {
    co_return std::vector<Extent>();
  }
  Task<Result<void>> prefetch(ByteOffset, std::uint64_t) override { return clear(0); }

  std::atomic<std::uint64_t> cleared{0};

 private:
  Task<Result<void>> clear(std::uint64_t length) {
    Sleep pause(std::chrono::milliseconds(1 + (length >> 33)));
    co_await pause;
    cleared += length;
    co_return Result<void>();
  }
  std::string name_ = "huge";
};

struct HugeFixture {
  FixedExports exports;
  std::shared_ptr<HugeExport> huge = std::make_shared<HugeExport>();
  Command command = GENERATE(Command::kTrim, Command::kWriteZeroes);
  HugeFixture() { exports.add(huge); }
  void ask(Wire& wire, std::uint64_t length) {
    wire.enter("huge", Headers::kExtended);
    wire.send(Wire::extended_bytes(command, 0, 1, 4096 + 512, length));
  }
};

TEST_CASE_METHOD(HugeFixture,
                 "one that is cut off in the middle of petabytes of TRIM or zeros ends soon") {
  ServedClient served(exports);
  Wire wire(served.client.get());
  ask(wire, huge->size() - 8192);
  while (huge->cleared == 0)
    std::this_thread::yield();
  served.abort();
  const auto begin = std::chrono::steady_clock::now();
  CHECK(served.outcome());
  CHECK(std::chrono::steady_clock::now() - begin < std::chrono::seconds(5));
  CHECK(huge->cleared < huge->size() / 2);
}

TEST_CASE_METHOD(HugeFixture, "a long TRIM or WRITE_ZEROES is whole, though it is done in pieces") {
  ServedClient served(exports);
  Wire wire(served.client.get());
  const std::uint64_t length = (std::uint64_t{5} << 30) + 512;
  ask(wire, length);
  CHECK(wire.chunk().error == WireError::kNone);
  CHECK(huge->cleared == length);
}

// ---- Connections that begin behind the handshake: a block device of this machine

/// As the kernel uses one: no handshake, simple replies.
struct DeviceClient : ServedClient {
  DeviceClient(ExportTable& exports, std::shared_ptr<Export> device, ConnectionLimits limits = {})
      : ServedClient(exports, limits, LoopOptions::Kind::kAuto, SOCK_STREAM, {},
                     std::move(device)) {}
};

TEST_CASE("a device's connection needs no handshake") {
  FixedExports none;
  auto disk = std::make_shared<MemoryExport>("disk", 1 << 20);
  DeviceClient served(none, disk);
  Wire wire(served.client.get());
  wire.request(Command::kWrite, 1, 4096, 4096, 0, Bytes(4096, std::byte{7}));
  CHECK(wire.chunk().error == WireError::kNone);
  wire.request(Command::kRead, 2, 4096, 4096);
  CHECK(wire.chunk().error == WireError::kNone);
  CHECK(wire.receive(4096) == Bytes(4096, std::byte{7}));
  wire.request(Command::kDisconnect, 3, 0, 0);
  CHECK(wire.closed());
  CHECK(served.outcome());
}

TEST_CASE("a drain answers all that a device has asked, and tells it nothing of a shutdown") {
  FixedExports none;
  auto disk = std::make_shared<MemoryExport>("disk", 1 << 20);
  DeviceClient served(none, disk);
  Wire wire(served.client.get());
  for (std::uint64_t i = 0; i < 50; ++i)
    wire.request(Command::kFlush, i, 0, 0);
  served.drain();
  for (std::uint64_t i = 0; i < 50; ++i)
    CHECK(wire.chunk().error == WireError::kNone);
  CHECK(wire.closed());
  CHECK(served.outcome());
}

TEST_CASE("what a device has given up is not done later") {
  // The device has asked, waited too long, given the connection up and asked elsewhere, before the
  // server comes to look: done now, the write might come after a newer one.
  FixedExports none;
  auto disk = std::make_shared<MemoryExport>("disk", 1 << 20);
  int ends[2];
  REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
  const UniqueFd device(ends[0]);
  Wire(device.get()).request(Command::kWrite, 1, 4096, 4096, 0, Bytes(4096, std::byte{7}));
  ::shutdown(device.get(), SHUT_RDWR);
  auto loop = std::move(*make_event_loop());
  {
    Connection connection(Socket(UniqueFd(ends[1]), "device"), none);
    connection.begin_with(disk);
    CHECK(loop->run(connection.run()));
    CHECK_FALSE(connection.has_served());
  }
  DeviceClient after(none, disk);
  Wire look(after.client.get());
  look.request(Command::kRead, 3, 4096, 4096);
  CHECK(look.chunk().error == WireError::kNone);
  CHECK(look.receive(4096) == Bytes(4096));
}

}  // namespace
}  // namespace snap::nbd
