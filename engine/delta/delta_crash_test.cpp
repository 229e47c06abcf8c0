// Power cuts of one delta on the simulated disk: a random workload is cut off after its n-th change
// of the disk, what is pending is kept, lost or torn, and recovery (itself cut off now and then)
// must bring back of each sector the last value that was flushed or a later one.
#include <catch2/catch.hpp>
#include <cstdio>
#include <set>

#include "engine/base/codec.h"
#include "engine/delta/delta_format.h"
#include "engine/delta/delta_test_util.h"

using namespace snap;

namespace {

constexpr std::uint64_t kSize = 5 * kChunkSize;
constexpr std::uint64_t kSectors = kSize / kSectorSize;
/// Areas of four records, so that short workloads fill them.
constexpr std::uint64_t kSmallArea = 4 * kFrameAlign;

/// Zero, or what lies below: beyond the end in the volume's last block.
constexpr std::uint64_t kEither = ~std::uint64_t{0};

std::uint64_t pattern_of(std::uint64_t sector) {
  std::array<std::byte, kSectorSize> bytes;
  PatternSource::fill(ByteOffset(sector * kSectorSize), bytes);
  return load_le<std::uint64_t>(bytes.data());
}

/// What each sector may hold: the value last made durable, and all that came later.
struct Model {
  std::vector<std::vector<std::uint64_t>> sectors{kSectors};
  std::set<std::uint64_t> sizes{kSize};
  std::uint64_t size = kSize;
  std::uint64_t next_value = 1;
  bool sealed = false;  ///< the last thing that was answered is a seal

