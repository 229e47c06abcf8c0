// A power cut at every I/O boundary of the commands of the store. Method: on the simulated disk the
// command runs until the disk takes no further change; then the power goes, with pending changes
// lost, kept or any mixture; then the store is opened again. It must show the old state or the new
// one (the new one if the command had returned), everything in it must be readable, and prune must
// leave nothing that is not used.
#include <catch2/catch.hpp>

#include "engine/store/store_test_support.h"

using namespace snap;

namespace {

using Step = Task<Result<void>> (*)(Store*);
/// Checks the state after the cut: true for the new one, false for the old.
using Check = Task<bool> (*)(Store*);

constexpr int kVariants = 6;

void cut_power(SimDisk& disk, int variant, std::uint64_t seed) {
  if (variant == 0) {
    disk.crash_all_lost();
  } else if (variant == 1) {
    disk.crash_all_kept();
  } else {
    std::mt19937_64 random(seed);
    disk.crash(random);
  }
}

Task<Result<void>> run_on(SimDisk* disk, Step step, std::optional<std::uint64_t> freeze_after) {
  auto store = co_await Store::open(disk->root(), Store::OpenOptions{});
  if (!store) co_return store.error();
  if (freeze_after) disk->freeze_after(*freeze_after);
  auto done = co_await step(store->get());
  co_return done;
}

/// After prune nothing is left that is not used, and nothing that is used is missing.
Task<void> check_pruned(Store* store) {
  auto pruned = co_await store->prune(false);
  must(pruned);
  auto again = co_await store->prune(true);
  CHECK(must(again).deleted.empty());
  Store::Impl& impl = store->impl();
  auto folders = co_await impl.volumes.volumes_dir().list();
  auto volumes = co_await impl.volumes.list();
  auto tmp = co_await impl.tmp->list();
  CHECK(must(folders).size() == must(volumes).size());
  CHECK(must(tmp).empty());
  for (const StoredVolume& volume : *volumes) {
    Holder holder{1, ""};
    auto open = co_await store->open_volume(volume.record.name, std::move(holder));
    auto usable = must(std::move(open));
    std::vector<std::byte> block(kBlockSize);
    auto read = co_await usable->volume().read(ByteOffset(0), block);
    must(read);
    if (volume.record.manifest) CHECK(block == std::vector<std::byte>(kBlockSize, std::byte{7}));
    auto closed = co_await usable->close();
    must(closed);
  }
  auto images = co_await store->images();
  for (const Image& image : must(images)) {
    auto view = co_await store->open_image(image);
    std::vector<std::byte> block(kBlockSize);
    auto read = co_await must(view)->read(ByteOffset(0), block);
    must(read);
    CHECK(block == std::vector<std::byte>(kBlockSize, std::byte{7}));
  }
}

Task<bool> verify(SimDisk* disk, Check check) {
  auto store = co_await Store::open(disk->root(), Store::OpenOptions{});
  auto open = must(std::move(store));
  const bool is_new = co_await check(open.get());
  co_await check_pruned(open.get());
  const bool still = co_await check(open.get());
  CHECK(still == is_new);
  co_return is_new;
}

/// The disk on which a command starts; nothing of it is pending.
std::unique_ptr<SimDisk> prepared(Step setup) {
  auto disk = std::make_unique<SimDisk>(1);
  SimLoop loop(1);
  must(loop.run(run_on(disk.get(), setup, std::nullopt)));
  disk->crash_all_lost();  // what the setup promised to be durable is
  return disk;
}

void cut_everywhere(Step setup, Step command, Check check) {
  const auto start = prepared(setup);
  std::size_t seen_old = 0, seen_new = 0;
  bool finished = false;
  for (std::uint64_t n = 0; !finished; ++n) {
    REQUIRE(n < 1000);
    for (int variant = 0; variant < kVariants; ++variant) {
      const std::uint64_t seed = n * kVariants + static_cast<std::uint64_t>(variant);
      INFO("cut after " << n << " changes, variant " << variant);
      auto disk = start->clone();
      SimLoop loop(seed);
      const auto done = loop.run(run_on(disk.get(), command, n));
      if (!disk->frozen()) finished = true;
      cut_power(*disk, variant, seed);
      SimLoop after(seed);
      const bool is_new = after.run(verify(disk.get(), check));
      if (done) CHECK(is_new);
      ++(is_new ? seen_new : seen_old);
    }
  }
  // Both states were seen, or the test tests nothing.
  CHECK(seen_old > 0);
  CHECK(seen_new > 0);
}

// ---- States and commands

Task<Result<void>> nothing(Store*) {
  co_return Result<void>();
}

Task<Result<void>> with_image(Store* store) {
  auto image = co_await add_image(*store, "base:1", 7);
  if (!image) co_return image.error();
  co_return Result<void>();
}

Task<Result<void>> with_two_images(Store* store) {
  auto base = co_await add_image(*store, "base:1", 7);
  if (!base) co_return base.error();
  // Shares the lower layer.
  auto top = co_await add_image(*store, "top:1", 9, ChunkIndex(3), *base);
  if (!top) co_return top.error();
  co_return Result<void>();
}

Task<Result<void>> create_volume(Store* store) {
  auto image = co_await store->image("base:1");
  if (!image) co_return image.error();
  Store::CreateOptions options;
  options.name = "v";
  options.image = *image;
  auto record = co_await store->create_volume(std::move(options));
  if (!record) co_return record.error();
  co_return Result<void>();
}

Task<Result<void>> with_volume(Store* store) {
  auto image = co_await with_image(store);
  if (!image) co_return image.error();
  auto volume = co_await create_volume(store);
  co_return volume;
}

Task<Result<void>> tag(Store* store) {
  Reference target{"other", "2"};
  auto done = co_await store->tag("base:1", std::move(target));
  co_return done;
}
Task<Result<void>> move_tag(Store* store) {
  Reference target{"base", "1"};
  auto done = co_await store->tag("top:1", std::move(target));
  co_return done;
}
Task<Result<void>> remove_top(Store* store) {
  auto done = co_await store->remove_image("top:1", false, false);
  if (!done) co_return done.error();
  co_return Result<void>();
}
Task<Result<void>> remove_volume(Store* store) {
  auto done = co_await store->remove_volume("v", false);
  if (!done) co_return done.error();
  co_return Result<void>();
}
Task<Result<void>> rename_volume(Store* store) {
  auto done = co_await store->rename_volume("v", "w");
  co_return done;
}

Task<bool> has_image(Store* store, std::string name) {
  auto image = co_await store->image(name);
  if (!image) CHECK(image.error().code() == ErrorCode::kNotFound);
  co_return image.has_value();
}
Task<bool> has_volume(Store* store, std::string name) {
  auto volume = co_await store->volume(name);
  if (!volume) CHECK(volume.error().code() == ErrorCode::kNotFound);
  co_return volume.has_value();
}

Task<bool> image_is_there(Store* store) {
  const bool there = co_await has_image(store, "base:1");
  co_return there;
}
Task<bool> volume_is_there(Store* store) {
  const bool image = co_await has_image(store, "base:1");
  CHECK(image);
  const bool there = co_await has_volume(store, "v");
  co_return there;
}
Task<bool> volume_is_gone(Store* store) {
  const bool there = co_await volume_is_there(store);
  co_return !there;
}
Task<bool> volume_is_renamed(Store* store) {
  const bool old_name = co_await has_volume(store, "v");
  const bool new_name = co_await has_volume(store, "w");
  CHECK(old_name != new_name);
  co_return new_name;
}
Task<bool> tag_is_there(Store* store) {
  const bool image = co_await has_image(store, "base:1");
  CHECK(image);
  const bool there = co_await has_image(store, "other:2");
  co_return there;
}
Task<bool> tag_is_moved(Store* store) {
  // No image is lost: the one that lost its tag stays.
  auto images = co_await store->images();
  CHECK(must(images).size() == 2);
  auto base = co_await store->image("base:1");
  auto top = co_await store->image("top:1");
  co_return must(base).id == must(top).id;
}
Task<bool> top_is_gone(Store* store) {
  const bool base = co_await has_image(store, "base:1");
  CHECK(base);
  const bool top = co_await has_image(store, "top:1");
  co_return !top;
}
Task<bool> store_is_empty(Store* store) {
  auto images = co_await store->images();
  CHECK(must(images).empty());
  co_return true;
}

}  // namespace

