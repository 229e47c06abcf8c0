// Faults at run time, on the simulated disk: each operation of a workload fails once, or moves
// fewer bytes than asked; a sync fails; the disk is full.
#include <catch2/catch.hpp>
#include <string>

#include "engine/delta/delta_model.h"
#include "engine/delta/fault_disk.h"
#include "engine/delta/map_file.h"

using namespace snap;
using namespace snap::delta_test;

namespace {

using Durability = Delta::Durability;

/// What came of a workload in which one operation failed.
struct Outcome {
  std::vector<ErrorCode> errors;
  bool failed_for_good = false;
  ErrorCode why{};
  bool later_success = false;  ///< of a change or flush after it had failed for good
  bool right = true;
};

Task<void> workload_to_the_end(Run* run, SimFault fault, Outcome* out) {
  PatternSource below;
  auto opened = co_await Delta::open(run->disk.root(), Delta::Mode::kReadWrite);
  auto delta = must(std::move(opened));
  if (fault.nth != 0) run->disk.inject(fault);
  for (std::uint64_t i = 0; i < run->operations; ++i) {
    const bool failed = delta->failure().has_value();
    auto done = co_await one_operation(run, delta.get(), &below, true);
    if (!done) out->errors.push_back(done.error().code());
    if (failed && done) out->later_success = true;
  }
  co_await compare(run, delta.get(), &out->right);
  auto closed = co_await delta->close();
  if (!closed && out->errors.empty()) out->errors.push_back(closed.error().code());
  out->failed_for_good = delta->failure().has_value();
  if (out->failed_for_good) out->why = delta->failure()->code();
}

Task<void> reopen(Run* run, SimDisk* disk, bool* right) {
  auto delta = must(co_await Delta::open(disk->root(), Delta::Mode::kReadWrite));
  co_await compare(run, delta.get(), right);
  must(co_await delta->close());
}

/// Runs it with one fault, and looks at what is left with and without a power cut.
Outcome run_with(std::uint64_t seed, std::uint64_t operations, SimFault fault) {
  Run run(seed, operations);
  run.loop.run(create_small(&run.disk));
  Outcome out;
  run.loop.run(workload_to_the_end(&run, fault, &out));
  CHECK(out.right);
  CHECK(!out.later_success);
  std::mt19937_64 random(seed + fault.nth);
  for (const bool cut : {false, true}) {
    auto disk = run.disk.clone();
    if (cut) disk->crash(random);
    bool right = false;
    run.loop.run(reopen(&run, disk.get(), &right));
    CHECK(right);
  }
  return out;
}

std::uint64_t count_of(std::uint64_t seed, std::uint64_t operations, SimOpKind kind) {
  Run run(seed, operations);
  run.loop.run(create_small(&run.disk));
  run.disk.clear_log();
  Outcome out;
  run.loop.run(workload_to_the_end(&run, {kind, 0, 0, 0}, &out));
  REQUIRE(out.errors.empty());
  std::uint64_t count = 0;
  for (const SimOp& op : run.disk.log())
    count += op.kind == kind && op.first;
  return count;
}

constexpr SimOpKind kKinds[] = {SimOpKind::kWrite,    SimOpKind::kPunch,    SimOpKind::kAllocate,
                                SimOpKind::kTruncate, SimOpKind::kDataSync, SimOpKind::kCreate,
                                SimOpKind::kRename,   SimOpKind::kUnlink,   SimOpKind::kDirSync};

void check_fault(std::uint64_t seed, std::uint64_t operations, SimFault fault) {
  INFO("seed " << seed << ", " << sim_op_name(fault.kind) << " number " << fault.nth << ", errno "
               << fault.error);
  const Outcome out = run_with(seed, operations, fault);
  const ErrorCode code = fault.error == ENOSPC ? ErrorCode::kNoSpace : ErrorCode::kIo;
  if (fault.error == 0) {
    CHECK(out.errors.empty());
    CHECK(!out.failed_for_good);
  } else if (!out.errors.empty()) {
    CHECK((out.errors.front() == code || out.failed_for_good));
    CHECK(out.why == (out.failed_for_good ? code : ErrorCode{}));
    // A failed request is alone, or it was a sync and nothing goes on.
    if (!out.failed_for_good) CHECK(out.errors.size() == 1);
  }
  if (fault.kind == SimOpKind::kDataSync && !out.errors.empty()) CHECK(out.failed_for_good);
}

}  // namespace