  Model() {
    for (std::uint64_t s = 0; s < kSectors; ++s)
      sectors[s] = {pattern_of(s)};
  }
  void add(std::uint64_t begin, std::uint64_t end, std::uint64_t value) {
    for (std::uint64_t s = begin; s < end; ++s)
      sectors[s].push_back(value);
  }
  void durable(std::uint64_t begin, std::uint64_t end) {
    for (std::uint64_t s = begin; s < end; ++s)
      sectors[s].erase(sectors[s].begin(), sectors[s].end() - 1);
  }
};

struct Run {
  SimDisk disk;
  SimLoop loop;
  Model model;
  SeededRandom random;
  std::uint64_t operations;
  explicit Run(std::uint64_t seed, std::uint64_t count)
      : disk(seed), loop(seed), random(seed), operations(count) {}
};

/// A delta whose journal has small areas; all of it durable.
Task<void> create_small(SimDisk* disk) {
  Delta::CreateOptions options{test_uuid(3), kSize};
  must(co_await (*must(co_await Delta::create(disk->root(), options))).close());
  const auto header = encode_journal_header({options.id, kSmallArea});
  auto root = disk->root();
  auto journal = must(co_await root->open("journal", for_write()));
  must(co_await write_all(*journal, header, ByteOffset(0)));
  must(co_await full_sync(*journal));
}

Task<Result<void>> write_some_sectors(Run* run, Delta* delta, BlockSource* below) {
  Model& m = run->model;
  SeededRandom& random = run->random;
  const std::uint64_t limit = m.size / kSectorSize;
  std::uint64_t begin = random.below(limit);
  if (random.below(2) == 0) begin = round_down(begin, 8);
  const std::uint64_t end =
      std::min(limit, begin + 1 + random.below(random.below(4) == 0 ? 200 : 12));
  const bool fua = random.below(3) == 0;
  const std::uint64_t value = m.next_value++ << 20;
  std::vector<std::byte> bytes((end - begin) * kSectorSize);
  for (std::size_t i = 0; i < bytes.size(); i += 8)
    store_le(bytes.data() + i, value);
  m.add(begin, end, value);
  const auto durability = fua ? Delta::Durability::kDurable : Delta::Durability::kCached;
  auto done = co_await delta->write(ByteOffset(begin * kSectorSize), bytes, *below, durability);
  if (done && fua) m.durable(begin, end);
  co_return done;
}

Task<Result<void>> zero_some_sectors(Run* run, Delta* delta, BlockSource* below) {
  Model& m = run->model;
  SeededRandom& random = run->random;
  const std::uint64_t limit = m.size / kSectorSize;
  const std::uint64_t begin = random.below(limit);
  const std::uint64_t end = std::min(limit, begin + 1 + random.below(150));
  const bool fua = random.below(4) == 0;
  const auto durability = fua ? Delta::Durability::kDurable : Delta::Durability::kCached;
  const std::uint64_t length = (end - begin) * kSectorSize;
  m.add(begin, end, 0);
  auto done = co_await delta->write_zeroes(ByteOffset(begin * kSectorSize), length, *below,
                                           random.below(3) == 0, durability);
  if (done && fua) m.durable(begin, end);
  co_return done;
}

/// What the sectors between two sizes may read after the volume was cut down and grown.
void forget_beyond(Model& m, std::uint64_t size) {
  for (std::uint64_t s = size / kSectorSize; s < kSectors; ++s) {
    const bool in_last_block = s * kSectorSize < round_up(size, kBlockSize);
    m.sectors[s].push_back(in_last_block ? kEither : pattern_of(s));
  }
}

Task<Result<void>> resize(Run* run, Delta* delta) {
  Model& m = run->model;
  const std::uint64_t size = (kSectors / 2 + run->random.below(kSectors / 2)) * kSectorSize;
  m.sizes = {m.size, size};
  const std::uint64_t smaller = std::min(m.size, size);
  forget_beyond(m, smaller);
  auto done = co_await delta->resize(size);
  if (!done) co_return done;
  for (std::uint64_t s = smaller / kSectorSize; s < kSectors; ++s)
    m.sectors[s].clear();
  forget_beyond(m, smaller);
  m.size = size;
  m.sizes = {size};
  co_return done;
}

Task<Result<void>> one_operation(Run* run, Delta* delta, BlockSource* below, bool resizes) {
  const std::uint64_t kind = run->random.below(20);
  run->model.sealed = false;
  if (kind < 10) co_return co_await write_some_sectors(run, delta, below);
  if (kind < 14) co_return co_await zero_some_sectors(run, delta, below);
  if (kind == 14 && resizes) co_return co_await resize(run, delta);
  Result<void> done;
  if (kind == 15) {
    done = co_await delta->seal();
    run->model.sealed = done.has_value();
  } else {
    done = co_await delta->flush();
  }
  if (done) run->model.durable(0, kSectors);
  co_return done;
}

/// Runs until the disk freezes or all is done; then freezes it, and ends.
Task<void> workload(Run* run, bool resizes) {
  PatternSource below;
  auto opened = co_await Delta::open(run->disk.root(), Delta::Mode::kReadWrite);
  if (!opened) co_return;
  for (std::uint64_t i = 0; i < run->operations; ++i) {
    auto done = co_await one_operation(run, opened->get(), &below, resizes);
    if (!done) break;
  }
  if (!run->disk.frozen()) run->disk.freeze_after(0);
  // Waits for what runs in the background; writes nothing any more.
  auto closed = co_await (*opened)->close();
  (void)closed;
}

Task<void> compare(Run* run, Delta* delta, bool* right) {
  Model& m = run->model;
  *right = m.sizes.count(delta->size()) == 1;
  std::array<std::byte, kSectorSize> bytes;
  for (std::uint64_t s = 0; s < delta->size() / kSectorSize; ++s) {
    must(co_await read_through(*delta, ByteOffset(s * kSectorSize), bytes));
    const std::uint64_t value = load_le<std::uint64_t>(bytes.data());
    const auto may_be = [&m, s](std::uint64_t v) {
      return std::count(m.sectors[s].begin(), m.sectors[s].end(), v) != 0;
    };
    bool same = may_be(value);
    if (value == 0 || value == pattern_of(s)) same = same || may_be(kEither);
    for (std::size_t i = 8; i < bytes.size(); i += 8)
      same = same && load_le<std::uint64_t>(bytes.data() + i) == value;
    if (!same) {
      std::printf("sector %llu reads %llx\n", static_cast<unsigned long long>(s),
                  static_cast<unsigned long long>(value));
      *right = false;
    }
  }
}

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
  run.loop.run(create_small(&run.disk));
  const std::uint64_t before = run.disk.changes();
  run.loop.run(workload(&run, resizes));
  return run.disk.changes() - before;
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

TEST_CASE("power cuts in long runs, which pass through many checkpoints and a compaction") {
  const std::uint64_t seed = test_seed("delta power cuts, long") % 1000000;
  for (std::uint64_t i = 0; i < 4; ++i) {
    const std::uint64_t changes = changes_of(seed + i, 700, i % 2 == 1);
    SeededRandom random(seed + i);
    for (int k = 0; k < 12; ++k)
      cut_at(seed + i, 700, i % 2 == 1, changes - 1 - random.below(changes / 2));
  }
}
