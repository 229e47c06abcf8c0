// Commands that fill the store beside each other: none passes its limit, and as many are done as
// fit.
#include <catch2/catch.hpp>

#include "engine/base/checksum.h"
#include "engine/store/room_test_support.h"
#include "engine/store/room_watch.h"
#include "snap/limits.h"

namespace snap {

namespace {

struct Outcome {
  int done = 0;
  int refused = 0;
};

Outcome count(const std::vector<Result<void>>& results) {
  Outcome outcome;
  for (const Result<void>& result : results) {
    if (result) {
      ++outcome.done;
      continue;
    }
    CHECK(result.error().code() == ErrorCode::kNoSpace);
    CHECK(result.error().message().find("set --limit") != std::string::npos);
    ++outcome.refused;
  }
  return outcome;
}

Task<Result<void>> import_one(Store* store, std::string name, std::uint64_t bytes,
                              std::uint64_t seed) {
  auto image = co_await import_bytes(*store, std::move(name), random_bytes(bytes, seed));
  co_return nothing_of(image);
}
Task<Result<void>> commit_one(Store* store, OpenVolume* volume) {
  Store::CommitOptions options;
  options.compress = volume->record().name == "compressed";
  const Progress silent;
  auto committed = co_await store->commit(*volume, options, silent);
  co_return nothing_of(committed);
}
Task<Result<void>> snapshot_one(Store* store, OpenVolume* volume) {
  auto taken = co_await store->snapshot(*volume, "last");
  co_return nothing_of(taken);
}
Task<Result<void>> prune_all(Store* store) {
  auto pruned = co_await store->prune(false);
  co_return nothing_of(pruned);
}
Task<Result<void>> watch_used(Store* store, std::uint64_t* highest) {
  for (int i = 0; i < 20; ++i) {
    auto room = co_await store->room();
    if (!room) co_return room.error();
    *highest = std::max(*highest, room->used);
  }
  co_return Result<void>();
}
Task<Result<void>> load_one(Store* store, std::string file) {
  const Progress silent;
  auto loaded = co_await store->load(file, silent, nullptr);
  co_return nothing_of(loaded);
}

}  // namespace

TEST_CASE("of imports that pass the limit together as many stay as fit") {
  for (std::uint64_t seed = 1; seed <= 30; ++seed) {
    INFO("seed " << seed);
    Limited s(5 * kMiB / 2, std::nullopt, seed);
    std::vector<Task<Result<void>>> imports;
    for (std::uint64_t i = 0; i < 4; ++i)
      imports.push_back(import_one(s.rig.store.get(), "a:" + std::to_string(i), kMiB, i));
    const Outcome outcome = count(s.rig.run(gather(std::move(imports))));
    CHECK(outcome.done == 2);
    CHECK(outcome.refused == 2);
    CHECK(s.used() <= 5 * kMiB / 2);
    CHECK(must(s.rig.run(s.rig.store->images())).size() == 2);
    check_no_leftovers(s.rig);
  }
}

TEST_CASE("of commits that pass the limit together as many stay as fit") {
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    INFO("seed " << seed);
    Limited s(64 * kMiB, std::nullopt, seed);
    std::vector<std::unique_ptr<OpenVolume>> volumes;
    for (const char* name : {"a", "b", "compressed"}) {
      s.rig.create(name, std::nullopt, 8 * kMiB);
      volumes.push_back(s.rig.open(name));
      must(s.write(*volumes.back(), 0, kMiB, volumes.size()));
      must(s.snapshot(*volumes.back(), "s"));  // so that the delta stays
    }
    const std::uint64_t limit = s.used() + 3 * kMiB / 2;
    s.set(limit, std::nullopt);
    std::vector<Bytes> before;
    std::vector<Task<Result<void>>> commits;
    for (const auto& volume : volumes) {
      before.push_back(s.rig.content(*volume));
      commits.push_back(commit_one(s.rig.store.get(), volume.get()));
    }
    const Outcome outcome = count(s.rig.run(gather(std::move(commits))));
    CHECK(outcome.done == 1);
    CHECK(outcome.refused == 2);
    CHECK(s.used() <= limit);
    s.set(64 * kMiB, std::nullopt);
    for (std::size_t i = 0; i < volumes.size(); ++i) {
      CHECK(s.rig.content(*volumes[i]) == before[i]);
      if (!volumes[i]->record().image) must(s.rig.run(commit_one(s.rig.store.get(), &*volumes[i])));
      s.rig.close(std::move(volumes[i]));
    }
    check_no_leftovers(s.rig);
  }
}

