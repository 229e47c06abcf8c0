// One delta under two loops at once: requests of every kind, with checkpoints and a growing journal
// in the background; and writes and trims at a limit. Its worth is in a build with TSan too:
// nothing else has so many ways through the delta meet.
#include <catch2/catch.hpp>
#include <thread>

#include "engine/delta/delta_test_util.h"

using namespace snap;

namespace {

constexpr std::uint64_t kSize = 16u << 20;
constexpr std::size_t kWorkers = 4;  ///< a loop
constexpr int kRequests = 300;       ///< a worker

/// PatternSource for many threads.
class SharedSource final : public BlockSource {
 public:
  Task<Result<void>> read_blocks(ByteOffset at, std::span<std::byte> out) override {
    PatternSource::fill(at, out);
    co_return Result<void>();
  }
};

/// Works on what is its own alone: in the first half of the volume every 2 * kWorkers-th sector, so
/// that each block holds the sectors of all; in the second half every 2 * kWorkers-th block.
struct Worker {
  Delta* delta = nullptr;
  SharedSource* below = nullptr;
  std::vector<std::byte>* content = nullptr;
  std::size_t number = 0;
  std::uint64_t seed = 0;
};

Task<void> work(Worker w) {
  SeededRandom random(w.seed + w.number);
  constexpr std::uint64_t kStride = 2 * kWorkers;
  for (int i = 0; i < kRequests; ++i) {
    const bool whole = random.below(2) == 0;
    const std::size_t unit = whole ? kBlockSize : kSectorSize;
    const std::uint64_t mine_of = random.below(kSize / 2 / unit / kStride) * kStride + w.number;
    const ByteOffset at((whole ? kSize / 2 : 0) + mine_of * unit);
    const auto mine = std::span(*w.content).subspan(at.value, unit);
    const auto durability =
        random.below(16) == 0 ? Delta::Durability::kDurable : Delta::Durability::kCached;
    switch (random.below(8)) {
      case 0: {
        auto zeroed = co_await w.delta->write_zeroes(at, unit, *w.below, false, durability);
        must(zeroed);
        std::ranges::fill(mine, std::byte{0});
        break;
      }
      case 1: {
        auto flushed = random.below(8) == 0 ? w.delta->flush_data() : w.delta->flush();
        auto done = co_await std::move(flushed);
        must(done);
        break;
      }
      case 2: {
        std::vector<std::byte> got(unit);
        auto read = co_await read_through(*w.delta, at, got);
        must(read);
        if (!std::ranges::equal(got, mine)) {
          test_failed(Error(ErrorCode::kCorrupt,
                            "byte " + std::to_string(at.value) + " is not as it was written"));
        }
        break;
      }
      default: {
        const std::vector<std::byte> bytes = random_bytes(random, unit);
        auto written = co_await w.delta->write(at, bytes, *w.below, durability);
        must(written);
        std::ranges::copy(bytes, mine.begin());
      }
    }
  }
}

Task<void> work_all(Worker first) {
  for (std::size_t i = 1; i < kWorkers; ++i) {
    Worker w = first;
    w.number += i;
    EventLoop::current()->spawn(work(w));
  }
  co_await work(first);
}

Task<std::unique_ptr<Delta>> create(Directory& root) {
  auto made = co_await root.make_dir("d");
  must(made);
  Delta::CreateOptions options;
  options.id = test_uuid(1);
  options.size = kSize;
  auto dir = must(co_await root.open_dir("d"));
  auto delta = co_await Delta::create(std::move(dir), options);
  co_return must(std::move(delta));
}

/// Compares before and after the delta is closed and opened again.
Task<void> check(Directory& root, std::unique_ptr<Delta>& delta,
                 const std::vector<std::byte>& content) {
  auto at = co_await first_difference(delta.get(), &content);
  CHECK(at == -1);
  auto closed = co_await delta->close();
  must(closed);
  auto dir = must(co_await root.open_dir("d"));
  auto opened = co_await Delta::open(std::move(dir), Delta::Mode::kReadWrite);
  delta = must(std::move(opened));
  at = co_await first_difference(delta.get(), &content);
  CHECK(at == -1);
  closed = co_await delta->close();
  must(closed);
}

}  // namespace

