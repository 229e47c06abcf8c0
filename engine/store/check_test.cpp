// Backups under power cuts, and the pace of a scrub, on simulated disks. What check finds is shown
// by the scenarios (tests/scenarios/test_check.py).
#include <catch2/catch.hpp>

#include "engine/store/backup_target.h"
#include "engine/store/ops_test_support.h"
#include "snap/backup.h"
#include "snap/check.h"

namespace snap {
namespace {

/// A source on a disk of its own, and the disk of its backup, which may be cut off.
struct BackupRig {
  explicit BackupRig(std::uint64_t seed) : source_disk(seed), loop(seed) {
    source = must(loop.run(Store::open(open_folder(source_disk, "source"), {})));
  }
  std::unique_ptr<Directory> open_folder(SimDisk& disk, const std::string& name) {
    auto root = disk.root();
    auto made = loop.run(root->make_dir(name));
    if (made) must(loop.run(root->sync()));
    return must(loop.run(root->open_dir(name)));
  }
  Result<std::unique_ptr<Store>> open_target(SimDisk& disk, bool unfinished) {
    Store::OpenOptions options;
    options.create = unfinished;
    options.unfinished_backup = unfinished;
    return loop.run(Store::open(open_folder(disk, "copy"), options));
  }
  Result<BackupReport> back_up(SimDisk& disk) { return loop.run(run(&disk)); }
  Bytes content(Store& store, const std::string& volume) {
    return must(loop.run(read_at_rest(store, volume)));
  }

  SimDisk source_disk;
  SimLoop loop;
  std::unique_ptr<Store> source;

