// Random operations on two connections against a model: an array of bytes.
//
// Each step sends a batch of requests on disjoint ranges over both connections, and meanwhile
// collects the replies in whatever order they come. Ranges share blocks at their ends. The device
// is one in memory that is slow at random, so that replies overtake each other; and a volume on the
// disk, with layers below, that gets a new delta now and then while requests are in flight, and is
// opened again in the end. SNAP_SEED=N runs a seed again.
#include <catch2/catch.hpp>
#include <cstdlib>
#include <functional>
#include <random>

#include "engine/nbd/memory_export.h"
#include "engine/nbd/test_client.h"
#include "engine/nbd/volume_export.h"
#include "engine/volume/volume_model.h"

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
  /// `bytes` is what the device holds. A trim zeroes whole blocks only, or all that it is told.
  Model(std::uint64_t seed, Bytes bytes, bool trims_whole_blocks)
      : random_(seed), bytes_(std::move(bytes)), trims_whole_blocks_(trims_whole_blocks) {}

  /// `meanwhile` is called while the requests are in flight.
  void batch(std::vector<Wire>& wires, const std::function<void()>& meanwhile) {
    std::vector<Sent> sent(wires.size());
    for (std::uint32_t lane = 0; lane < 8; ++lane)
      issue(sent[pick(static_cast<std::uint32_t>(wires.size()))], lane);
    // Sending waits for a server that waits for us to read: so it has threads of its own.
    std::vector<std::future<void>> sending;
    for (std::size_t i = 0; i < wires.size(); ++i)
      sending.push_back(
          std::async(std::launch::async, [&wires, &sent, i] { wires[i].send(sent[i].bytes); }));
    meanwhile();
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

  const Bytes& bytes() const { return bytes_; }

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
    switch (pick(7)) {
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
        if (command == Command::kTrim && trims_whole_blocks_) {
          const std::uint64_t stop = offset + length;
          const std::uint64_t begin = round_up(offset, kBlockSize);
          // The last block of the device may be short.
          const std::uint64_t end = stop == kSize ? stop : round_down(stop, kBlockSize);
          if (begin < end)
            std::fill_n(bytes_.begin() + static_cast<std::ptrdiff_t>(begin), end - begin,
                        std::byte{0});
        } else {
          std::fill_n(target, length, std::byte{0});
        }
        break;
      }
      case 3:
        add(sent, Command::kFlush, 0, 0, 0);
        break;
      case 4:
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
  const bool trims_whole_blocks_;
  std::uint64_t cookie_ = 0;
};

std::uint64_t choose_seed() {
  std::uint64_t seed = std::random_device()();
  if (const char* given = std::getenv("SNAP_SEED")) seed = std::strtoull(given, nullptr, 10);
  WARN("run again with SNAP_SEED=" << seed);
  return seed;
}

/// Two clients of an export, one of which may have but few requests in flight.
struct Clients {
  Clients(ExportTable& exports, LoopOptions::Kind kind)
      : first(exports, few(), kind), second(exports, {}, kind) {
    for (Wire& wire : wires)
      wire.enter("disk");
  }
  static ConnectionLimits few() {
    ConnectionLimits limits;
    limits.requests = 5;  // small, so that they are reached
    limits.bytes = 128u << 10;
    return limits;
  }
  ServedClient first;
  ServedClient second;
  std::vector<Wire> wires = {Wire(first.client.get()), Wire(second.client.get())};
};

TEST_CASE("two connections see one device: random requests match a model") {
  const auto kind = GENERATE(LoopOptions::Kind::kAuto, LoopOptions::Kind::kThreads);
  const std::uint64_t seed = choose_seed();
  FixedExports exports;
  auto disk = std::make_shared<MemoryExport>("disk", kSize);
  exports.add(disk);
  Clients clients(exports, kind);
  Model model(seed, Bytes(kSize), false);
  std::mt19937_64 random(seed);
  for (int step = 0; step < 300; ++step)
    model.batch(clients.wires, [&] { disk->set_slow(random() % 2 == 0); });
  model.compare(clients.wires);
}

