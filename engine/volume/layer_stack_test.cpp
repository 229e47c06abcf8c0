// The claims of layer_stack.h, against a model of plain bytes.
#include "engine/volume/layer_stack.h"

#include <catch2/catch.hpp>
#include <thread>

#include "engine/io/sync.h"
#include "engine/volume/resolved_leaf.h"
#include "engine/volume/volume_test_support.h"

using namespace snap;
using namespace snap::volume_test;

namespace {

constexpr std::uint64_t kLeafBytes = kLeafChunks * kChunkSize;
/// Two leaves and a bit, and no multiple of a block.
constexpr std::uint64_t kSize = 2 * kLeafBytes + 5 * kChunkSize + 512;

/// Blocks that tests like: the beginning, both sides of leaf edges, the end.
std::uint64_t interesting_block(SeededRandom& random, std::uint64_t size) {
  const std::uint64_t leaf = kLeafBytes / kBlockSize;
  const std::uint64_t last = (size - 1) / kBlockSize;
  const std::uint64_t bases[] = {0, leaf - 40, 2 * leaf - 40,
                                 last - std::min<std::uint64_t>(last, 60)};
  return std::min(last, bases[random.below(4)] + random.below(80));
}

LayerSpec random_layer(SeededRandom& random, std::uint64_t size, std::size_t blocks) {
  LayerSpec spec;
  spec.virtual_size = size;
  spec.encoding = random.below(2) == 0 ? Encoding::kRaw : Encoding::kZstd;
  while (spec.blocks.size() < blocks) {
    std::uint64_t block = interesting_block(random, size);
    // Runs, so that there are whole chunks and contiguous ones.
    for (std::uint64_t run = 1 + random.below(24); run != 0; --run, ++block) {
      if (block * kBlockSize >= size) break;
      if (random.below(5) == 0) {
        spec.blocks[block] = std::nullopt;
      } else {
        spec.blocks[block] = random_block(random);
      }
    }
  }
  return spec;
}

/// A stack and its model.
struct Built {
  std::vector<std::shared_ptr<Layer>> layers;
  StackModel model;
  std::shared_ptr<std::atomic<std::size_t>> reads = std::make_shared<std::atomic<std::size_t>>(0);
};

Task<void> add_layer(Directory& root, Built& built, const LayerSpec& spec) {
  const std::string name = "layer" + std::to_string(built.layers.size());
  built.layers.push_back(co_await make_layer(root, name, spec, built.reads));
  built.model.apply(spec);
}

Task<void> build(Directory& root, Built& built, SeededRandom& random, std::size_t layers,
                 std::size_t blocks, bool resizing) {
  for (std::size_t i = 0; i < layers; ++i) {
    std::uint64_t size = kSize;
    if (resizing && i + 1 < layers && random.below(3) == 0)
      size = kSectorSize * (1 + random.below(kSize / kSectorSize));
    co_await add_layer(root, built, random_layer(random, size, blocks));
  }
}

Task<void> check_reads(LayerStack& stack, const StackModel& model, SeededRandom& random,
                       std::size_t reads) {
  for (std::size_t i = 0; i < reads; ++i) {
    std::uint64_t at = interesting_block(random, kSize) * kBlockSize + random.below(kBlockSize);
    std::size_t length = 1 + random.below(random.below(8) == 0 ? 600000 : 70000);
    if (random.below(3) == 0) {
      at = round_down(at, kBlockSize);
      length = kBlockSize;
    }
    Bytes got = random_bytes(random, length);
    must(co_await stack.read(ByteOffset(at), got));
    const auto differs = first_difference(got, model.bytes(at, length));
    CAPTURE(at, length, differs.value_or(0));
    CHECK_FALSE(differs);
  }
}

Task<void> check_chunk(LayerStack& stack, const StackModel& model, SeededRandom& random,
                       ChunkIndex chunk) {
  const auto owners = must(co_await stack.owners(chunk));
  const StackState state = must(co_await stack.state(chunk));
  const auto which = static_cast<BlockMask>(random.next());
  const Bytes before = random_bytes(random, kChunkSize);
  Bytes got = before;
  must(co_await stack.read_chunk(chunk, which, got));
  for (unsigned b = 0; b < kBlocksPerChunk; ++b) {
    const std::uint64_t block = chunk.value * kBlocksPerChunk + b;
    const Bytes expected = model.bytes(block * kBlockSize, kBlockSize);
    const int owner = model.owner_of(block);
    const bool data = (state.data >> b & 1) != 0;
    const bool zero = (state.known_zero >> b & 1) != 0;
    CAPTURE(chunk.value, b, which);
    CHECK(owners[b] == owner);
    CHECK((data || zero) == (owner >= 0));
    CHECK_FALSE((data && zero));
    if (!data) CHECK(expected == Bytes(kBlockSize));
    const auto place = std::span(got).subspan(b * kBlockSize, kBlockSize);
    const auto old = std::span(before).subspan(b * kBlockSize, kBlockSize);
    CHECK_FALSE(first_difference(place, (which >> b & 1) != 0 ? std::span(expected) : old));
  }
}

Task<void> check_map(LayerStack& stack, const StackModel& model, SeededRandom& random) {
  for (int i = 0; i < 40; ++i)
    co_await check_chunk(stack, model, random,
                         ChunkIndex(interesting_block(random, kSize) / kBlocksPerChunk));
  // Every chunk that is mentioned, and no other, is found by stepping.
  std::vector<std::uint64_t> expected;
  for (std::uint64_t block = 0; block < model.owner.size(); ++block)
    if (model.owner[block] >= 0 && (expected.empty() || expected.back() != block / kBlocksPerChunk))
      expected.push_back(block / kBlocksPerChunk);
  std::vector<std::uint64_t> found;
  const std::uint64_t end = chunk_count(stack.size());
  for (ChunkIndex c = must(co_await stack.next_mentioned(ChunkIndex(0))); c.value < end;
       c = must(co_await stack.next_mentioned(c + 1)))
    found.push_back(c.value);
  CHECK(found == expected);
}

Task<void> compare_with_model(Directory& root, std::uint64_t seed, std::size_t layers,
                              std::size_t blocks, bool resizing, std::size_t leaf_memory) {
  SeededRandom random(seed);
  Built built;
  co_await build(root, built, random, layers, blocks, resizing);
  LayerStack::Options options;
  options.leaf_memory = leaf_memory;
  auto stack = LayerStack::make(built.layers, options);
  CHECK(stack->size() == built.model.content.size());
  co_await check_reads(*stack, built.model, random, 150);
  co_await check_map(*stack, built.model, random);
  co_await check_reads(*stack, built.model, random, 50);
}

}  // namespace