TEST_CASE(
    "every single operation fails once: the error is right, and nothing that was flushed is lost") {
  const std::uint64_t seed = test_seed("delta faults") % 1000000;
  for (std::uint64_t i = 0; i < 2; ++i) {
    for (const SimOpKind kind : kKinds) {
      const std::uint64_t count = count_of(seed + i, 25, kind);
      for (std::uint64_t nth = 1; nth <= count; ++nth) {
        check_fault(seed + i, 25, {kind, nth, EIO, 0});
        check_fault(seed + i, 25, {kind, nth, ENOSPC, 0});
        if (kind == SimOpKind::kWrite) check_fault(seed + i, 25, {kind, nth, 0, 700});
      }
    }
  }
}

TEST_CASE("faults in long runs, which pass through many checkpoints and a compaction") {
  const std::uint64_t seed = test_seed("delta faults, long") % 1000000;
  SeededRandom random(seed);
  for (const SimOpKind kind : kKinds) {
    const std::uint64_t count = count_of(seed, 700, kind);
    for (int i = 0; i < 3 && count != 0; ++i)
      check_fault(seed, 700, {kind, 1 + random.below(count), i % 2 == 0 ? EIO : ENOSPC, 0});
  }
}

namespace {
/// A delta whose first block is that, in the data file for good.
Task<std::unique_ptr<Delta>> delta_with(SimDisk* disk, std::vector<std::byte> block) {
  PatternSource below;
  Delta::CreateOptions options{test_uuid(3), kSize};
  auto delta = must(co_await Delta::create(disk->root(), options));
  must(co_await delta->write(ByteOffset(0), block, below, Durability::kCached));
  must(co_await delta->flush_data());
  co_return std::move(delta);
}

Task<void> lost_write(SimDisk* disk) {
  PatternSource below;
  const std::vector<std::byte> old_block(kBlockSize, std::byte{1}),
      new_block(kBlockSize, std::byte{2});
  auto delta = co_await delta_with(disk, old_block);
  delta->check_writeback();
  CHECK(!delta->failure());
  must(co_await delta->write(ByteOffset(0), new_block, below, Durability::kDurable));
  disk->inject({SimOpKind::kLostWrite, 1, EIO, 0});
  delta->check_writeback();
  REQUIRE(delta->failure());
  CHECK(delta->failure()->code() == ErrorCode::kIo);
  CHECK(delta->failure()->message().find("data") != std::string::npos);
  auto written = co_await delta->write(ByteOffset(0), old_block, below, Durability::kCached);
  REQUIRE(!written);
  CHECK(written.error().code() == ErrorCode::kReadOnly);
  auto flushed = co_await delta->flush();
  CHECK(!flushed);
  auto closed = co_await delta->close();
  CHECK(!closed);
  delta.reset();
  // The journal has what the data file has not: flushed, so it is there.
  delta = must(co_await Delta::open(disk->root(), Delta::Mode::kReadWrite));
  std::vector<std::byte> out(kBlockSize);
  must(co_await delta->read(ByteOffset(0), out));
  CHECK(out == new_block);
  must(co_await delta->close());
}
}  // namespace

namespace {
/// A write that the kernel could not write back, and whose page it gave up, before it is flushed.
Task<void> lost_page(SimDisk* disk) {
  PatternSource below;
  const std::vector<std::byte> old_block(kBlockSize, std::byte{1}),
      new_block(kBlockSize, std::byte{2});
  auto delta = co_await delta_with(disk, old_block);
  must(co_await delta->write(ByteOffset(0), new_block, below, Durability::kCached));
  auto root = disk->root();
  auto kernel = must(co_await root->open("data", OpenFlags{}));
  disk->inject({SimOpKind::kLostWrite, 1, EIO, 0});
  CHECK_FALSE(kernel->check_writeback());
  must(co_await kernel->drop_cache());
  std::vector<std::byte> out(kBlockSize);
  must(co_await delta->read(ByteOffset(0), out));
  REQUIRE(out == old_block);
  auto flushed = co_await delta->flush();
  REQUIRE_FALSE(flushed);
  CHECK(flushed.error().code() == ErrorCode::kIo);
  CHECK(delta->failure());
  auto closed = co_await delta->close();
  CHECK_FALSE(closed);
}
}  // namespace

