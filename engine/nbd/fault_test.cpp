// Faults at run time, as clients meet them: two connections to a volume on the simulated disk,
// whose every single operation (of data, journal, map and layer) fails once or is short.
//
// The request that it belongs to gets the right error; all others, of both connections, are
// answered as if nothing had been, unless a sync, the journal or the map has failed: then writes
// get EPERM and flushes the error, on both, until the volume is opened again. Opened again, with
// and without a power cut, each sector has the value that was flushed last or a later one.
#include <catch2/catch.hpp>
#include <random>

#include "engine/delta/delta_model.h"
#include "engine/nbd/test_client.h"
#include "engine/nbd/volume_export.h"
#include "engine/volume/volume_model.h"

namespace snap::nbd {
namespace {

using delta_test::kSectors;
using delta_test::kSize;

constexpr std::byte kBelow{0xbe};  ///< all that the layer holds
/// The other connection's block, which no request of the first touches.
constexpr std::uint64_t kOthers = kSize - kBlockSize;

struct Step {
  Command command;
  std::uint64_t offset = 0;
  std::uint32_t length = 0;
  std::uint16_t flags = 0;
};

/// Every kind of change, in absent, present and zero blocks, with small and large flushes, until
/// journal areas of four records have been filled several times.
std::vector<Step> steps() {
  std::vector<Step> all;
  for (std::uint64_t round = 0; round < 3; ++round) {
    const std::uint64_t chunk = round * kChunkSize;
    all.push_back({Command::kWrite, chunk, kBlockSize});
    all.push_back({Command::kWrite, chunk + 2 * kBlockSize + 512, 1024});
    all.push_back({Command::kFlush});
    all.push_back({Command::kWrite, chunk + 512, 512, kCmdFua});
    all.push_back({Command::kWriteZeroes, chunk + 4 * kBlockSize, 2 * kBlockSize});
    all.push_back({Command::kWrite, chunk + 5 * kBlockSize + 512, 512, kCmdFua});
    all.push_back({Command::kTrim, chunk, kBlockSize});
    all.push_back({Command::kFlush});
    all.push_back({Command::kWriteZeroes, chunk + 8 * kBlockSize, kBlockSize, kCmdNoHole});
    all.push_back({Command::kTrim, chunk + 2 * kBlockSize, kBlockSize, kCmdFua});
    all.push_back({Command::kWrite, chunk + 10 * kBlockSize, 2 * kChunkSize, kCmdFua});
    all.push_back({Command::kRead, chunk, kChunkSize});
  }
  return all;
}

// ---- The volume

Task<void> make_disk(SimDisk* disk) {
  co_await delta_test::create_small(disk);
  volume_test::LayerSpec spec;
  spec.virtual_size = kSize;
  for (std::uint64_t b = 0; b < kSize / kBlockSize; ++b)
    spec.blocks[b] = Bytes(kBlockSize, kBelow);
  auto root = disk->root();
  co_await volume_test::make_layer(*root, "layer", spec);
  must(co_await root->sync());
  auto layer = must(co_await root->open("layer", for_write()));
  must(co_await full_sync(*layer));
}

Task<std::shared_ptr<Volume>> open_disk(SimDisk* disk) {
  auto root = disk->root();
  Volume::Parts parts;
  parts.size = parts.floor = kSize;
  parts.delta = must(co_await Delta::open(disk->root(), Delta::Mode::kReadWrite));
  std::vector<std::string> names = {"layer"};
  parts.layers = co_await volume_test::open_layers(*root, std::move(names));
  co_return std::make_shared<Volume>(std::move(parts));
}

Task<Bytes> read_disk(SimDisk* disk) {
  auto volume = co_await open_disk(disk);
  Bytes bytes(kSize);
  must(co_await volume->read(ByteOffset(0), bytes));
  // It takes writes again.
  const Bytes block(kBlockSize, std::byte{1});
  must(co_await volume->write(ByteOffset(0), block, {.fua = true}));
  must(co_await volume->close());
  co_return bytes;
}

// ---- What is known of it

class Sectors {
 public:
  Sectors() { std::fill(may_.begin(), may_.end(), std::vector<std::byte>{kBelow}); }

  void answered(const Step& step, std::byte value, bool well) {
    const bool fua = (step.flags & kCmdFua) != 0;
    if (step.command == Command::kFlush) {
      if (well) durable(0, kSectors);
    } else if (step.command != Command::kRead) {
      const std::uint64_t begin = step.offset / kSectorSize;
      const std::uint64_t end = begin + step.length / kSectorSize;
      for (std::uint64_t s = begin; s < end; ++s) {
        may_[s].push_back(value);
        unsure_[s] = !well;
      }
      if (well && fua) durable(begin, end);
    }
  }
  bool allow(std::uint64_t offset, std::span<const std::byte> bytes) const {
    for (std::size_t i = 0; i < bytes.size(); ++i) {
      const auto& may = may_[(offset + i) / kSectorSize];
      if (std::find(may.begin(), may.end(), bytes[i]) == may.end()) return false;
    }
    return true;
  }
  /// What is read while it is served: the last value, unless a request there has failed.
  bool now(std::uint64_t offset, std::span<const std::byte> bytes) const {
    if (!allow(offset, bytes)) return false;
    for (std::size_t i = 0; i < bytes.size(); ++i) {
      const std::uint64_t s = (offset + i) / kSectorSize;
      if (!unsure_[s] && may_[s].back() != bytes[i]) return false;
    }
    return true;
  }