// ---- A volume

/// A volume on the disk: four layers of different sizes and encodings, and a delta.
class VolumeRig {
 public:
  explicit VolumeRig(std::uint64_t seed) : random_(seed) { rig_.loop->run(create(this)); }

  const Bytes& content() const { return content_; }
  std::shared_ptr<Volume> volume() const { return volume_; }
  /// Seals the delta and puts an empty one on top.
  void push_delta() { rig_.loop->run(push(this)); }
  /// Closes the volume, opens it again and reads it.
  Bytes reopened() { return rig_.loop->run(reopen(this)); }

 private:
  static Task<Result<void>> publish() { co_return Result<void>(); }

  static Task<void> create(VolumeRig* self) {
    volume_test::StackModel stack;
    for (int i = 0; i < 4; ++i) {
      volume_test::LayerSpec spec;
      // The last but one is shorter: what lies above it reads zero there.
      spec.virtual_size = i == 2 ? kSize / 2 + 512 : kSize;
      spec.encoding = i % 2 == 0 ? Encoding::kRaw : Encoding::kZstd;
      const std::uint64_t blocks = round_up(spec.virtual_size, kBlockSize) / kBlockSize;
      for (int n = 0; n < 60; ++n) {
        auto& block = spec.blocks[self->random_.below(blocks)];
        if (self->random_.below(4) != 0) block = volume_test::random_block(self->random_);
      }
      // A layer holds zeros past its size.
      if (auto last = spec.blocks.find(blocks - 1); last != spec.blocks.end() && last->second) {
        const std::size_t used = spec.virtual_size % kBlockSize;
        if (used != 0) std::fill(last->second->begin() + used, last->second->end(), std::byte{0});
      }
      self->record_.layers.push_back("layer" + std::to_string(i));
      co_await volume_test::make_layer(*self->rig_.root, self->record_.layers.back(), spec);
      stack.apply(spec);
    }
    self->content_ = stack.content;
    self->record_.size = kSize;
    self->record_.deltas.push_back({"delta0", kSize});
    auto delta =
        co_await volume_test::create_delta(*self->rig_.root, "delta0", kSize, self->random_);
    must(co_await delta->close());
    self->volume_ = co_await volume_test::open_volume(*self->rig_.root, self->record_);
  }
  static Task<void> push(VolumeRig* self) {
    const std::string name = "delta" + std::to_string(self->record_.deltas.size());
    auto fresh = co_await volume_test::create_delta(*self->rig_.root, name, kSize, self->random_);
    auto pushed = co_await self->volume_->push_delta(fresh, &VolumeRig::publish);
    must(std::move(pushed));
    self->record_.deltas.insert(self->record_.deltas.begin(), {name, kSize});
  }
  static Task<Bytes> reopen(VolumeRig* self) {
    must(co_await self->volume_->close());
    self->volume_ = co_await volume_test::open_volume(*self->rig_.root, self->record_);
    Bytes bytes(kSize);
    must(co_await self->volume_->read(ByteOffset(0), bytes));
    must(co_await self->volume_->close());
    co_return bytes;
  }

  SeededRandom random_;
  TestRig rig_{"threads"};
  volume_test::Record record_;
  Bytes content_;
  std::shared_ptr<Volume> volume_;
};

TEST_CASE("two connections to a volume with layers below: random requests match a model") {
  const auto kind = GENERATE(LoopOptions::Kind::kAuto, LoopOptions::Kind::kThreads);
  const std::uint64_t seed = choose_seed();
  VolumeRig rig(seed);
  Model model(seed, rig.content(), true);
  {
    FixedExports exports;
    exports.add(std::make_shared<VolumeExport>(rig.volume(), "disk", "a volume", false));
    Clients clients(exports, kind);
    model.compare(clients.wires);
    for (int step = 0; step < 300; ++step)
      model.batch(clients.wires, [&] {
        if (step % 60 == 30) rig.push_delta();
      });
    model.compare(clients.wires);
  }
  CHECK(rig.reopened() == model.bytes());
}

}  // namespace
}  // namespace snap::nbd