TEST_CASE("a stack of any depth reads as its layers applied one after the other") {
  const auto* kind = GENERATE("threads", "uring", "simulated");
  const std::size_t depth = GENERATE(1, 2, 5, 64, 1000);
  const std::uint64_t seed = GENERATE(take(1, random(1u, 1u << 30)));
  CAPTURE(kind, depth, seed);
  TestRig rig(kind);
  const std::size_t blocks = depth < 10 ? 200 : depth < 100 ? 40 : 6;
  rig.loop->run(compare_with_model(*rig.root, seed, depth, blocks, false, 64u << 20));
}

TEST_CASE("a layer shows only below the smallest size above it") {
  const std::uint64_t seed = GENERATE(take(8, random(1u, 1u << 30)));
  CAPTURE(seed);
  TestRig rig("threads");
  rig.loop->run(compare_with_model(*rig.root, seed, 6, 100, true, 64u << 20));
}

TEST_CASE("with memory for one leaf every read is still right") {
  const std::uint64_t seed = GENERATE(take(2, random(1u, 1u << 30)));
  CAPTURE(seed);
  TestRig rig("uring");
  rig.loop->run(compare_with_model(*rig.root, seed, 8, 100, true, 1));
}

namespace {
Task<void> check_no_layers() {
  auto stack = LayerStack::make({});
  Bytes got(10000, std::byte{7});
  must(co_await stack->read(ByteOffset(12345), got));
  CHECK(got == Bytes(10000));
  const StackState state = must(co_await stack->state(ChunkIndex(3)));
  CHECK(state.data == 0);
  const ChunkIndex next = must(co_await stack->next_mentioned(ChunkIndex(0)));
  CHECK(next.value == 0);
}
}  // namespace

