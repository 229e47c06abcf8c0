// The store's limit and its low-water mark: what tells of a crossing, and what is refused.
#include <catch2/catch.hpp>

#include "engine/store/event_log.h"
#include "engine/store/ops_test_support.h"
#include "engine/store/room_watch.h"
#include "snap/limits.h"

namespace snap {
namespace {

constexpr std::uint64_t kMiB = 1u << 20;

template <class T>
Result<void> nothing_of(const Result<T>& result) {
  return result ? Result<void>() : Result<void>(result.error());
}

/// A store with limits, on the simulated disk.
struct Limited {
  Limited(std::optional<std::uint64_t> limit, std::optional<std::uint64_t> low_water,
          std::uint64_t seed = 7) {
    rig.store.reset();
    rig.loop = std::make_unique<SimLoop>(seed);
    rig.reopen();
    set(limit, low_water);
  }
  void set(std::optional<std::uint64_t> limit, std::optional<std::uint64_t> low_water) {
    Store::Limits limits;
    limits.limit = limit;
    limits.low_water = low_water;
    must(rig.run(rig.store->set_limits(limits)));
  }
  /// The kinds of the store's events, in order.
  std::vector<std::string> events() const {
    std::vector<std::string> kinds;
    const auto files = rig.disk.visible_files();
    const auto log = files.find("events/log");
    if (log == files.end()) return kinds;
    const std::string_view text(reinterpret_cast<const char*>(log->second.data()),
                                log->second.size());
    for (std::size_t at = 0; at < text.size();) {
      const std::size_t end = std::min(text.find('\n', at), text.size());
      const auto event = decode_event(text.substr(at, end - at));
      kinds.push_back(event ? event->kind : "not an event");
      at = end + 1;
    }
    return kinds;
  }
  std::uint64_t used() { return must(rig.run(rig.store->room())).used; }
  void fill(const std::string& image, std::uint64_t bytes, std::uint64_t seed = 1) {
    rig.import(image, random_bytes(bytes, seed));
  }
  void remove_image(const std::string& name) {
    must(rig.run(rig.store->remove_image(name, false, false)));
  }
  Result<void> write(OpenVolume& volume, std::uint64_t at, std::uint64_t bytes,
                     std::uint64_t seed) {
    const Bytes data = random_bytes(bytes, seed);
    return rig.run(volume.volume().write(ByteOffset(at), data, {}));
  }
  Result<void> snapshot(OpenVolume& volume, std::string name) {
    return nothing_of(rig.run(rig.store->snapshot(volume, std::move(name))));
  }

