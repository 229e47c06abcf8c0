// Random operations on two connections against a model: an array of bytes.
//
// Each step sends a batch of requests on disjoint ranges over both connections, and meanwhile
// collects the replies in whatever order they come. The export is slow at random,
// so replies overtake each other. SNAP_SEED=N runs a seed again.
#include <catch2/catch.hpp>
#include <cstdlib>
#include <random>

#include "engine/nbd/memory_export.h"
#include "engine/nbd/test_client.h"

namespace snap::nbd {
namespace {

constexpr std::uint32_t kSize = 768 * 1024 + 512;
constexpr std::uint32_t kLane = kSize / 8;  ///< requests of a batch lie in lanes of their own

struct Pending {
  Command command{};
  std::uint64_t offset = 0;
  std::uint32_t length = 0;
  std::unique_ptr<ReadAssembly> read;
};

/// What goes out on one connection in one batch.
struct Sent {
  Bytes bytes;
  std::map<std::uint64_t, Pending> pending;  ///< by cookie
};

class Model {
 public:
  explicit Model(std::uint64_t seed) : random_(seed), bytes_(kSize) {}

  void batch(std::vector<Wire>& wires, MemoryExport& disk) {
    disk.set_slow(pick(2) == 0);
    std::vector<Sent> sent(wires.size());
    for (std::uint32_t lane = 0; lane < 8; ++lane)
      issue(sent[pick(static_cast<std::uint32_t>(wires.size()))], lane);
    // Sending waits for a server that waits for us to read: so it has threads of its own.
    std::vector<std::future<void>> sending;
    for (std::size_t i = 0; i < wires.size(); ++i)
      sending.push_back(
          std::async(std::launch::async, [&wires, &sent, i] { wires[i].send(sent[i].bytes); }));
    for (std::size_t i = 0; i < wires.size(); ++i) {
      while (!sent[i].pending.empty())
        collect(wires[i], sent[i].pending);
    }
    for (auto& s : sending)
      s.get();
  }

  /// Reads everything, through each connection.
  void compare(std::vector<Wire>& wires) {
    for (Wire& wire : wires) {
      Sent sent;
      add_read(sent, 0, kSize, 0);
      wire.send(sent.bytes);
      while (!sent.pending.empty())
        collect(wire, sent.pending);
    }
  }

 private:
  std::uint32_t pick(std::uint32_t n) { return static_cast<std::uint32_t>(random_() % n); }

  void issue(Sent& sent, std::uint32_t lane) {
    std::uint32_t length = 1 + pick(kLane - 1);
    if (pick(2) == 0) length = std::min(length, 1 + pick(5000));
    std::uint64_t offset = lane * kLane + pick(kLane - length + 1);
    if (pick(2) == 0) {  // whole blocks
      offset = std::min<std::uint64_t>(round_up(offset, 4096), round_down(kSize - 1, 4096));
      length = 4096;
      if (offset + length > (lane + 1) * kLane || offset + length > kSize) return;
    }
    const std::uint16_t fua = pick(4) == 0 ? kCmdFua : 0;
    const auto target = bytes_.begin() + static_cast<std::ptrdiff_t>(offset);
    switch (pick(6)) {
      case 0:
      case 1: {
        Bytes data(length);
        const auto fill = static_cast<std::byte>(pick(256));
        for (std::size_t i = 0; i < data.size(); ++i)
          data[i] = fill ^ static_cast<std::byte>(i % 13);
        add(sent, Command::kWrite, offset, length, fua);
        sent.bytes.insert(sent.bytes.end(), data.begin(), data.end());
        std::copy(data.begin(), data.end(), target);
        break;
      }
      case 2: {
        const Command command = pick(2) == 0 ? Command::kTrim : Command::kWriteZeroes;
        add(sent, command, offset, length, fua);
        std::fill_n(target, length, std::byte{0});
        break;
      }
      case 3:
        add(sent, Command::kBlockStatus, offset, length,
            pick(2) == 0 ? kCmdReqOne : std::uint16_t{0});
        break;
      default:
        add_read(sent, offset, length, pick(4) == 0 ? kCmdDf : std::uint16_t{0});
    }
  }

  Pending& add(Sent& sent, Command command, std::uint64_t offset, std::uint32_t length,
               std::uint16_t flags) {
    const std::uint64_t cookie = ++cookie_;
    const Bytes request =
        Wire::request_bytes(static_cast<std::uint16_t>(command), flags, cookie, offset, length);
    sent.bytes.insert(sent.bytes.end(), request.begin(), request.end());
    return sent.pending[cookie] = Pending{command, offset, length, nullptr};
  }

  void add_read(Sent& sent, std::uint64_t offset, std::uint32_t length, std::uint16_t flags) {
    add(sent, Command::kRead, offset, length, flags).read =
        std::make_unique<ReadAssembly>(offset, length);
  }

  void collect(Wire& wire, std::map<std::uint64_t, Pending>& pending) {
    const auto chunk = wire.chunk();
    auto found = pending.find(chunk.cookie);
    REQUIRE(found != pending.end());
    REQUIRE(chunk.error == WireError::kNone);
    Pending& p = found->second;
    if (p.command == Command::kRead) p.read->add(chunk);
    if (p.command == Command::kBlockStatus) check_status(chunk, p);
    if (!chunk.done) return;
    if (p.command == Command::kRead) {
      const auto expected = bytes_.begin() + static_cast<std::ptrdiff_t>(p.offset);
      REQUIRE(std::equal(p.read->data().begin(), p.read->data().end(), expected));
    }
    pending.erase(found);
  }

  /// What is told to be zero is zero; lengths stay within the request.
  void check_status(const Wire::Chunk& chunk, const Pending& p) {
    Decoder in(chunk.body);
    in.skip(4);
    REQUIRE(in.remaining() >= 8);
    std::uint64_t at = p.offset;
    while (in.remaining() != 0) {
      const std::uint32_t length = in.be<std::uint32_t>();
      const std::uint32_t flags = in.be<std::uint32_t>();
      REQUIRE(length != 0);
      REQUIRE(at + length <= p.offset + p.length);
      if ((flags & kStateZero) != 0) {
        const auto begin = bytes_.begin() + static_cast<std::ptrdiff_t>(at);
        REQUIRE(std::all_of(begin, begin + length, [](std::byte b) { return b == std::byte{0}; }));
      }
      at += length;
    }
  }

  std::mt19937_64 random_;
  Bytes bytes_;
  std::uint64_t cookie_ = 0;
};

TEST_CASE("two connections see one device: random requests match a model") {
  const auto kind = GENERATE(LoopOptions::Kind::kAuto, LoopOptions::Kind::kThreads);
  std::uint64_t seed = std::random_device()();
  if (const char* given = std::getenv("SNAP_SEED")) seed = std::strtoull(given, nullptr, 10);
  WARN("run again with SNAP_SEED=" << seed);

  FixedExports exports;
  auto disk = std::make_shared<MemoryExport>("disk", kSize);
  exports.add(disk);
  ConnectionLimits limits;
  limits.requests = 5;  // small, so that they are reached
  limits.bytes = 128u << 10;
  ServedClient first(exports, limits, kind);
  ServedClient second(exports, {}, kind);
  std::vector<Wire> wires = {Wire(first.client.get()), Wire(second.client.get())};
  for (Wire& wire : wires)
    wire.enter("disk");
  Model model(seed);
  for (int step = 0; step < 300; ++step)
    model.batch(wires, *disk);
  model.compare(wires);
}

}  // namespace
}  // namespace snap::nbd
