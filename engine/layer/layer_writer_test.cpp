// What a writer makes of what it is given, what it refuses, and what becomes of failures.
#include <bit>
#include <catch2/catch.hpp>

#include "engine/layer/layer_batch.h"
#include "engine/layer/layer_forge.h"

using namespace snap;
using namespace snap::layer_test;

namespace {

Bytes repeated(std::size_t blocks, unsigned first) {
  Bytes out;
  for (std::size_t i = 0; i < blocks; ++i)
    out.insert(out.end(), kBlockSize, static_cast<std::byte>(first + i));
  return out;
}

Bytes random_bytes(std::uint64_t seed, std::size_t n) {
  Bytes out(n);
  SeededRandom(seed).fill(out);
  return out;
}

LayerWriter::Options sized(std::uint64_t bytes) {
  LayerWriter::Options options;
  options.virtual_size = bytes;
  return options;
}

LayerWriter::Written write_now(LayerWriter::Options options, const std::vector<TestChunk>& chunks) {
  Bytes bytes;
  MemoryFile file(bytes);
  return must(quick_loop()->run(write_layer(file, options, chunks)));
}

std::vector<ChunkEntry> entries_of(LayerWriter::Options options,
                                   const std::vector<TestChunk>& chunks) {
  return Forgery::of(quick_loop()->run(layer_bytes(options, chunks))).entries;
}

}  // namespace

TEST_CASE("an empty layer is a layer") {
  for (std::uint64_t size : {std::uint64_t{0}, std::uint64_t{1}, kMaxVolumeSize}) {
    auto written = write_now(sized(size), {});
    CHECK(written.info.entries == 0);
    CHECK(written.info.virtual_size == size);
    CHECK(written.info.file_size == 8192);
  }
}

TEST_CASE("a bottom layer drops zeros, others mark them") {
  Bytes blocks = repeated(3, 0);  // the first is zero
  std::vector<TestChunk> chunks = {{0, 0x0007, 0x0100, blocks}, {1, 0x0001, 0, repeated(1, 0)}};
  LayerWriter::Options options = sized(4 * kChunkSize);
  auto above = entries_of(options, chunks);
  REQUIRE(above.size() == 2);
  CHECK(above[0].data == 0x0006);
  CHECK(above[0].zero == 0x0101);
  CHECK(above[1].data == 0);
  CHECK(above[1].zero == 0x0001);
  options.bottom = true;
  auto bottom = entries_of(options, chunks);
  REQUIRE(bottom.size() == 1);
  CHECK(bottom[0].data == 0x0006);
  CHECK(bottom[0].zero == 0);
}

TEST_CASE("the content digest does not depend on encoding, on batches, or on how zeros are given") {
  for (std::uint64_t seed = 50; seed < 56; ++seed) {
    INFO("seed " << seed);
    SeededRandom random(seed);
    LayerWriter::Options raw = sized(1 + random.below(40u << 20));
    LayerWriter::Options zstd = raw;
    zstd.encoding = Encoding::kZstd;
    zstd.zstd_level = 1 + static_cast<int>(random.below(9));
    const auto chunks = random_chunks(random, raw.virtual_size, 400);
    // Every zero mark as a data block full of zeros: other batches, for they take room.
    auto verbose = chunks;
    for (TestChunk& c : verbose) {
      Bytes blocks;
      std::size_t at = 0;
      for (unsigned b = 0; b < kBlocksPerChunk; ++b) {
        if ((c.data >> b & 1) != 0) {
          auto from = c.blocks.begin() + static_cast<std::ptrdiff_t>(at);
          blocks.insert(blocks.end(), from, from + kBlockSize);
          at += kBlockSize;
        } else if ((c.zero >> b & 1) != 0) {
          blocks.resize(blocks.size() + kBlockSize);
        }
      }
      c.data = static_cast<BlockMask>(c.data | c.zero);
      c.zero = 0;
      c.blocks = std::move(blocks);
    }
    const auto one = write_now(raw, chunks);
    CHECK(write_now(zstd, chunks).info.content == one.info.content);
    CHECK(write_now(raw, verbose).info.content == one.info.content);
    CHECK(write_now(raw, verbose).blob == one.blob);
    // And it does depend on everything else.
    auto other = chunks;
    if (other.empty()) continue;
    other.pop_back();
    CHECK(write_now(raw, other).info.content != one.info.content);
    raw.virtual_size += 1;
    CHECK(write_now(raw, chunks).info.content != one.info.content);
  }
}