  StoreRig rig{"simulated"};
};

/// A blob that nothing names.
Task<Result<void>> leave_blob(Store::Impl* store, std::uint64_t bytes, std::uint64_t seed = 3) {
  auto scratch = co_await store->scratch();
  if (!scratch) co_return scratch.error();
  const Bytes data = random_bytes(bytes, seed);
  auto file = co_await scratch->dir().open("blob", kNewBlob);
  if (!file) co_return file.error();
  auto written = co_await write_all(**file, data, ByteOffset(0));
  if (!written) co_return written.error();
  auto adopted = co_await store->blobs.adopt(scratch->dir(), "blob", BlobDigest{sha256(data)});
  if (!adopted) co_return adopted.error();
  auto removed = co_await scratch->remove();
  co_return removed;
}

using Kinds = std::vector<std::string>;

}  // namespace

// ---- Events

TEST_CASE("each crossing of a mark is told, where commands alone use the store") {
  Limited s(2 * kMiB, kMiB / 2);
  Kinds expected;
  for (const char* name : {"a:1", "a:2", "a:3"}) {
    s.fill(name, 7 * kMiB / 4);
    expected.push_back("low-water");
    CHECK(s.events() == expected);
    s.remove_image(name);
    expected.push_back("store-normal");
    CHECK(s.events() == expected);
  }
}

TEST_CASE("whatever frees space ends a crossing") {
  Limited s(4 * kMiB, kMiB);
  s.rig.create("v", std::nullopt, 8 * kMiB);
  std::unique_ptr<OpenVolume> volume = s.rig.open("v");
  must(s.snapshot(*volume, "clean"));
  must(s.write(*volume, 0, 7 * kMiB / 2, 1));
  Store& store = *s.rig.store;
  SECTION("a volume is removed") {
    s.rig.close(std::move(volume));
    must(s.rig.run(store.watch_room()));
    must(s.rig.run(store.remove_volume("v", false)));
  }
  SECTION("a volume is reset") {
    s.rig.close(std::move(volume));
    must(s.rig.run(store.watch_room()));
    must(s.rig.run(store.reset("v")));
  }
  SECTION("a volume is rolled back") {
    s.rig.close(std::move(volume));
    must(s.rig.run(store.watch_room()));
    must(s.rig.run(store.rollback("v", "clean")));
  }
  SECTION("a snapshot is removed") {
    must(s.snapshot(*volume, "full"));
    s.rig.close(std::move(volume));
    must(s.rig.run(store.rollback("v", "clean")));
    must(s.rig.run(store.watch_room()));
    must(s.rig.run(store.remove_snapshot("v", "full")));
  }
  SECTION("the limit is raised") {
    s.rig.close(std::move(volume));
    must(s.rig.run(store.watch_room()));
    s.set(16 * kMiB, kMiB);
  }
  CHECK(s.events() == Kinds{"low-water", "store-normal"});
}

TEST_CASE("a prune ends a crossing") {
  Limited s(2 * kMiB, kMiB / 2);
  // What was adopted by a command that died before it named it.
  must(s.rig.run(leave_blob(&s.rig.store->impl(), 7 * kMiB / 4)));
  must(s.rig.run(s.rig.store->watch_room()));
  CHECK(s.events() == Kinds{"low-water"});
  must(s.rig.run(s.rig.store->prune(false)));
  CHECK(s.events() == Kinds{"low-water", "store-normal"});
}

TEST_CASE("a command that is refused tells of what it found") {
  Limited s(2 * kMiB, kMiB / 2);
  s.rig.create("v", std::nullopt, 8 * kMiB);
  std::unique_ptr<OpenVolume> volume = s.rig.open("v");
  must(s.write(*volume, 0, 3 * kMiB / 2, 1));
  CHECK(s.events().empty());
  SECTION("an import") {
    const auto refused = s.rig.run(import_bytes(*s.rig.store, "a:1", random_bytes(kMiB, 2)));
    CHECK(refused.error().code() == ErrorCode::kNoSpace);
  }
  SECTION("a commit") {
    const auto refused = s.rig.run(s.rig.store->commit(*volume, {}, Progress{}));
    CHECK(refused.error().code() == ErrorCode::kNoSpace);
  }
  SECTION("a load") {
    const auto refused = s.rig.run(s.rig.store->load("/nowhere", Progress{}, nullptr));
    CHECK_FALSE(refused);
  }
  CHECK(s.events() == Kinds{"low-water"});
  s.rig.close(std::move(volume));
}

TEST_CASE("a crossing of a mark near to the limit, or to the disk's size, ends as well") {
  Limited s(std::nullopt, std::nullopt);
  std::uint64_t bytes = 0;
  SECTION("a limit") {
    s.set(8 * kMiB, 15 * kMiB / 2);
    bytes = kMiB;
  }
  SECTION("the disk") {
    s.rig.disk.set_space_limit(64 * kMiB);
    s.set(std::nullopt, 60 * kMiB);
    bytes = 5 * kMiB;
  }
  SECTION("a limit that the disk is too small for") {
    s.rig.disk.set_space_limit(64 * kMiB);
    s.set(80 * kMiB, 60 * kMiB);
    bytes = 5 * kMiB;
  }
  Kinds expected;
  for (const char* name : {"a:1", "a:2"}) {
    s.fill(name, bytes);
    s.remove_image(name);
    expected.insert(expected.end(), {"low-water", "store-normal"});
    CHECK(s.events() == expected);
  }
}

TEST_CASE(
    "a crossing whose event or state cannot be written is told all the same, and by the next") {
  for (std::uint64_t nth = 1; nth <= 3; ++nth) {
    INFO("write " << nth << " fails");
    Limited s(8 * kMiB, kMiB);
    EventLog& log = s.rig.store->impl().events;
    must(s.rig.run(log.prepare()));
    StoreEvent event;
    event.kind = "low-water";
    SimFault fault;
    fault.nth = nth;
    fault.error = ENOSPC;
    s.rig.disk.inject(fault);
    const auto first = s.rig.run(log.change(EventLog::Mark::kLowWater, true, event));
    // Its line is what counts: it must not come anew with each look.
    CHECK((first.has_value() && *first) == (s.events().size() == 1));
    const auto next = s.rig.run(log.change(EventLog::Mark::kLowWater, true, event));
    if (!first) CHECK(must(next));
    REQUIRE_FALSE(s.events().empty());
    CHECK(s.events().front() == "low-water");
    CHECK_FALSE(must(s.rig.run(log.change(EventLog::Mark::kLowWater, true, event))));
  }
}

TEST_CASE("a process tells its log once of a crossing that it cannot add to the events") {
  Limited s(4 * kMiB, kMiB);
  s.fill("a:1", 7 * kMiB / 2);
  s.remove_image("a:1");
  must(s.rig.run(s.rig.store->watch_room()));
  const Kinds before = s.events();
  s.rig.create("v", std::nullopt, 8 * kMiB);
  std::unique_ptr<OpenVolume> volume = s.rig.open("v");
  must(s.write(*volume, 0, 13 * kMiB / 4, 1));
  const auto fail_to_append = [&s] {
    SimFault fault;
    fault.nth = 2;  // the line: the first write is the state's
    fault.error = ENOSPC;
    s.rig.disk.inject(fault);
  };
  fail_to_append();
  auto told = must(s.rig.run(s.rig.store->watch_room()));
  REQUIRE(told.size() == 1);
  CHECK(told[0].kind == "low-water");
  CHECK(s.events() == before);
  fail_to_append();
  CHECK_FALSE(s.rig.run(s.rig.store->watch_room()));  // nothing new: only why
  CHECK(must(s.rig.run(s.rig.store->watch_room())).empty());
  CHECK(s.events().back() == "low-water");
  CHECK(s.events().size() == before.size() + 1);
  must(s.rig.run(volume->volume().trim(ByteOffset(0), 3 * kMiB, {})));
  told = must(s.rig.run(s.rig.store->watch_room()));
  REQUIRE(told.size() == 1);
  CHECK(told[0].kind == "store-normal");
  CHECK(s.events().back() == "store-normal");
  s.rig.close(std::move(volume));
}

// ---- Snapshots that have to be packed

TEST_CASE("a snapshot that the limit has no room to pack the older ones for is refused as it is") {
  Limited s(20 * kMiB, std::nullopt);
  s.rig.create("v", std::nullopt, 64 * kMiB);
  std::unique_ptr<OpenVolume> volume = s.rig.open("v");
  Store& store = *s.rig.store;
  for (std::size_t i = 0; i < kMaxSealedDeltas; ++i) {
    must(s.write(*volume, i * 2 * kMiB, 2 * kMiB, i));
    must(s.snapshot(*volume, "s" + std::to_string(i)));
  }
  must(s.write(*volume, 32 * kMiB, kMiB / 16, 9));
  const Bytes before = s.rig.content(*volume);
  const std::uint64_t used = s.used();
  const std::uint64_t changes = s.rig.disk.changes();
  Store::CommitOptions options;
  for (const Result<void>& refused :
       {s.snapshot(*volume, "s8"), nothing_of(s.rig.run(store.clone(*volume, "w"))),
        nothing_of(s.rig.run(store.freeze(*volume))),
        nothing_of(s.rig.run(store.commit(*volume, options, Progress{})))}) {
    REQUIRE_FALSE(refused);
    CHECK(refused.error().code() == ErrorCode::kNoSpace);
    CHECK(refused.error().message().find("set --limit") != std::string::npos);
    CHECK(refused.error().message().find("--compress") != std::string::npos);
  }
  CHECK(s.rig.disk.changes() == changes);
  CHECK(s.used() == used);
  CHECK(used <= 20 * kMiB);
  must(s.write(*volume, 33 * kMiB, kMiB, 10));  // writes go on
  CHECK(s.rig.entries({"volumes"}) == Kinds{"v"});
  s.set(40 * kMiB, std::nullopt);
  must(s.snapshot(*volume, "s8"));
  CHECK(s.used() <= 40 * kMiB);
  CHECK(volume->record().sealed.size() == 1);
  Bytes now = s.rig.content(*volume);
  CHECK(std::equal(before.begin(), before.begin() + 33 * kMiB, now.begin()));
  s.rig.close(std::move(volume));
  check_no_leftovers(s.rig);
}

// ---- Commands beside each other

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

TEST_CASE("who makes room before a snapshot finds nothing left to pack") {
  Limited s(std::nullopt, std::nullopt);
  s.rig.create("v", std::nullopt, 8 * kMiB);
  std::unique_ptr<OpenVolume> volume = s.rig.open("v");
  must(s.rig.run(s.rig.store->make_room(*volume, {})));
  for (std::size_t i = 0; i < kMaxSealedDeltas; ++i) {
    must(s.write(*volume, i * kBlockSize, kBlockSize, i));
    must(s.snapshot(*volume, "s" + std::to_string(i)));
  }
  must(s.write(*volume, 0, kBlockSize, 9));
  const Bytes before = s.rig.content(*volume);
  must(s.rig.run(s.rig.store->make_room(*volume, {})));
  CHECK(volume->record().sealed.empty());
  const std::size_t blobs = s.rig.entries({"blobs", "sha256"}).size();
  must(s.snapshot(*volume, "last"));
  CHECK(s.rig.entries({"blobs", "sha256"}).size() == blobs);
  CHECK(s.rig.content(*volume) == before);
  s.rig.close(std::move(volume));
  check_no_leftovers(s.rig);
}

TEST_CASE("who makes room for a commit that compresses gets a layer that is compressed") {
  std::vector<std::uint64_t> sizes;
  for (const bool compress : {false, true}) {
    Limited s(std::nullopt, std::nullopt);
    s.rig.create("v", std::nullopt, 8 * kMiB);
    std::unique_ptr<OpenVolume> volume = s.rig.open("v");
    for (std::size_t i = 0; i < kMaxSealedDeltas; ++i) {
      Bytes text(kMiB / 4, std::byte{'x'});
      for (std::size_t at = 0; at < text.size(); at += kBlockSize)  // no chunk is as another
        text[at] = static_cast<std::byte>(i), text[at + 1] = static_cast<std::byte>(at >> 12);
      must(s.rig.run(volume->volume().write(ByteOffset(i * kMiB / 4), text, {})));
      must(s.snapshot(*volume, "s" + std::to_string(i)));
    }
    must(s.write(*volume, 0, kBlockSize, 9));
    Store::CommitOptions how;
    how.compress = compress;
    must(s.rig.run(s.rig.store->make_room(*volume, how)));
    const auto image = must(s.rig.run(s.rig.store->image_of_manifest(
        *must(s.rig.run(s.rig.store->volume("v"))).record.manifest)));
    REQUIRE(image.layers.size() == 1);
    sizes.push_back(image.layers[0].file_size);
    s.rig.close(std::move(volume));
  }
  CHECK(sizes[0] > kMiB / 4);
  CHECK(sizes[1] < sizes[0] / 4);
}

}  // namespace snap