namespace {
Task<void> failed_sync(SimDisk* disk) {
  PatternSource below;
  Delta::CreateOptions options{test_uuid(3), kSize};
  auto delta = must(co_await Delta::create(disk->root(), options));
  const std::vector<std::byte> block(kBlockSize, std::byte{1});
  must(co_await delta->write(ByteOffset(0), block, below, Durability::kDurable));
  must(co_await delta->write(ByteOffset(kBlockSize), block, below, Durability::kCached));
  disk->inject({SimOpKind::kDataSync, 1, EIO, 0});
  auto flushed = co_await delta->flush();
  REQUIRE(!flushed);
  CHECK(flushed.error().code() == ErrorCode::kIo);
  for (int i = 0; i < 3; ++i) {
    flushed = co_await delta->flush();
    CHECK(!flushed);
  }
  auto written = co_await delta->write(ByteOffset(0), block, below, Durability::kCached);
  REQUIRE(!written);
  CHECK(written.error().code() == ErrorCode::kReadOnly);
  std::vector<std::byte> out(kBlockSize);
  must(co_await delta->read(ByteOffset(0), out));
  CHECK(out == block);
  auto closed = co_await delta->close();
  CHECK(!closed);
  delta.reset();
  // The bytes that the failed sync called clean are not on the disk: who opens it must not see
  // them, for no later sync would store them.
  delta = must(co_await Delta::open(disk->root(), Delta::Mode::kReadWrite));
  CHECK(delta->lookup(ChunkIndex(0)).data == 1);
  must(co_await delta->write(ByteOffset(kBlockSize), block, below, Durability::kDurable));
  must(co_await delta->close());
}
}  // namespace

TEST_CASE("a write that the kernel lost before any sync ends writes as soon as it is looked for") {
  SimDisk disk;
  SimLoop loop(1);
  loop.run(lost_write(&disk));
}

TEST_CASE("a flush fails if the kernel lost a write of it, and gave it up") {
  SimDisk disk;
  SimLoop loop(1);
  loop.run(lost_page(&disk));
}

namespace {
Task<void> fail_first_journal_sync(SimDisk* disk) {
  PatternSource below;
  const std::vector<std::byte> block(kBlockSize, std::byte{1});
  Delta::CreateOptions options{test_uuid(3), kSize};
  auto delta = must(co_await Delta::create(disk->root(), options));
  // The zeros of the journal's areas.
  disk->inject({SimOpKind::kDataSync, 1, EIO, 0});
  auto written = co_await delta->write(ByteOffset(0), block, below, Durability::kDurable);
  CHECK(!written);
  auto closed = co_await delta->close();
  CHECK(!closed);
  // On the same boot: the areas look as if they were there.
  delta = must(co_await Delta::open(disk->root(), Delta::Mode::kReadWrite));
  must(co_await delta->write(ByteOffset(0), block, below, Durability::kDurable));
  disk->freeze_after(0);
  closed = co_await delta->close();
  CHECK(!closed);
}

/// The same when the journal has a header already: it was closed once.
Task<void> fail_journal_sync_again(SimDisk* disk) {
  PatternSource below;
  const std::vector<std::byte> block(kBlockSize, std::byte{1});
  Delta::CreateOptions options{test_uuid(3), kSize};
  auto delta = must(co_await Delta::create(disk->root(), options));
  must(co_await delta->write(ByteOffset(kBlockSize), block, below, Durability::kDurable));
  must(co_await delta->close());
  delta = must(co_await Delta::open(disk->root(), Delta::Mode::kReadWrite));
  disk->inject({SimOpKind::kDataSync, 1, EIO, 0});
  auto written = co_await delta->write(ByteOffset(0), block, below, Durability::kDurable);
  CHECK(!written);
  auto closed = co_await delta->close();
  CHECK(!closed);
  delta = must(co_await Delta::open(disk->root(), Delta::Mode::kReadWrite));
  must(co_await delta->write(ByteOffset(0), block, below, Durability::kDurable));
  disk->freeze_after(0);
  closed = co_await delta->close();
  CHECK(!closed);
}

Task<void> read_first_block(SimDisk* disk, std::vector<std::byte>* out) {
  auto delta = must(co_await Delta::open(disk->root(), Delta::Mode::kReadWrite));
  must(co_await delta->read(ByteOffset(0), *out));
  must(co_await delta->close());
}
}  // namespace

TEST_CASE("a journal whose areas were never stored is not written to as if they were") {
  SimDisk disk;
  SimLoop loop(1);
  loop.run(GENERATE(true, false) ? fail_first_journal_sync(&disk) : fail_journal_sync_again(&disk));
  disk.crash_all_lost();
  std::vector<std::byte> block(kBlockSize);
  loop.run(read_first_block(&disk, &block));
  CHECK(block == std::vector<std::byte>(kBlockSize, std::byte{1}));
}

