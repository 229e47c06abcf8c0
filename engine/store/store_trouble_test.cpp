// The store on the real disk when things go wrong: killed processes, damaged files, commands side
// by side.
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <catch2/catch.hpp>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <thread>

#include "engine/store/store_test_support.h"
#include "snap/limits.h"

using namespace snap;
namespace fs = std::filesystem;

namespace {

Task<Result<void>> make_and_remove(Directory* tmp, std::atomic<bool>* done) {
  SystemRandom random;
  for (int i = 0; i < 2000; ++i) {
    auto scratch = co_await Scratch::make(*tmp, random);
    // No process sweeps all the time; here it may win every time.
    if (!scratch && scratch.error().code() == ErrorCode::kBusy) continue;
    if (!scratch) co_return scratch.error();
    auto removed = co_await scratch->remove();
    if (!removed) co_return removed;
  }
  *done = true;
  co_return Result<void>();
}

}  // namespace

TEST_CASE("a folder in tmp that is removed while another process sweeps is removed") {
  TempDir temp;
  std::atomic<bool> done{false};
  std::thread sweeper([&] {
    auto loop = must(make_event_loop());
    auto tmp = must(loop->run(open_directory(temp.path())));
    while (!done)
      must(loop->run(sweep_scratch(*tmp)));
  });
  auto loop = must(make_event_loop());
  auto tmp = must(loop->run(open_directory(temp.path())));
  auto made = loop->run(make_and_remove(tmp.get(), &done));
  done = true;
  sweeper.join();
  if (!made) FAIL(made.error().message());
  must(loop->run(sweep_scratch(*tmp)));
  CHECK(fs::is_empty(temp.path()));
}

TEST_CASE("a process that is killed leaves the volume free and tmp to be cleaned") {
  TempDir temp;
  const std::string path = temp.path() + "/store";
  int ready[2];
  REQUIRE(::pipe(ready) == 0);
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    auto loop = must(make_event_loop());
    auto store = must(loop->run(Store::open(path, Store::OpenOptions{})));
    Store::CreateOptions options;
    options.name = "a";
    options.size = 1u << 20;
    must(loop->run(store->create_volume(options)));
    auto open = must(loop->run(store->open_volume("a", Holder{})));
    auto scratch = must(loop->run(store->impl().scratch()));
    must(loop->run(scratch.dir().open("half-written", for_write())));
    if (::write(ready[1], "x", 1) != 1) ::_exit(1);
    ::pause();
    ::_exit(0);
  }
  char byte = 0;
  REQUIRE(::read(ready[0], &byte, 1) == 1);
  StoreRig rig(false);
  rig.path = path;
  rig.store = must(rig.open());
  CHECK(entries_of(path + "/tmp") == 1);  // in use: not ours to remove
  auto busy = rig.run(rig.store->open_volume("a", Holder{}));
  CHECK(code_of(busy) == ErrorCode::kBusy);
  CHECK(holds(message_of(busy), "process " + std::to_string(child)));
  REQUIRE(::kill(child, SIGKILL) == 0);
  REQUIRE(::waitpid(child, nullptr, 0) == child);
  rig.store = nullptr;
  rig.store = must(rig.open());
  CHECK(entries_of(path + "/tmp") == 0);
  must(rig.run(must(rig.run(rig.store->open_volume("a", Holder{})))->close()));
  ::close(ready[0]);
  ::close(ready[1]);
}

