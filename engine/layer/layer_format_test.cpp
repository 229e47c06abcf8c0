// The format as docs/format.md states it: its example is decoded from the page itself, and digests
// are compared with values that were computed without this code (Python's hashlib and struct).
#include <catch2/catch.hpp>

#include "docs_example.h"
#include "engine/layer/layer_forge.h"

using namespace snap;
using namespace snap::layer_test;
namespace format = snap::layer_format;

namespace {

Task<void> check_docs_example(Bytes* bytes) {
  auto expected = parse_digest<ContentDigest>(
      "sha256:6d7b3db3e243c5f9a28800523abd06fba01ff41c606e15895394d6cbe2f22c22");
  auto layer = must(co_await open_bytes(*bytes, expected));
  must(co_await layer->verify_all({}));
  CHECK(layer->info().virtual_size == kExampleSize);
  const auto model = model_of(example_chunks(), kExampleSize, false);
  auto slice = must(co_await layer->read_slice(0));
  REQUIRE(slice->size() == model.size());
  for (const ChunkEntry& e : *slice) {
    const Expected& want = model.at(e.chunk.value);
    CHECK(e.data == want.data);
    CHECK(e.zero == want.zero);
    for (const auto& [block, data] : want.blocks) {
      Bytes got(kBlockSize);
      must(co_await layer->read_blocks(e, static_cast<BlockMask>(1u << block), got));
      CHECK((got == data));
    }
  }
  CHECK((*slice)[1].encoding == Encoding::kZstd);
  CHECK((*slice)[3].offset == (*slice)[0].offset);
}

Task<ContentDigest> content_of(LayerWriter::Options options, const std::vector<TestChunk>& chunks) {
  Bytes bytes;
  MemoryFile file(bytes);
  auto written = must(co_await write_layer(file, options, chunks));
  co_return written.info.content;
}

/// Puts a right checksum on a header or footer that was changed.
void reseal(std::span<std::byte> page) {
  std::uint64_t sum = xxh3(page.first(4088));
  for (unsigned i = 0; i < 8; ++i)
    page[4088 + i] = static_cast<std::byte>(sum >> 8 * i);
}

Bytes example_bytes() {
  return quick_loop()->run(layer_bytes(example_options(), example_chunks()));
}

Result<format::Footer> decode_last_page(const Bytes& bytes) {
  return format::decode_footer(std::span(bytes).last<4096>(), bytes.size());
}

}  // namespace

TEST_CASE("the example in docs/format.md is a layer with the content that the page says") {
  Bytes bytes = docs_example(SNAP_FORMAT_MD, "layer");
  REQUIRE(bytes.size() == 0x7000);
  quick_loop()->run(check_docs_example(&bytes));
}

TEST_CASE("the writer makes the bytes of the example in docs/format.md, but for the zstd frame") {
  // Another libzstd may compress otherwise; then frame, length and checksums differ, no more.
  const Bytes docs = docs_example(SNAP_FORMAT_MD, "layer");
  const Bytes mine = example_bytes();
  REQUIRE(docs.size() == mine.size());
  CHECK(std::equal(docs.begin(), docs.begin() + 0x2000, mine.begin()));
  CHECK(std::equal(docs.begin() + 0x3000, docs.begin() + 0x4050, mine.begin() + 0x3000));
  CHECK(std::equal(docs.begin() + 0x4060, docs.begin() + 0x5000, mine.begin() + 0x4060));
  CHECK(std::equal(docs.begin() + 0x500c, docs.begin() + 0x6068, mine.begin() + 0x500c));
  CHECK(std::equal(docs.begin() + 0x6070, docs.begin() + 0x6ff8, mine.begin() + 0x6070));
}

TEST_CASE("content digests are those that an independent program computes") {
  auto loop = quick_loop();
  LayerWriter::Options options;
  CHECK(loop->run(content_of(options, {})).hex() ==
        "91a799467768b8028447b341beb66b37ea84a7aebe654bf5923288bac0344c8f");
  // More than one slice: chunk i of 100 is full of the byte i + 1.
  std::vector<TestChunk> chunks;
  for (unsigned i = 0; i < 100; ++i)
    chunks.push_back({i, kAllBlocks, 0, Bytes(kChunkSize, static_cast<std::byte>(i + 1))});
  options.virtual_size = 100 * kChunkSize;
  for (Encoding encoding : {Encoding::kRaw, Encoding::kZstd}) {
    options.encoding = encoding;
    CHECK(loop->run(content_of(options, chunks)).hex() ==
          "42611be30ed1597c57b2e11ab15dd98ff72d5153a127b60b9243b015b8f753ed");
  }
}