namespace {
Task<void> cut_a_record_short(SimDisk* disk) {
  PatternSource below;
  const std::vector<std::byte> block(kBlockSize, std::byte{1});
  Delta::CreateOptions options{test_uuid(3), kSize};
  auto delta = must(co_await Delta::create(disk->root(), options));
  must(co_await delta->write(ByteOffset(kBlockSize), block, below, Durability::kDurable));
  // The block itself comes first, then its record.
  disk->inject({SimOpKind::kWrite, 2, 0, 700});
  must(co_await delta->write(ByteOffset(0), block, below, Durability::kDurable));
  disk->freeze_after(0);
  auto closed = co_await delta->close();
  CHECK(!closed);
}
}  // namespace

TEST_CASE("a record that took two writes is stable when its flush is answered") {
  SimDisk disk;
  SimLoop loop(1);
  loop.run(cut_a_record_short(&disk));
  disk.crash_all_lost();
  std::vector<std::byte> block(kBlockSize);
  loop.run(read_first_block(&disk, &block));
  CHECK(block == std::vector<std::byte>(kBlockSize, std::byte{1}));
}

TEST_CASE("a sync that failed makes the delta read-only until it is opened again") {
  SimDisk disk;
  SimLoop loop(1);
  loop.run(failed_sync(&disk));
}

namespace {
Task<void> write_durably(Delta* delta, std::uint64_t block, bool* answered) {
  PatternSource below;
  *answered = false;
  const std::vector<std::byte> bytes(kBlockSize, std::byte{1});
  must(co_await delta->write(ByteOffset(block * kBlockSize), bytes, below, Durability::kDurable));
  *answered = true;
}

/// Runs all that can go on while what is held back is held back.
Task<void> settle() {
  for (int i = 0; i < 2000; ++i)
    co_await yield_now();
}

void hold_first_data_sync(const std::shared_ptr<FaultPlan>& plan) {
  plan->decide = [held = false](const FaultEvent& event) mutable {
    const bool first = event.kind == FaultEvent::Kind::kSync && event.name == "data" && !held;
    held = held || first;
    return first ? FaultAction::hold() : FaultAction::pass();
  };
}

Task<void> commit_beside_slow_sync(SimDisk* disk) {
  auto plan = std::make_shared<FaultPlan>();
  co_await create_small(disk);
  auto delta = must(co_await Delta::open(std::make_unique<FaultDirectory>(disk->root(), plan),
                                         Delta::Mode::kReadWrite));
  plan->seen.clear();
  hold_first_data_sync(plan);
  // One area is full, and the sync before its checkpoint in the background takes its time; then
  // the other area is full as well, and a commit needs the first.
  bool answered = true;
  for (std::uint64_t block = 0; answered; ++block) {
    REQUIRE(block < kSize / kBlockSize);
    EventLoop::current()->spawn(write_durably(delta.get(), block, &answered));
    co_await settle();
  }
  REQUIRE(plan->held.size() == 1);
  CHECK(plan->count(FaultEvent::Kind::kWrite, "map") == 0);
  plan->release();
  co_await settle();
  CHECK(answered);
  CHECK(plan->count(FaultEvent::Kind::kWrite, "map") != 0);
  must(co_await delta->close());
}

Task<void> grow(Delta* delta) {
  must(co_await delta->resize(kSize));
}
/// The volume ends inside a block that has data; a checkpoint's sync of the data is held back.
Task<void> grow_beside_slow_sync(SimDisk* disk) {
  PatternSource below;
  auto plan = std::make_shared<FaultPlan>();
  std::unique_ptr<Directory> dir = std::make_unique<FaultDirectory>(disk->root(), plan);
  auto delta = must(co_await Delta::open(std::move(dir), Delta::Mode::kReadWrite));
  const std::vector<std::byte> block(kBlockSize, std::byte{7});
  must(co_await delta->write(ByteOffset(kSize - kBlockSize), block, below, Durability::kDurable));
  must(co_await delta->resize(kSize - kBlockSize / 2));
  plan->seen.clear();
  hold_first_data_sync(plan);
  for (unsigned i = 0; i < 30 && plan->held.empty(); ++i) {
    must(co_await delta->write(ByteOffset(i * kBlockSize), block, below, Durability::kDurable));
    co_await settle();
  }
  REQUIRE(plan->held.size() == 1);
  EventLoop::current()->spawn(grow(delta.get()));
  co_await settle();
  CHECK(plan->count(FaultEvent::Kind::kSync, "data") == 1);
  plan->release();
  co_await settle();
  must(co_await delta->close());
  CHECK(delta->size() == kSize);
}
}  // namespace