 private:
  Task<Result<BackupReport>> run(SimDisk* disk) {
    auto root = disk->root();
    auto made = co_await root->make_dir("copy");
    static_cast<void>(made);
    auto synced = co_await root->sync();
    if (!synced) co_return synced.error();
    auto dir = co_await root->open_dir("copy");
    if (!dir) co_return dir.error();
    Store::OpenOptions options;
    options.unfinished_backup = true;
    auto target = co_await Store::open(std::move(*dir), options);
    if (!target) co_return target.error();
    auto claimed = co_await claim_backup(**target, *source);
    if (!claimed) co_return claimed.error();
    const BackupOptions plain;
    const Progress silent;
    auto report = co_await backup_store(*source, **target, plain, silent);
    co_return report;
  }
};

Task<void> fill(Store& store, std::string name, Model& model, SeededRandom& random) {
  const Holder nobody;
  auto volume = must(co_await store.open_volume(name, nobody));
  must(co_await mutate_often(volume->volume(), model, random, 5));
  must(co_await volume->close());
}

enum class Cut { kLost, kKept, kTorn };

/// Runs a backup of `rig` onto a copy of `before` that freezes after `changes`, cuts the power, and
/// looks at what is left. `old`: the contents of v and w that the backup had; none: it had never
/// been whole. True if the run came to its end.
bool try_cut(BackupRig& rig, const SimDisk& before, std::uint64_t changes, Cut cut,
             const std::vector<Bytes>& old, const std::vector<Bytes>& now) {
  INFO("power cut after " << changes << " changes, way " << static_cast<int>(cut));
  auto disk = before.clone();
  disk->freeze_after(changes);
  auto report = rig.back_up(*disk);
  const bool whole = !disk->frozen();
  if (whole) must(report);
  std::mt19937_64 random(changes);
  if (cut == Cut::kLost) disk->crash_all_lost();
  if (cut == Cut::kKept) disk->crash_all_kept();
  if (cut == Cut::kTorn) disk->crash(random);
  auto target = rig.open_target(*disk, false);
  if (!target) {
    // No store, or one that says that it is not whole: only before the first run has ended.
    CHECK(old.empty());
    CHECK_FALSE(report);
  } else {
    const auto volumes = must(rig.loop.run((*target)->volumes()));
    if (old.empty() && volumes.empty()) {
      CHECK_FALSE(report);  // an empty store: nothing was begun
    } else {
      REQUIRE(volumes.size() == 2);
      for (std::size_t i = 0; i < 2; ++i) {
        const Bytes is = rig.content(**target, volumes[i].record.name);
        CHECK((is == now[i] || (!old.empty() && is == old[i])));
        if (report) CHECK(is == now[i]);
      }
    }
    target->reset();
  }
  // The next run goes on.
  const auto again = must(rig.back_up(*disk));
  CHECK(again.failed.empty());
  target = rig.open_target(*disk, false);
  REQUIRE(target);
  CHECK(rig.content(**target, "v") == now[0]);
  CHECK(rig.content(**target, "w") == now[1]);
  const auto checked = must(rig.loop.run(check_store(**target, {.data = true}, Progress{})));
  CHECK(checked.findings.empty());
  return whole;
}

/// Kills a run after `changes`, makes another, and cuts the power after that. True if the first
/// came to its end.
bool try_kill(BackupRig& rig, const SimDisk& before, std::uint64_t changes,
              const std::vector<Bytes>& now) {
  INFO("killed after " << changes << " changes");
  auto disk = before.clone();
  disk->freeze_after(changes);
  static_cast<void>(rig.back_up(*disk));
  const bool whole = !disk->frozen();
  disk->kill();
  CHECK(must(rig.back_up(*disk)).failed.empty());
  disk->crash_all_lost();
  auto target = rig.open_target(*disk, false);
  REQUIRE(target);
  CHECK(rig.content(**target, "v") == now[0]);
  CHECK(rig.content(**target, "w") == now[1]);
  return whole;
}

TEST_CASE("a power cut at any change of a backup leaves the one before, or no store at all") {
  BackupRig rig(3);
  SeededRandom random(3);
  std::vector<Model> models(2, Model{random_bytes(kTestSize, 1)});
  const Image base = must(rig.loop.run(import_bytes(*rig.source, "base:1", models[0].bytes)));
  for (const char* name : {"v", "w"}) {
    Store::CreateOptions options;
    options.name = name;
    options.image = base;
    must(rig.loop.run(rig.source->create_volume(options)));
  }
  auto disk = std::make_unique<SimDisk>(4);
  std::vector<Bytes> old;
  for (int run = 0; run < 2; ++run) {
    rig.loop.run(fill(*rig.source, "v", models[0], random));
    rig.loop.run(fill(*rig.source, "w", models[1], random));
    const std::vector<Bytes> now{models[0].bytes, models[1].bytes};
    // Each of three neighbours in another way: all of them would be thrice as many.
    constexpr Cut kWays[] = {Cut::kLost, Cut::kKept, Cut::kTorn};
    std::uint64_t cuts = 0;
    for (bool whole = false; !whole; ++cuts)
      whole = try_cut(rig, *disk, cuts, kWays[cuts % 3], old, now);
    CHECK(cuts > 50);
    // What a run that was killed has named need not be stable; the next one relies on it.
    for (std::uint64_t changes = 0; !try_kill(rig, *disk, changes, now);)
      ++changes;
    must(rig.back_up(*disk));
    disk->crash_all_lost();
    old = now;
  }
}

namespace {

/// Cuts every file of the folder `path` of the copy, or of the folders in it, that is called `name`
/// (none: any) to the half of it.
Task<void> cut_short(SimDisk* disk, std::string path, std::string name) {
  constexpr std::size_t kLimit = 64u << 20;
  auto root = disk->root();
  auto dir = must(co_await root->open_dir("copy"));
  dir = must(co_await dir->open_dir(path));
  for (const DirEntry& entry : must(co_await dir->list())) {
    auto inner = must(co_await dir->open_dir(entry.name));
    for (const DirEntry& file : must(co_await inner->list())) {
      if (!name.empty() && file.name != name) continue;
      auto bytes = must(co_await read_whole(*inner, file.name, kLimit));
      bytes.resize(bytes.size() / 2);
      must(co_await replace_file(*inner, file.name, bytes));
    }
  }
}

}  // namespace

TEST_CASE(
    "a power cut at any change of a backup that mends a copy leaves what it mends as good as it "
    "was") {
  BackupRig rig(7);
  SeededRandom random(7);
  Model model{random_bytes(kTestSize, 1)};
  Store::CreateOptions options;
  options.name = "v";
  options.image = must(rig.loop.run(import_bytes(*rig.source, "base:1", model.bytes)));
  must(rig.loop.run(rig.source->create_volume(options)));
  rig.loop.run(fill(*rig.source, "v", model, random));
  SimDisk disk(4);
  must(rig.back_up(disk));
  rig.loop.run(cut_short(&disk, "blobs", ""));
  rig.loop.run(cut_short(&disk, "deltas", "data"));
  disk.crash_all_kept();
  std::uint64_t changes = 0;
  for (bool whole = false; !whole; ++changes) {
    INFO("power cut after " << changes << " changes");
    auto cut = disk.clone();
    cut->freeze_after(changes);
    const auto report = rig.back_up(*cut);
    whole = !cut->frozen();
    if (whole) CHECK((must(report).deltas_copied == 1 && must(report).blobs_copied > 1));
    if (changes % 2 == 0) cut->crash_all_lost();
    std::mt19937_64 torn(changes);
    if (changes % 2 == 1) cut->crash(torn);
    if (report) {
      auto target = rig.open_target(*cut, false);
      REQUIRE(target);
      CHECK(rig.content(**target, "v") == model.bytes);
    }
    CHECK(must(rig.back_up(*cut)).failed.empty());
    cut->crash_all_lost();
    auto target = rig.open_target(*cut, false);
    REQUIRE(target);
    CHECK(rig.content(**target, "v") == model.bytes);
    const auto checked = must(rig.loop.run(check_store(**target, {.data = true}, Progress{})));
    CHECK(checked.findings.empty());
  }
  CHECK(changes > 10);
}

TEST_CASE("a scrub keeps to its rate, tells how far it is, and can be cancelled") {
  BackupRig rig(5);
  constexpr std::uint64_t kBytes = 4u << 20;
  must(rig.loop.run(import_bytes(*rig.source, "big:1", random_bytes(kBytes, 1))));
  std::uint64_t told = 0, of = 0;
  Progress progress;
  progress.report = [&](std::string_view, std::uint64_t done, std::uint64_t total) {
    CHECK(done >= told);
    told = done;
    of = total;
  };
  CheckOptions options;
  options.data = true;
  options.rate = kBytes / 8;
  const auto began = rig.loop.now();
  const auto report = must(rig.loop.run(check_store(*rig.source, options, progress)));
  CHECK(report.findings.empty());
  CHECK(report.bytes_read >= kBytes);
  CHECK(told == report.bytes_read);
  CHECK(of >= told);
  CHECK(rig.loop.now() - began >= std::chrono::seconds(8));  // the loop's own time
  progress.cancelled = [&] { return told > 0; };
  const auto cancelled = rig.loop.run(check_store(*rig.source, options, progress));
  REQUIRE_FALSE(cancelled);
  CHECK(cancelled.error().code() == ErrorCode::kCancelled);
}

}  // namespace
}  // namespace snap
