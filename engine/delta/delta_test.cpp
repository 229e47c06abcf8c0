// The delta on the real loop and the real disk: reads back what was written, against a model.
#include <catch2/catch.hpp>
#include <chrono>

#include "engine/delta/delta_format.h"
#include "engine/delta/delta_rig.h"
#include "engine/delta/delta_test_util.h"

using namespace snap;
using namespace snap::delta_test;

namespace {

/// One random operation on the delta and on the model.
Task<void> random_operation(Delta* delta, std::vector<std::byte>* model, SeededRandom* random,
                            PatternSource* below) {
  const std::uint64_t kind = random->below(8);
  const bool large = random->below(8) == 0;
  std::uint64_t at = random->below(model->size() / 512) * 512;
  std::uint64_t length = (1 + random->below(large ? 1024 : 40)) * 512;
  if (random->below(3) == 0) at = round_down(at, kBlockSize);
  length = std::min(length, model->size() - at);
  const auto durability = random->below(10) == 0 ? Durability::kDurable : Durability::kCached;
  if (kind < 4) {
    const auto bytes = random_bytes(*random, length);
    const Delta::WriteMode mode(durability, random->below(2) == 0);
    std::optional<Result<void>> now;
    if (durability == Durability::kCached && random->below(2) == 0)
      now = delta->write_now(ByteOffset(at), bytes);
    if (now) {
      must(*now);
    } else {
      must(co_await delta->write(ByteOffset(at), bytes, *below, mode));
    }
    std::copy(bytes.begin(), bytes.end(), model->begin() + static_cast<std::ptrdiff_t>(at));
  } else if (kind < 6) {
    auto done = co_await delta->write_zeroes(ByteOffset(at), length, *below, random->below(2) == 0,
                                             durability);
    must(done);
    std::memset(model->data() + at, 0, length);
  } else if (kind < 7) {
    auto done = co_await delta->trim(ByteOffset(at), length, durability);
    must(done);
    std::uint64_t end = at + length;
    const std::uint64_t begin = round_up(at, kBlockSize);
    if (end != model->size()) end = round_down(end, kBlockSize);
    if (begin < end) std::memset(model->data() + begin, 0, end - begin);
  } else {
    auto done = co_await delta->flush();
    must(done);
  }
}

Task<void> run_model(Rig* rig, std::uint64_t seed) {
  SeededRandom random(seed);
  PatternSource below;
  std::uint64_t size = kRigSize;
  std::vector<std::byte> model = pattern_volume(size);
  auto delta = co_await rig->create(size);
  for (int i = 0; i < 400; ++i) {
    co_await random_operation(delta.get(), &model, &random, &below);
    if (i % 40 == 39) {
      const std::int64_t wrong = co_await first_difference(delta.get(), &model);
      CHECK(wrong == -1);
    }
    if (i % 100 == 99) {
      // Every other time as after the death of the process: nothing is closed.
      auto ended = Result<void>();
      if (i % 200 == 199) {
        ended = co_await delta->close();
      } else {
        ended = co_await delta->flush();
        delta->stop(Error(ErrorCode::kIo, "the process died"));
        auto drained = co_await delta->close();  // what runs in the background ends; nothing else
        CHECK(!drained);
      }
      must(ended);
      delta.reset();
      auto opened = co_await rig->open(Delta::Mode::kReadWrite);
      delta = must(std::move(opened));
      const std::int64_t wrong = co_await first_difference(delta.get(), &model);
      CHECK(wrong == -1);
    }
  }
  auto closed = co_await delta->close();
  must(closed);
}

}  // namespace

TEST_CASE("a volume reads as a model does, whatever is written, trimmed and opened again") {
  const std::uint64_t seed = test_seed("delta model");
  for (std::uint64_t i = 0; i < 6; ++i) {
    INFO("seed " << seed + i);
    Rig rig;
    rig.loop->run(run_model(&rig, seed + i));
  }
}

