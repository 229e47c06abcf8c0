// What reading costs and remembers, and that many threads may do it at once.
#include <bit>
#include <catch2/catch.hpp>
#include <thread>

#include "engine/layer/layer_forge.h"
#include "engine/layer/lru_cache.h"

using namespace snap;
using namespace snap::layer_test;

namespace {

struct Watched {
  std::shared_ptr<Layer> layer;
  MemoryFile* file = nullptr;

  /// Reads since the last call.
  std::size_t reads() { return std::exchange(file->reads, 0); }
  std::size_t bytes() { return std::exchange(file->read_bytes, 0); }
};

Task<Watched> open_watched(Bytes* bytes) {
  auto file = std::make_unique<MemoryFile>(*bytes);
  Watched w;
  w.file = file.get();
  w.layer = must(co_await Layer::open(std::move(file), std::nullopt));
  co_return w;
}

/// 1000 chunks, every third chunk number, one block each, that of the chunk's number.
std::vector<TestChunk> sparse_chunks() {
  std::vector<TestChunk> chunks;
  for (unsigned i = 0; i < 1000; ++i) {
    Bytes block(kBlockSize, std::byte{1});
    std::memcpy(block.data(), &i, sizeof i);
    chunks.push_back({10 + 3 * i, 0x0010, 0, std::move(block)});
  }
  return chunks;
}

LayerWriter::Options options_for(Encoding encoding) {
  LayerWriter::Options options;
  options.virtual_size = 1u << 30;
  options.encoding = encoding;
  return options;
}

Task<void> cost_of_open_and_slices(Bytes* bytes) {
  Watched w = co_await open_watched(bytes);
  CHECK(w.reads() == 2);
  CHECK(w.bytes() == 4096 + 4096);  // footer; 16 records in one block
  REQUIRE(w.layer->slice_count() == 16);
  CHECK_FALSE(w.layer->slice_of(ChunkIndex(9)).has_value());
  CHECK(w.layer->slice_of(ChunkIndex(10)) == 0u);
  CHECK(w.layer->slice_of(ChunkIndex(~std::uint64_t{0})) == 15u);
  for (std::size_t i = 0; i < 16; ++i) {
    CHECK(w.layer->slice_first(i) == ChunkIndex(10 + 3 * 64 * i));
    CHECK(w.layer->slice_of(w.layer->slice_first(i)) == i);
    if (i > 0) CHECK(w.layer->slice_of(w.layer->slice_first(i) - 1) == i - 1);
  }
  CHECK(w.reads() == 0);
  for (int round = 0; round < 2; ++round) {
    for (unsigned i = 0; i < 1000; ++i) {
      auto found = must(co_await w.layer->find(ChunkIndex(10 + 3 * i)));
      CHECK(found.has_value());
      auto none = must(co_await w.layer->find(ChunkIndex(11 + 3 * i)));
      CHECK_FALSE(none.has_value());
    }
    CHECK(w.reads() == (round == 0 ? 16u : 0u));  // each slice once
    w.bytes();
  }
  auto before = must(co_await w.layer->find(ChunkIndex(0)));
  CHECK_FALSE(before.has_value());
  auto beyond = co_await w.layer->read_slice(16);
  CHECK_FALSE(beyond.has_value());
}

Bytes chunk_of_random(std::uint64_t seed) {
  Bytes blocks(kChunkSize);
  SeededRandom(seed).fill(blocks);
  return blocks;
}

Task<void> cost_of_raw_reads(Bytes* bytes, const Bytes* blocks) {
  Watched w = co_await open_watched(bytes);
  auto entry = *must(co_await w.layer->find(ChunkIndex(3)));
  w.reads();
  w.bytes();
  CHECK_FALSE(w.layer->verified(0, 0));
  Bytes one(kBlockSize);
  must(co_await w.layer->read_blocks(entry, 0x0100, one));
  CHECK(w.reads() == 1);
  CHECK(w.bytes() == kChunkSize);  // first touch: all of it
  CHECK(w.layer->verified(0, 0));
  CHECK_FALSE(w.layer->verified(0, 1));
  must(co_await w.layer->read_blocks(entry, 0x0100, one));
  CHECK(w.reads() == 1);
  CHECK(w.bytes() == kBlockSize);
  CHECK(std::equal(one.begin(), one.end(), blocks->begin() + 8 * kBlockSize));
  Bytes three(3 * kBlockSize);
  must(co_await w.layer->read_blocks(entry, 0x0054, three));
  CHECK(w.reads() == 1);  // blocks 2 to 6 in one go
  CHECK(w.bytes() == 5 * kBlockSize);
  CHECK(std::equal(three.begin(), three.begin() + kBlockSize, blocks->begin() + 2 * kBlockSize));
  CHECK(std::equal(three.end() - kBlockSize, three.end(), blocks->begin() + 6 * kBlockSize));
  auto n = co_await w.layer->read_raw(one, ByteOffset(entry.offset + kBlockSize));
  CHECK(must(std::move(n)) == kBlockSize);
  CHECK(std::equal(one.begin(), one.end(), blocks->begin() + kBlockSize));
}

Task<void> cost_of_verify_entry(Bytes* bytes) {
  Watched w = co_await open_watched(bytes);
  must(co_await w.layer->verify_entry(0, 0));
  CHECK(w.reads() == 4);  // footer, index, slice, chunk
  CHECK(w.layer->verified(0, 0));
  must(co_await w.layer->verify_entry(0, 0));
  CHECK(w.reads() == 0);
  must(co_await w.layer->verify_entry(0, 1));  // zero marks only: nothing to read
  CHECK(w.reads() == 0);
  CHECK(w.layer->verified(0, 1));
  CHECK_FALSE(w.layer->verified(0, 64));
  CHECK_FALSE(w.layer->verified(1, 0));
  auto no_entry = co_await w.layer->verify_entry(0, 2);
  CHECK_FALSE(no_entry.has_value());
  auto no_slice = co_await w.layer->verify_entry(1, 0);
  CHECK_FALSE(no_slice.has_value());
}

Task<void> refuse_odd_reads(Bytes* bytes) {
  Watched w = co_await open_watched(bytes);
  auto entry = *must(co_await w.layer->find(ChunkIndex(2)));
  Bytes out(2 * kBlockSize);
  auto check_refused = [](const Result<void>& result) {
    REQUIRE_FALSE(result.has_value());
    CHECK(result.error().code() == ErrorCode::kInvalidArgument);
  };
  auto empty = co_await w.layer->read_blocks(entry, 0, std::span(out).first(0));
  check_refused(empty);
  auto absent = co_await w.layer->read_blocks(entry, 0x0005, out);
  check_refused(absent);
  auto short_buffer = co_await w.layer->read_blocks(entry, 0x0003, std::span(out).first(4096));
  check_refused(short_buffer);
  entry.offset = 4096;  // not what the table says
  auto foreign = co_await w.layer->read_blocks(entry, 0x0003, out);
  check_refused(foreign);
}

Task<void> cost_of_compressed_reads(Bytes* bytes) {
  Watched w = co_await open_watched(bytes);
  auto entry = *must(co_await w.layer->find(ChunkIndex(2)));
  REQUIRE(entry.encoding == Encoding::kZstd);
  w.reads();
  Bytes out(kBlockSize);
  must(co_await w.layer->read_blocks(entry, 0x0002, out));
  CHECK(w.reads() == 1);
  CHECK(out == Bytes(kBlockSize, std::byte{'C'}));
  must(co_await w.layer->read_blocks(entry, 0x0001, out));
  CHECK(w.reads() == 0);
  CHECK(out == Bytes(kBlockSize, std::byte{'B'}));
}

}  // namespace