TEST_CASE("two loops that write, zero, read and flush one delta lose nothing") {
  const auto* kind = GENERATE("threads", "uring");
  CAPTURE(kind);
  const std::uint64_t seed = test_seed("delta_threads");
  TestRig rig(kind);
  TestRig other(kind);
  auto delta = rig.loop->run(create(*rig.root));
  SharedSource below;
  std::vector<std::byte> content = pattern_volume(kSize);
  const Worker first{delta.get(), &below, &content, 0, seed};
  Worker second = first;
  second.number = kWorkers;
  std::thread thread([&] { other.loop->run(work_all(second)); });
  rig.loop->run(work_all(first));
  thread.join();
  CHECK(delta->stats().checkpoints > 0);
  rig.loop->run(check(*rig.root, delta, content));
}

namespace {

constexpr std::uint64_t kLimitBlocks = 300;

/// Writes single blocks of its own until the limit says no, and trims some now and then.
struct Filler {
  Delta* delta = nullptr;
  SharedSource* below = nullptr;
  std::atomic<std::int64_t>* held = nullptr;  ///< blocks that were answered, of all fillers
  std::uint64_t number = 0;
  bool trims = true;
};

Task<void> fill(Filler f) {
  const std::vector<std::byte> bytes(kBlockSize, std::byte{1});
  SeededRandom random(f.number);
  for (std::uint64_t i = 0; i < kLimitBlocks; ++i) {
    const ByteOffset at((i * 2 * kWorkers + f.number) * kBlockSize);
    auto written = co_await f.delta->write(at, bytes, *f.below, Delta::Durability::kCached);
    if (written) f.held->fetch_add(1);
    if (!written && written.error().code() != ErrorCode::kNoSpace) test_failed(written.error());
    if (f.delta->stats().data_blocks > kLimitBlocks)
      test_failed(Error(ErrorCode::kTooLarge, "more blocks than the limit"));
    if (!f.trims || !written || random.below(3) != 0) continue;
    auto trimmed = co_await f.delta->trim(at, kBlockSize, Delta::Durability::kCached);
    must(trimmed);
    f.held->fetch_sub(1);
  }
}

Task<void> fill_all(Filler first) {
  for (std::size_t i = 1; i < kWorkers; ++i) {
    Filler f = first;
    f.number += i;
    EventLoop::current()->spawn(fill(f));
  }
  co_await fill(first);
}

}  // namespace

TEST_CASE("a quota under two threads is never exceeded, and refuses no one for what was refused") {
  constexpr int kRounds = 3'000'000;
  BlockQuota quota;
  quota.set_bound(1);
  std::atomic<int> holders{0};
  std::atomic<bool> exceeded{false};
  std::atomic<int> here{0};
  const auto hold = [&] {
    here.fetch_add(1);
    while (here.load() != 2)
      std::this_thread::yield();
    for (int i = 0; i < kRounds; ++i) {
      if (!quota.take(1)) continue;
      if (holders.fetch_add(1) != 0) exceeded = true;
      holders.fetch_sub(1);
      quota.give(1);
    }
  };
  std::thread other(hold);
  hold();
  other.join();
  CHECK_FALSE(exceeded);
  CHECK(quota.taken() == 0);

  std::thread greedy([&] {
    for (int i = 0; i < kRounds; ++i) {
      if (quota.take(2)) exceeded = true;
    }
  });
  int refused = 0;
  for (int i = 0; i < kRounds; ++i) {
    if (quota.take(1))
      quota.give(1);
    else
      ++refused;
  }
  greedy.join();
  CHECK_FALSE(exceeded);
  CHECK(refused == 0);
}

TEST_CASE("two loops that write at a limit never exceed it and are not refused below it") {
  const auto* kind = GENERATE("threads", "uring");
  const bool trims = GENERATE(false, true);
  CAPTURE(kind, trims);
  TestRig rig(kind);
  TestRig other(kind);
  auto delta = rig.loop->run(create(*rig.root));
  delta->set_limit(kLimitBlocks * kBlockSize);
  SharedSource below;
  std::atomic<std::int64_t> held{0};
  const Filler first{delta.get(), &below, &held, 0, trims};
  Filler second = first;
  second.number = kWorkers;
  std::thread thread([&] { other.loop->run(fill_all(second)); });
  rig.loop->run(fill_all(first));
  thread.join();
  CHECK(delta->stats().data_blocks == static_cast<std::uint64_t>(held.load()));
  // All of them want far more than there is, so without trims the last block is taken too.
  if (!trims) CHECK(held == static_cast<std::int64_t>(kLimitBlocks));
  CHECK(delta->stats().limit_hits > 0);
  must(rig.loop->run(delta->close()));
}
