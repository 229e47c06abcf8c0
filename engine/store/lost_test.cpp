// A record that is gone is told from a volume that was removed, and from one that was never made:
// of the first nothing is reclaimed, of the others all.
#include <catch2/catch.hpp>

#include <map>

#include "engine/store/names_test_support.h"
#include "snap/check.h"

namespace snap {
namespace {

CheckReport check(Sim& sim, bool repair) {
  CheckOptions options;
  options.repair = repair;
  return must(sim.run(check_store(*sim.store, options, Progress{})));
}

Task<void> write(Store* store, std::string name, std::uint64_t seed) {
  const Holder nobody;
  auto volume = must(co_await store->open_volume(name, nobody));
  SeededRandom random(seed);
  Model model{Bytes(kTestSize)};
  must(co_await mutate_often(volume->volume(), model, random, 6));
  must(co_await volume->volume().flush());
  must(co_await volume->close());
}

/// Volumes v, with a snapshot, and w, both written to; an image that v is made from.
Task<void> prepare_two(Store* store) {
  const Image base = must(co_await import_bytes(*store, "base:1", random_bytes(kTestSize, 1)));
  Store::CreateOptions options;
  options.name = "v";
  options.image = base;
  must(co_await store->create_volume(options));
  must(co_await create(store, "w", kTestSize));
  co_await write(store, "v", 1);
  const Holder nobody;
  auto volume = must(co_await store->open_volume("v", nobody));
  must(co_await store->snapshot(*volume, "s"));
  must(co_await volume->close());
  co_await write(store, "v", 2);
  co_await write(store, "w", 3);
}

std::unique_ptr<SimDisk> prepared() {
  static const std::unique_ptr<SimDisk> disk = [] {
    Sim sim(std::make_unique<SimDisk>(5));
    sim.run(prepare_two(sim.store.get()));
    return sim.disk->clone();
  }();
  return disk->clone();
}

Task<std::unique_ptr<Directory>> folder(SimDisk* disk, std::string path) {
  auto dir = disk->root();
  for (std::size_t end = 0; end != std::string::npos; path.erase(0, end + 1)) {
    end = path.find('/');
    const std::string name = path.substr(0, end);
    dir = must(co_await dir->open_dir(name));
    if (end == std::string::npos) break;
  }
  co_return std::move(dir);
}

Task<void> unlink(SimDisk* disk, std::string path, std::string name) {
  auto dir = co_await folder(disk, std::move(path));
  must(co_await dir->unlink(name));
  must(co_await dir->sync());
}

/// Every file of two levels of folders below `path`, and what it holds.
Task<std::map<std::string, Bytes>> files_in(SimDisk* disk, std::string path) {
  constexpr std::size_t kLimit = 64u << 20;
  std::map<std::string, Bytes> out;
  auto top = co_await folder(disk, std::move(path));
  for (const DirEntry& entry : must(co_await top->list())) {
    if (entry.type == FileStat::Type::kFile) {
      auto bytes = co_await read_whole(*top, entry.name, kLimit);
      out[entry.name] = must(std::move(bytes));
      continue;
    }
    auto dir = must(co_await top->open_dir(entry.name));
    for (const DirEntry& file : must(co_await dir->list())) {
      auto bytes = co_await read_whole(*dir, file.name, kLimit);
      out[entry.name + "/" + file.name] = must(std::move(bytes));
    }
  }
  co_return out;
}

/// What v would need if its record came back.
std::vector<std::map<std::string, Bytes>> all_of(Sim& sim) {
  return {sim.run(files_in(sim.disk.get(), "deltas")),
          sim.run(files_in(sim.disk.get(), "blobs/sha256")),
          sim.run(files_in(sim.disk.get(), "volumes"))};
}

void check_damaged(const CheckReport& report, const std::string& volume) {
  CHECK(report.count(Finding::Kind::kDamage) == 1);
  bool told = false;
  for (const Finding& finding : report.findings) {
    if (finding.kind != Finding::Kind::kDamage) continue;
    INFO(finding.object << ": " << finding.what);
    told = finding.object == "volume " + volume &&
           finding.what.find("lost its record") != std::string::npos;
  }
  CHECK(told);
}

}  // namespace

TEST_CASE("of a volume whose record is gone nothing is reclaimed, and check names it") {
  Sim sim(prepared());
  const VolumeRecord lost = must(sim.run(sim.store->volume("v"))).record;
  sim.run(unlink(sim.disk.get(), "volumes/v", "volume.json"));
  const auto before = all_of(sim);
  for (const bool repair : {false, true}) {
    const CheckReport report = check(sim, repair);
    check_damaged(report, "v");
    CHECK(report.count(Finding::Kind::kLeak) == 0);
    for (const Finding& finding : report.findings) {
      for (const std::string& delta : deltas_of(lost))
        CHECK(finding.what.find(delta) != std::string::npos);
    }
  }
  const auto pruned = must(sim.run(sim.store->prune(false)));
  CHECK(pruned.deleted.empty());
  REQUIRE(pruned.kept);
  CHECK(pruned.kept->message().find("volume 'v' has lost its record") != std::string::npos);
  CHECK(must(sim.run(sim.store->usage())).reclaimable == 0);
  // Who asks for it is told so, though it is not there.
  const auto missed = sim.run(sim.store->volume("v"));
  const auto removed = sim.run(sim.store->remove_volume("v", false));
  REQUIRE_FALSE(missed);
  REQUIRE_FALSE(removed);
  for (const Error& error : {missed.error(), removed.error()}) {
    CHECK(error.code() == ErrorCode::kNotFound);
    CHECK(error.message().find("volume 'v' has lost its record") != std::string::npos);
  }
  CHECK(sim.run(sim.store->volume("x")).error().message().find("no volume 'x'") == 0);
  // Its name is not given to another.
  const auto made = sim.run(create(sim.store.get(), "v"));
  REQUIRE_FALSE(made);
  CHECK(made.error().code() == ErrorCode::kCorrupt);
  CHECK(all_of(sim) == before);
  CHECK_FALSE(sim.run(sim.store->rename_volume("w", "v")));
  // Other volumes and images are removed; what this one may need of theirs stays.
  CHECK(must(sim.run(sim.store->remove_volume("w", false))).kept);
  CHECK(must(sim.run(sim.store->remove_image("base:1", false, false))).kept);
  CHECK(sim.run(files_in(sim.disk.get(), "deltas")) == before[0]);
  CHECK(sim.run(files_in(sim.disk.get(), "blobs/sha256")) == before[1]);
}

TEST_CASE("a volume whose record is put back is as it was; one that is not missed is reclaimed") {
  Sim sim(prepared());
  const bool written_since = GENERATE(true, false);  // else its own delta is empty
  if (!written_since) must(sim.run(snapshot_it(sim.store.get())));
  const Bytes content = must(sim.run(read_at_rest(*sim.store, "v")));
  const auto record = sim.run(files_in(sim.disk.get(), "volumes/v"))["volume.json"];
  sim.run(unlink(sim.disk.get(), "volumes/v", "volume.json"));
  must(sim.run(sim.store->prune(false)));
  {
    Sim restored(sim.disk->clone());
    auto dir = restored.run(folder(restored.disk.get(), "volumes/v"));
    must(restored.run(replace_file(*dir, "volume.json", record)));
    CHECK(must(restored.run(read_at_rest(*restored.store, "v"))) == content);
    CHECK(check(restored, false).findings.empty());
  }
  sim.run(unlink(sim.disk.get(), "volumes/v", "lock"));
  const auto pruned = must(sim.run(sim.store->prune(false)));
  CHECK(pruned.deleted.size() == (written_since ? 2u : 3u));
  CHECK_FALSE(pruned.kept);
  CHECK(check(sim, false).findings.empty());
}

TEST_CASE("a record whose only copy was left of a killed process's removal is no loss") {
  Sim sim(prepared());
  sim.run(unlink(sim.disk.get(), "volumes/w", "volume.json"));
  auto dir = sim.run(folder(sim.disk.get(), "volumes/w"));
  must(sim.run(replace_file(*dir, "removed.json", {})));
  for (const Finding& finding : check(sim, true).findings)
    CHECK((finding.kind == Finding::Kind::kLeak && finding.reclaimed));
  CHECK(check(sim, false).findings.empty());
}

namespace {

Task<Result<void>> create_it(Store* store) {
  return create(store, "new");
}
Task<Result<void>> clone_it(Store* store) {
  const Holder nobody;
  auto volume = co_await store->open_volume("v", nobody);
  SNAP_CO_RETURN_IF_ERROR(volume);
  auto done = co_await store->clone(**volume, "new");
  auto closed = co_await (*volume)->close();
  SNAP_CO_RETURN_IF_ERROR(done);
  co_return closed;
}

/// A delta with data that nothing names, as a removal leaves that was killed.
Task<void> leave_garbage(Store* store, SimDisk* disk) {
  must(co_await create(store, "gone", kTestSize));
  co_await write(store, "gone", 4);
  co_await unlink(disk, "volumes/gone", "volume.json");
  co_await unlink(disk, "volumes/gone", "lock");
}

void check_harmless(std::unique_ptr<SimDisk> disk) {
  Sim sim(std::move(disk));
  for (const Finding& finding : check(sim, false).findings) {
    INFO(finding.object << ": " << finding.what);
    CHECK(finding.kind == Finding::Kind::kLeak);
  }
  const auto pruned = must(sim.run(sim.store->prune(false)));
  CHECK_FALSE(pruned.kept);
  const auto names = must(sim.run(sim.store->impl().volumes.names()));
  const auto folders = must(sim.run(sim.run(folder(sim.disk.get(), "volumes"))->list()));
  CHECK(folders.size() == names.size());
  std::set<std::string> named;
  for (const StoredVolume& volume : must(sim.run(sim.store->impl().volumes.list()))) {
    for (const std::string& delta : deltas_of(volume.record))
      named.insert(delta);
    must(sim.run(
        read_at_rest(*sim.store, volume.record.name)));  // removes what is beside its record
  }
  const auto deltas = must(sim.run(sim.store->impl().volumes.list_deltas()));
  CHECK(std::set<std::string>(deltas.begin(), deltas.end()) == named);
  CHECK(check(sim, false).findings.empty());
}

}  // namespace

TEST_CASE("a removal or creation that is killed at any change leaves what prune reclaims") {
  const Change change = GENERATE(&remove_it, &create_it, &clone_it);
  Sim first(prepared());
  first.run(leave_garbage(first.store.get(), first.disk.get()));
  bool whole = false;
  std::uint64_t changes = 0;
  for (; !whole; ++changes) {
    const auto disk = first.disk->clone();
    whole = dies_after(*disk, change, changes);
    {
      INFO("killed after " << changes << " changes");
      const auto killed = disk->clone();
      check_harmless(killed->clone());
    }
    for (std::uint64_t seed = 0; seed < 6; ++seed) {
      INFO("power cut after " << changes << " changes, seed " << seed);
      const auto cut = disk->clone();
      std::mt19937_64 random(seed);
      cut->crash(random);
      check_harmless(cut->clone());
    }
  }
  CHECK(changes > 6);
}

TEST_CASE("a folder with nothing but a lock is harmless where each delta has its volume") {
  Sim sim(prepared());
  auto volumes = sim.run(folder(sim.disk.get(), "volumes"));
  must(sim.run(volumes->make_dir("old")));
  auto old = sim.run(folder(sim.disk.get(), "volumes/old"));
  const bool by_repair = GENERATE(true, false);
  must(sim.run(replace_file(*old, "lock", {})));
  CHECK(check(sim, false).count(Finding::Kind::kDamage) == 0);
  if (by_repair) {
    CHECK(check(sim, true).leaks_left() == 0);
  } else {
    must(sim.run(create(sim.store.get(), "old")));
  }
  CHECK(check(sim, false).findings.empty());
}

}  // namespace snap