TEST_CASE("equal chunks share their stored bytes, whatever their masks") {
  const Bytes blocks = random_bytes(1, 3 * kBlockSize);
  LayerWriter::Options options = sized(1u << 30);
  std::vector<TestChunk> chunks;
  for (unsigned i = 0; i < 200; ++i)
    chunks.push_back({i * 7, static_cast<BlockMask>(i % 2 != 0 ? 0x0007 : 0x8420), 0, blocks});
  for (Encoding encoding : {Encoding::kRaw, Encoding::kZstd}) {
    options.encoding = encoding;
    auto entries = entries_of(options, chunks);
    REQUIRE(entries.size() == 200);
    for (const ChunkEntry& e : entries)
      CHECK(e.offset == 4096);
    // Header, one chunk, four slices, index, footer.
    CHECK(write_now(options, chunks).info.file_size == 4096 + 3 * 4096 + 4 * 4096 + 4096 + 4096);
  }
}

TEST_CASE("what may be shared is bounded: the oldest is forgotten") {
  ShareTable table;
  ChunkEntry entry;
  auto name = [&entry](std::uint32_t n) {
    std::memcpy(entry.content.data(), &n, sizeof n);
    entry.offset = n;
  };
  for (std::uint32_t n = 0; n < kShareWindow; ++n) {
    name(n);
    table.add(entry);
  }
  name(0);
  REQUIRE(table.find(entry.content) != nullptr);
  CHECK(table.find(entry.content)->offset == 0);
  name(kShareWindow);
  table.add(entry);
  CHECK(table.find(entry.content) != nullptr);
  name(0);
  CHECK(table.find(entry.content) == nullptr);
  name(1);
  CHECK(table.find(entry.content) != nullptr);
}

namespace {

Task<void> refuse_bad_adds(Bytes* bytes) {
  MemoryFile file(*bytes);
  LayerWriter writer(borrowed(file), sized(3 * kChunkSize));
  const Bytes block = repeated(1, 5);
  must(co_await writer.add(ChunkIndex(1), 1, 0, block));
  struct Bad {
    std::uint64_t chunk;
    BlockMask data;
    BlockMask zero;
    std::size_t bytes;
    const char* words;
  };
  for (const Bad& bad :
       {Bad{0, 1, 0, 4096, "out of order"}, Bad{1, 2, 0, 4096, "out of order"},
        Bad{2, 1, 1, 4096, "both data and zero"}, Bad{2, 1, 0, 4095, "its data mask means 4096"},
        Bad{2, 0, 1, 4096, "its data mask means 0"},
        Bad{3, 1, 0, 4096, "beyond the virtual size"}}) {
    auto added = co_await writer.add(ChunkIndex(bad.chunk), bad.data, bad.zero,
                                     std::span(block).first(bad.bytes));
    REQUIRE_FALSE(added.has_value());
    CHECK(added.error().code() == ErrorCode::kInvalidArgument);
    CHECK(added.error().message().find(bad.words) != std::string::npos);
  }
  must(co_await writer.add(ChunkIndex(2), 1, 0, block));
  auto written = must(co_await writer.finish());
  CHECK(written.info.entries == 2);
  CHECK(file.syncs == 1);
  auto late = co_await writer.add(ChunkIndex(2), 1, 0, block);
  CHECK_FALSE(late.has_value());
  auto again = co_await writer.finish();
  CHECK_FALSE(again.has_value());
}

}  // namespace

TEST_CASE("a chunk out of order or at odds with its masks is refused, and the layer stays good") {
  Bytes bytes;
  auto loop = quick_loop();
  loop->run(refuse_bad_adds(&bytes));
  auto layer = must(loop->run(open_bytes(bytes)));
  must(loop->run(layer->verify_all({})));
}

namespace {
Task<Result<LayerWriter::Written>> write_with_late_size(Bytes* bytes, std::uint64_t size,
                                                        const std::vector<TestChunk>* chunks) {
  MemoryFile file(*bytes);
  LayerWriter::Options options = sized(kMaxVolumeSize);
  options.bottom = true;
  LayerWriter writer(borrowed(file), options);
  for (const TestChunk& c : *chunks)
    must(co_await writer.add(ChunkIndex(c.chunk), c.data, c.zero, c.blocks));
  writer.set_virtual_size(size);
  auto written = co_await writer.finish();
  co_return written;
}
}  // namespace

TEST_CASE("a size that is known last gives the same file as one that is known first") {
  for (std::uint64_t tail : {1u, 4095u, 4096u, 4097u, 65535u, 65536u}) {
    INFO("bytes in the last chunk: " << tail);
    const std::uint64_t size = 80 * kChunkSize + tail;
    // 81 full chunks are more than one batch; the last is cut by the size.
    std::vector<TestChunk> chunks;
    for (unsigned i = 0; i <= 80; ++i)
      chunks.push_back({i, kAllBlocks, 0, random_bytes(i + 1, kChunkSize)});
    LayerWriter::Options options = sized(size);
    options.bottom = true;
    Bytes bytes;
    auto late = must(quick_loop()->run(write_with_late_size(&bytes, size, &chunks)));
    CHECK(late.blob == write_now(options, chunks).blob);
    // What is left of the cut block is zero: then it is not stored at all.
    std::fill_n(chunks.back().blocks.begin(), tail, std::byte{0});
    Bytes other;
    late = must(quick_loop()->run(write_with_late_size(&other, size, &chunks)));
    CHECK(late.info.entries == 80);
    CHECK(late.blob == write_now(options, chunks).blob);
  }
}

