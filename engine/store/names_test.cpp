// Names that come, go and change beside a sweep or a backup, which both take what no name leads to
// for garbage.
#include <catch2/catch.hpp>

#include <map>

#include "engine/store/backup_target.h"
#include "engine/store/names_test_support.h"
#include "snap/backup.h"
#include "snap/check.h"

namespace snap {
namespace {

Task<Result<void>> rename(Store* store, int later) {
  co_await wait_for(store, later);
  auto renamed = co_await store->rename_volume("v", "a");
  co_return renamed;
}

Task<Result<void>> prune(Store* store, int later) {
  co_await wait_for(store, later);
  auto pruned = co_await store->prune(false);
  SNAP_CO_RETURN_IF_ERROR(pruned);
  co_return Result<void>();
}

}  // namespace

TEST_CASE("a volume that is renamed beside a sweep loses nothing") {
  Bytes content;
  Sim first(std::make_unique<SimDisk>(5), 5);
  first.loop.run(prepare(first.store.get(), &content));
  for (std::uint64_t seed = 1; seed <= 200; ++seed) {
    INFO("seed " << seed);
    Sim sim(first.disk->clone(), seed);
    Store* store = sim.store.get();
    const auto results =
        sim.loop.run(beside(rename(store, 0), prune(store, static_cast<int>(seed % 25))));
    must(results[0]);
    must(results[1]);
    CHECK(must(sim.loop.run(read_at_rest(*sim.store, "a"))) == content);
  }
}

namespace {

Task<Result<void>> create_later(Store* store, std::uint64_t size, int later) {
  co_await wait_for(store, later);
  auto done = co_await create(store, "new", size);
  co_return done;
}

}  // namespace

TEST_CASE("of two creations of one name, one says that it is taken") {
  Bytes content;
  Sim first(std::make_unique<SimDisk>(5), 5);
  first.loop.run(prepare(first.store.get(), &content));
  for (std::uint64_t seed = 1; seed <= 200; ++seed) {
    INFO("seed " << seed);
    Sim sim(first.disk->clone(), seed);
    auto other = must(sim.loop.run(Store::open(sim.disk->root(), Store::OpenOptions{})));
    const auto results = sim.loop.run(
        beside(create_later(sim.store.get(), kChunkSize, static_cast<int>(seed % 20)),
               create_later(other.get(), 2 * kChunkSize, static_cast<int>(seed * 7 % 23))));
    REQUIRE(results[0].has_value() != results[1].has_value());
    CHECK(results[results[0] ? 1 : 0].error().code() == ErrorCode::kExists);
    const auto volume = must(sim.loop.run(sim.store->volume("new")));
    CHECK(volume.record.size == (results[0] ? 1 : 2) * kChunkSize);
    must(sim.loop.run(read_at_rest(*sim.store, "new")));
  }
}

namespace {

Task<Result<void>> snapshot_later(Store* store, int later) {
  co_await wait_for(store, later);
  auto done = co_await snapshot_it(store);
  co_return done;
}

}  // namespace

TEST_CASE("a command that meets the end of its volume leaves no folder of it") {
  Bytes content;
  Sim first(std::make_unique<SimDisk>(5), 5);
  first.run(prepare(first.store.get(), &content));
  for (std::uint64_t seed = 1; seed <= 200; ++seed) {
    INFO("seed " << seed);
    Sim sim(first.disk->clone(), seed);
    auto other = must(sim.run(Store::open(sim.disk->root(), Store::OpenOptions{})));
    const auto results = sim.run(beside(remove_it(sim.store.get()),
                                        snapshot_later(other.get(), static_cast<int>(seed % 60))));
    if (!results[0]) continue;  // the snapshot was first, and had the volume
    CHECK(must(sim.run(sim.store->impl().volumes.volumes_dir().list())).empty());
  }
}

namespace {

/// Holds the store as a sweep does, and looks whether the volume is as it was all the while.
Task<Result<void>> sweep_slowly(Store* store, bool* unchanged) {
  auto held = co_await store->impl().lock.exclusive("sweep");
  SNAP_CO_RETURN_IF_ERROR(held);
  co_await wait_for(store, 200);
  auto volume = co_await store->impl().volumes.read("v");
  *unchanged = volume && volume->record.snapshots.size() == 1;
  co_return Result<void>();
}

}  // namespace

TEST_CASE("what takes a name away waits for a sweep, and a sweep for its being durable") {
  const Change change = GENERATE(&rename_it, &remove_it, &remove_its_snapshot);
  Bytes content;
  Sim sim(std::make_unique<SimDisk>(5), 5);
  sim.loop.run(prepare(sim.store.get(), &content));
  Store* store = sim.store.get();
  bool unchanged = false;
  for (auto& result : sim.loop.run(beside(sweep_slowly(store, &unchanged), change(store))))
    must(result);
  CHECK(unchanged);
  auto volume = sim.loop.run(sim.store->impl().volumes.read("v"));
  CHECK((!volume || volume->record.snapshots.empty()));
}

// ---- After the death of a process, whose last changes of names need not be stable

namespace {

Task<Result<void>> create_it(Store* store) {
  return create(store, "a");
}

/// Writes and flushes in the volume that comes first by name, and dies.
Task<void> flush_and_die(Store* store, SimDisk* disk, std::string* name) {
  const auto names = must(co_await store->impl().volumes.names());
  *name = names.front();
  const Holder nobody;
  auto volume = must(co_await store->open_volume(*name, nobody));
  const Bytes block(kBlockSize, std::byte{0x5a});
  must(co_await volume->volume().write(ByteOffset(0), block, {}));
  must(co_await volume->volume().flush());
  disk->freeze_after(0);
  auto closed = co_await volume->close();
  static_cast<void>(closed);
}

}  // namespace

TEST_CASE("what is flushed is there after a power cut, wherever a command before had died") {
  const Change change =
      GENERATE(&rename_it, &remove_its_snapshot, &reset_it, &snapshot_it, &commit_it, &create_it);
  Bytes content;
  Sim first(std::make_unique<SimDisk>(5), 5);
  first.loop.run(prepare(first.store.get(), &content));
  bool whole = false;
  for (std::uint64_t changes = 0; !whole; ++changes) {
    INFO("dead after " << changes << " changes");
    const auto disk = first.disk->clone();
    whole = dies_after(*disk, change, changes);
    std::string name;
    {
      SimLoop loop(1);
      auto store = must(loop.run(Store::open(disk->root(), Store::OpenOptions{})));
      loop.run(flush_and_die(store.get(), disk.get(), &name));
    }
    disk->crash_all_lost();
    Sim after(disk->clone(), 1);
    REQUIRE(after.loop.run(after.store->volume(name)));
    const Bytes found = must(after.loop.run(read_at_rest(*after.store, name)));
    CHECK(found[0] == std::byte{0x5a});
  }
}

namespace {
Task<Result<void>> put_a_blob(Store* store) {
  auto put = co_await store->impl().blobs.put("the manifest of an image");
  SNAP_CO_RETURN_IF_ERROR(put);
  co_return Result<void>();
}
}  // namespace

TEST_CASE("a blob that is there already is stable when it has been put, whoever died with it") {
  Sim first(std::make_unique<SimDisk>(5), 5);
  first.disk->crash_all_kept();
  bool whole = false;
  for (std::uint64_t changes = 0; !whole; ++changes) {
    INFO("dead after " << changes << " changes");
    const auto disk = first.disk->clone();
    whole = dies_after(*disk, &put_a_blob, changes);
    {
      SimLoop loop(1);
      auto store = must(loop.run(Store::open(disk->root(), Store::OpenOptions{})));
      must(loop.run(put_a_blob(store.get())));
    }
    disk->crash_all_lost();
    Sim after(disk->clone(), 1);
    CHECK(must(after.loop.run(after.store->impl().blobs.list())).size() == 1);
  }
}

TEST_CASE("a store stays one after a power cut, wherever the process that made it had died") {
  bool whole = false;
  for (std::uint64_t changes = 0; !whole; ++changes) {
    INFO("dead after " << changes << " changes");
    SimDisk disk(5);
    {
      SimLoop loop(changes);
      disk.freeze_after(changes);
      static_cast<void>(loop.run(Store::open(disk.root(), Store::OpenOptions{})));
      whole = !disk.frozen();
      disk.kill();
    }
    std::string name;
    {
      SimLoop loop(1);
      auto store = must(loop.run(Store::open(disk.root(), Store::OpenOptions{})));
      must(loop.run(create_it(store.get())));
      loop.run(flush_and_die(store.get(), &disk, &name));
    }
    disk.crash_all_lost();
    SimLoop loop(2);
    const Store::OpenOptions there{.create = false};
    auto store = must(loop.run(Store::open(disk.root(), there)));
    CHECK(must(loop.run(read_at_rest(*store, name)))[0] == std::byte{0x5a});
  }
}

namespace {

/// As the kernel may do at any time.
Task<void> sync_folders(SimDisk* disk, std::vector<std::string> folders) {
  auto root = disk->root();
  for (const std::string& path : folders) {
    const std::size_t slash = path.find('/');
    auto folder = must(co_await root->open_dir(path.substr(0, slash)));
    if (slash != std::string::npos)
      folder = must(co_await folder->open_dir(path.substr(slash + 1)));
    must(co_await folder->sync());
  }
}

void check_undamaged(std::unique_ptr<SimDisk> disk) {
  Sim after(std::move(disk), 1);
  const CheckOptions all{.data = true};
  const auto checked = must(after.loop.run(check_store(*after.store, all, Progress{})));
  for (const Finding& finding : checked.findings) {
    INFO(finding.object << ": " << finding.what);
    CHECK(finding.kind != Finding::Kind::kDamage);
  }
}

}  // namespace

TEST_CASE(
    "a sweep takes nothing that a power cut brings the name of back, wherever a command died") {
  const Change change = GENERATE(&rename_it, &remove_it, &remove_its_snapshot, &reset_it,
                                 &commit_it, &remove_the_image);
  Bytes content;
  Sim first(std::make_unique<SimDisk>(5), 5);
  first.loop.run(prepare(first.store.get(), &content));
  bool whole = false;
  for (std::uint64_t changes = 0; !whole; ++changes) {
    const auto disk = first.disk->clone();
    whole = dies_after(*disk, change, changes);
    {
      SimLoop loop(1);
      auto store = must(loop.run(Store::open(disk->root(), Store::OpenOptions{})));
      must(loop.run(prune(store.get(), 0)));
    }
    for (std::uint64_t seed = 0; seed < 6; ++seed) {
      INFO("dead after " << changes << " changes, seed " << seed);
      auto cut = disk->clone();
      std::mt19937_64 random(seed);
      cut->crash(random);
      check_undamaged(std::move(cut));
    }
    INFO("dead after " << changes << " changes; what was removed is gone for good, and no more");
    SimLoop loop(1);
    loop.run(sync_folders(disk.get(), {"deltas", "blobs/sha256"}));
    disk->crash_all_lost();
    check_undamaged(disk->clone());
  }
}

// ---- Backups

namespace {

Task<Result<void>> back_up(Store* source, SimDisk* disk, BackupOptions how) {
  auto root = disk->root();
  auto made = co_await root->make_dir("copy");
  static_cast<void>(made);
  auto synced = co_await root->sync();
  SNAP_CO_RETURN_IF_ERROR(synced);
  auto dir = co_await root->open_dir("copy");
  SNAP_CO_RETURN_IF_ERROR(dir);
  Store::OpenOptions open;
  open.unfinished_backup = true;
  auto target = co_await Store::open(std::move(*dir), open);
  SNAP_CO_RETURN_IF_ERROR(target);
  auto claimed = co_await claim_backup(**target, *source);
  SNAP_CO_RETURN_IF_ERROR(claimed);
  const Progress silent;
  auto report = co_await backup_store(*source, **target, how, silent);
  SNAP_CO_RETURN_IF_ERROR(report);
  if (!report->failed.empty()) co_return report->failed.front();
  co_return Result<void>();
}

/// The volumes in a backup, and what they hold.
Task<std::map<std::string, Bytes>> contents_of(SimDisk* disk) {
  auto root = disk->root();
  auto dir = must(co_await root->open_dir("copy"));
  auto target = must(co_await Store::open(std::move(dir), {}));
  std::map<std::string, Bytes> out;
  for (const VolumeSummary& volume : must(co_await target->volumes())) {
    auto content = co_await read_at_rest(*target, volume.record.name);
    out[volume.record.name] = must(std::move(content));
  }
  co_return out;
}

}  // namespace

TEST_CASE("a backup of a volume that is renamed meanwhile has all of it, or says so") {
  Bytes content;
  Sim first(std::make_unique<SimDisk>(5), 5);
  first.loop.run(prepare(first.store.get(), &content));
  SimDisk copy(6);
  const bool again = GENERATE(true, false);
  if (again) must(first.loop.run(back_up(first.store.get(), &copy, {})));
  int whole = 0;
  for (int later = 0; later < 400; later += 3) {
    INFO("renamed after " << later << " operations, backup " << (again ? "again" : "first"));
    Sim sim(first.disk->clone(), static_cast<std::uint64_t>(later));
    const auto target = copy.clone();
    Store* store = sim.store.get();
    BackupOptions how;
    how.remove = true;
    const auto results =
        sim.loop.run(beside(back_up(store, target.get(), how), rename(store, later)));
    must(results[1]);
    if (!results[0] && !again) continue;
    const auto found = sim.loop.run(contents_of(target.get()));
    REQUIRE(found.size() == 1);
    CHECK(found.begin()->second == content);
    if (results[0]) ++whole;
  }
  CHECK(whole > 50);
}

namespace {

constexpr std::byte kHead{0x11};
constexpr std::byte kTail{0x22};

/// As a backup freezes it; then a user moves the tail to the front, flushes and shrinks.
Task<Result<void>> freeze_then_shrink(Store* store, std::string name, int* times) {
  const Holder nobody;
  auto volume = must(co_await store->open_volume(name, nobody));
  auto frozen = co_await store->freeze(*volume);
  SNAP_CO_RETURN_IF_ERROR(frozen);
  if ((*times)-- > 0) {
    const Bytes moved(kChunkSize, kTail);
    must(co_await volume->volume().write(ByteOffset(0), moved, {}));
    must(co_await volume->volume().flush());
    const std::uint64_t size = volume->volume().size();
    must(co_await store->resize(*volume, kChunkSize));
    if (*times > 0) must(co_await store->resize(*volume, size));
  }
  must(co_await volume->close());
  co_return Result<void>();
}

Task<void> two_halves(Store* store) {
  Store::CreateOptions options;
  options.name = "v";
  options.size = 2 * kChunkSize;
  must(co_await store->create_volume(options));
  const Holder nobody;
  auto volume = must(co_await store->open_volume("v", nobody));
  const Bytes head(kChunkSize, kHead), tail(kChunkSize, kTail);
  must(co_await volume->volume().write(ByteOffset(0), head, {}));
  must(co_await volume->volume().write(ByteOffset(kChunkSize), tail, {}));
  must(co_await volume->close());
}

}  // namespace

TEST_CASE("a backup of a volume that shrinks meanwhile holds it as it was at one moment") {
  const int shrinks = GENERATE(1, 2, 10);
  INFO(shrinks << " times; all but the last it grows again");
  Sim sim(std::make_unique<SimDisk>(5), 5);
  sim.loop.run(two_halves(sim.store.get()));
  SimDisk copy(4);
  int times = shrinks;
  BackupOptions how;
  Store* store = sim.store.get();
  how.freeze = [store, &times](std::string name) {
    return freeze_then_shrink(store, std::move(name), &times);
  };
  const auto done = sim.loop.run(back_up(store, &copy, how));
  if (shrinks == 10) {  // again and again: it is left out, which is said
    REQUIRE_FALSE(done);
    CHECK(done.error().code() == ErrorCode::kBusy);
    return;
  }
  must(done);
  const Bytes content = sim.loop.run(contents_of(&copy))["v"];
  CHECK(content == Bytes(kChunkSize, kTail));
}

}  // namespace snap
