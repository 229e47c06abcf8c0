// A random workload on one delta over the simulated disk, and a model that knows for each sector
// which values it may hold after a power cut, and which after the death of the process alone. For
// tests only.
#pragma once

#include <algorithm>
#include <array>
#include <cstdio>
#include <set>
#include <vector>

#include "engine/base/codec.h"
#include "engine/delta/delta_format.h"
#include "engine/delta/delta_test_util.h"

namespace snap::delta_test {

inline constexpr std::uint64_t kSize = 5 * kChunkSize;
inline constexpr std::uint64_t kSectors = kSize / kSectorSize;
/// Areas of four records, so that short workloads fill them.
inline constexpr std::uint64_t kSmallArea = 4 * kFrameAlign;

/// Zero, or what lies below: beyond the end in the volume's last block.
inline constexpr std::uint64_t kEither = ~std::uint64_t{0};

inline std::uint64_t pattern_of(std::uint64_t sector) {
  std::array<std::byte, kSectorSize> bytes;
  PatternSource::fill(ByteOffset(sector * kSectorSize), bytes);
  return load_le<std::uint64_t>(bytes.data());
}

/// What each sector may hold: the value last made durable, and all that came later.
struct Model {
  std::vector<std::vector<std::uint64_t>> sectors{kSectors};
  /// Where in `sectors` the value stands that was answered last.
  std::vector<std::size_t> answered_from = std::vector<std::size_t>(kSectors);
  std::set<std::uint64_t> sizes{kSize};
  std::uint64_t size = kSize;
  std::uint64_t next_value = 1;
  std::vector<bool> unsure = std::vector<bool>(kSectors);  ///< a request that failed touched it
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
    for (std::uint64_t s = begin; s < end; ++s) {
      if (unsure[s]) continue;
      sectors[s].erase(sectors[s].begin(), sectors[s].end() - 1);
      answered_from[s] = 0;
    }
  }
  /// `alive`: the process had not died before the answer.
  void answered(std::uint64_t begin, std::uint64_t end, bool well, bool made_durable, bool alive) {
    for (std::uint64_t s = begin; s < end; ++s) {
      unsure[s] = !well;
      if (well && alive) answered_from[s] = sectors[s].size() - 1;
    }
    if (well && made_durable) durable(begin, end);
  }
};

struct Run {
  SimDisk disk;
  SimLoop loop;
  Model model;
  SeededRandom random;
  std::uint64_t operations;
  std::string live_folder;
  bool killed = false;  ///< the process alone has died: all that was answered is to be there
  explicit Run(std::uint64_t seed, std::uint64_t count)
      : disk(seed), loop(seed), random(seed), operations(count) {}
};

/// A delta whose journal has small areas; all of it durable.
inline Task<void> create_small(SimDisk* disk) {
  Delta::CreateOptions options{test_uuid(3), kSize};
  must(co_await (*must(co_await Delta::create(disk->root(), options))).close());
  const auto header = encode_journal_header({options.id, kSmallArea});
  auto root = disk->root();
  auto journal = must(co_await root->open("journal", for_write()));
  must(co_await write_all(*journal, header, ByteOffset(0)));
  must(co_await full_sync(*journal));
}

inline Task<Result<void>> write_some_sectors(Run* run, Delta* delta, BlockSource* below) {
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
  const ByteOffset at(begin * kSectorSize);
  std::optional<Result<void>> now;
  if (!fua && random.below(2) == 0) now = delta->write_now(at, bytes);
  Result<void> done;
  if (now) {
    done = std::move(*now);
  } else {
    done = co_await delta->write(at, bytes, *below, durability);
  }
  m.answered(begin, end, done.has_value(), fua, !run->disk.frozen());
  co_return done;
}

inline Task<Result<void>> zero_some_sectors(Run* run, Delta* delta, BlockSource* below) {
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
  m.answered(begin, end, done.has_value(), fua, !run->disk.frozen());
  co_return done;
}

/// What the sectors between two sizes may read after the volume was cut down and grown.
inline void forget_beyond(Model& m, std::uint64_t size) {
  for (std::uint64_t s = size / kSectorSize; s < kSectors; ++s) {
    const bool in_last_block = s * kSectorSize < round_up(size, kBlockSize);
    m.sectors[s].push_back(in_last_block ? kEither : pattern_of(s));
  }
}

inline Task<Result<void>> resize(Run* run, Delta* delta) {
  Model& m = run->model;
  const std::uint64_t size = (kSectors / 2 + run->random.below(kSectors / 2)) * kSectorSize;
  m.sizes.insert(size);  // one that failed before this may stand, too
  const std::uint64_t smaller = std::min(m.size, size);
  forget_beyond(m, smaller);
  auto done = co_await delta->resize(size);
  m.answered(smaller / kSectorSize, kSectors, done.has_value(), false, !run->disk.frozen());
  if (!done) co_return done;
  for (std::uint64_t s = smaller / kSectorSize; s < kSectors; ++s) {
    m.sectors[s].clear();
    m.answered_from[s] = 0;
  }
  forget_beyond(m, smaller);
  m.size = size;
  m.sizes = {size};
  co_return done;
}

inline Task<Result<void>> one_operation(Run* run, Delta* delta, BlockSource* below, bool resizes) {
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
inline Task<void> workload(Run* run, bool resizes) {
  PatternSource below;
  auto opening = Delta::open(run->disk.root(), Delta::Mode::kReadWrite, run->live_folder);
  auto opened = co_await std::move(opening);
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

/// The changes of the disk that a workload makes which nothing cuts off.
inline std::uint64_t changes_of(Run& run, bool resizes) {
  run.loop.run(create_small(&run.disk));
  const std::uint64_t before = run.disk.changes();
  run.loop.run(workload(&run, resizes));
  return run.disk.changes() - before;
}

inline Task<void> compare(Run* run, Delta* delta, bool* right) {
  Model& m = run->model;
  *right = m.sizes.count(delta->size()) == 1;
  std::array<std::byte, kSectorSize> bytes;
  for (std::uint64_t s = 0; s < delta->size() / kSectorSize; ++s) {
    must(co_await read_through(*delta, ByteOffset(s * kSectorSize), bytes));
    const std::uint64_t value = load_le<std::uint64_t>(bytes.data());
    const std::size_t from = run->killed ? m.answered_from[s] : 0;
    const auto may_be = [&m, s, from](std::uint64_t v) {
      return std::count(m.sectors[s].begin() + static_cast<std::ptrdiff_t>(from),
                        m.sectors[s].end(), v) != 0;
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

}  // namespace snap::delta_test