namespace {
Task<void> absent_and_zero_blocks(Rig* rig) {
  PatternSource below;
  auto delta = co_await rig->create(kRigSize);
  std::vector<std::byte> model = pattern_volume(kRigSize);
  const auto ones = filled(512, 1);
  auto done = co_await delta->write(ByteOffset(8192 + 512), ones, below, Durability::kCached);
  must(done);
  std::copy(ones.begin(), ones.end(), model.begin() + 8192 + 512);
  CHECK(below.reads == 1);
  // Now it is present: nothing below is asked.
  done = co_await delta->write(ByteOffset(8192 + 1024), ones, below, Durability::kCached);
  must(done);
  std::copy(ones.begin(), ones.end(), model.begin() + 8192 + 1024);
  CHECK(below.reads == 1);
  // A zero block is completed with zeros, though the file held something else before.
  done = co_await delta->trim(ByteOffset(8192), 4096, Durability::kCached);
  must(done);
  std::memset(model.data() + 8192, 0, 4096);
  done = co_await delta->write(ByteOffset(8192 + 2048), ones, below, Durability::kCached);
  must(done);
  std::copy(ones.begin(), ones.end(), model.begin() + 8192 + 2048);
  CHECK(below.reads == 1);
  // Whole blocks with ragged ends: both ends are asked for, the middle is not.
  const auto twos = filled(4096 * 3, 2);
  done = co_await delta->write(ByteOffset(40960 + 1536), twos, below, Durability::kCached);
  must(done);
  std::copy(twos.begin(), twos.end(), model.begin() + 40960 + 1536);
  CHECK(below.reads == 3);
  const std::int64_t wrong = co_await first_difference(delta.get(), &model);
  CHECK(wrong == -1);
  auto closed = co_await delta->close();
  must(closed);
}
}  // namespace

TEST_CASE("a part of an absent block is completed from below, of a zero block with zeros") {
  Rig rig;
  rig.loop->run(absent_and_zero_blocks(&rig));
}

namespace {
Task<void> write_sector(Delta* delta, std::uint64_t sector, int value, BlockSource* below,
                        WaitGroup* group) {
  const auto bytes = filled(512, value);
  auto done = co_await delta->write(ByteOffset(sector * 512), bytes, *below, Durability::kCached);
  must(done);
  group->done();
}
/// Gives others a chance to overtake.
class SlowSource final : public BlockSource {
 public:
  Task<Result<void>> read_blocks(ByteOffset at, std::span<std::byte> out) override {
    for (int i = 0; i < 20; ++i)
      co_await yield_now();
    PatternSource::fill(at, out);
    co_return Result<void>();
  }
};
Task<void> eight_sectors_at_once(Rig* rig) {
  SlowSource below;
  auto delta = co_await rig->create(kRigSize);
  std::vector<std::byte> model = pattern_volume(kRigSize);
  WaitGroup group;
  for (std::uint64_t sector = 0; sector < 16; ++sector) {
    if (sector % 8 == 3) continue;  // stays as below
    group.add();
    rig->loop->spawn(
        write_sector(delta.get(), sector, static_cast<int>(sector + 1), &below, &group));
    std::memset(model.data() + sector * 512, static_cast<int>(sector + 1), 512);
  }
  co_await group.wait();
  const std::int64_t wrong = co_await first_difference(delta.get(), &model);
  CHECK(wrong == -1);
  auto closed = co_await delta->close();
  must(closed);
}
}  // namespace

TEST_CASE("sub-block writes to one absent block at the same time lose nothing") {
  Rig rig;
  rig.loop->run(eight_sectors_at_once(&rig));
}

