// What is renamed, made, changed and removed beside a check: nothing of it is damage.
#include <catch2/catch.hpp>

#include "engine/store/names_test_support.h"
#include "snap/check.h"

namespace snap {
namespace {

constexpr int kSlowPoints = 25;

Task<Result<void>> check_to(Store* store, std::uint64_t rate, CheckReport* out, bool* over) {
  CheckOptions options;
  options.data = true;
  options.rate = rate;
  options.leaks = false;  // a sweep's lock keeps names as they are
  const Progress silent;
  auto report = co_await check_store(*store, options, silent);
  SNAP_CO_RETURN_IF_ERROR(report);
  *out = std::move(*report);
  *over = true;
  co_return Result<void>();
}

Task<Result<void>> write_to(Store* store, std::string name, int times) {
  SeededRandom random(7);
  const Holder nobody;
  auto volume = co_await store->open_volume(name, nobody);
  SNAP_CO_RETURN_IF_ERROR(volume);
  const Bytes block(kBlockSize, std::byte{0x5a});
  for (int i = 0; i < times; ++i) {
    const ByteOffset at(random.below(kTestSize / kBlockSize) * kBlockSize);
    auto written = co_await (*volume)->volume().write(at, block, {});
    SNAP_CO_RETURN_IF_ERROR(written);
    auto flushed = co_await (*volume)->volume().flush();
    SNAP_CO_RETURN_IF_ERROR(flushed);
  }
  auto closed = co_await (*volume)->close();
  co_return closed;
}

/// Another volume gets the old name while the renamed one is written to.
Task<Result<void>> replace_it(Store* store) {
  auto renamed = co_await store->rename_volume("v", "a");
  SNAP_CO_RETURN_IF_ERROR(renamed);
  auto made = co_await create(store, "v");
  SNAP_CO_RETURN_IF_ERROR(made);
  auto written = co_await write_to(store, "a", 20);
  co_return written;
}
/// Two volumes change names.
Task<Result<void>> swap_them(Store* store) {
  auto made = co_await create(store, "w");
  if (!made && made.error().code() != ErrorCode::kExists) co_return made.error();
  for (auto [from, to] : {std::pair("v", "x"), std::pair("w", "v"), std::pair("x", "w")}) {
    auto renamed = co_await store->rename_volume(from, to);
    SNAP_CO_RETURN_IF_ERROR(renamed);
  }
  co_return Result<void>();
}
Task<Result<void>> remove_and_make_it(Store* store) {
  auto removed = co_await remove_it(store);
  SNAP_CO_RETURN_IF_ERROR(removed);
  auto made = co_await create(store, "v");
  co_return made;
}
Task<Result<void>> roll_it_back(Store* store) {
  auto done = co_await store->rollback("v", "s");
  co_return done;
}
Task<Result<void>> clone_and_remove_it(Store* store) {
  const Holder nobody;
  auto volume = co_await store->open_volume("v", nobody);
  SNAP_CO_RETURN_IF_ERROR(volume);
  auto cloned = co_await store->clone(**volume, "c");
  auto closed = co_await (*volume)->close();
  SNAP_CO_RETURN_IF_ERROR(cloned);
  SNAP_CO_RETURN_IF_ERROR(closed);
  auto removed = co_await remove_it(store);
  co_return removed;
}

/// `late`: the check was over by then.
Task<Result<void>> later(Store* store, int operations, Change change, const bool* over,
                         bool* late) {
  co_await wait_for(store, operations);
  *late = *over;
  auto done = co_await change(store);
  // It waits for who looks at a delta, as for anyone, but not for ever.
  constexpr int kTimes = 20;
  for (int i = 0; i < kTimes && !done && done.error().code() == ErrorCode::kBusy; ++i)
    done = co_await change(store);
  co_return done;
}

void check_is_silent(const CheckReport& report) {
  for (const Finding& finding : report.findings) {
    INFO(finding.object << ": " << finding.what);
    CHECK(finding.kind == Finding::Kind::kLeak);
  }
}

}  // namespace

TEST_CASE("what a command changes beside a check is no damage") {
  const auto [name, change] = GENERATE(table<const char*, Change>({
      {"rename", &rename_it},
      {"rename, and create under the old name", &replace_it},
      {"swap names", &swap_them},
      {"remove", &remove_it},
      {"remove, and create under its name", &remove_and_make_it},
      {"remove a snapshot", &remove_its_snapshot},
      {"reset", &reset_it},
      {"rollback", &roll_it_back},
      {"snapshot", &snapshot_it},
      {"clone, and remove the source", &clone_and_remove_it},
      {"commit", &commit_it},
      {"remove an image", &remove_the_image},
  }));
  Bytes content;
  Sim first(std::make_unique<SimDisk>(5), 5);
  first.loop.run(prepare(first.store.get(), &content));
  // At once, and so slowly that all of the change falls between the gathering of names and a look.
  const bool slowly = GENERATE(false, true);
  const std::uint64_t rate = slowly ? kTestSize : 0;
  int points = 0;
  for (bool late = false; !late && !(slowly && points == kSlowPoints); ++points) {
    INFO(name << " after " << points << " operations, " << (slowly ? "slowly" : "at once"));
    Sim sim(first.disk->clone(), static_cast<std::uint64_t>(points));
    Store* store = sim.store.get();
    CheckReport report;
    bool over = false;
    const auto results = sim.loop.run(
        beside(check_to(store, rate, &report, &over), later(store, points, change, &over, &late)));
    must(results[0]);
    must(results[1]);
    check_is_silent(report);
  }
  CHECK(points >= kSlowPoints);
}

namespace {

Task<std::string> damage_its_map(Store* store) {
  const auto volume = must(co_await store->impl().volumes.read("v"));
  auto dir = must(co_await store->impl().volumes.deltas_dir().open_dir(volume.record.delta));
  OpenFlags flags;
  flags.write = true;
  auto map = must(co_await dir->open("map", flags));
  const Bytes junk(kBlockSize, std::byte{0x5a});
  must(co_await write_all(*map, junk, ByteOffset(0)));
  co_return volume.record.delta;
}

}  // namespace

TEST_CASE("what is damaged is found though its volume is renamed beside the check") {
  const Change change = GENERATE(&rename_it, &swap_them);
  Bytes content;
  Sim first(std::make_unique<SimDisk>(5), 5);
  first.loop.run(prepare(first.store.get(), &content));
  must(first.loop.run(create(first.store.get(), "w")));
  const std::string delta = first.loop.run(damage_its_map(first.store.get()));
  int points = 0;
  for (bool late = false; !late; ++points) {
    INFO("after " << points << " operations");
    Sim sim(first.disk->clone(), static_cast<std::uint64_t>(points));
    Store* store = sim.store.get();
    CheckReport report;
    bool over = false;
    const auto results = sim.loop.run(
        beside(check_to(store, 0, &report, &over), later(store, points, change, &over, &late)));
    must(results[0]);
    must(results[1]);
    REQUIRE(report.count(Finding::Kind::kDamage) == 1);
    CHECK(report.findings[0].object == "delta " + delta);
    CHECK_FALSE(report.findings[0].lost.empty());
  }
}

}  // namespace snap