TEST_CASE("a size that is known last and does not reach what was added is refused") {
  std::vector<TestChunk> chunks = {{0, 1, 0, repeated(1, 1)}, {7, 1, 0, repeated(1, 2)}};
  for (std::uint64_t size : {std::uint64_t{0}, kChunkSize, 7 * kChunkSize, kMaxVolumeSize + 1}) {
    Bytes bytes;
    auto late = quick_loop()->run(write_with_late_size(&bytes, size, &chunks));
    REQUIRE_FALSE(late.has_value());
    CHECK(late.error().code() == ErrorCode::kInvalidArgument);
  }
}

TEST_CASE("many batches, with chunks shared between them, become one good file in whole pieces") {
  for (Encoding encoding : {Encoding::kRaw, Encoding::kZstd}) {
    std::vector<TestChunk> chunks;
    for (unsigned i = 0; i < 300; ++i) {
      Bytes blocks = random_bytes(i % 250, kChunkSize);
      // Every third compresses.
      if (i % 3 == 0) std::fill(blocks.begin() + 100, blocks.end(), static_cast<std::byte>(i));
      chunks.push_back({i + 5, kAllBlocks, 0, std::move(blocks)});
    }
    for (unsigned i = 0; i < 9000; ++i)  // more marks than a batch takes
      chunks.push_back({1000 + i, 0, kAllBlocks, {}});
    LayerWriter::Options options = sized(1u << 30);
    options.encoding = encoding;
    Bytes bytes;
    MemoryFile file(bytes);
    auto loop = thread_loop();
    auto written = must(loop->run(write_layer(file, options, chunks)));
    CHECK(written.blob.bytes == sha256(bytes));
    CHECK(file.largest_write <= kLayerPieceBytes);
    CHECK(file.ragged_writes == 1);  // the last
    CHECK(written.info.entries == 9300);
    auto layer = must(loop->run(open_bytes(bytes)));
    must(loop->run(layer->verify_all({})));
  }
}

TEST_CASE("the blob digest is that of the file when a small batch follows a large one") {
  // The small one has its hashes while a helper still reads the large one for the blob digest:
  // nothing but the writer keeps them in order.
  LoopOptions many;
  many.kind = LoopOptions::Kind::kThreads;
  many.offload_threads = 8;
  auto loop = must(make_event_loop(many));
  const std::size_t full = kLayerBatchBytes / kChunkSize;
  for (std::size_t count : {full + 1, 2 * full + 1, 3 * full + 1}) {
    std::vector<TestChunk> chunks;
    for (unsigned i = 0; i < count; ++i)
      chunks.push_back({i, kAllBlocks, 0, random_bytes(i, kChunkSize)});
    Bytes bytes;
    bytes.reserve(16u << 20);  // so that writes are quick
    MemoryFile file(bytes);
    auto written = must(loop->run(write_layer(file, sized(1u << 30), chunks)));
    CHECK(written.blob.bytes == sha256(bytes));
  }
}

namespace {

Task<Result<LayerWriter::Written>> write_into(Directory& root,
                                              const std::vector<TestChunk>* chunks) {
  auto file = co_await root.open("layer", for_write());
  if (!file) co_return file.error();
  auto written = co_await write_layer(**file, sized(1u << 30), *chunks);
  co_return written;
}

std::vector<TestChunk> three_batches() {
  std::vector<TestChunk> chunks;
  for (unsigned i = 0; i < 160; ++i)
    chunks.push_back({i, kAllBlocks, 0, random_bytes(i, kChunkSize)});
  return chunks;
}

}  // namespace

TEST_CASE("a full disk at any point ends the layer with an error that says so") {
  const auto chunks = three_batches();
  for (std::uint64_t limit : {0u, 4096u, 1u << 20, 5u << 20, 9u << 20, 10485760u, 10500000u}) {
    INFO("limit " << limit);
    SimDisk disk;
    disk.set_space_limit(limit);
    SimLoop loop(limit + 1);
    auto root = disk.root();
    auto written = loop.run(write_into(*root, &chunks));
    REQUIRE_FALSE(written.has_value());
    CHECK(written.error().code() == ErrorCode::kNoSpace);
    CHECK(written.error().message().find("layer") != std::string::npos);
  }
}