namespace {
Task<void> flush_costs(Rig* rig) {
  PatternSource below;
  auto delta = co_await rig->create(kRigSize);
  FaultPlan& plan = *rig->plan;
  plan.seen.clear();
  auto done = co_await delta->flush();
  must(done);
  CHECK(plan.seen.empty());
  const auto block = filled(4096, 7);
  done = co_await delta->write(ByteOffset(4096), block, below, Durability::kCached);
  must(done);
  done = co_await delta->flush();
  must(done);
  // A few blocks: one write and one sync of the journal, once it has its header.
  CHECK(plan.count(FaultEvent::Kind::kSync, "data") == 0);
  plan.seen.clear();
  done = co_await delta->write(ByteOffset(4096), block, below, Durability::kDurable);
  must(done);
  CHECK(plan.count(FaultEvent::Kind::kSync, "data") == 0);
  CHECK(plan.count(FaultEvent::Kind::kWrite, "journal") == 1);
  CHECK(plan.count(FaultEvent::Kind::kSync, "journal") == 1);
  CHECK(delta->stats().syncs == 0);
  plan.seen.clear();
  done = co_await delta->flush();
  must(done);
  CHECK(plan.seen.empty());
  // FUA makes the write alone durable, and its neighbours stay for the next flush.
  const auto neighbours = filled(8 * kBlockSize, 6);
  done = co_await delta->write(ByteOffset(0), neighbours, below, Durability::kCached);
  must(done);
  plan.seen.clear();
  done = co_await delta->write(ByteOffset(4096), block, below, Durability::kDurable);
  must(done);
  CHECK(plan.written() == kBlockSize + kFrameAlign + kBlockSize);  // data, record, its block
  CHECK(plan.count(FaultEvent::Kind::kSync, "journal") == 1);
  plan.seen.clear();
  done = co_await delta->flush();
  must(done);
  CHECK(plan.written() == kFrameAlign + 7 * kBlockSize);
  // Many: a sync of the data and a record without them.
  const auto many = filled((kSmallFlushBlocks + 1) * kBlockSize, 8);
  done = co_await delta->write(ByteOffset(1u << 20), many, below, Durability::kCached);
  must(done);
  plan.seen.clear();
  done = co_await delta->flush();
  must(done);
  CHECK(plan.count(FaultEvent::Kind::kSync, "data") == 1);
  CHECK(plan.written() == kFrameAlign);
  CHECK(plan.count(FaultEvent::Kind::kSync, "journal") == 1);
  plan.seen.clear();
  // A trim alone needs a record and no sync of the data.
  done = co_await delta->trim(ByteOffset(4096), 4096, Durability::kDurable);
  must(done);
  CHECK(plan.count(FaultEvent::Kind::kSync, "data") == 0);
  CHECK(plan.count(FaultEvent::Kind::kSync, "journal") == 1);
  auto closed = co_await delta->close();
  must(closed);
}
}  // namespace

TEST_CASE("a flush does what is needed: nothing, a record with few blocks, a sync of many") {
  Rig rig;
  rig.loop->run(flush_costs(&rig));
}

namespace {
Task<void> creation_costs(Rig* rig) {
  auto delta = co_await rig->create(std::uint64_t{1} << 40);
  const FaultPlan& plan = *rig->plan;
  CHECK(plan.written() < 64 * 1024);
  CHECK(plan.count(FaultEvent::Kind::kSync, "map.new") +
            plan.count(FaultEvent::Kind::kSync, "map") ==
        1);
  CHECK(plan.count(FaultEvent::Kind::kDirSync, ".") == 1);
  CHECK(plan.count(FaultEvent::Kind::kSync, "data") == 0);
  CHECK(plan.count(FaultEvent::Kind::kSync, "journal") == 0);
  CHECK(!delta->next_present(ChunkIndex(0)));
  auto closed = co_await delta->close();
  must(closed);
}
}  // namespace

TEST_CASE("a delta of 1 TiB is made with two syncs and less than 64 KiB") {
  Rig rig;
  rig.loop->run(creation_costs(&rig));
}

namespace {
Task<void> shrink_and_grow(Rig* rig) {
  PatternSource below;
  auto delta = co_await rig->create(1 << 20);
  const auto bytes = filled(1 << 20, 9);
  auto done = co_await delta->write(ByteOffset(0), bytes, below, Durability::kCached);
  must(done);
  done = co_await delta->resize((512 << 10) + 1536);
  must(done);
  CHECK(delta->size() == (512 << 10) + 1536);
  done = co_await delta->write(ByteOffset(512 << 10), filled(4096, 1), below, Durability::kCached);
  CHECK(!done);
  CHECK(done.error().code() == ErrorCode::kInvalidArgument);
  done = co_await delta->resize(1 << 20);
  must(done);
  for (int pass = 0; pass < 2; ++pass) {
    std::vector<std::byte> block(4096);
    done = co_await delta->read(ByteOffset(512 << 10), block);
    must(done);
    CHECK(std::all_of(block.begin(), block.begin() + 1536,
                      [](std::byte b) { return b == std::byte{9}; }));
    CHECK(std::all_of(block.begin() + 1536, block.end(),
                      [](std::byte b) { return b == std::byte{0}; }));
    CHECK(delta->lookup(ChunkIndex(8)).data == 1);
    CHECK(!delta->next_present(ChunkIndex(9)));
    done = co_await delta->close();
    must(done);
    delta.reset();
    auto opened = co_await rig->open(Delta::Mode::kReadWrite);
    delta = must(std::move(opened));
  }
  done = co_await delta->close();
  must(done);
}
}  // namespace