TEST_CASE("damage of a config or manifest is found, whichever byte, and can be removed") {
  StoreRig rig;
  const Image image = rig.image("base:1", 7);
  rig.image("good:1", 8);
  Store::Impl& impl = rig.store->impl();
  for (const std::string& hex : {image.id.hex(), image.manifest.hex()}) {
    const std::string path = rig.path + "/blobs/sha256/" + hex;
    const std::string good = slurp(path);
    REQUIRE_FALSE(good.empty());
    ::chmod(path.c_str(), 0600);
    for (std::size_t i = 0; i <= good.size(); ++i) {
      std::string bad = good.substr(0, i);
      if (i < good.size()) {
        bad = good;
        bad[i] = static_cast<char>(bad[i] ^ (1 << (i % 8)));
      } else {
        bad.resize(i / 2);
      }
      spill(path, bad);
      ImageStore fresh(*impl.root, impl.blobs);
      auto found = rig.run(fresh.find("base:1"));
      REQUIRE(code_of(found) == ErrorCode::kCorrupt);
      REQUIRE(holds(message_of(found), hex));
    }
    spill(path, good);
  }
  spill(rig.path + "/blobs/sha256/" + image.manifest.hex(), "{}");
  auto kept = rig.run(rig.store->prune(false));
  CHECK(code_of(kept) == ErrorCode::kCorrupt);
  CHECK(holds(message_of(kept), "base:1"));
  must(rig.run(rig.store->remove_image("base:1", false, false)));
  must(rig.run(rig.store->prune(false)));
  CHECK(must(rig.run(rig.store->images())).size() == 1);
  CHECK(entries_of(rig.path + "/blobs/sha256") == 3);
}

TEST_CASE("damage of volume.json or index.json stops what relies on it and nothing is swept") {
  StoreRig rig;
  const Image base = rig.image("base:1", 7);
  rig.volume("a", base);
  rig.volume("b");
  const std::string record = rig.path + "/volumes/a/volume.json";
  const std::string good = slurp(record);
  spill(record, good.substr(0, good.size() / 2));
  CHECK(code_of(rig.run(rig.store->open_volume("a", Holder{}))) == ErrorCode::kCorrupt);
  CHECK(holds(message_of(rig.run(rig.store->volumes())), "'a'"));
  CHECK(code_of(rig.run(rig.store->prune(false))) == ErrorCode::kCorrupt);
  CHECK(code_of(rig.run(rig.store->remove_image("base:1", true, false))) == ErrorCode::kCorrupt);
  must(rig.run(must(rig.run(rig.store->open_volume("b", Holder{})))->close()));
  spill(record, good);
  must(rig.run(must(rig.run(rig.store->open_volume("a", Holder{})))->close()));

  const std::string index = slurp(rig.path + "/index.json");
  spill(rig.path + "/index.json", index.substr(0, index.size() / 2));
  CHECK(code_of(rig.run(rig.store->images())) == ErrorCode::kCorrupt);
  CHECK(code_of(rig.run(rig.store->prune(false))) == ErrorCode::kCorrupt);
  spill(rig.path + "/index.json", index);

  // A volume that is damaged for good can be removed, and what it used is then reclaimed.
  spill(record, "");
  must(rig.run(rig.store->remove_volume("a", false)));
  CHECK(must(rig.run(rig.store->prune(false))).deleted.size() == 1);
}

TEST_CASE("a chain that misses a layer or a delta says which") {
  StoreRig rig;
  const Image base = rig.image("base:1", 7);
  const VolumeRecord record = rig.volume("a", base);
  const std::string layer = rig.path + "/blobs/sha256/" + base.layers[0].blob.hex();
  fs::rename(layer, rig.temp.path() + "/kept");
  auto no_layer = rig.run(rig.store->open_volume("a", Holder{}));
  CHECK(code_of(no_layer) == ErrorCode::kCorrupt);
  CHECK(holds(message_of(no_layer), base.layers[0].blob.hex()));
  CHECK(holds(message_of(no_layer), "'a'"));
  fs::rename(rig.temp.path() + "/kept", layer);
  const std::string delta = rig.path + "/deltas/" + record.delta;
  fs::rename(delta, rig.temp.path() + "/kept");
  auto no_delta = rig.run(rig.store->open_volume("a", Holder{}));
  CHECK(code_of(no_delta) == ErrorCode::kCorrupt);
  CHECK(holds(message_of(no_delta), record.delta));
  fs::rename(rig.temp.path() + "/kept", delta);
  must(rig.run(must(rig.run(rig.store->open_volume("a", Holder{})))->close()));
}