TEST_CASE("of snapshots that pass the limit together as many stay as fit") {
  for (std::uint64_t seed = 1; seed <= 10; ++seed) {
    INFO("seed " << seed);
    Limited s(64 * kMiB, std::nullopt, seed);
    std::vector<std::unique_ptr<OpenVolume>> volumes;
    for (const char* name : {"a", "b"}) {
      s.rig.create(name, std::nullopt, 8 * kMiB);
      volumes.push_back(s.rig.open(name));
      for (std::size_t i = 0; i < kMaxSealedDeltas; ++i) {
        must(s.write(*volumes.back(), i * kMiB / 8, kMiB / 8, 10 * volumes.size() + i));
        must(s.snapshot(*volumes.back(), "s" + std::to_string(i)));
      }
      must(s.write(*volumes.back(), 4 * kMiB, kBlockSize, 9));
    }
    const std::uint64_t limit = s.used() + 3 * kMiB / 2;
    s.set(limit, std::nullopt);
    std::vector<Task<Result<void>>> snapshots;
    for (const auto& volume : volumes)
      snapshots.push_back(snapshot_one(s.rig.store.get(), volume.get()));
    const Outcome outcome = count(s.rig.run(gather(std::move(snapshots))));
    CHECK(outcome.done == 1);
    CHECK(outcome.refused == 1);
    CHECK(s.used() <= limit);
    for (auto& volume : volumes)
      s.rig.close(std::move(volume));
    check_no_leftovers(s.rig);
  }
}

TEST_CASE("of loads that pass the limit together as many stay as fit") {
  const TempDir temp;
  const std::string file = temp.path() + "/saved.tar";
  {
    Limited s(std::nullopt, std::nullopt);
    s.rig.import("a:1", random_bytes(kMiB, 1));
    must(s.rig.run(s.rig.store->save({"a:1"}, file, Progress{})));
  }
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    INFO("seed " << seed);
    Limited s(3 * kMiB / 2, std::nullopt, seed);
    std::vector<Task<Result<void>>> loads;
    for (int i = 0; i < 3; ++i)
      loads.push_back(load_one(s.rig.store.get(), file));
    const Outcome outcome = count(s.rig.run(gather(std::move(loads))));
    CHECK(outcome.done == 1);
    CHECK(outcome.refused == 2);
    CHECK(s.used() <= 3 * kMiB / 2);
    check_no_leftovers(s.rig);
  }
}

namespace {

/// Writes to a scratch folder until the limit stops it, or `most` is written. Gives how much was.
Task<Result<std::uint64_t>> write_until_stopped(Store* store, std::uint64_t most,
                                                std::uint64_t* highest) {
  auto scratch = co_await store->impl().scratch();
  if (!scratch) co_return scratch.error();
  RoomWatch watch(*store, *scratch);
  auto file = co_await scratch->dir().open("blob", kNewBlob);
  if (!file) co_return file.error();
  const Bytes piece = random_bytes(kMiB, 5);
  Result<std::uint64_t> out = most;
  for (std::uint64_t at = 0; at < most && out; at += kMiB) {
    auto written = co_await write_all(**file, piece, ByteOffset(at));
    if (!written) co_return written.error();
    auto room = co_await store->room();
    if (!room) co_return room.error();
    *highest = std::max(*highest, room->used);
    auto allowed = co_await watch.wrote(kMiB);
    if (!allowed) out = allowed.error();
  }
  if (out) {
    std::vector<RoomWatch::Offer> offers;
    offers.push_back({"blob", BlobDigest{sha256(bytes_of(std::to_string(most)))}});
    auto adopted = co_await watch.adopt(std::move(offers));
    if (!adopted) out = adopted.error();
  }
  auto removed = co_await scratch->remove();
  if (!removed) co_return removed.error();
  co_return out;
}

}  // namespace

