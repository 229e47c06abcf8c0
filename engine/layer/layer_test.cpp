// What a layer gives back is what was written into it, in canonical form, whatever the encoding and
// wherever the file is.
#include "engine/layer/layer_test_support.h"

#include <bit>
#include <catch2/catch.hpp>

#include "snap/limits.h"

using namespace snap;
using namespace snap::layer_test;

namespace {

Task<BlobDigest> digest_of_file(File& file, std::uint64_t size) {
  Bytes bytes(size);
  must(co_await read_exact(file, bytes, ByteOffset(0)));
  co_return BlobDigest{sha256(bytes)};
}

/// Every block of the model, read in one go and by a random subset.
Task<void> check_chunk(Layer& layer, std::uint64_t chunk, const Expected& expected,
                       SeededRandom& random) {
  auto found = must(co_await layer.find(ChunkIndex(chunk)));
  REQUIRE(found.has_value());
  const ChunkEntry entry = *found;
  CHECK(entry.data == expected.data);
  CHECK(entry.zero == expected.zero);
  for (int round = 0; round < 3 && entry.data != 0; ++round) {
    auto which = static_cast<BlockMask>(entry.data & random.next());
    if (round == 1 || which == 0) which = entry.data;
    Bytes got(static_cast<std::size_t>(std::popcount(which)) * kBlockSize);
    must(co_await layer.read_blocks(entry, which, got));
    Bytes want;
    for (const auto& [block, bytes] : expected.blocks) {
      if ((which >> block & 1) != 0) want.insert(want.end(), bytes.begin(), bytes.end());
    }
    CHECK((got == want));
  }
}

Task<void> check_layer(Layer& layer, const std::map<std::uint64_t, Expected>& model,
                       SeededRandom& random) {
  CHECK(layer.info().entries == model.size());
  std::uint64_t listed = 0;
  for (std::size_t i = 0; i < layer.slice_count(); ++i) {
    auto slice = must(co_await layer.read_slice(i));
    CHECK(layer.slice_first(i) == slice->front().chunk);
    for (const ChunkEntry& e : *slice) {
      CHECK(model.contains(e.chunk.value));
      CHECK(layer.slice_of(e.chunk) == i);
    }
    listed += slice->size();
  }
  CHECK(listed == model.size());
  for (const auto& [chunk, expected] : model) {
    co_await check_chunk(layer, chunk, expected, random);
    if (!model.contains(chunk + 1)) {
      auto none = must(co_await layer.find(ChunkIndex(chunk + 1)));
      CHECK_FALSE(none.has_value());
    }
  }
}

Task<void> round_trip(Directory& root, std::uint64_t seed, Encoding encoding) {
  SeededRandom random(seed);
  LayerWriter::Options options;
  options.encoding = encoding;
  options.bottom = random.below(2) == 0;
  options.virtual_size = 1 + random.below(random.below(3) == 0 ? 3 * kChunkSize : 64u << 20);
  const auto chunks = random_chunks(random, options.virtual_size, random.below(300));
  const std::string name =
      "layer-" + std::to_string(seed) + (encoding == Encoding::kRaw ? "r" : "z");
  auto out = must(co_await root.open(name, for_write()));
  const auto written = must(co_await write_layer(*out, options, chunks));
  const auto size = must(co_await out->stat()).size;
  CHECK(written.info.file_size == size);
  const BlobDigest blob = co_await digest_of_file(*out, size);
  CHECK(blob == written.blob);

  auto in = must(co_await root.open(name, OpenFlags{}));
  auto layer = must(co_await Layer::open(std::move(in), written.info.content));
  CHECK(layer->info().content == written.info.content);
  CHECK(layer->info().virtual_size == options.virtual_size);
  const auto model = model_of(chunks, options.virtual_size, options.bottom);
  co_await check_layer(*layer, model, random);
  std::uint64_t told = 0;
  must(co_await layer->verify_all([&told](std::uint64_t bytes) { told = bytes; }));
  CHECK((told != 0) == (layer->info().data_blocks != 0));
}

}  // namespace

TEST_CASE("random chunks come back as they were written, from every disk and loop") {
  const auto* kind = GENERATE("threads", "uring", "simulated");
  TestRig rig(kind);
  constexpr std::uint64_t base = 1000;
  for (std::uint64_t seed = base; seed < base + 15; ++seed) {
    INFO("seed " << seed);
    for (Encoding encoding : {Encoding::kRaw, Encoding::kZstd})
      rig.loop->run(round_trip(*rig.root, seed, encoding));
  }
}