TEST_CASE("an unknown incompatible feature or version is refused, naming the release it needs") {
  const Bytes good = example_bytes();
  REQUIRE(decode_last_page(good).has_value());
  const std::size_t footer = good.size() - 4096;
  for (std::size_t at : {std::size_t{8}, std::size_t{32}, std::size_t{39}}) {
    Bytes bytes = good;
    bytes[footer + at] ^= std::byte{0x40};
    std::memcpy(bytes.data() + footer + 40, "12.3.4\0", 7);
    reseal(std::span(bytes).last(4096));
    auto decoded = decode_last_page(bytes);
    REQUIRE_FALSE(decoded.has_value());
    CHECK(decoded.error().code() == ErrorCode::kUnsupported);
    CHECK(decoded.error().message().find("release 12.3.4 or newer") != std::string::npos);
  }
}

TEST_CASE("a release field full of control characters does not reach the terminal") {
  Bytes bytes = example_bytes();
  const std::size_t footer = bytes.size() - 4096;
  bytes[footer + 32] = std::byte{1};
  std::memset(bytes.data() + footer + 40, 0x1b, 16);
  reseal(std::span(bytes).last(4096));
  auto decoded = decode_last_page(bytes);
  REQUIRE_FALSE(decoded.has_value());
  CHECK(decoded.error().message().find('\x1b') == std::string::npos);
}

namespace {
Task<void> open_with_compatible_features(Bytes* bytes) {
  auto layer = must(co_await open_bytes(*bytes));
  must(co_await layer->verify_all({}));
  CHECK(layer->info().entries == 5);
}
Task<void> verify_with_other_header(Bytes* bytes) {
  auto layer = must(co_await open_bytes(*bytes));
  auto verified = co_await layer->verify_all({});
  REQUIRE_FALSE(verified.has_value());
  CHECK(verified.error().code() == ErrorCode::kCorrupt);
}
}  // namespace

TEST_CASE("unknown compatible features are ignored, and what they put in reserved bytes") {
  for (std::size_t mask_at : {16u, 24u}) {
    Bytes bytes = example_bytes();
    for (std::size_t page : {std::size_t{0}, bytes.size() - 4096}) {
      bytes[page + mask_at] = std::byte{4};
      bytes[page + 4000] = std::byte{77};
      reseal(std::span(bytes).subspan(page, 4096));
    }
    quick_loop()->run(open_with_compatible_features(&bytes));
    bytes[mask_at] = std::byte{2};
    reseal(std::span(bytes).first(4096));
    quick_loop()->run(verify_with_other_header(&bytes));
  }
}

TEST_CASE("reserved bytes that no feature explains are refused") {
  const Bytes good = example_bytes();
  for (std::size_t at : {12u, 15u, 144u, 4087u}) {
    Bytes bytes = good;
    bytes[bytes.size() - 4096 + at] = std::byte{1};
    reseal(std::span(bytes).last(4096));
    auto decoded = decode_last_page(bytes);
    REQUIRE_FALSE(decoded.has_value());
    CHECK(decoded.error().code() == ErrorCode::kCorrupt);
  }
  for (std::size_t at : {12u, 56u, 4087u}) {
    Bytes bytes = good;
    bytes[at] = std::byte{1};
    reseal(std::span(bytes).first(4096));
    CHECK_FALSE(format::decode_header(std::span(bytes).first<4096>()).has_value());
  }
}

TEST_CASE("masks and lengths at the end of a volume of any size") {
  CHECK(format::blocks_within(ChunkIndex(0), 0) == 0);
  CHECK(format::blocks_within(ChunkIndex(0), 1) == 0x0001);
  CHECK(format::blocks_within(ChunkIndex(0), 4096) == 0x0001);
  CHECK(format::blocks_within(ChunkIndex(0), 4097) == 0x0003);
  CHECK(format::blocks_within(ChunkIndex(0), kChunkSize) == kAllBlocks);
  CHECK(format::blocks_within(ChunkIndex(1), kChunkSize) == 0);
  CHECK(format::blocks_within(ChunkIndex((std::uint64_t{1} << 32) - 1), kMaxVolumeSize) ==
        kAllBlocks);
  CHECK(format::bytes_within(ChunkIndex(0), 0, 100) == 100);
  CHECK(format::bytes_within(ChunkIndex(0), 1, 100) == 0);
  CHECK(format::bytes_within(ChunkIndex(1), 15, 2 * kChunkSize) == 4096);
}
