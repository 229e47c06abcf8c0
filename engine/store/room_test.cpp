// The store's limit and its low-water mark: what tells of a crossing, and what is refused.
#include <catch2/catch.hpp>

#include "engine/store/room_test_support.h"
#include "snap/limits.h"

namespace snap {

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