namespace {

/// Adopts a layer and publishes it only after a pause, as a slow command would.
Task<Result<Image>> add_slowly(Store* store, Image like, std::string file, AsyncEvent* adopted) {
  Store::Impl& impl = store->impl();
  auto lock = co_await impl.lock.shared("add slowly");
  if (!lock) co_return lock.error();
  auto scratch = co_await impl.scratch();
  if (!scratch) co_return scratch.error();
  const std::string bytes = slurp(file);
  auto out = co_await scratch->dir().open("layer", kNewBlob);
  if (!out) co_return out.error();
  auto written = co_await write_all(**out, bytes_of(bytes), ByteOffset(0));
  if (!written) co_return written.error();
  auto put = co_await impl.blobs.adopt(scratch->dir(), "layer", like.layers[0].blob);
  if (!put) co_return put.error();
  auto delta = co_await impl.volumes.create_delta(1u << 20);
  if (!delta) co_return delta.error();
  auto closed = co_await (*delta)->close();
  if (!closed) co_return closed.error();
  adopted->set();
  co_await Sleep(std::chrono::milliseconds(100));
  auto there = co_await impl.volumes.delta_allocated((*delta)->id().str());
  if (!there) co_return there.error();
  Reference slow{"slow", "1"};
  auto image = co_await impl.images.publish(like, std::move(slow));
  lock->release();
  auto removed = co_await scratch->remove();
  if (!removed) co_return removed.error();
  co_return image;
}

Task<Result<Image>> prune_meanwhile(Store* store, AsyncEvent* adopted) {
  co_await adopted->wait();
  auto pruned = co_await store->prune(false);
  if (!pruned) co_return pruned.error();
  auto image = co_await store->image("slow:1");
  co_return image;
}

Task<std::vector<Result<Image>>> add_and_prune(Store* store, Image like, std::string file) {
  AsyncEvent adopted;
  std::vector<Task<Result<Image>>> both;
  both.push_back(add_slowly(store, like, file, &adopted));
  both.push_back(prune_meanwhile(store, &adopted));
  auto results = co_await gather(std::move(both));
  co_return results;
}

}  // namespace

TEST_CASE("prune waits for a command that has stored what nothing names yet") {
  StoreRig rig;
  Image image = rig.image("base:1", 7);
  const std::string kept = rig.temp.path() + "/layer";
  fs::copy_file(rig.path + "/blobs/sha256/" + image.layers[0].blob.hex(), kept);
  must(rig.run(rig.store->remove_image("base:1", false, false)));
  CHECK(entries_of(rig.path + "/blobs/sha256") == 0);
  const auto results = rig.run(add_and_prune(rig.store.get(), image, kept));
  const Image slow = must(results[0]);
  CHECK(must(results[1]).id == slow.id);
  const auto view = must(rig.run(rig.store->open_image(slow)));
  CHECK(read_volume(rig, *view, 0) == block(7));
  // The delta, which no volume names in the end, went with the prune that had to wait.
  CHECK(entries_of(rig.path + "/deltas") == 0);
}

TEST_CASE("a sweep does not wait for ever, and names the lock") {
  StoreRig rig;
  auto held = must(rig.run(rig.store->impl().lock.shared("a long command")));
  auto waited = rig.run(
      lock_file(*rig.store->impl().root, "lock", true, "prune", std::chrono::milliseconds(30)));
  CHECK(code_of(waited) == ErrorCode::kBusy);
  CHECK(holds(message_of(waited), rig.path + "/lock"));
  held.release();
  CHECK(rig.run(rig.store->prune(false)));
}

TEST_CASE("layers and resolved maps are shared in a process while someone uses them") {
  StoreRig rig;
  const Image base = rig.image("base:1", 7);
  const Image top = must(rig.run(add_image(*rig.store, "top:1", 9, ChunkIndex(3), base)));
  ChainCache& chains = rig.store->impl().chains;
  auto one = must(rig.run(chains.stack(base.layers)));
  auto two = must(rig.run(chains.stack(base.layers)));
  auto three = must(rig.run(chains.stack(top.layers)));
  CHECK(one == two);
  CHECK(one != three);
  CHECK(one->layers()[0] == three->layers()[0]);
  const std::weak_ptr<Layer> layer = one->layers()[0];
  one = two = three = nullptr;
  CHECK(layer.expired());
}