TEST_CASE("a power cut while an image is published leaves all of it or nothing") {
  cut_everywhere(nothing, with_image, image_is_there);
}
TEST_CASE("a power cut while a volume is created leaves all of it or nothing") {
  cut_everywhere(with_image, create_volume, volume_is_there);
}
TEST_CASE("a power cut while a volume is removed leaves all of it or nothing") {
  cut_everywhere(with_volume, remove_volume, volume_is_gone);
}
TEST_CASE("a power cut while a volume is renamed leaves one of the names") {
  cut_everywhere(with_volume, rename_volume, volume_is_renamed);
}
TEST_CASE("a power cut while an image is tagged leaves the old tags or the new") {
  cut_everywhere(with_image, tag, tag_is_there);
}
TEST_CASE("a power cut while a tag moves loses neither image") {
  cut_everywhere(with_two_images, move_tag, tag_is_moved);
}
TEST_CASE("a power cut while an image is removed leaves it whole or gone, and others whole") {
  cut_everywhere(with_two_images, remove_top, top_is_gone);
}

TEST_CASE("a power cut while a store is made leaves what the next opening finishes") {
  for (std::uint64_t n = 0;; ++n) {
    REQUIRE(n < 200);
    bool finished = false;
    for (int variant = 0; variant < kVariants; ++variant) {
      INFO("cut after " << n << " changes, variant " << variant);
      SimDisk disk(n);
      disk.freeze_after(n);
      SimLoop loop(n);
      const auto done = loop.run(run_on(&disk, nothing, std::nullopt));
      if (done) finished = true;
      cut_power(disk, variant, n);
      SimLoop after(n);
      CHECK(after.run(verify(&disk, store_is_empty)));
    }
    if (finished) break;
  }
}