TEST_CASE("a volume that shrinks and grows again shows nothing of what was beyond") {
  Rig rig;
  rig.loop->run(shrink_and_grow(&rig));
}

namespace {
Task<void> seal_and_reopen(Rig* rig) {
  PatternSource below;
  auto delta = co_await rig->create(kRigSize);
  std::vector<std::byte> model = pattern_volume(kRigSize);
  const auto bytes = filled(100 << 10, 5);
  auto done = co_await delta->write(ByteOffset(4096), bytes, below, Durability::kCached);
  must(done);
  std::copy(bytes.begin(), bytes.end(), model.begin() + 4096);
  done = co_await delta->close();
  must(done);
  delta.reset();
  auto early = co_await rig->open(Delta::Mode::kSealed);
  CHECK(!early);  // it was closed, not sealed
  auto again = co_await rig->open(Delta::Mode::kReadWrite);
  delta = must(std::move(again));
  done = co_await delta->seal();
  must(done);
  auto sealed_result = co_await rig->open(Delta::Mode::kSealed);
  auto sealed = must(std::move(sealed_result));
  std::int64_t wrong = co_await first_difference(sealed.get(), &model);
  CHECK(wrong == -1);
  done = co_await sealed->write(ByteOffset(0), bytes, below, Durability::kCached);
  CHECK(!done);
  CHECK(done.error().code() == ErrorCode::kReadOnly);
  // The snapshot failed: the old delta goes on, and is sealed no longer once that is recorded.
  done = co_await delta->write(ByteOffset(0), bytes, below, Durability::kDurable);
  must(done);
  std::copy(bytes.begin(), bytes.end(), model.begin());
  done = co_await delta->close();
  must(done);
  auto late = co_await rig->open(Delta::Mode::kSealed);
  CHECK(!late);
  auto last = co_await rig->open(Delta::Mode::kReadWrite);
  delta = must(std::move(last));
  wrong = co_await first_difference(delta.get(), &model);
  CHECK(wrong == -1);
  done = co_await delta->close();
  must(done);
}
}  // namespace

TEST_CASE("a sealed delta opens without its journal, and one that went on does not") {
  Rig rig;
  rig.loop->run(seal_and_reopen(&rig));
}

namespace {
Task<void> many_flushes(Rig* rig) {
  PatternSource below;
  constexpr std::uint64_t size = 64u << 20;
  auto delta = co_await rig->create(size);
  std::vector<std::byte> model = pattern_volume(size);
  SeededRandom random(7);
  // Each flush has something to record, so areas fill, checkpoints run and the map is compacted.
  for (int i = 0; i < 1500; ++i) {
    const std::uint64_t at = random.below(size / 4096) * 4096;
    const auto block = filled(4096, 1 + i % 250);
    auto done = Result<void>();
    if (i % 3 == 0) {
      done = co_await delta->trim(ByteOffset(at), 4096, Durability::kDurable);
      std::memset(model.data() + at, 0, 4096);
    } else {
      done = co_await delta->write(ByteOffset(at), block, below, Durability::kDurable);
      std::copy(block.begin(), block.end(), model.begin() + static_cast<std::ptrdiff_t>(at));
    }
    must(done);
  }
  CHECK(delta->stats().checkpoints >= 4);
  delta->stop(Error(ErrorCode::kIo, "the process died"));
  auto drained = co_await delta->close();  // what runs in the background ends; nothing else
  CHECK(!drained);
  delta.reset();
  auto opened = co_await rig->open(Delta::Mode::kReadWrite);
  delta = must(std::move(opened));
  const std::int64_t wrong = co_await first_difference(delta.get(), &model);
  CHECK(wrong == -1);
  auto closed = co_await delta->close();
  must(closed);
}
}  // namespace

TEST_CASE("thousands of flushes pass through both areas and many checkpoints") {
  Rig rig;
  // The disk's own syncs are not what this is about.
  rig.plan->decide = [](const FaultEvent& e) {
    const bool sync = e.kind == FaultEvent::Kind::kSync || e.kind == FaultEvent::Kind::kDirSync;
    return sync ? FaultAction::leave_out() : FaultAction::pass();
  };
  rig.loop->run(many_flushes(&rig));
}
