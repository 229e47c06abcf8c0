// A power cut at every change that import, load, snapshot, clone, commit, rollback and reset make
// to the disk; and a full disk in every step. Afterwards all is as before or done, every content is
// the right one, a commit works, and prune leaves nothing.
//
// Each step runs on a copy of a prepared simulated disk that freezes after n changes; then the
// power is cut in three ways: all that was pending is lost, is kept, or some of it, torn.
#include <functional>
#include <stdexcept>

#include "engine/store/dump.h"
#include "engine/store/ops_test_support.h"

namespace snap {
namespace {

enum class Cut { kLost, kKept, kTorn };

constexpr std::uint64_t kRoomStep = 2 * kBlockSize;

/// One store on one simulated disk.
class SimStore {
 public:
  SimStore(std::unique_ptr<SimDisk> disk, std::uint64_t seed)
      : disk_(std::move(disk)), loop_(std::make_unique<SimLoop>(seed)) {}

  template <class T>
  auto run(Task<T> task) {
    return loop_->run(std::move(task));
  }
  Result<void> open() {
    auto opened = run(Store::open(disk_->root(), Store::OpenOptions{}));
    if (!opened) return opened.error();
    store_ = std::move(*opened);
    return {};
  }
  Store& store() { return *store_; }
  SimDisk& disk() { return *disk_; }