TEST_CASE("a stack without layers reads zero everywhere") {
  TestRig rig("threads");
  rig.loop->run(check_no_layers());
}

namespace {
Task<void> one_chunk_of_sixteen(Directory& root, Encoding encoding) {
  SeededRandom random(16);
  Built built;
  for (std::uint64_t b = 0; b < kBlocksPerChunk; ++b) {
    LayerSpec spec;
    spec.virtual_size = kChunkSize;
    spec.encoding = encoding;
    // Every layer holds the blocks from b on; the next one takes all but the first away.
    for (std::uint64_t block = b; block < kBlocksPerChunk; ++block)
      spec.blocks[block] = block % 7 == 6 ? std::nullopt : std::optional(random_block(random));
    co_await add_layer(root, built, spec);
  }
  auto stack = LayerStack::make(built.layers);
  const auto owners = must(co_await stack->owners(ChunkIndex(0)));
  for (int b = 0; b < 16; ++b)
    CHECK(owners[static_cast<std::size_t>(b)] == b);
  for (std::uint64_t at = 0; at < kChunkSize; at += 1000) {
    Bytes got(5000);
    must(co_await stack->read(ByteOffset(at), got));
    CHECK(got == built.model.bytes(at, got.size()));
  }
}
}  // namespace

TEST_CASE("each block of a chunk may come from another layer") {
  TestRig rig("threads");
  rig.loop->run(one_chunk_of_sixteen(*rig.root, Encoding::kRaw));
}
TEST_CASE("each block of a chunk may come from another compressed layer") {
  TestRig rig("threads");
  rig.loop->run(one_chunk_of_sixteen(*rig.root, Encoding::kZstd));
}

namespace {

Task<void> contiguous_chunks(Directory& root) {
  SeededRandom random(3);
  LayerSpec spec;
  spec.virtual_size = 1 << 20;
  for (std::uint64_t b = 0; b < (1 << 20) / kBlockSize; ++b)
    spec.blocks[b] = random_bytes(random, kBlockSize);
  Built built;
  co_await add_layer(root, built, spec);
  auto stack = LayerStack::make(built.layers);
  Bytes got(1 << 20);
  must(co_await stack->read(ByteOffset(0), got));  // verifies
  CHECK(got == built.model.content);
  const std::size_t before = built.reads->load();
  must(co_await stack->read(ByteOffset(0), got));
  CHECK(built.reads->load() - before == (1 << 20) / kMaxReadPiece);
  must(co_await stack->read(ByteOffset(kChunkSize - kBlockSize), std::span(got).first(8192)));
  CHECK(built.reads->load() - before == (1 << 20) / kMaxReadPiece + 1);
}

}  // namespace

TEST_CASE("verified neighbours in one file are one read of at most kMaxReadPiece") {
  TestRig rig("threads");
  rig.loop->run(contiguous_chunks(*rig.root));
}