namespace {

Task<void> check_failed_publish(SimDisk* disk) {
  auto opened = co_await Store::open(disk->root(), Store::OpenOptions{});
  auto store = must(std::move(opened));
  VolumeStore& volumes = store->impl().volumes;
  Holder holder{1, ""};
  auto locked = co_await volumes.lock("v", std::move(holder));
  auto lock = must(std::move(locked));
  auto read = co_await volumes.read_locked(lock, "v");
  StoredVolume volume = must(std::move(read));
  const StoredVolume before = volume;
  volume.record.labels["new"] = "yes";
  disk->inject({SimOpKind::kDirSync, 1, EIO, 0});
  auto failed = co_await volumes.replace(lock, volume);
  REQUIRE_FALSE(failed);
  CHECK(failed.error().code() == ErrorCode::kIo);
  CHECK(volume.generation == before.generation);
  auto now = co_await volumes.read_locked(lock, "v");
  CHECK(must(now).generation == before.generation);
  CHECK(now->record.labels.empty());
}

Task<void> check_failed_tag(SimDisk* disk) {
  auto opened = co_await Store::open(disk->root(), Store::OpenOptions{});
  auto store = must(std::move(opened));
  auto entries = must(co_await store->impl().images.read_index());
  REQUIRE_FALSE(entries.empty());
  disk->inject({SimOpKind::kDirSync, 1, EIO, 0});
  auto tagged =
      co_await store->tag(entries.front().ref_name.value(), must(Reference::parse("new:1")));
  REQUIRE_FALSE(tagged);
  CHECK(tagged.error().code() == ErrorCode::kIo);
  CHECK(must(co_await store->impl().images.read_index()).size() == entries.size());
}

Task<void> check_old_index(SimDisk* disk) {
  auto opened = co_await Store::open(disk->root(), Store::OpenOptions{});
  auto store = must(std::move(opened));
  for (const IndexEntry& entry : must(co_await store->impl().images.read_index()))
    CHECK(entry.ref_name != "new:1");
}

Task<void> check_old_record(SimDisk* disk) {
  auto opened = co_await Store::open(disk->root(), Store::OpenOptions{});
  auto store = must(std::move(opened));
  auto read = co_await store->impl().volumes.read("v");
  CHECK(must(read).record.labels.empty());
}

}  // namespace

TEST_CASE("an index whose publishing failed at its last sync is undone, durably") {
  const auto disk = prepared(with_image);
  SimLoop loop(3);
  loop.run(check_failed_tag(disk.get()));
  disk->crash_all_kept();
  loop.run(check_old_index(disk.get()));
}

TEST_CASE("a record whose publishing failed at its last sync is undone, durably") {
  const auto disk = prepared(with_volume);
  SimLoop loop(3);
  loop.run(check_failed_publish(disk.get()));
  disk->crash_all_kept();
  loop.run(check_old_record(disk.get()));
}
