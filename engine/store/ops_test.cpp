// Claims about import, commit, snapshot, clone, rollback, reset and resize: what is read afterwards
// is what was written before, on a loop of threads and on the simulated disk.
#include "engine/store/ops_test_support.h"

#include "engine/store/compare.h"
#include "engine/store/dump.h"
#include "snap/limits.h"

namespace snap {
namespace {

const std::string kKinds[] = {"threads", "simulated"};

/// An image of random bytes with a hole, and a volume of it.
struct Started {
  explicit Started(const std::string& kind) : rig(kind) {
    model.bytes = random_bytes(kTestSize, 1);
    model.fill(kChunkSize, kChunkSize, std::byte{0});
    image = rig.import("base:1", model.bytes);
    rig.create("v", image);
    volume = rig.open("v");
  }
  void mutate(int times) { must(rig.run(mutate_often(volume->volume(), model, random, times))); }
  ~Started() {
    if (volume) rig.close(std::move(volume));
  }
  StoreRig rig;
  SeededRandom random{42};
  Model model;
  Image image;
  std::unique_ptr<OpenVolume> volume;
};

Task<Result<void>> write_block(Volume& volume, std::uint64_t block, std::uint64_t value) {
  Bytes bytes(kBlockSize);
  for (std::size_t i = 0; i < bytes.size(); i += sizeof value)
    std::memcpy(bytes.data() + i, &value, sizeof value);
  auto written = co_await volume.write(ByteOffset(block * kBlockSize), bytes, {});
  co_return written;
}

/// Write number n, from 1 on, fills block n % blocks with n.
Task<void> write_generations(Volume& volume, std::uint64_t blocks, const bool* stop) {
  for (std::uint64_t n = 1; !*stop; ++n) {
    must(co_await write_block(volume, n % blocks, n));
    // Simulated time passes only when nothing else happens.
    Sleep pause(std::chrono::microseconds(100));
    co_await pause;
  }
}

Task<Result<Store::Committed>> commit_beside(Store& store, OpenVolume& volume, bool* stop) {
  Store::CommitOptions options;
  options.name = reference("busy");
  Sleep pause(std::chrono::milliseconds(20));
  co_await pause;
  const Progress silent;
  auto committed = co_await store.commit(volume, options, silent);
  *stop = true;
  co_return committed;
}

}  // namespace

TEST_CASE("an imported image reads as its source, holes and tail included") {
  for (const auto& kind : kKinds) {
    INFO(kind);
    Started s(kind);
    CHECK(s.image.size == kTestSize);
    CHECK(s.image.layers.size() == 1);
    CHECK(s.rig.content(s.image) == s.model.bytes);
    CHECK(s.rig.entries({"tmp"}).empty());
  }
}

TEST_CASE("an import that fails or is cancelled leaves the store as it was") {
  for (const auto& kind : kKinds) {
    StoreRig rig(kind);
    MemorySource broken(random_bytes(kTestSize, 3));
    broken.fails_at = 3 * kChunkSize;
    Store::ImportOptions options{.name = reference("x")};
    CHECK_FALSE(rig.run(rig.store->import(broken, options, Progress{})));
    MemorySource whole(random_bytes(kTestSize, 3));
    int asked = 0;
    const Progress progress{.cancelled = [&asked] { return ++asked > 3; }};
    const auto cancelled = rig.run(rig.store->import(whole, options, progress));
    REQUIRE_FALSE(cancelled);
    CHECK(cancelled.error().code() == ErrorCode::kCancelled);
    CHECK(must(rig.run(rig.store->images())).empty());
    CHECK(rig.entries({"blobs", "sha256"}).empty());
    CHECK(rig.entries({"tmp"}).empty());
  }
}

TEST_CASE("images of the same content share their layer") {
  StoreRig rig("threads");
  const Image a = rig.import("a", random_bytes(kTestSize, 3));
  const Image b = rig.import("b", random_bytes(kTestSize, 3));
  CHECK(a.layers[0].blob == b.layers[0].blob);
  check_no_leftovers(rig);
}

TEST_CASE("a committed image reads as the volume did, and the volume goes on") {
  for (const auto& kind : kKinds) {
    INFO(kind);
    Started s(kind);
    s.mutate(30);
    const auto committed = s.rig.commit(*s.volume, "app:1");
    CHECK(committed.image.layers.size() == 2);
    CHECK(s.rig.content(committed.image) == s.model.bytes);
    CHECK(s.rig.content(*s.volume) == s.model.bytes);
    CHECK(s.volume->record().sealed.empty());
    CHECK(s.volume->record().manifest == committed.image.manifest);
    const Bytes then = s.model.bytes;
    s.mutate(10);
    CHECK(s.rig.content(*s.volume) == s.model.bytes);
    CHECK(s.rig.content(committed.image) == then);
    CHECK(s.rig.content(s.image) != then);
    s.rig.close(std::move(s.volume));
    s.rig.reopen();
    CHECK(s.rig.at_rest("v") == s.model.bytes);
    CHECK(s.rig.content(image_of(s.rig, "app:1")) == then);
    check_no_leftovers(s.rig);
  }
}

TEST_CASE("a commit leaves out what equals the image and what is zero over nothing") {
  Started s("threads");
  // The same bytes again; zeros into the hole.
  const Bytes same(s.model.bytes.begin(), s.model.bytes.begin() + kChunkSize);
  must(s.rig.run(s.volume->volume().write(ByteOffset(0), same, {})));
  must(s.rig.run(s.volume->volume().write_zeroes(ByteOffset(kChunkSize), kChunkSize, {})));
  const auto committed = s.rig.commit(*s.volume, "app:1");
  CHECK(committed.image.layers.size() == 1);
  CHECK(committed.image.history.size() == 2);
  CHECK(committed.image.history.back().empty_layer);
  CHECK(s.rig.content(committed.image) == s.model.bytes);
  CHECK(s.volume->record().sealed.empty());
}

TEST_CASE("a commit of an unchanged volume makes an image of the same layers") {
  Started s("threads");
  const auto committed = s.rig.commit(*s.volume, "app:1");
  CHECK(committed.image.id != s.image.id);
  CHECK(committed.image.layers.size() == 1);
  CHECK(committed.image.history.back().empty_layer);
  CHECK(committed.pause.count() == 0);
}

TEST_CASE("a chain of five commits gives five images that each read as the volume did then") {
  for (const auto& kind : kKinds) {
    INFO(kind);
    Started s(kind);
    std::vector<std::pair<std::string, Bytes>> then;
    for (int i = 1; i <= 5; ++i) {
      s.mutate(8);
      const std::string name = "app:" + std::to_string(i);
      s.rig.commit(*s.volume, name);
      then.emplace_back(name, s.model.bytes);
    }
    s.rig.close(std::move(s.volume));
    s.rig.reopen();
    for (const auto& [name, bytes] : then) {
      INFO(name);
      CHECK(s.rig.content(image_of(s.rig, name)) == bytes);
    }
    CHECK(image_of(s.rig, "app:5").layers.size() == 6);
    CHECK(image_of(s.rig, "app:5").history.size() == 6);
  }
}

TEST_CASE("a volume without an image commits as a first layer") {
  for (const auto& kind : kKinds) {
    StoreRig rig(kind);
    rig.create("v", std::nullopt, kTestSize);
    auto volume = rig.open("v");
    Model model{Bytes(kTestSize)};
    SeededRandom random(7);
    must(rig.run(mutate_often(volume->volume(), model, random, 10)));
    const auto committed = rig.commit(*volume, "first");
    CHECK(committed.image.layers.size() == 1);
    CHECK(rig.content(committed.image) == model.bytes);
    rig.close(std::move(volume));
    rig.create("empty", std::nullopt, kTestSize);
    volume = rig.open("empty");
    const auto zeros = rig.commit(*volume, "zeros");
    CHECK(rig.content(zeros.image) == Bytes(kTestSize));
    rig.close(std::move(volume));
  }
}

TEST_CASE("a compressed commit reads the same") {
  Started s("threads");
  s.model.write(100, Bytes(200000, std::byte{'x'}));
  must(s.rig.run(s.volume->volume().write(ByteOffset(100), Bytes(200000, std::byte{'x'}), {})));
  Store::CommitOptions options{.name = reference("small"), .compress = true};
  const auto committed = must(s.rig.run(s.rig.store->commit(*s.volume, options, Progress{})));
  CHECK(committed.layer.file_size < 100000);
  CHECK(s.rig.content(committed.image) == s.model.bytes);
}

TEST_CASE("a commit beside writes shows the volume at one moment") {
  for (const auto& kind : kKinds) {
    INFO(kind);
    StoreRig rig(kind);
    constexpr std::uint64_t kBlocks = 40;
    rig.create("v", std::nullopt, kBlocks * kBlockSize);
    auto volume = rig.open("v");
    bool stop = false;
    rig.loop->spawn(write_generations(volume->volume(), kBlocks, &stop));
    const auto committed = must(rig.run(commit_beside(*rig.store, *volume, &stop)));
    const Bytes image = rig.content(committed.image);
    std::vector<std::uint64_t> seen(kBlocks);
    for (std::uint64_t block = 0; block < kBlocks; ++block)
      std::memcpy(&seen[block], image.data() + block * kBlockSize, sizeof(std::uint64_t));
    const std::uint64_t last = *std::max_element(seen.begin(), seen.end());
    REQUIRE(last > 0);
    for (std::uint64_t block = 0; block < kBlocks; ++block) {
      // The last write to this block that is not later than `last`.
      std::uint64_t expected = last - (last % kBlocks + kBlocks - block) % kBlocks;
      if (expected > last) expected = 0;  // there was none
      CHECK(seen[block] == expected);
    }
    rig.close(std::move(volume));
  }
}

TEST_CASE("a clone and its source go their own ways") {
  for (const auto& kind : kKinds) {
    INFO(kind);
    Started s(kind);
    s.mutate(10);
    must(s.rig.run(s.rig.store->clone(*s.volume, "w")));
    auto clone = s.rig.open("w");
    CHECK(s.rig.content(*clone) == s.model.bytes);
    Model other = s.model;
    must(s.rig.run(mutate_often(clone->volume(), other, s.random, 10)));
    s.mutate(10);
    CHECK(s.rig.content(*clone) == other.bytes);
    CHECK(s.rig.content(*s.volume) == s.model.bytes);
    const auto taken = s.rig.run(s.rig.store->clone(*s.volume, "w"));
    REQUIRE_FALSE(taken);
    CHECK(taken.error().code() == ErrorCode::kExists);
    // The clone outlives its source, and a commit of one leaves the other its sealed delta.
    s.rig.commit(*s.volume, "app:1");
    CHECK(s.rig.content(*clone) == other.bytes);
    s.rig.close(std::move(s.volume));
    must(s.rig.run(s.rig.store->remove_volume("v", false)));
    CHECK(s.rig.content(*clone) == other.bytes);
    s.rig.close(std::move(clone));
    s.rig.reopen();
    CHECK(s.rig.at_rest("w") == other.bytes);
  }
}

TEST_CASE("many snapshots: each reads as the volume did then, and rollback brings it back") {
  for (const auto& kind : kKinds) {
    INFO(kind);
    Started s(kind);
    const Bytes original = s.model.bytes;
    std::vector<Bytes> then;
    constexpr int kSnapshots = 2 * static_cast<int>(kMaxSealedDeltas) + 3;
    for (int i = 0; i < kSnapshots; ++i) {
      s.mutate(3);
      must(s.rig.run(s.rig.store->snapshot(*s.volume, "s" + std::to_string(i))));
      then.push_back(s.model.bytes);
      CHECK(s.volume->record().sealed.size() <= kMaxSealedDeltas);
    }
    CHECK(s.rig.content(*s.volume) == s.model.bytes);
    CHECK_FALSE(s.rig.run(s.rig.store->snapshot(*s.volume, "s0")));
    CHECK(s.volume->record().image == s.image.id);
    s.mutate(3);
    s.rig.close(std::move(s.volume));
    s.rig.reopen();
    for (int i = 0; i < kSnapshots; ++i) {
      INFO("snapshot " << i);
      CHECK(must(s.rig.run(read_snapshot(*s.rig.store, "v", "s" + std::to_string(i)))) == then[i]);
    }
    for (const int i : {kSnapshots - 1, 0, 9}) {
      must(s.rig.run(s.rig.store->rollback("v", "s" + std::to_string(i))));
      CHECK(s.rig.at_rest("v") == then[i]);
    }
    for (int i = 0; i < kSnapshots; ++i) {
      must(s.rig.run(s.rig.store->remove_snapshot("v", "s" + std::to_string(i))));
      CHECK(s.rig.at_rest("v") == then[9]);
    }
    must(s.rig.run(s.rig.store->reset("v")));
    CHECK(s.rig.at_rest("v") == original);
    must(s.rig.run(s.rig.store->prune(false)));
    check_no_leftovers(s.rig);
  }
}

TEST_CASE("the images packed for snapshots are no images that people see, and prune keeps them") {
  Started s("threads");
  for (std::size_t i = 0; i <= kMaxSealedDeltas; ++i) {
    s.mutate(1);
    must(s.rig.run(s.rig.store->snapshot(*s.volume, "s" + std::to_string(i))));
  }
  CHECK(s.volume->record().base_manifest == s.image.manifest);
  CHECK(must(s.rig.run(s.rig.store->images())).size() == 1);
  s.rig.close(std::move(s.volume));
  must(s.rig.run(s.rig.store->prune(false)));
  CHECK(s.rig.at_rest("v") == s.model.bytes);
}

TEST_CASE("snapshot, rollback and remove name what is missing") {
  Started s("threads");
  CHECK_FALSE(s.rig.run(s.rig.store->snapshot(*s.volume, "../x")));
  must(s.rig.run(s.rig.store->snapshot(*s.volume, "before")));
  CHECK(s.rig.run(s.rig.store->rollback("v", "before")).error().code() == ErrorCode::kBusy);
  s.rig.close(std::move(s.volume));
  const auto missing = s.rig.run(s.rig.store->rollback("v", "befor"));
  REQUIRE_FALSE(missing);
  CHECK(missing.error().code() == ErrorCode::kNotFound);
  CHECK(missing.error().message().find("before") != std::string::npos);
  CHECK(s.rig.run(s.rig.store->rollback("w", "before")).error().code() == ErrorCode::kNotFound);
}

TEST_CASE("what a shrink cut off stays zero in the committed image after growing again") {
  for (const auto& kind : kKinds) {
    INFO(kind);
    Started s(kind);
    s.mutate(5);
    must(s.rig.run(s.rig.store->resize(*s.volume, 2 * kChunkSize + kSectorSize)));
    must(s.rig.run(s.rig.store->resize(*s.volume, 8 * kChunkSize)));
    s.model.bytes.resize(2 * kChunkSize + kSectorSize);
    s.model.bytes.resize(8 * kChunkSize);
    CHECK(s.rig.content(*s.volume) == s.model.bytes);
    const auto committed = s.rig.commit(*s.volume, "cut");
    CHECK(committed.image.size == 8 * kChunkSize);
    CHECK(s.rig.content(committed.image) == s.model.bytes);
    CHECK(s.rig.content(*s.volume) == s.model.bytes);
  }
}

TEST_CASE("a commit that is cancelled leaves the volume, and the next one takes all of it") {
  Started s("threads");
  s.mutate(10);
  const Progress progress{.cancelled = [] { return true; }};
  const auto cancelled =
      s.rig.run(s.rig.store->commit(*s.volume, {.name = reference("no")}, progress));
  REQUIRE_FALSE(cancelled);
  CHECK(cancelled.error().code() == ErrorCode::kCancelled);
  CHECK(s.rig.content(*s.volume) == s.model.bytes);
  CHECK_FALSE(s.rig.run(s.rig.store->image("no")));
  CHECK(s.rig.entries({"tmp"}).empty());
  s.mutate(3);
  const auto committed = s.rig.commit(*s.volume, "yes");
  CHECK(committed.image.layers.size() == 2);
  CHECK(s.rig.content(committed.image) == s.model.bytes);
}

TEST_CASE("a dump is the volume's content, as a sparse file and as a stream") {
  Started s("threads");
  s.mutate(10);
  const std::string path = s.rig.temp.path() + "/dump.raw";
  auto file = must(s.rig.run(open_file(path, {.write = true, .create = true})));
  must(s.rig.run(write_all(*file, random_bytes(kTestSize + 9999, 5), ByteOffset(0))));
  must(s.rig.run(dump_to_file(s.volume->volume(), *file, Progress{})));
  Bytes copy(kTestSize);
  must(s.rig.run(read_exact(*file, copy, ByteOffset(0))));
  CHECK(copy == s.model.bytes);
  CHECK(must(s.rig.run(file->stat())).size == kTestSize);

  const std::string stream = s.rig.temp.path() + "/stream.raw";
  auto out = must(s.rig.run(open_file(stream, {.write = true, .create = true})));
  must(s.rig.run(dump_to_stream(s.volume->volume(), out->native_handle(), Progress{})));
  Bytes again(kTestSize);
  must(s.rig.run(read_exact(*out, again, ByteOffset(0))));
  CHECK(again == s.model.bytes);
}

TEST_CASE("a dump of a volume that is mostly holes takes no space for them") {
  StoreRig rig("threads");
  rig.create("v", std::nullopt, std::uint64_t{1} << 40);
  auto volume = rig.open("v");
  must(rig.run(
      volume->volume().write(ByteOffset(std::uint64_t{1} << 39), random_bytes(kBlockSize, 1), {})));
  auto file =
      must(rig.run(open_file(rig.temp.path() + "/dump.raw", {.write = true, .create = true})));
  must(rig.run(dump_to_file(volume->volume(), *file, Progress{})));
  CHECK(must(rig.run(file->stat())).allocated < kChunkSize);
  rig.close(std::move(volume));
}

TEST_CASE("comparing finds exactly the blocks that differ") {
  for (const std::uint64_t seed : {1u, 2u, 3u, 4u, 5u, 6u}) {
    INFO("seed " << seed);
    Started s("threads");
    SeededRandom random(seed);
    s.mutate(static_cast<int>(random.below(6)));
    if (random.below(2) == 0) s.rig.commit(*s.volume, "app:1");
    must(s.rig.run(s.rig.store->clone(*s.volume, "w")));
    auto other = s.rig.open("w");
    Model model = s.model;
    must(s.rig.run(mutate_often(other->volume(), model, random, static_cast<int>(seed) / 2)));
    if (random.below(2) == 0) s.mutate(1);
    if (random.below(2) == 0) {
      must(s.rig.run(s.rig.store->resize(*other, 3 * kChunkSize)));
      model.bytes.resize(3 * kChunkSize);
    }
    if (random.below(2) == 0) s.rig.commit(*other, "other:1");
    Bytes marked(kTestSize);
    CompareOptions options;
    options.on_difference = [&marked](Difference d) {
      std::fill_n(marked.begin() + static_cast<std::ptrdiff_t>(d.offset.value), d.length,
                  std::byte{1});
      return true;
    };
    const auto compared =
        must(s.rig.run(compare_volumes(s.volume->volume(), other->volume(), options, Progress{})));
    CHECK(compared.same_size == (model.bytes.size() == kTestSize));
    Bytes shorter = model.bytes;
    shorter.resize(kTestSize);
    for (std::uint64_t at = 0; at < kTestSize; at += kBlockSize) {
      const std::uint64_t n = std::min(kBlockSize, kTestSize - at);
      const bool differs = std::memcmp(shorter.data() + at, s.model.bytes.data() + at, n) != 0;
      INFO("block at " << at);
      CHECK((marked[at] == std::byte{1}) == differs);
    }
    s.rig.close(std::move(other));
  }
}

TEST_CASE("what a layer of a smaller size has cut off of a block differs") {
  Started s("threads");
  must(s.rig.run(s.rig.store->resize(*s.volume, kTestSize - 2 * kSectorSize)));
  s.rig.commit(*s.volume, "cut:1");
  must(s.rig.run(s.rig.store->resize(*s.volume, kTestSize)));
  s.rig.commit(*s.volume, "cut:2");
  must(s.rig.run(s.rig.store->clone(*s.volume, "w")));
  auto other = s.rig.open("w");
  auto base = must(s.rig.run(s.rig.store->open_image(s.image)));
  const auto compared =
      must(s.rig.run(compare_volumes(other->volume(), *base, CompareOptions{}, Progress{})));
  CHECK(compared.same_size);
  CHECK(compared.extents == 1);
  CHECK(compared.bytes == kBlockSize + kSectorSize);  // the last block is one sector long
  s.rig.close(std::move(other));
}

}  // namespace snap