namespace {

Task<void> under_pressure(Directory& root) {
  SeededRandom random(5);
  LayerSpec spec;
  spec.virtual_size = 40 * kLeafBytes;
  for (std::uint64_t leaf = 0; leaf < 40; ++leaf)
    spec.blocks[leaf * kLeafBytes / kBlockSize + leaf] = random_block(random);
  LayerStack::Options options;
  options.leaf_memory = 64 << 10;
  std::vector<std::shared_ptr<Layer>> layers;
  layers.push_back(co_await make_layer(root, "layer", spec));
  auto stack = LayerStack::make(layers, options);
  for (int i = 0; i < 400; ++i) {
    const std::uint64_t leaf = random.below(40);
    const std::uint64_t at = leaf * kLeafBytes + leaf * kBlockSize;
    Bytes got(kBlockSize);
    must(co_await stack->read(ByteOffset(at), got));
    CHECK(got == *spec.blocks[at / kBlockSize]);
    CHECK(stack->stats().leaf_bytes <= options.leaf_memory);
    CHECK(stack->stats().leaf_bytes > 0);
  }
  CHECK(stack->stats().leaves_filled > 100);
}

}  // namespace

TEST_CASE("leaves stay within the memory that they may take") {
  TestRig rig("threads");
  rig.loop->run(under_pressure(*rig.root));
}

namespace {

Task<Result<void>> touch(LayerStack& stack, Bytes& out, std::uint64_t at) {
  return stack.read(ByteOffset(at), out);
}

/// Many first touches at once.
Task<void> touch_all(LayerStack& stack, const StackModel& model, std::uint64_t first) {
  std::vector<Bytes> got(64, Bytes(kBlockSize));
  std::vector<Task<Result<void>>> tasks;
  for (std::size_t i = 0; i < got.size(); ++i)
    tasks.push_back(touch(stack, got[i], (first + i) * kBlockSize));
  std::vector<Result<void>> results = co_await gather(std::move(tasks));
  for (std::size_t i = 0; i < got.size(); ++i) {
    must(results[i]);
    if (first_difference(got[i], model.bytes((first + i) * kBlockSize, kBlockSize)))
      test_failed(Error(ErrorCode::kCorrupt, "block " + std::to_string(first + i) + " is wrong"));
  }
}

Task<void> build_for_touch(Directory& root, Built& built) {
  SeededRandom random(11);
  for (int i = 0; i < 20; ++i) {
    LayerSpec spec;
    spec.virtual_size = kLeafBytes;
    for (std::uint64_t b = 0; b < 100; ++b)
      if (random.below(2) == 0) spec.blocks[b] = random_block(random);
    co_await add_layer(root, built, spec);
  }
}

}  // namespace

TEST_CASE("first touches from two threads fill a leaf once and read each slice once") {
  const auto* kind = GENERATE("threads", "uring");
  CAPTURE(kind);
  TestRig rig(kind);
  Built built;
  rig.loop->run(build_for_touch(*rig.root, built));
  for (int round = 0; round < 20; ++round) {
    auto stack = LayerStack::make(built.layers);
    // A chunk that no layer mentions: all that is read are slices.
    const std::uint64_t nothing = 4000;
    std::thread other([&stack, &built, kind] {
      TestRig mine(kind);
      mine.loop->run(touch_all(*stack, built.model, nothing));
      mine.loop->run(touch_all(*stack, built.model, 0));
    });
    rig.loop->run(touch_all(*stack, built.model, nothing));
    rig.loop->run(touch_all(*stack, built.model, 0));
    other.join();
    CHECK(stack->stats().leaves_filled == 1);
  }
}

namespace {
Task<void> count_slices(Directory& root) {
  Built built;
  co_await build_for_touch(root, built);
  // Layers opened anew: no slice is in the cache of the process.
  std::vector<std::shared_ptr<Layer>> layers;
  auto reads = std::make_shared<std::atomic<std::size_t>>(0);
  for (int i = 0; i < 20; ++i) {
    std::unique_ptr<File> file = std::make_unique<TestFile>(
        must(co_await root.open("layer" + std::to_string(i), OpenFlags{})), reads);
    layers.push_back(must(co_await Layer::open(std::move(file), std::nullopt)));
  }
  auto stack = LayerStack::make(layers);
  const std::size_t before = reads->load();
  co_await touch_all(*stack, built.model, 4000);
  CHECK(reads->load() - before == 20);
}
}  // namespace

