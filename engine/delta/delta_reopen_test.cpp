// A delta that is opened again: what the note in its file `run` says of whoever had it open before.
#include <catch2/catch.hpp>

#include "engine/delta/delta_model.h"
#include "engine/delta/fault_disk.h"
#include "engine/delta/run_file.h"

using namespace snap;
using namespace snap::delta_test;

namespace {

constexpr const char* kRun = "run";
constexpr ByteOffset kBootInRun{16};

/// A delta that is opened again and again, through a plan that sees what becomes of its cache.
struct Reopened {
  SimDisk disk;
  SimLoop loop{1};
  std::shared_ptr<FaultPlan> plan = std::make_shared<FaultPlan>();

  Task<std::unique_ptr<Delta>> open(std::string folder) {
    std::unique_ptr<Directory> dir = std::make_unique<FaultDirectory>(disk.root(), plan);
    auto opening = Delta::open(std::move(dir), Delta::Mode::kReadWrite, std::move(folder));
    auto delta = co_await std::move(opening);
    if (!delta) co_return nullptr;
    co_return std::move(*delta);
  }
  static Task<void> write(Delta* delta) {
    PatternSource below;
    const std::vector<std::byte> bytes(kBlockSize, std::byte{7});
    auto written = co_await delta->write(ByteOffset(0), bytes, below, Delta::Durability::kCached);
    CHECK(written.has_value());
  }
  Task<void> use(std::string folder, bool ends_well) {
    auto delta = co_await open(std::move(folder));
    REQUIRE(delta != nullptr);
    co_await write(delta.get());
    if (!ends_well) disk.inject({SimOpKind::kDataSync, 1, EIO, 0});
    auto closed = co_await delta->close();
    CHECK(closed.has_value() == ends_well);
  }
  /// Of a write that no one relies on: what the server looks for each second it may find last.
  Task<void> lose_a_write_at_the_end(std::string folder) {
    auto delta = co_await open(std::move(folder));
    REQUIRE(delta != nullptr);
    co_await write(delta.get());
    auto closed = co_await delta->close();
    CHECK(closed.has_value());
    PatternSource below;
    const std::vector<std::byte> bytes(kBlockSize);
    auto written = co_await delta->write(ByteOffset(0), bytes, below, Delta::Durability::kCached);
    CHECK(written.error().code() == ErrorCode::kReadOnly);
    disk.inject({SimOpKind::kLostWrite, 1, EIO, 0});
    delta->check_writeback();
    CHECK_FALSE(delta->failure().has_value());
    auto again = co_await delta->close();
    CHECK(again.has_value());
  }
  /// Makes the note of a closing one of another boot.
  Task<void> boot_again() {
    auto root = disk.root();
    auto run = must(co_await root->open(kRun, for_write()));
    std::byte byte{};
    must(co_await read_exact(*run, std::span(&byte, 1), kBootInRun));
    byte ^= std::byte{1};
    must(co_await write_all(*run, std::span(&byte, 1), kBootInRun));
  }
  Task<void> fail_to_open(std::string folder) {
    disk.inject({SimOpKind::kDataSync, 2, EIO, 0});  // the first is that of the note
    auto delta = co_await open(std::move(folder));
    CHECK(delta == nullptr);
  }
  Task<void> die(std::string folder) {
    auto delta = co_await open(std::move(folder));
    REQUIRE(delta != nullptr);
    co_await write(delta.get());
    disk.freeze_after(0);
    (void)co_await delta->close();
  }

  /// Opens, writes, closes. Whether the cached pages of the data went when it was opened.
  bool drops(const std::string& folder, bool ends_well = true) {
    plan->seen.clear();
    loop.run(use(folder, ends_well));
    for (const char* always : {"map", "journal"})
      CHECK(plan->count(FaultEvent::Kind::kDropCache, always) == 1);
    return plan->count(FaultEvent::Kind::kDropCache, "data") == 1;
  }
};

}  // namespace

TEST_CASE("cached pages stay if the delta was closed in order, on this boot, and only then") {
  TempDir memory("/dev/shm");
  const std::string folder = GENERATE(true, false) ? memory.path() + "/live" : std::string();
  Reopened delta;
  delta.loop.run(create_small(&delta.disk));
  CHECK_FALSE(delta.drops(folder));
  CHECK_FALSE(delta.drops(folder));

  // A sync failed: before, and while it was opened.
  CHECK_FALSE(delta.drops(folder, false));
  CHECK(delta.drops(folder));
  CHECK_FALSE(delta.drops(folder));
  delta.loop.run(delta.lose_a_write_at_the_end(folder));
  CHECK_FALSE(delta.drops(folder));
  delta.loop.run(delta.fail_to_open(folder));
  CHECK(delta.drops(folder));
  CHECK_FALSE(delta.drops(folder));

  // The process died; and the boot is over.
  delta.loop.run(delta.die(folder));
  delta.disk.kill();
  CHECK(delta.drops(folder));
  CHECK_FALSE(delta.drops(folder));
  delta.loop.run(delta.boot_again());
  CHECK(delta.drops(folder));
  CHECK_FALSE(delta.drops(folder));
}

namespace {
struct Opened {
  bool well = false;
  bool trouble = false;
  bool token_stays = false;
};
/// Makes a delta in `path`, leaves a token there, and opens it through the faults of `plan`.
Task<void> open_with(std::string path, std::shared_ptr<FaultPlan> plan, std::string folder,
                     Opened* out) {
  Delta::CreateOptions options{test_uuid(3), kSize, {}};
  auto root = must(co_await open_directory(path));
  auto creating = Delta::create(std::move(root), std::move(options));
  must(co_await must(co_await std::move(creating))->close());
  root = must(co_await open_directory(path));
  auto run = must(co_await root->open(kRun, for_write()));
  const std::vector<std::byte> token(16, std::byte{1});
  must(co_await write_all(*run, token, ByteOffset(0)));
  std::unique_ptr<Directory> dir = std::make_unique<FaultDirectory>(std::move(root), plan);
  auto opening = Delta::open(std::move(dir), Delta::Mode::kReadWrite, std::move(folder));
  auto delta = co_await std::move(opening);
  out->well = delta.has_value();
  root = must(co_await open_directory(path));
  const auto data = must(co_await root->open("data", OpenFlags{}));
  const RunNote note = co_await read_run(*root, *data);
  out->token_stays = note.token.has_value();
  if (!delta) co_return;
  out->trouble = (*delta)->live_trouble().has_value();
  must(co_await (*delta)->close());
}
}  // namespace

TEST_CASE("the token of an earlier process does not outlive an opening, or nothing is opened") {
  TestRig rig("threads");
  TempDir memory("/dev/shm");
  auto plan = std::make_shared<FaultPlan>();
  const bool stays = GENERATE(false, true);
  const auto failing = GENERATE(FaultEvent::Kind::kWrite, FaultEvent::Kind::kSync);
  plan->decide = [stays, failing](const FaultEvent& event) {
    const bool write = event.kind == failing && event.name == kRun;
    const bool unlink = event.kind == FaultEvent::Kind::kUnlink && event.name == kRun;
    return write || (stays && unlink) ? FaultAction::fail() : FaultAction::pass();
  };
  Opened opened;
  rig.loop->run(open_with(rig.temp.path(), plan, memory.path() + "/live", &opened));
  CHECK(opened.well == !stays);
  CHECK(opened.trouble == !stays);
  CHECK(opened.token_stays == stays);
}
