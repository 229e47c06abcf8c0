// The death of a process, which leaves the kernel's page cache and the live map: nothing that was
// answered is lost, flushed or not.
#include <catch2/catch.hpp>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>

#include "engine/delta/delta_model.h"
#include "engine/delta/fault_disk.h"
#include "engine/delta/live_map.h"
#include "engine/io/unique_fd.h"

using namespace snap;
using namespace snap::delta_test;

namespace {

constexpr std::uint64_t kLeaves = 1000;
constexpr std::size_t kLeafBytes = 4160;

/// The one live map in `folder`, if there is one.
std::optional<std::string> live_file(const std::string& folder) {
  std::optional<std::string> found;
  for (const auto& entry : std::filesystem::directory_iterator(folder))
    if (entry.path().extension() != ".kept") found = entry.path().string();
  return found;
}

/// Copies the data of a sparse file.
void copy_sparse(const std::string& from, const std::string& to) {
  const UniqueFd in(::open(from.c_str(), O_RDONLY | O_CLOEXEC));
  const UniqueFd out(::open(to.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
  REQUIRE(in);
  REQUIRE(out);
  struct stat st {};
  REQUIRE(::fstat(in.get(), &st) == 0);
  REQUIRE(::ftruncate(out.get(), st.st_size) == 0);
  std::vector<std::byte> page(4096);
  for (off_t at = ::lseek(in.get(), 0, SEEK_DATA); at >= 0; at = ::lseek(in.get(), at, SEEK_DATA)) {
    const ssize_t n = ::pread(in.get(), page.data(), page.size(), at);
    REQUIRE(n > 0);
    REQUIRE(::pwrite(out.get(), page.data(), static_cast<std::size_t>(n), at) == n);
    at += n;
  }
}

/// A folder of live maps, and what was in it when a process died.
class Memory {
 public:
  std::string folder() const { return temp_.path() + "/live"; }
  /// The process dies now: what happens in its map after this did not happen.
  void keep() {
    forget();
    if (!std::filesystem::exists(folder())) return;
    if (const auto file = live_file(folder())) {
      name_ = *file;
      copy_sparse(*file, kept());
    }
  }
  /// What a new process finds. To be called as often as one is to find it.
  void restore() const {
    drop();
    if (!name_.empty()) copy_sparse(kept(), name_);
  }
  /// The boot is over.
  void drop() const {
    std::filesystem::remove_all(folder());
    make();
  }
  bool has_map() const { return !name_.empty(); }

 private:
  std::string kept() const { return temp_.path() + "/copy.kept"; }
  void forget() { name_.clear(); }
  void make() const {
    std::filesystem::create_directory(folder());
    std::filesystem::permissions(folder(), std::filesystem::perms::owner_all);
  }
  TempDir temp_{"/dev/shm"};
  std::string name_;
};

Task<void> recover(Run* run, SimDisk* disk, bool* right) {
  auto folder = run->live_folder;
  auto opening = Delta::open(disk->root(), Delta::Mode::kReadWrite, std::move(folder));
  auto delta = co_await std::move(opening);
  if (!delta) {
    if (!disk->frozen()) std::printf("refused: %s\n", delta.error().message().c_str());
    co_return;
  }
  if (!disk->frozen()) co_await compare(run, delta->get(), right);
  auto closed = co_await (*delta)->close();
  if (!closed && !disk->frozen()) *right = false;
}

std::uint64_t changes_of(std::uint64_t seed, std::uint64_t operations, bool resizes) {
  Memory memory;
  Run run(seed, operations);
  run.live_folder = memory.folder();
  return delta_test::changes_of(run, resizes);
}

/// Recovers from what is on `disk` and gives the changes of the disk that it took.
std::uint64_t recovers(Run& run, SimDisk& disk) {
  SimLoop loop(1);
  bool right = false;
  const std::uint64_t before = disk.changes();
  loop.run(recover(&run, &disk, &right));
  CHECK(right);
  return disk.changes() - before;
}

/// A process dies after the n-th change of its disk; of those that recover some die, too, or the
/// power fails.
void die_at(std::uint64_t seed, std::uint64_t operations, bool resizes, std::uint64_t n) {
  INFO("seed " << seed << ", after change " << n);
  std::mt19937_64 random(seed * 1000003 + n);
  Memory memory;
  Run run(seed, operations);
  run.live_folder = memory.folder();
  run.loop.run(create_small(&run.disk));
  run.disk.on_freeze([&memory] { memory.keep(); });
  run.disk.freeze_after(n);
  run.loop.run(workload(&run, resizes));
  run.disk.on_freeze({});
  run.disk.kill();
  const auto disk = run.disk.clone();

  run.killed = true;
  memory.restore();
  const std::uint64_t steps = recovers(run, *disk->clone());

  // The second process dies in the middle of recovery.
  memory.restore();
  const auto again = disk->clone();
  again->on_freeze([&memory] { memory.keep(); });
  again->freeze_after(random() % (steps + 1));
  SimLoop loop(1);
  bool right = false;
  loop.run(recover(&run, again.get(), &right));
  again->on_freeze({});
  if (again->frozen()) {
    again->kill();
    memory.restore();
    const auto cut = again->clone();
    recovers(run, *again);
    // Or the power fails after it.
    run.killed = false;
    memory.drop();
    cut->crash(random);
    recovers(run, *cut);
  }
  run.killed = false;
  memory.drop();
  disk->crash(random);
  recovers(run, *disk);
}

}  // namespace

TEST_CASE("the death of a process at any moment loses nothing that was answered") {
  const std::uint64_t seed = test_seed("deaths of a process") % 1000000;
  for (std::uint64_t i = 0; i < 4; ++i) {
    const std::uint64_t changes = changes_of(seed + i, 14, i % 2 == 1);
    for (std::uint64_t n = 0; n <= changes; ++n)
      die_at(seed + i, 14, i % 2 == 1, n);
  }
}

TEST_CASE("the same in long runs, which pass through many checkpoints and a compaction") {
  const std::uint64_t seed = test_seed("deaths of a process, long") % 1000000;
  for (std::uint64_t i = 0; i < 4; ++i) {
    const std::uint64_t changes = changes_of(seed + i, 700, i % 2 == 1);
    SeededRandom random(seed + i);
    for (int k = 0; k < 12; ++k)
      die_at(seed + i, 700, i % 2 == 1, changes - 1 - random.below(changes / 2));
  }
}

namespace {
struct Found {
  bool counted = false;
  std::vector<std::uint64_t> leaves;
  std::vector<std::uint64_t> words;
};
Found read(const LivePlace& place, const Uuid& token) {
  Found found;
  const auto each = [&found](std::uint64_t index, const void* leaf) -> Result<void> {
    std::uint64_t word = 0;
    std::memcpy(&word, leaf, sizeof word);
    if (word == 0) return {};
    found.leaves.push_back(index);
    found.words.push_back(word);
    return {};
  };
  found.counted = must(LiveMap::read(place, token, kLeaves, kLeafBytes, each));
  return found;
}
}  // namespace

TEST_CASE("a live map is read by who has its token, and only if it counts") {
  TempDir temp("/dev/shm");
  const LivePlace place{temp.path() + "/map", test_uuid(1)};
  const Uuid token = test_uuid(2);
  CHECK_FALSE(read(place, token).counted);
  auto map = must(LiveMap::make(place, token, kLeaves, kLeafBytes));
  for (const std::uint64_t leaf : {0u, 1u, 500u, 999u}) {
    auto* memory = static_cast<std::uint64_t*>(map->leaf(leaf));
    REQUIRE(memory != nullptr);
    CHECK(map->leaf(leaf) == memory);
    CHECK(map->owns(memory));
    *memory = leaf + 1;
  }
  CHECK_FALSE(read(place, token).counted);
  map->count();
  const Found found = read(place, token);
  CHECK(found.counted);
  CHECK(found.leaves == std::vector<std::uint64_t>{0, 1, 500, 999});
  CHECK(found.words == std::vector<std::uint64_t>{1, 2, 501, 1000});
  CHECK_FALSE(read(place, test_uuid(3)).counted);
  CHECK_FALSE(read({place.path, test_uuid(3)}, token).counted);
  map->discount();
  CHECK_FALSE(read(place, token).counted);
  map->count();
  map.reset();
  CHECK(read(place, token).counted);

  // Of another boot.
  std::vector<char> header(64);
  const UniqueFd fd(::open(place.path.c_str(), O_RDWR | O_CLOEXEC));
  REQUIRE(::pread(fd.get(), header.data(), header.size(), 0) == 64);
  header[24] = static_cast<char>(header[24] + 1);
  REQUIRE(::pwrite(fd.get(), header.data(), header.size(), 0) == 64);
  CHECK_FALSE(read(place, token).counted);

  // Another map takes its place, and cut short it counts for nothing.
  map = must(LiveMap::make(place, test_uuid(4), kLeaves, kLeafBytes));
  map->count();
  map.reset();
  CHECK_FALSE(read(place, token).counted);
  CHECK(read(place, test_uuid(4)).leaves.empty());
  REQUIRE(::truncate(place.path.c_str(), 10) == 0);
  CHECK_FALSE(read(place, test_uuid(4)).counted);
  LiveMap::remove(place);
  CHECK_FALSE(std::filesystem::exists(place.path));
}

namespace {
Task<void> open_without(SimDisk* disk, std::string folder, const char* words) {
  PatternSource below;
  auto opening = Delta::open(disk->root(), Delta::Mode::kReadWrite, std::move(folder));
  auto delta = must(co_await std::move(opening));
  REQUIRE(delta->live_trouble().has_value());
  CHECK(delta->live_trouble()->message().find(words) != std::string::npos);
  const std::vector<std::byte> block(kBlockSize, std::byte{1});
  must(co_await delta->write(ByteOffset(0), block, below, Delta::Durability::kDurable));
  must(co_await delta->close());
}
}  // namespace

TEST_CASE("a delta without room for its live map says so and works") {
  TempDir temp("/dev/shm");
  SimDisk disk;
  SimLoop loop(1);
  loop.run(create_small(&disk));
  loop.run(open_without(&disk, temp.path() + "/missing/folder", "missing/folder"));
  const std::string open_to_all = temp.path() + "/open";
  std::filesystem::create_directory(open_to_all);
  std::filesystem::permissions(open_to_all, std::filesystem::perms::all);
  loop.run(open_without(&disk, open_to_all, "no one else can write to"));
  loop.run(open_without(&disk, "/proc", "/proc"));
}

namespace {
/// Opens, writes unflushed where the process before it did not, and dies.
Task<void> write_and_die(SimDisk* disk, std::string folder, std::uint64_t block, Memory* memory) {
  PatternSource below;
  auto opening = Delta::open(disk->root(), Delta::Mode::kReadWrite, std::move(folder));
  auto delta = must(co_await std::move(opening));
  const std::vector<std::byte> bytes(kBlockSize, std::byte{7});
  must(co_await delta->write(ByteOffset(block * kBlockSize), bytes, below,
                             Delta::Durability::kCached));
  if (memory != nullptr) memory->keep();
  disk->freeze_after(0);
  (void)co_await delta->close();
}
Task<void> look_at(SimDisk* disk, std::string folder, std::uint64_t block, std::byte* out) {
  auto opening = Delta::open(disk->root(), Delta::Mode::kReadWrite, std::move(folder));
  auto delta = must(co_await std::move(opening));
  std::vector<std::byte> bytes(kBlockSize);
  must(co_await read_through(*delta, ByteOffset(block * kBlockSize), bytes));
  *out = bytes[0];
  must(co_await delta->close());
}
}  // namespace

TEST_CASE("a live map that someone else has opened past is not taken") {
  Memory memory;
  SimDisk disk;
  SimLoop loop(1);
  loop.run(create_small(&disk));
  loop.run(write_and_die(&disk, memory.folder(), 1, &memory));
  disk.kill();
  // One that sees another tmpfs: it goes by map and journal, in which there is nothing.
  TempDir other("/dev/shm");
  const bool elsewhere = GENERATE(true, false);
  loop.run(write_and_die(&disk, elsewhere ? other.path() : std::string(), 2, nullptr));
  disk.kill();
  memory.restore();
  std::byte seen{};
  loop.run(look_at(&disk, memory.folder(), 1, &seen));
  std::vector<std::byte> below(8);
  PatternSource::fill(ByteOffset(kBlockSize), below);
  CHECK(seen == below[0]);
}

namespace {
/// One block, written and flushed by a process that dies at the latest then.
Task<void> flush_and_die(SimDisk* disk, std::uint64_t block, bool* answered) {
  PatternSource below;
  auto opening = Delta::open(disk->root(), Delta::Mode::kReadWrite, "");
  auto delta = co_await std::move(opening);
  if (!delta) co_return;
  const std::vector<std::byte> bytes(kBlockSize, std::byte{7});
  const ByteOffset at(block * kBlockSize);
  auto written = co_await (*delta)->write(at, bytes, below, Delta::Durability::kCached);
  auto flushed = co_await (*delta)->flush();
  *answered = written.has_value() && flushed.has_value();
  disk->freeze_after(0);
  (void)co_await (*delta)->close();
}
}  // namespace

TEST_CASE("what is flushed survives a power cut, wherever the process before had died") {
  std::mt19937_64 random(test_seed("flushes after deaths"));
  bool whole = false;
  for (std::uint64_t n = 0; !whole; ++n) {
    INFO("the first process dies after change " << n);
    SimDisk disk;
    SimLoop loop(1);
    loop.run(create_small(&disk));
    disk.freeze_after(n);
    loop.run(flush_and_die(&disk, 1, &whole));
    disk.kill();
    bool answered = false;
    loop.run(flush_and_die(&disk, 2, &answered));
    REQUIRE(answered);
    for (int cut = 0; cut < 4; ++cut) {
      const auto left = disk.clone();
      cut == 0 ? left->crash_all_lost() : left->crash(random);
      std::byte seen{};
      loop.run(look_at(left.get(), "", 2, &seen));
      CHECK(seen == std::byte{7});
    }
  }
}

namespace {
/// Makes checkpoints until the map is compacted, and dies before that has a stable name.
Task<void> compact_and_die(SimDisk* disk) {
  auto plan = std::make_shared<FaultPlan>();
  bool renamed = false;
  plan->decide = [disk, &renamed](const FaultEvent& event) {
    if (event.kind == FaultEvent::Kind::kRename) renamed = true;
    if (event.kind == FaultEvent::Kind::kDirSync && renamed) disk->freeze_after(0);
    return FaultAction::pass();
  };
  std::unique_ptr<Directory> dir = std::make_unique<FaultDirectory>(disk->root(), plan);
  auto opening = Delta::open(std::move(dir), Delta::Mode::kReadWrite, "");
  auto delta = must(co_await std::move(opening));
  PatternSource below;
  const std::vector<std::byte> bytes(kBlockSize, std::byte{7});
  for (int i = 0; i < 100 && !disk->frozen(); ++i) {
    (void)co_await delta->write(ByteOffset(0), bytes, below, Delta::Durability::kDurable);
    (void)co_await delta->resize(kSize);
  }
  CHECK(disk->frozen());
  (void)co_await delta->close();
}
/// Flushes more often than there is room in the journal.
Task<void> flush_often_and_die(SimDisk* disk, std::byte last) {
  auto opening = Delta::open(disk->root(), Delta::Mode::kReadWrite, "");
  auto delta = must(co_await std::move(opening));
  PatternSource below;
  for (int i = 20; i >= 0; --i) {
    const std::vector<std::byte> bytes(kBlockSize, static_cast<std::byte>(i) ^ last);
    must(co_await delta->write(ByteOffset(kBlockSize), bytes, below, Delta::Durability::kDurable));
  }
  disk->freeze_after(0);
  (void)co_await delta->close();
}
}  // namespace

TEST_CASE("a compacted map whose name was not stable when its process died is made so first") {
  SimDisk disk;
  SimLoop loop(1);
  loop.run(create_small(&disk));
  loop.run(compact_and_die(&disk));
  disk.kill();
  loop.run(flush_often_and_die(&disk, std::byte{0x55}));
  disk.crash_all_lost();
  std::byte seen{};
  loop.run(look_at(&disk, "", 1, &seen));
  CHECK(seen == std::byte{0x55});
}

TEST_CASE("the live map goes when the delta is closed or forgotten") {
  Memory memory;
  memory.drop();
  SimDisk disk;
  SimLoop loop(1);
  loop.run(create_small(&disk));
  std::byte seen{};
  loop.run(look_at(&disk, memory.folder(), 1, &seen));
  CHECK_FALSE(live_file(memory.folder()).has_value());
  loop.run(write_and_die(&disk, memory.folder(), 1, &memory));
  disk.kill();
  memory.restore();
  CHECK(live_file(memory.folder()).has_value());
  auto root = disk.root();
  loop.run(Delta::forget_live(*root, test_uuid(3), memory.folder()));
  CHECK_FALSE(live_file(memory.folder()).has_value());
}

namespace {
Task<void> lose_a_sync_and_die(SimDisk* disk, std::string folder, Memory* memory) {
  PatternSource below;
  auto opening = Delta::open(disk->root(), Delta::Mode::kReadWrite, std::move(folder));
  auto delta = must(co_await std::move(opening));
  const std::vector<std::byte> bytes(kBlockSize, std::byte{7});
  must(co_await delta->write(ByteOffset(0), bytes, below, Delta::Durability::kCached));
  disk->inject({SimOpKind::kDataSync, 1, EIO, 0});
  auto flushed = co_await delta->flush_data();
  CHECK_FALSE(flushed.has_value());
  memory->keep();
  disk->freeze_after(0);
  (void)co_await delta->close();
}
}  // namespace

TEST_CASE("after a failed sync the live map does not count, for what it names may be lost") {
  Memory memory;
  SimDisk disk;
  SimLoop loop(1);
  loop.run(create_small(&disk));
  loop.run(lose_a_sync_and_die(&disk, memory.folder(), &memory));
  disk.kill();
  REQUIRE(memory.has_map());
  memory.restore();
  std::byte seen{};
  loop.run(look_at(&disk, memory.folder(), 0, &seen));
  std::vector<std::byte> below(8);
  PatternSource::fill(ByteOffset(0), below);
  CHECK(seen == below[0]);
}
