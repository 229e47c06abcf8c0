// Power cuts of one delta on the simulated disk: a random workload is cut off after its n-th change
// of the disk, what is pending is kept, lost or torn, and recovery (itself cut off now and then)
// must bring back of each sector the last value that was flushed or a later one.
#include <catch2/catch.hpp>

#include "engine/delta/delta_model.h"

using namespace snap;
using namespace snap::delta_test;

namespace {

Task<void> recover(Run* run, SimDisk* disk, Delta::Mode mode, bool* right) {
  auto delta = co_await Delta::open(disk->root(), mode);
  if (!delta) {
    if (!disk->frozen()) std::printf("refused: %s\n", delta.error().message().c_str());
    co_return;
  }
  // Cut off at the very end of recovery: nothing can be read any more.
  if (!disk->frozen()) co_await compare(run, delta->get(), right);
}

void cut(SimDisk& disk, std::mt19937_64& random, std::uint64_t how) {
  if (how == 0) disk.crash_all_lost();
  if (how == 1) disk.crash_all_kept();
  if (how > 1) disk.crash(random);
}

/// Recovers from one state, and from each of some cuts in the middle of recovering.
void check_state(Run& run, std::unique_ptr<SimDisk> disk, std::mt19937_64& random) {
  bool right = false;
  auto first = disk->clone();
  if (run.model.sealed) {
    SimLoop loop(1);
    loop.run(recover(&run, first.get(), Delta::Mode::kSealed, &right));
    CHECK(right);
    right = false;
  }
  SimLoop loop(1);
  const std::uint64_t before = first->changes();
  loop.run(recover(&run, first.get(), Delta::Mode::kReadWrite, &right));
  CHECK(right);
  const std::uint64_t steps = first->changes() - before;
  const std::uint64_t stop = random() % (steps + 1);
  right = false;
  disk->freeze_after(stop);
  loop.run(recover(&run, disk.get(), Delta::Mode::kReadWrite, &right));
  cut(*disk, random, random() % 4);
  right = false;
  loop.run(recover(&run, disk.get(), Delta::Mode::kReadWrite, &right));
  CHECK(right);
}

std::uint64_t changes_of(std::uint64_t seed, std::uint64_t operations, bool resizes) {
  Run run(seed, operations);
  return delta_test::changes_of(run, resizes);
}

void cut_at(std::uint64_t seed, std::uint64_t operations, bool resizes, std::uint64_t n) {
  std::mt19937_64 random(seed * 1000003 + n);
  for (std::uint64_t how = 0; how < 4; ++how) {
    INFO("seed " << seed << ", after change " << n << ", cut " << how);
    Run run(seed, operations);
    run.loop.run(create_small(&run.disk));
    run.disk.freeze_after(n);
    run.loop.run(workload(&run, resizes));
    cut(run.disk, random, how);
    check_state(run, run.disk.clone(), random);
  }
}

}  // namespace

TEST_CASE("after a power cut at any moment each sector holds what was flushed last or came later") {
  const std::uint64_t seed = test_seed("delta power cuts") % 1000000;
  for (std::uint64_t i = 0; i < 6; ++i) {
    const std::uint64_t changes = changes_of(seed + i, 14, i % 2 == 1);
    for (std::uint64_t n = 0; n <= changes; ++n)
      cut_at(seed + i, 14, i % 2 == 1, n);
  }
}

namespace {
/// Block 0 is flushed with its bytes in the record, then with so many others that the data file is
/// synced.
Task<void> flush_small_then_large(SimDisk* disk) {
  PatternSource below;
  Delta::CreateOptions options{test_uuid(4), 4096 * kBlockSize};
  auto delta = must(co_await Delta::create(disk->root(), options));
  const std::vector<std::byte> first(kBlockSize, std::byte{1});
  const std::vector<std::byte> many((kSmallFlushBlocks + 1) * kBlockSize, std::byte{2});
  must(co_await delta->write(ByteOffset(0), first, below, Delta::Durability::kDurable));
  CHECK(delta->stats().syncs == 0);
  must(co_await delta->write(ByteOffset(0), many, below, Delta::Durability::kDurable));
  CHECK(delta->stats().syncs == 1);
  CHECK(delta->stats().checkpoints == 0);
  disk->freeze_after(0);
  auto closed = co_await delta->close();
  (void)closed;
}

Task<void> read_first_block(SimDisk* disk, std::vector<std::byte>* out) {
  auto delta = must(co_await Delta::open(disk->root(), Delta::Mode::kReadWrite));
  must(co_await read_through(*delta, ByteOffset(0), *out));
  must(co_await delta->close());
}
}  // namespace

TEST_CASE("blocks that small flushes recorded are not replayed over those of a large one") {
  SimDisk disk;
  SimLoop loop(1);
  loop.run(flush_small_then_large(&disk));
  disk.crash_all_lost();
  std::vector<std::byte> block(kBlockSize);
  loop.run(read_first_block(&disk, &block));
  CHECK(block == std::vector<std::byte>(kBlockSize, std::byte{2}));
}

namespace {
/// A block of which a shrink cuts off one half, grown again; then the power fails. `zeroed`: what
/// is left of it is zeroed in between, and not flushed.
Task<void> shrink_within_block_and_grow(SimDisk* disk, bool zeroed) {
  PatternSource below;
  Delta::CreateOptions options{test_uuid(5), kChunkSize};
  auto delta = must(co_await Delta::create(disk->root(), options));
  const std::vector<std::byte> block(kBlockSize, std::byte{1});
  must(co_await delta->write(ByteOffset(0), block, below, Delta::Durability::kDurable));
  must(co_await delta->flush_data());
  must(co_await delta->resize(kBlockSize / 2));
  if (zeroed)
    must(co_await delta->write_zeroes(ByteOffset(0), kBlockSize / 2, below, false,
                                      Delta::Durability::kCached));
  must(co_await delta->resize(kChunkSize));
  disk->freeze_after(0);
  auto closed = co_await delta->close();
  (void)closed;
}
}  // namespace

TEST_CASE("what a shrink cut off of a block is zero after growing, also if the power fails then") {
  const bool zeroed = GENERATE(false, true);
  SimDisk disk;
  SimLoop loop(1);
  loop.run(shrink_within_block_and_grow(&disk, zeroed));
  disk.crash_all_lost();
  std::vector<std::byte> block(kBlockSize);
  loop.run(read_first_block(&disk, &block));
  const auto half = block.begin() + kBlockSize / 2;
  const std::byte first = block.front();
  CHECK((first == std::byte{1} || (zeroed && first == std::byte{0})));
  CHECK(std::count(block.begin(), half, first) == kBlockSize / 2);
  CHECK(std::count(half, block.end(), std::byte{0}) == kBlockSize / 2);
}

TEST_CASE("power cuts in long runs, which pass through many checkpoints and a compaction") {
  const std::uint64_t seed = test_seed("delta power cuts, long") % 1000000;
  for (std::uint64_t i = 0; i < 4; ++i) {
    const std::uint64_t changes = changes_of(seed + i, 700, i % 2 == 1);
    SeededRandom random(seed + i);
    for (int k = 0; k < 12; ++k)
      cut_at(seed + i, 700, i % 2 == 1, changes - 1 - random.below(changes / 2));
  }
}