TEST_CASE("what passes the limit beside others is stopped on its way, not at its end") {
  constexpr std::uint64_t kLimit = 64 * kMiB;
  for (std::uint64_t seed = 1; seed <= 3; ++seed) {
    INFO("seed " << seed);
    Limited s(kLimit, std::nullopt, seed);
    std::uint64_t highest = 0;
    std::vector<Task<Result<std::uint64_t>>> writers;
    for (int i = 0; i < 3; ++i)
      writers.push_back(write_until_stopped(s.rig.store.get(), 56 * kMiB, &highest));
    std::size_t whole = 0;
    for (const auto& result : s.rig.run(gather(std::move(writers)))) {
      if (result) ++whole;
      if (!result) CHECK(result.error().code() == ErrorCode::kNoSpace);
    }
    CHECK(whole == 1);
    // Each looks after 16 MiB at the latest.
    CHECK(highest <= kLimit + 3 * 16 * kMiB);
    CHECK(s.used() <= kLimit);
    CHECK(s.rig.entries({"tmp"}).empty());
  }
}

namespace {

/// Two commands that make the same blob: the second has its copy whole when the first is done.
Task<Result<bool>> make_twice(Store* store, std::uint64_t bytes) {
  const Bytes data = random_bytes(bytes, 4);
  bool existed = false;
  for (int i = 0; i < 2; ++i) {
    auto scratch = co_await store->impl().scratch();
    if (!scratch) co_return scratch.error();
    RoomWatch watch(*store, *scratch);
    auto file = co_await scratch->dir().open("blob", kNewBlob);
    if (!file) co_return file.error();
    auto written = co_await write_all(**file, data, ByteOffset(0));
    if (!written) co_return written.error();
    std::vector<RoomWatch::Offer> offers;
    offers.push_back({"blob", BlobDigest{sha256(data)}});
    auto adopted = co_await watch.adopt(std::move(offers));
    if (!adopted) co_return adopted.error();
    existed = adopted->front().existed;
    auto removed = co_await scratch->remove();
    if (!removed) co_return removed.error();
  }
  co_return existed;
}

}  // namespace

TEST_CASE("what the store has already needs no room") {
  Limited s(3 * kMiB / 2, std::nullopt);
  CHECK(must(s.rig.run(make_twice(s.rig.store.get(), kMiB))));
  CHECK(s.used() <= 3 * kMiB / 2);
  s.set(kMiB / 2, std::nullopt);
  CHECK(must(s.rig.run(make_twice(s.rig.store.get(), kMiB))));
}

TEST_CASE("what a prune moves out does not count twice") {
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    INFO("seed " << seed);
    Limited s(64 * kMiB, std::nullopt, seed);
    for (int i = 0; i < 40; ++i)
      must(s.rig.run(leave_blob(&s.rig.store->impl(), kMiB / 16, 100 + i)));
    const std::uint64_t before = s.used();
    CHECK(before >= 40 * kMiB / 16);
    std::uint64_t highest = 0;
    std::vector<Task<Result<void>>> both;
    both.push_back(prune_all(s.rig.store.get()));
    both.push_back(watch_used(s.rig.store.get(), &highest));
    for (const Result<void>& result : s.rig.run(gather(std::move(both))))
      must(result);
    CHECK(highest <= before);
    CHECK(s.used() == 0);
  }
}

}  // namespace snap