 private:
  void durable(std::uint64_t begin, std::uint64_t end) {
    for (std::uint64_t s = begin; s < end; ++s)
      if (!unsure_[s]) may_[s] = {may_[s].back()};
  }
  std::array<std::vector<std::byte>, kSectors> may_;
  std::array<bool, kSectors> unsure_{};
};

// ---- One run

class Run {
 public:
  explicit Run(SimFault fault) : fault_(fault) {
    loop_->run(make_disk(&disk_));
    volume_ = loop_->run(open_disk(&disk_));
    disk_.clear_log();
    if (fault_.nth != 0) disk_.inject(fault_);
    exports_.add(std::make_shared<VolumeExport>(volume_, "disk", "", false));
    {
      ServedClient first(exports_), second(exports_);
      Wire one(first.client.get()), other(second.client.get());
      one.enter("disk");
      other.enter("disk");
      for (const Step& step : steps()) {
        request(one, step);
        request(other, {Command::kRead, kOthers, kBlockSize});
        request(other, {Command::kWrite, kOthers, 512});
      }
      request(other, {Command::kFlush});
    }
    exports_ = FixedExports();
    closed_ = loop_->run(volume_->close()).has_value();
    volume_.reset();
  }

  std::uint64_t count(SimOpKind kind) const {
    std::uint64_t n = 0;
    for (const SimOp& op : disk_.log())
      n += op.kind == kind && op.first;
    return n;
  }
  const std::vector<WireError>& errors() const { return errors_; }
  bool failed_for_good() const { return failed_for_good_; }

  /// Opened again, what it holds is allowed.
  void check_reopened() {
    std::mt19937_64 random(fault_.nth);
    for (const bool cut : {false, true}) {
      auto disk = disk_.clone();
      if (cut) disk->crash(random);
      const Bytes bytes = loop_->run(read_disk(disk.get()));
      CHECK(sectors_.allow(0, bytes));
    }
  }

 private:
  void request(Wire& wire, const Step& step) {
    const bool is_write = step.command == Command::kWrite;
    const bool changes =
        is_write || step.command == Command::kTrim || step.command == Command::kWriteZeroes;
    const std::byte value = is_write ? std::byte{++value_} : std::byte{0};
    const Bytes payload(is_write ? step.length : 0, value);
    wire.request(step.command, ++cookie_, step.offset, step.length, step.flags, payload);
    ReadAssembly read(step.offset, step.length);
    Wire::Chunk chunk;
    do {
      chunk = wire.chunk();
      REQUIRE(chunk.cookie == cookie_);
      if (chunk.error == WireError::kNone && step.command == Command::kRead) read.add(chunk);
    } while (!chunk.done);
    sectors_.answered(step, value, chunk.error == WireError::kNone);
    const bool was_failed = failed_for_good_;
    failed_for_good_ = volume_->parts().delta->failure().has_value();
    if (chunk.error == WireError::kNone) {
      if (step.command == Command::kRead) CHECK(sectors_.now(step.offset, read.data()));
      // Nothing is called done that was asked for after a failed sync.
      CHECK_FALSE((was_failed && (changes || step.command == Command::kFlush)));
      return;
    }
    if (was_failed) {
      // Reads go on. A write, or its FUA, is refused; a flush fails as the sync did.
      CHECK(step.command != Command::kRead);
      if (changes) CHECK(chunk.error == WireError::kPerm);
    }
    errors_.push_back(chunk.error);
  }

  SimFault fault_;
  SimDisk disk_;
  std::unique_ptr<EventLoop> loop_ = must(make_event_loop({.kind = LoopOptions::Kind::kThreads}));
  std::shared_ptr<Volume> volume_;
  FixedExports exports_;
  Sectors sectors_;
  std::uint64_t cookie_ = 0;
  std::uint8_t value_ = 0;
  std::vector<WireError> errors_;
  bool failed_for_good_ = false;
  bool closed_ = false;
};

void check_fault(SimFault fault) {
  INFO(sim_op_name(fault.kind) << " number " << fault.nth << ", errno " << fault.error);
  Run run(fault);
  const WireError expected = fault.error == ENOSPC ? WireError::kNoSpace : WireError::kIo;
  if (fault.error == 0) {
    CHECK(run.errors().empty());
    CHECK_FALSE(run.failed_for_good());
  } else if (!run.errors().empty()) {
    CHECK((run.errors().front() == expected || run.failed_for_good()));
    if (!run.failed_for_good()) CHECK(run.errors().size() == 1);
  }
  if (fault.kind == SimOpKind::kRead && fault.error != 0) CHECK_FALSE(run.failed_for_good());
  run.check_reopened();
}

}  // namespace

TEST_CASE("each I/O of a volume fails once: its request gets the error, all others go on") {
  constexpr SimOpKind kKinds[] = {SimOpKind::kRead,     SimOpKind::kWrite,    SimOpKind::kPunch,
                                  SimOpKind::kAllocate, SimOpKind::kDataSync, SimOpKind::kCreate,
                                  SimOpKind::kRename,   SimOpKind::kUnlink,   SimOpKind::kDirSync};
  const Run well({SimOpKind::kWrite, 0, 0, 0});
  REQUIRE(well.errors().empty());
  for (const SimOpKind kind : kKinds) {
    const std::uint64_t count = well.count(kind);
    for (std::uint64_t nth = 1; nth <= count; ++nth) {
      check_fault({kind, nth, EIO, 0});
      if (kind != SimOpKind::kRead) check_fault({kind, nth, ENOSPC, 0});
      const bool moves = kind == SimOpKind::kRead || kind == SimOpKind::kWrite;
      if (moves) check_fault({kind, nth, 0, 300});
    }
  }
  // All kinds that matter were met.
  CHECK(well.count(SimOpKind::kRead) > 50);
  CHECK(well.count(SimOpKind::kWrite) > 80);
  CHECK(well.count(SimOpKind::kDataSync) > 10);
  CHECK(well.count(SimOpKind::kPunch) > 3);
}

}  // namespace snap::nbd