TEST_CASE("open reads footer and slice index; a slice is read once") {
  auto loop = quick_loop();
  Bytes bytes = loop->run(layer_bytes(options_for(Encoding::kRaw), sparse_chunks()));
  loop->run(cost_of_open_and_slices(&bytes));
}

TEST_CASE("a raw chunk is read whole at first touch, then in one read of what is wanted") {
  auto loop = quick_loop();
  const Bytes blocks = chunk_of_random(1);
  Bytes bytes =
      loop->run(layer_bytes(options_for(Encoding::kRaw),
                            {{3, kAllBlocks, 0, blocks}, {4, kAllBlocks, 0, chunk_of_random(2)}}));
  loop->run(cost_of_raw_reads(&bytes, &blocks));
}

TEST_CASE("an entry is verified once") {
  auto loop = quick_loop();
  Bytes bytes = loop->run(layer_bytes(options_for(Encoding::kRaw),
                                      {{3, kAllBlocks, 0, chunk_of_random(1)}, {4, 0, 1, {}}}));
  loop->run(cost_of_verify_entry(&bytes));
}

TEST_CASE("reads with masks, buffers or entries that do not fit the layer are refused") {
  auto loop = quick_loop();
  Bytes bytes = loop->run(layer_bytes(example_options(), example_chunks()));
  loop->run(refuse_odd_reads(&bytes));
}