TEST_CASE("syncs of the data file are made one at a time, that of a growing volume too") {
  SimDisk disk;
  SimLoop loop(1);
  loop.run(create_small(&disk));
  loop.run(grow_beside_slow_sync(&disk));
}

TEST_CASE("no segment covers an area whose blocks are not stable in the data file yet") {
  SimDisk disk;
  SimLoop loop(1);
  loop.run(commit_beside_slow_sync(&disk));
}

namespace {
Task<void> full_disk(SimDisk* disk) {
  PatternSource below;
  constexpr std::uint64_t size = 4096 * kChunkSize;
  Delta::CreateOptions options{test_uuid(3), size};
  auto delta = must(co_await Delta::create(disk->root(), options));
  const std::vector<std::byte> block(kBlockSize, std::byte{1});
  disk->set_space_limit(8u << 20);
  std::uint64_t chunks = 0;
  Result<void> done;
  for (; done && chunks < 4096; ++chunks)
    done =
        co_await delta->write(ByteOffset(chunks * kChunkSize), block, below, Durability::kCached);
  REQUIRE(!done);
  CHECK(done.error().code() == ErrorCode::kNoSpace);
  CHECK(chunks > 100);
  // What goes on: overwrites, trims and the flushes that record them, through many checkpoints.
  for (std::uint64_t i = 0; i < 600; ++i) {
    const ByteOffset at((i % 50) * kChunkSize);
    must(co_await delta->write(at, block, below, Durability::kDurable));
    must(co_await delta->trim(ByteOffset(at.value + kChunkSize - kBlockSize), kBlockSize,
                              Durability::kDurable));
  }
  CHECK(!delta->failure());
  must(co_await delta->flush());
  must(co_await delta->close());
  delta.reset();
  // Opened again on the full disk: a request that needs space fails alone.
  disk->set_space_limit(0);
  delta = must(co_await Delta::open(disk->root(), Delta::Mode::kReadWrite));
  must(co_await delta->write(ByteOffset(0), block, below, Durability::kDurable));
  done = co_await delta->trim(ByteOffset(0), kBlockSize, Durability::kDurable);
  REQUIRE(!done);
  CHECK(done.error().code() == ErrorCode::kNoSpace);
  CHECK(!delta->failure());
  must(co_await delta->flush());
  disk->set_space_limit(64u << 20);
  must(co_await delta->trim(ByteOffset(0), kBlockSize, Durability::kDurable));
  must(co_await delta->write(ByteOffset(size - kBlockSize), block, below, Durability::kDurable));
  must(co_await delta->close());
}
}  // namespace

TEST_CASE("on a full disk overwrites, trims and flushes go on") {
  SimDisk disk;
  SimLoop loop(1);
  loop.run(full_disk(&disk));
}

namespace {
Task<void> write_large_checkpoint(SimDisk* disk, bool* refused) {
  std::vector<Change> changes;
  for (std::uint32_t i = 0; i < kMaxSegmentChanges + 10; ++i)
    changes.push_back({i, 1, 0});
  MapFile::Point before{7, std::uint64_t{1} << 40, true};
  MapFile::Point after{9, std::uint64_t{1} << 35, true};
  auto root = disk->root();
  ChecksumSecret secret{};
  auto map = must(co_await MapFile::write_new(*root, "map", test_uuid(1), secret, 1, {}, before));
  must(co_await root->sync());
  // The first part and its sync, and no more.
  disk->inject({SimOpKind::kWrite, 2, EIO, 0});
  auto appended = co_await map.append(changes, after);
  *refused = !appended;
}
Task<void> read_large_checkpoint(SimDisk* disk, MapFile::Point* point, std::uint64_t* present) {
  auto blocks = must(BlockMap::make());
  auto file = must(co_await disk->root()->open("map", {}));
  auto map = must(co_await MapFile::load(std::move(file), *blocks, true));
  *point = map.point();
  *present = blocks->present_chunks();
}
}  // namespace

TEST_CASE("of a checkpoint in several segments only the last changes size, through and seal") {
  SimDisk disk;
  SimLoop loop(1);
  bool refused = false;
  loop.run(write_large_checkpoint(&disk, &refused));
  REQUIRE(refused);
  disk.crash_all_lost();
  MapFile::Point point;
  std::uint64_t present = 0;
  loop.run(read_large_checkpoint(&disk, &point, &present));
  CHECK(present == kMaxSegmentChanges);
  CHECK(point.through == 7);
  CHECK(point.volume_size == std::uint64_t{1} << 40);
  CHECK(!point.sealed);
}