TEST_CASE("a write, sync or stat that fails ends the layer with an error; short writes do not") {
  const auto chunks = three_batches();
  for (SimOpKind kind : {SimOpKind::kWrite, SimOpKind::kSync}) {
    for (std::uint64_t nth = 1; nth <= (kind == SimOpKind::kSync ? 1u : 11u); ++nth) {
      INFO("operation " << nth);
      SimDisk disk;
      disk.inject({kind, nth, EIO, 0});
      SimLoop loop(nth);
      auto root = disk.root();
      auto written = loop.run(write_into(*root, &chunks));
      REQUIRE_FALSE(written.has_value());
      CHECK(written.error().code() == ErrorCode::kIo);
    }
  }
  SimDisk disk;
  for (std::uint64_t nth = 1; nth < 9; ++nth)
    disk.inject({SimOpKind::kWrite, nth, 0, static_cast<std::size_t>(1000 * nth)});
  SimLoop loop(1);
  auto root = disk.root();
  must(loop.run(write_into(*root, &chunks)));
  auto file = must(loop.run(root->open("layer", OpenFlags{})));
  auto layer = must(loop.run(Layer::open(std::move(file), std::nullopt)));
  must(loop.run(layer->verify_all({})));
}

TEST_CASE("a finished layer survives a power cut right after") {
  const auto chunks = three_batches();
  SimDisk disk;
  SimLoop loop(3);
  auto root = disk.root();
  auto written = must(loop.run(write_into(*root, &chunks)));
  must(loop.run(root->sync()));  // the name is the caller's
  disk.crash_all_lost();
  root = disk.root();
  auto file = must(loop.run(root->open("layer", OpenFlags{})));
  auto layer = must(loop.run(Layer::open(std::move(file), written.info.content)));
  must(loop.run(layer->verify_all({})));
}

namespace {
Task<void> abandon(Bytes* bytes, std::size_t after) {
  MemoryFile file(*bytes);
  LayerWriter::Options options = sized(1u << 30);
  options.encoding = Encoding::kZstd;
  LayerWriter writer(borrowed(file), options);
  const Bytes blocks = random_bytes(after, kChunkSize);
  for (std::size_t i = 0; i < after; ++i)
    must(co_await writer.add(ChunkIndex(i), kAllBlocks, 0, blocks));
}
Task<Result<void>> write_over_something(Bytes* bytes) {
  bytes->resize(1);
  MemoryFile file(*bytes);
  LayerWriter writer(borrowed(file), sized(1u << 30));
  auto written = co_await writer.finish();
  if (!written) co_return written.error();
  co_return Result<void>();
}
}  // namespace

TEST_CASE("a writer may be destroyed while helpers still hash for it") {
  auto loop = thread_loop();
  for (std::size_t after : {0u, 1u, 65u, 70u, 130u, 200u}) {
    Bytes bytes;
    loop->run(abandon(&bytes, after));
    CHECK(bytes.size() % kBlockSize == 0);
  }
}

namespace {
/// 24 MiB with a sync every 8; the `fail`th sync fails. Counts the syncs.
Task<Result<LayerWriter::Written>> write_synced(Bytes* bytes, std::size_t fail,
                                                std::size_t* syncs) {
  MemoryFile file(*bytes);
  file.fail_sync = fail;
  LayerWriter::Options options = sized(1u << 30);
  options.sync_every = 8u << 20;
  std::vector<TestChunk> chunks;
  for (unsigned i = 0; i < 384; ++i)
    chunks.push_back({i, kAllBlocks, 0, random_bytes(i + 1, kChunkSize)});
  auto writing = write_layer(file, options, chunks);
  auto written = co_await std::move(writing);
  *syncs = file.syncs;
  co_return written;
}
}  // namespace

TEST_CASE("a layer is synced as it grows, and fails whichever of its syncs fails") {
  std::size_t syncs = 0;
  Bytes bytes;
  must(quick_loop()->run(write_synced(&bytes, 0, &syncs)));
  REQUIRE(syncs >= 3);
  for (std::size_t fail = 1, all = syncs; fail <= all; ++fail) {
    INFO("sync " << fail << " of " << all);
    Bytes part;
    auto written = quick_loop()->run(write_synced(&part, fail, &syncs));
    REQUIRE_FALSE(written.has_value());
    CHECK(written.error().code() == ErrorCode::kIo);
  }
}

TEST_CASE("a writer does not write over what a file has already") {
  Bytes bytes;
  auto written = quick_loop()->run(write_over_something(&bytes));
  REQUIRE_FALSE(written.has_value());
  CHECK(written.error().code() == ErrorCode::kInvalidArgument);
  CHECK(bytes.size() == 1);
}