TEST_CASE("a compressed chunk is decompressed once while it is cached") {
  auto loop = quick_loop();
  Bytes bytes = loop->run(layer_bytes(example_options(), example_chunks()));
  loop->run(cost_of_compressed_reads(&bytes));
}

namespace {
Task<void> read_everything(Layer& layer, std::uint64_t seed, std::atomic<unsigned>* wrong) {
  SeededRandom random(seed);
  Bytes out(kBlockSize);
  for (int n = 0; n < 3000; ++n) {
    const auto i = static_cast<unsigned>(random.below(1000));
    auto entry = must(co_await layer.find(ChunkIndex(10 + 3 * i)));
    const bool early = layer.verified(i / 64, i % 64);
    must(co_await layer.read_blocks(*entry, 0x0010, out));
    unsigned got = 0;
    std::memcpy(&got, out.data(), sizeof got);
    if (got != i || (early && !layer.verified(i / 64, i % 64))) ++*wrong;
  }
}
}  // namespace

TEST_CASE("many loops read one layer at once, first touches included") {
  auto loop = thread_loop();
  Bytes bytes = loop->run(layer_bytes(options_for(Encoding::kRaw), sparse_chunks()));
  // MemoryFile counts without locks; a real file is shared here.
  TempDir dir;
  auto root = must(loop->run(open_directory(dir.path())));
  auto file = must(loop->run(root->open("layer", for_write())));
  must(loop->run(write_all(*file, bytes, ByteOffset(0))));
  auto layer = must(loop->run(Layer::open(std::move(file), std::nullopt)));
  std::atomic<unsigned> wrong{0};
  std::vector<std::thread> threads;
  for (std::uint64_t seed = 1; seed <= 4; ++seed) {
    threads.emplace_back(
        [&layer, &wrong, seed] { thread_loop()->run(read_everything(*layer, seed, &wrong)); });
  }
  for (std::thread& t : threads)
    t.join();
  CHECK(wrong == 0);
}

TEST_CASE(
    "a cache stays within its bytes, drops what was not used for longest, and hands out what lives "
    "on") {
  ShardedLru<Bytes> cache(16 * 1000);  // 1000 bytes a shard
  auto value = std::make_shared<const Bytes>(300);
  std::vector<CacheKey> one_shard;
  // Keys of one shard: those that push each other out.
  for (std::uint64_t id = 0; one_shard.size() < 5; ++id) {
    ShardedLru<Bytes> probe(16 * 1000);
    const CacheKey first{1, 0};
    const CacheKey key{1, id};
    probe.put(first, value, 600);
    probe.put(key, value, 600);
    if (id == 0 || probe.get(first) == nullptr) one_shard.push_back(key);
  }
  for (int i = 0; i < 3; ++i)
    cache.put(one_shard[static_cast<std::size_t>(i)], value, 300);
  CHECK(cache.get(one_shard[0]) != nullptr);  // now 1 is the oldest
  auto held = std::make_shared<const Bytes>(7);
  cache.put(one_shard[3], held, 300);
  CHECK(cache.get(one_shard[1]) == nullptr);
  CHECK(cache.get(one_shard[0]) != nullptr);
  CHECK(cache.get(one_shard[2]) != nullptr);
  CHECK(cache.get(one_shard[3]) == held);
  CHECK(cache.bytes() == 900);
  cache.put(one_shard[4], value, 1001);  // more than a shard may hold
  CHECK(cache.get(one_shard[4]) == nullptr);
  for (std::uint64_t id = 0; id < 10000; ++id)
    cache.put({2, id}, value, 300);
  CHECK(cache.bytes() <= 16 * 1000);
  CHECK(cache.get(one_shard[3]) == nullptr);
  CHECK(held->size() == 7);
}