TEST_CASE("an existing blob is never replaced, and one that differs is damage") {
  StoreRig rig;
  BlobStore& blobs = rig.store->impl().blobs;
  const auto first = must(rig.run(blobs.put("{\"a\":1}")));
  CHECK_FALSE(first.existed);
  CHECK(must(rig.run(blobs.put("{\"a\":1}"))).existed);
  const std::string path = rig.path + "/blobs/sha256/" + first.digest.hex();
  ::chmod(path.c_str(), 0600);
  spill(path, "{\"a\":2}");
  CHECK(code_of(rig.run(blobs.put("{\"a\":1}"))) == ErrorCode::kCorrupt);
  CHECK(slurp(path) == "{\"a\":2}");
  CHECK(entries_of(rig.path + "/tmp") == 0);
}

TEST_CASE("a snapshot and the chain of a volume at rest can be read") {
  StoreRig rig;
  const Image base = rig.image("base:1", 7);
  const VolumeRecord record = rig.volume("a", base);
  {
    auto open = must(rig.run(rig.store->open_volume("a", Holder{})));
    must(rig.run(open->volume().write(ByteOffset(0), block(9), {})));
    must(rig.run(open->volume().flush()));
    must(rig.run(open->close()));
  }
  auto whole = must(rig.run(rig.store->open_snapshot("a", "")));
  CHECK(whole->read_only());
  CHECK(read_volume(rig, *whole, 0) == block(9));
  CHECK(read_volume(rig, *whole, kBlockSize) == block(7));
  CHECK(code_of(rig.run(rig.store->open_volume("a", Holder{}))) == ErrorCode::kBusy);
  whole = nullptr;
  {
    // Having been read so, it takes writes as before.
    auto open = must(rig.run(rig.store->open_volume("a", Holder{})));
    must(rig.run(open->volume().write(ByteOffset(kChunkSize), block(5), {})));
    must(rig.run(open->volume().flush()));
  }
  whole = must(rig.run(rig.store->open_snapshot("a", "")));
  CHECK(read_volume(rig, *whole, kChunkSize) == block(5));
  CHECK(read_volume(rig, *whole, 0) == block(9));
  whole = nullptr;

  VolumeStore& volumes = rig.store->impl().volumes;
  auto lock = must(rig.run(volumes.lock("a", Holder{})));
  StoredVolume stored = must(rig.run(volumes.read_locked(lock, "a")));
  SnapshotRecord snapshot;
  snapshot.name = "clean";
  snapshot.size = record.size;
  snapshot.manifest = record.manifest;
  stored.record.snapshots.push_back(snapshot);
  must(rig.run(volumes.replace(lock, stored)));
  lock.release();
  const auto clean = must(rig.run(rig.store->open_snapshot("a", "clean")));
  CHECK(read_volume(rig, *clean, 0) == block(7));
  auto missing = rig.run(rig.store->open_snapshot("a", "claen"));
  CHECK(code_of(missing) == ErrorCode::kNotFound);
  CHECK(holds(message_of(missing), "did you mean 'clean'?"));
}

TEST_CASE("usage adds up, and says what sharing saves and what prune would free") {
  StoreRig rig;
  const Image base = rig.image("base:1", 7);
  must(rig.run(add_image(*rig.store, "top:1", 9, ChunkIndex(3), base)));
  rig.volume("a", base);
  const auto usage = must(rig.run(rig.store->usage()));
  CHECK(usage.shared_saving == base.stored_size());
  CHECK(usage.reclaimable == 0);
  CHECK(usage.layer_bytes >= base.stored_size());
  REQUIRE(usage.rows.size() == 3);
  must(rig.run(rig.store->impl().blobs.put("{\"nobody\":\"names it\"}")));
  const auto more = must(rig.run(rig.store->usage()));
  CHECK(more.reclaimable > 0);
  CHECK(must(rig.run(rig.store->prune(true))).freed == more.reclaimable);
  CHECK(must(rig.run(rig.store->prune(false))).freed == more.reclaimable);
  CHECK(must(rig.run(rig.store->usage())).reclaimable == 0);
}