 private:
  std::unique_ptr<SimDisk> disk_;
  std::unique_ptr<SimLoop> loop_;
  std::unique_ptr<Store> store_;
};

/// What the prepared store holds: image base:1; volume v of it with changes, snapshot "s" with the
/// content `snapped`, and further changes up to `present`.
struct Prepared {
  std::unique_ptr<SimDisk> disk;
  Bytes base, snapped, present;
};

Task<void> prepare(Store& store, Prepared& out) {
  SeededRandom random(11);
  Model model{random_bytes(kTestSize, 1)};
  model.fill(kChunkSize, kChunkSize, std::byte{0});
  out.base = model.bytes;
  Store::CreateOptions options;
  options.name = "v";
  options.image = must(co_await import_bytes(store, "base:1", model.bytes));
  must(co_await store.create_volume(options));
  const Holder nobody;
  auto volume = must(co_await store.open_volume("v", nobody));
  must(co_await mutate_often(volume->volume(), model, random, 6));
  must(co_await store.snapshot(*volume, "s"));
  out.snapped = model.bytes;
  must(co_await mutate_often(volume->volume(), model, random, 6));
  out.present = model.bytes;
  must(co_await volume->close());
}

const Prepared& prepared() {
  static const Prepared once = [] {
    Prepared out;
    SimStore sim(std::make_unique<SimDisk>(5), 5);
    must(sim.open());
    sim.run(prepare(sim.store(), out));
    sim.disk().crash_all_kept();
    out.disk = sim.disk().clone();
    return out;
  }();
  return once;
}

using Step = Task<Result<void>> (*)(Store&);

Task<Result<void>> do_import(Store& store) {
  auto image = co_await import_bytes(store, "new:1", random_bytes(kTestSize, 9));
  if (!image) co_return image.error();
  co_return Result<void>();
}

/// A file of `save` on a real disk with the image that do_import() makes.
const std::string& saved_file() {
  static const TempDir dir;
  static const std::string path = [] {
    std::string file = dir.path() + "/new.tar";
    SimStore sim(std::make_unique<SimDisk>(5), 5);
    must(sim.open());
    must(sim.run(do_import(sim.store())));
    must(sim.run(sim.store().save({"new:1"}, file, Progress{})));
    return file;
  }();
  return path;
}

Task<Result<void>> do_load(Store& store) {
  const Progress silent;
  auto loaded = co_await store.load(saved_file(), silent, {});
  SNAP_CO_RETURN_IF_ERROR(loaded);
  co_return Result<void>();
}

/// Runs one change of the open volume v, and closes it.
Task<Result<void>> with_volume(Store& store, Task<Result<void>> (*change)(Store&, OpenVolume&)) {
  const Holder nobody;
  auto volume = co_await store.open_volume("v", nobody);
  if (!volume) co_return volume.error();
  auto changed = co_await change(store, **volume);
  auto closed = co_await (*volume)->close();
  if (!changed) co_return changed.error();
  co_return closed;
}

Task<Result<void>> change_snapshot(Store& store, OpenVolume& volume) {
  auto done = co_await store.snapshot(volume, "t");
  if (!done) co_return done.error();
  co_return Result<void>();
}
Task<Result<void>> change_clone(Store& store, OpenVolume& volume) {
  auto done = co_await store.clone(volume, "w");
  if (!done) co_return done.error();
  co_return Result<void>();
}
Task<Result<void>> change_commit(Store& store, OpenVolume& volume) {
  Store::CommitOptions options;
  options.name = reference("app:1");
  const Progress silent;
  auto done = co_await store.commit(volume, options, silent);
  if (!done) co_return done.error();
  co_return Result<void>();
}
Task<Result<void>> do_snapshot(Store& store) {
  return with_volume(store, change_snapshot);
}
Task<Result<void>> do_clone(Store& store) {
  return with_volume(store, change_clone);
}
Task<Result<void>> do_commit(Store& store) {
  return with_volume(store, change_commit);
}
Task<Result<void>> do_rollback(Store& store) {
  return store.rollback("v", "s");
}
Task<Result<void>> do_reset(Store& store) {
  return store.reset("v");
}
Task<Result<void>> do_remove_snapshot(Store& store) {
  return store.remove_snapshot("v", "s");
}

/// What the store may hold afterwards.
struct Expectation {
  const char* name;
  Step step;
  /// Contents that volume v may have.
  std::vector<Bytes> volume;
  /// A name and the content that it has if it is there at all.
  std::function<std::optional<Bytes>(SimStore&)> made;
  Bytes made_content;
};

std::optional<Bytes> image_content(SimStore& sim, const char* name) {
  auto image = sim.run(sim.store().image(name));
  if (!image) {
    CHECK(image.error().code() == ErrorCode::kNotFound);
    return std::nullopt;
  }
  return must(sim.run(read_image(sim.store(), *image)));
}

std::optional<Bytes> volume_content(SimStore& sim, const char* name) {
  auto volume = sim.run(sim.store().volume(name));
  if (!volume) {
    CHECK(volume.error().code() == ErrorCode::kNotFound);
    return std::nullopt;
  }
  return must(sim.run(read_at_rest(sim.store(), name)));
}

std::optional<Bytes> snapshot_content(SimStore& sim, const char* name) {
  auto view = sim.run(sim.store().open_snapshot("v", name));
  if (!view) {
    CHECK(view.error().code() == ErrorCode::kNotFound);
    return std::nullopt;
  }
  return must(sim.run(read_volume(**view)));
}

std::vector<Expectation> expectations() {
  const Prepared& p = prepared();
  return {
      {"import",
       do_import,
       {p.present},
       [](SimStore& s) { return image_content(s, "new:1"); },
       random_bytes(kTestSize, 9)},
      {"load",
       do_load,
       {p.present},
       [](SimStore& s) { return image_content(s, "new:1"); },
       random_bytes(kTestSize, 9)},
      {"snapshot",
       do_snapshot,
       {p.present},
       [](SimStore& s) { return snapshot_content(s, "t"); },
       p.present},
      {"clone",
       do_clone,
       {p.present},
       [](SimStore& s) { return volume_content(s, "w"); },
       p.present},
      {"commit",
       do_commit,
       {p.present},
       [](SimStore& s) { return image_content(s, "app:1"); },
       p.present},
      {"rollback",
       do_rollback,
       {p.present, p.snapped},
       [](SimStore& s) { return snapshot_content(s, "s"); },
       p.snapped},
      {"reset",
       do_reset,
       {p.present, p.base},
       [](SimStore& s) { return snapshot_content(s, "s"); },
       p.snapped},
      {"remove snapshot",
       do_remove_snapshot,
       {p.present},
       [](SimStore& s) { return snapshot_content(s, "s"); },
       p.snapped},
  };
}

std::set<std::string> names_in(SimStore& sim, std::vector<std::string> folders) {
  auto dir = sim.disk().root();
  for (const auto& folder : folders)
    dir = must(sim.run(dir->open_dir(folder)));
  std::set<std::string> out;
  for (const auto& entry : must(sim.run(dir->list())))
    out.insert(entry.name);
  return out;
}

/// Everything that is named is there, and after a prune nothing else.
void check_clean(SimStore& sim) {
  must(sim.run(sim.store().prune(false)));
  CHECK(names_in(sim, {"tmp"}).empty());
  std::set<std::string> blobs, deltas, folders;
  const auto add_image = [&blobs](const Image& image) {
    blobs.insert({image.manifest.hex(), image.id.hex()});
    for (const LayerRef& layer : image.layers)
      blobs.insert(layer.blob.hex());
  };
  for (const Image& image : must(sim.run(sim.store().images())))
    add_image(image);
  for (const VolumeSummary& volume : must(sim.run(sim.store().volumes()))) {
    for (const BlobDigest& manifest : manifests_of(volume.record))
      add_image(must(sim.run(sim.store().image_of_manifest(manifest))));
    for (const std::string& delta : deltas_of(volume.record))
      deltas.insert(delta);
  }
  CHECK(names_in(sim, {"blobs", "sha256"}) == blobs);
  CHECK(names_in(sim, {"deltas"}) == deltas);
}

/// Opens the store as a new process would, and holds it against what may be.
void check_after(SimStore& sim, const Expectation& expected, bool step_done) {
  must(sim.open());
  const auto volume = volume_content(sim, "v");
  REQUIRE(volume);
  CHECK(std::find(expected.volume.begin(), expected.volume.end(), *volume) !=
        expected.volume.end());
  if (step_done) CHECK(*volume == expected.volume.back());
  const auto made = expected.made(sim);
  if (made) CHECK(*made == expected.made_content);
  if (step_done && expected.step != do_remove_snapshot) CHECK(made);
  CHECK(image_content(sim, "base:1") == prepared().base);
  // A later commit works, whatever the cut left.
  must(sim.run(do_commit(sim.store())));
  CHECK(image_content(sim, "app:1") == volume);
  CHECK(volume_content(sim, "v") == volume);
  check_clean(sim);
}

void cut_power(SimDisk& disk, Cut cut, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  if (cut == Cut::kLost) disk.crash_all_lost();
  if (cut == Cut::kKept) disk.crash_all_kept();
  if (cut == Cut::kTorn) disk.crash(random);
}

/// True if the step came to its end before the disk froze.
bool try_cut(const Expectation& expected, std::uint64_t changes, Cut cut) {
  SimStore sim(prepared().disk->clone(), changes + 1);
  must(sim.open());
  sim.disk().freeze_after(changes);
  const auto done = sim.run(expected.step(sim.store()));
  const bool whole = !sim.disk().frozen();
  if (whole) must(done);
  cut_power(sim.disk(), cut, changes);
  INFO(expected.name << ", power cut after " << changes << " changes, way "
                     << static_cast<int>(cut));
  // What a step reported as done survives the cut even if the disk froze in its clean-up.
  check_after(sim, expected, done.has_value());
  return whole;
}

Expectation expectation(const std::string& name) {
  for (Expectation& e : expectations()) {
    if (e.name == name) return e;
  }
  throw std::logic_error("no step " + name);
}

void cut_everywhere(const std::string& name) {
  const Expectation expected = expectation(name);
  for (const Cut cut : {Cut::kLost, Cut::kKept, Cut::kTorn}) {
    std::uint64_t changes = 0;
    while (!try_cut(expected, changes, cut))
      ++changes;
    CHECK(changes > 5);
  }
}

/// Runs the step with more and more room on the disk, until it fits.
void fill_everywhere(const Expectation& expected) {
  std::uint64_t failures = 0;
  bool whole = false;
  for (std::uint64_t room = 0; !whole; room += kRoomStep) {
    INFO(expected.name << " with room for " << room << " bytes");
    SimStore sim(prepared().disk->clone(), room + 1);
    must(sim.open());
    const auto space = must(sim.run(sim.disk().root()->space()));
    const std::uint64_t used = space.total - space.available;
    // Untold, or most of the steps would be refused before they begin.
    sim.disk().set_space_limit(used + room, false);
    const auto done = sim.run(expected.step(sim.store()));
    if (!done) {
      INFO(done.error().message());
      CHECK(done.error().code() == ErrorCode::kNoSpace);
      ++failures;
    }
    sim.disk().set_space_limit(~std::uint64_t{0});
    check_after(sim, expected, done.has_value());
    whole = done.has_value();
  }
  const bool bulky =
      expected.step == do_import || expected.step == do_load || expected.step == do_commit;
  CHECK(failures > (bulky ? 10 : 0));
}

}  // namespace

TEST_CASE("a power cut after any change of an import leaves all as before or done") {
  cut_everywhere("import");
}
TEST_CASE("a power cut after any change of a load leaves all as before or done") {
  cut_everywhere("load");
}
TEST_CASE("a power cut after any change of a snapshot leaves all as before or done") {
  cut_everywhere("snapshot");
}
TEST_CASE("a power cut after any change of a clone leaves all as before or done") {
  cut_everywhere("clone");
}
TEST_CASE("a power cut after any change of a commit leaves all as before or done") {
  cut_everywhere("commit");
}
TEST_CASE("a power cut after any change of a rollback leaves all as before or done") {
  cut_everywhere("rollback");
}
TEST_CASE("a power cut after any change of a reset leaves all as before or done") {
  cut_everywhere("reset");
}
TEST_CASE("a power cut after any change of removing a snapshot leaves all as before or done") {
  cut_everywhere("remove snapshot");
}

TEST_CASE("a full disk in any step is an error that says so, and nothing is lost") {
  for (const Expectation& expected : expectations())
    fill_everywhere(expected);
}

namespace {

/// A snapshot whose record cannot be made durable, nor the old one again: the syncs of the volume's
/// directory fail. `present` becomes what a flush was answered for.
Task<void> snapshot_in_doubt(Store& store, SimDisk& disk, Bytes& present) {
  const Holder nobody;
  auto volume = must(co_await store.open_volume("v", nobody));
  // Syncs of directories: the new delta's two, the record's, and that of putting the old one back.
  disk.inject({SimOpKind::kDirSync, 3, EIO, 0});
  disk.inject({SimOpKind::kDirSync, 4, EIO, 0});
  auto snapshot = co_await store.snapshot(*volume, "t");
  REQUIRE_FALSE(snapshot);
  CHECK(snapshot.error().message().find("not certain") != std::string::npos);
  const Bytes block(kBlockSize, std::byte{0x77});
  auto written = co_await volume->volume().write(ByteOffset(kBlockSize), block, {});
  Result<void> flushed = Error(ErrorCode::kReadOnly, "not tried");
  if (written) flushed = co_await volume->volume().flush();
  if (flushed) std::copy(block.begin(), block.end(), present.begin() + kBlockSize);
  CHECK_FALSE(written);
  Bytes read(kBlockSize);
  CHECK(co_await volume->volume().read(ByteOffset(0), read));
  auto closed = co_await volume->close();
  static_cast<void>(closed);  // it failed; what counts is on the disk
}

}  // namespace

TEST_CASE("a volume whose record is in doubt takes no writes that the other record would lose") {
  for (std::uint64_t seed = 1; seed <= 24; ++seed) {
    INFO("seed " << seed);
    SimStore sim(prepared().disk->clone(), 8);
    must(sim.open());
    Bytes present = prepared().present;
    sim.run(snapshot_in_doubt(sim.store(), sim.disk(), present));
    // Either rename of the record survives, or both, or none.
    std::mt19937_64 random(seed);
    sim.disk().crash(random);
    SimStore after(sim.disk().clone(), 9);
    must(after.open());
    auto found = after.run(read_at_rest(after.store(), "v"));
    REQUIRE(found);
    CHECK((*found == present));
  }
}

namespace {

Task<Result<void>> create_another(Store& store) {
  Store::CreateOptions options;
  options.name = "w";
  options.size = kChunkSize;
  auto created = co_await store.create_volume(options);
  SNAP_CO_RETURN_IF_ERROR(created);
  co_return Result<void>();
}

}  // namespace

TEST_CASE(
    "a volume whose creation failed is not there after a power cut, or whole if that is said") {
  const std::uint64_t failures = GENERATE(1, 2);
  bool created = false;
  for (std::uint64_t nth = 1; !created; ++nth) {
    INFO(failures << " syncs of folders fail, from number " << nth);
    SimStore sim(prepared().disk->clone(), 8);
    must(sim.open());
    for (std::uint64_t i = 0; i < failures; ++i)
      sim.disk().inject({SimOpKind::kDirSync, nth + i, EIO, 0});
    const auto made = sim.run(create_another(sim.store()));
    created = made.has_value();
    const bool certain = created || made.error().message().find("not certain") == std::string::npos;
    for (std::uint64_t seed = 0; seed < 64; ++seed) {
      INFO("seed " << seed);
      SimStore after(sim.disk().clone(), seed);
      std::mt19937_64 random(seed);
      after.disk().crash(random);
      must(after.open());
      const auto found = volume_content(after, "w");
      if (certain) CHECK(found.has_value() == created);
      CHECK(volume_content(after, "v") == prepared().present);
      check_clean(after);
    }
  }
}

namespace {

/// Dumps v to "out.raw" in the root of the disk; what it holds after a power cut.
Task<Bytes> dump_and_cut(Store& store, SimDisk& disk) {
  auto root = disk.root();
  auto out = must(co_await root->open("out.raw", {.write = true, .create = true}));
  must(co_await root->sync());
  const Holder nobody;
  auto volume = must(co_await store.open_volume("v", nobody));
  const Progress silent;
  must(co_await dump_to_file(volume->volume(), *out, silent));
  must(co_await volume->close());
  disk.crash_all_lost();
  const std::size_t limit = 2 * kTestSize;
  auto found = co_await read_whole(*disk.root(), "out.raw", limit);
  co_return must(std::move(found));
}

}  // namespace

TEST_CASE("a dump to a file is there after a power cut") {
  SimStore sim(prepared().disk->clone(), 8);
  must(sim.open());
  CHECK((sim.run(dump_and_cut(sim.store(), sim.disk())) == prepared().present));
}

}  // namespace snap
