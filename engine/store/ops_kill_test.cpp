// kill -9 at a random moment of imports, snapshots, clones and commits on the real disk: afterwards
// every volume and image reads as it should, the next commit works, and prune leaves nothing.
//
// What is killed is a child process that does one step after the other; the moments are random, the
// seed is printed (SNAP_TEST_SEED runs it again).
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <random>

#include "engine/store/ops_test_support.h"

namespace snap {
namespace {

constexpr int kRounds = 15;
constexpr int kMaxDelayMs = 250;

std::uint64_t test_seed() {
  const char* given = std::getenv("SNAP_TEST_SEED");
  return given != nullptr ? std::strtoull(given, nullptr, 10) : std::random_device{}();
}

/// One of each step, under names that end in `suffix`. None changes what volume v reads as.
Task<void> steps(Store& store, std::string suffix, Bytes imported) {
  must(co_await import_bytes(store, "imported:" + suffix, std::move(imported)));
  const Holder nobody;
  auto volume = must(co_await store.open_volume("v", nobody));
  Bytes block(kBlockSize);
  must(co_await volume->volume().read(ByteOffset(0), block));
  must(co_await volume->volume().write(ByteOffset(0), block, {}));
  must(co_await store.snapshot(*volume, "s" + suffix));
  must(co_await volume->volume().write(ByteOffset(0), block, {}));
  must(co_await store.clone(*volume, "w" + suffix));
  Store::CommitOptions options;
  options.name = reference("committed:" + suffix);
  const Progress silent;
  must(co_await store.commit(*volume, options, silent));
  must(co_await volume->close());
}

/// The child: steps without end.
[[noreturn]] void work_until_killed(const std::string& path, int round, const Bytes& imported) {
  auto loop = must(make_event_loop(LoopOptions{}));
  auto store = must(loop->run(Store::open(path, Store::OpenOptions{})));
  for (int i = 0;; ++i)
    loop->run(steps(*store, std::to_string(round) + "-" + std::to_string(i), imported));
}

void check_store(StoreRig& rig, const Bytes& present, const Bytes& imported) {
  CHECK(rig.at_rest("v") == present);
  for (const VolumeSummary& volume : must(rig.run(rig.store->volumes())))
    CHECK(rig.at_rest(volume.record.name) == present);
  for (const Image& image : must(rig.run(rig.store->images()))) {
    const bool is_import = !image.tags.empty() && image.tags[0].name == "imported";
    if (is_import) CHECK(rig.content(image) == imported);
    if (!is_import && image.layers.size() > 1) CHECK(rig.content(image) == present);
  }
}

}  // namespace

TEST_CASE("kill -9 in any step of import, snapshot, clone and commit loses nothing") {
  const std::uint64_t seed = test_seed();
  INFO("SNAP_TEST_SEED=" << seed);
  SeededRandom random(seed);
  StoreRig rig("threads");
  Model model{random_bytes(kTestSize, 1)};
  rig.create("v", rig.import("base:1", model.bytes));
  auto volume = rig.open("v");
  must(rig.run(mutate_often(volume->volume(), model, random, 5)));
  rig.close(std::move(volume));
  const Bytes imported = random_bytes(40 * kChunkSize, 2);
  for (int round = 0; round < kRounds; ++round) {
    INFO("round " << round);
    const pid_t child = ::fork();
    REQUIRE(child >= 0);
    if (child == 0) work_until_killed(rig.temp.path(), round, imported);
    ::usleep(static_cast<useconds_t>(1000 * random.below(kMaxDelayMs)));
    REQUIRE(::kill(child, SIGKILL) == 0);
    int status = 0;
    REQUIRE(::waitpid(child, &status, 0) == child);
    REQUIRE(WIFSIGNALED(status));
    rig.reopen();
    check_store(rig, model.bytes, imported);
  }
  auto again = rig.open("v");
  const auto committed = rig.commit(*again, "last:1");
  CHECK(rig.content(committed.image) == model.bytes);
  rig.close(std::move(again));
  must(rig.run(rig.store->prune(false)));
  check_no_leftovers(rig);
}

}  // namespace snap
