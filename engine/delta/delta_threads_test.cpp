// One delta under two loops at once: requests of every kind, with checkpoints and a growing journal
// in the background. Its worth is in a build with TSan too: nothing else has so many ways through
// the delta meet.
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