TEST_CASE("a first touch by many reads each layer's slice once") {
  TestRig rig("threads");
  rig.loop->run(count_slices(*rig.root));
}

namespace {

/// A layer that covers everything hides those below: their tables need not be read.
Task<void> full_layer_on_top(Directory& root) {
  SeededRandom random(12);
  Built built;
  LayerSpec spec;
  spec.virtual_size = 4 * kChunkSize;
  for (std::uint64_t b = 0; b < 64; ++b)
    spec.blocks[b] = random_block(random);
  for (int i = 0; i < 200; ++i)
    co_await add_layer(root, built, spec);
  auto stack = LayerStack::make(built.layers);
  const std::size_t before = built.reads->load();
  Bytes got(kBlockSize);
  must(co_await stack->read(ByteOffset(0), got));
  CHECK(got == built.model.bytes(0, kBlockSize));
  CHECK(built.reads->load() - before < 100);
}

Task<void> damaged_and_cut(Directory& root) {
  SeededRandom random(13);
  Built built;
  LayerSpec spec;
  spec.virtual_size = 4 * kChunkSize;
  for (std::uint64_t b = 0; b < 64; ++b)
    spec.blocks[b] = random_bytes(random, kBlockSize);
  co_await add_layer(root, built, spec);
  auto file = must(co_await root.open("layer0", for_write()));
  const auto chunks = must(co_await built.layers[0]->find(ChunkIndex(2)));
  const Bytes flipped(1, ~(*spec.blocks[32])[0]);
  must(co_await write_all(*file, flipped, ByteOffset(chunks->offset)));
  auto stack = LayerStack::make(built.layers);
  Bytes got(4 * kChunkSize);
  for (int i = 0; i < 2; ++i) {  // an error is not remembered as success
    CHECK_FALSE(stack->read_now(ByteOffset(0), got));
    auto read = co_await stack->read(ByteOffset(0), got);
    REQUIRE_FALSE(read.has_value());
    CHECK(read.error().code() == ErrorCode::kCorrupt);
    CHECK(read.error().message().find("layer0") != std::string::npos);
  }
  must(co_await stack->read(ByteOffset(0), std::span(got).first(2 * kChunkSize)));
  CHECK_FALSE(
      first_difference(std::span(got).first(2 * kChunkSize), built.model.bytes(0, 2 * kChunkSize)));
  // What is verified takes no waiting, and what is not, or damaged, is no part of it.
  Bytes again(4 * kChunkSize);
  CHECK(stack->read_now(ByteOffset(0), std::span(again).first(2 * kChunkSize)));
  CHECK(std::memcmp(again.data(), got.data(), 2 * kChunkSize) == 0);
  CHECK_FALSE(stack->read_now(ByteOffset(2 * kChunkSize), std::span(again).first(kBlockSize)));
  CHECK(stack->read_now(ByteOffset(4 * kChunkSize), std::span(again).first(kBlockSize)));
  CHECK(std::all_of(again.begin(), again.begin() + kBlockSize,
                    [](std::byte b) { return b == std::byte{0}; }));
  // Then the file is cut under the reader's feet.
  must(co_await file->truncate(5000));
  CHECK_FALSE(stack->read_now(ByteOffset(0), std::span(again).first(kChunkSize)));
  auto read = co_await stack->read(ByteOffset(0), std::span(got).first(kChunkSize));
  REQUIRE_FALSE(read.has_value());
  CHECK(read.error().code() == ErrorCode::kCorrupt);
  CHECK(read.error().message().find("layer0") != std::string::npos);
}

}  // namespace

TEST_CASE("tables that cannot matter are not read") {
  TestRig rig("threads");
  rig.loop->run(full_layer_on_top(*rig.root));
}

TEST_CASE("a damaged chunk fails its own reads, and a file that was cut fails instead of looping") {
  TestRig rig("threads");
  rig.loop->run(damaged_and_cut(*rig.root));
}
