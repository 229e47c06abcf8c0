// The claims of pack.h: a packed layer holds what the deltas change, and nothing else.
#include "engine/volume/pack.h"

#include <bit>
#include <catch2/catch.hpp>

#include "engine/io/sim_loop.h"
#include "engine/volume/volume_model.h"

using namespace snap;
using namespace snap::volume_test;

namespace {

Task<Result<void>> succeed() {
  co_return Result<void>();
}

/// A volume with sealed deltas, and the content that it had when each was sealed, top first. The
/// last content is that of the image.
struct Sealed {
  std::unique_ptr<Volume> volume;
  std::vector<Bytes> contents;
};

/// Changes that often end where they began: the same bytes again, zeros over nothing.
Task<void> change(Volume& volume, Bytes& content, SeededRandom& random) {
  const std::uint64_t at = random.below(content.size());
  const std::size_t length = std::min<std::uint64_t>(content.size() - at, 1 + random.below(60000));
  const auto range = std::span(content).subspan(at, length);
  switch (random.below(5)) {
    case 0:
      must(co_await volume.write(ByteOffset(at), Bytes(range.begin(), range.end()), {}));
      break;
    case 1:
      must(co_await volume.write_zeroes(ByteOffset(at), length, {}));
      std::ranges::fill(range, std::byte{0});
      break;
    case 2: {
      const Bytes zeros(length);
      must(co_await volume.write(ByteOffset(at), zeros, {}));
      std::ranges::fill(range, std::byte{0});
      break;
    }
    case 3: {
      const std::uint64_t size = kSectorSize * (1 + random.below(3000));
      must(co_await volume.resize(size, succeed));
      content.resize(size);
      break;
    }
    default: {
      const Bytes bytes = random_bytes(random, length);
      must(co_await volume.write(ByteOffset(at), bytes, {}));
      std::ranges::copy(bytes, range.begin());
    }
  }
}

Task<void> build(Directory& root, SeededRandom& random, std::size_t layers, std::size_t deltas,
                 Sealed& out) {
  StackModel model;
  Record record;
  for (std::size_t i = 0; i < layers; ++i) {
    LayerSpec spec;
    spec.virtual_size = kSectorSize * (1 + random.below(3000));
    for (int n = 0; n < 60; ++n)
      spec.blocks[random.below(round_up(spec.virtual_size, kBlockSize) / kBlockSize)] =
          random.below(4) == 0 ? std::nullopt : std::optional(random_block(random));
    record.layers.push_back("layer" + std::to_string(i));
    co_await make_layer(root, record.layers.back(), spec);
    model.apply(spec);
  }
  Bytes content = layers == 0 ? Bytes(500000) : model.content;
  record.size = content.size();
  record.deltas.push_back({"delta", record.size});
  auto delta = co_await create_delta(root, "delta", record.size, random);
  must(co_await delta->close());
  out.volume = co_await open_volume(root, record);
  out.contents.push_back(content);
  for (std::size_t i = 0; i < deltas; ++i) {
    for (int n = 0; n < 12; ++n)
      co_await change(*out.volume, content, random);
    auto fresh = co_await create_delta(root, "fresh" + std::to_string(i), content.size(), random);
    must(co_await out.volume->push_delta(fresh, succeed));
    out.contents.insert(out.contents.begin(), content);
  }
}

std::span<const std::byte> block_of_bytes(const Bytes& content, std::uint64_t block) {
  return std::span(content).subspan(block * kBlockSize, kBlockSize);
}

/// Compares every block of the layer with what it has to be between `below` and `now`.
Task<void> check_layer(Layer& layer, Bytes below, Bytes now) {
  below.resize(now.size());
  now.resize(round_up(now.size(), kChunkSize));
  below.resize(now.size());
  for (ChunkIndex chunk(0); offset_of(chunk).value < now.size(); ++chunk) {
    const auto entry = must(co_await layer.find(chunk));
    BlockMask data = 0;
    BlockMask zero = 0;
    Bytes expected;
    for (unsigned b = 0; b < kBlocksPerChunk; ++b) {
      const auto is = block_of_bytes(now, chunk.value * kBlocksPerChunk + b);
      const auto was = block_of_bytes(below, chunk.value * kBlocksPerChunk + b);
      if (!first_difference(is, was)) continue;
      if (is_zero(is)) {
        zero = static_cast<BlockMask>(zero | 1u << b);
      } else {
        data = static_cast<BlockMask>(data | 1u << b);
        expected.insert(expected.end(), is.begin(), is.end());
      }
    }
    CAPTURE(chunk.value);
    CHECK(entry.has_value() == ((data | zero) != 0));
    if (!entry) continue;
    CHECK(entry->data == data);
    CHECK(entry->zero == zero);
    if (data == 0 || entry->data != data) continue;
    Bytes got(expected.size());
    must(co_await layer.read_blocks(*entry, data, got));
    CHECK_FALSE(first_difference(got, expected));
  }
}

Task<void> pack_random(Directory& root, std::uint64_t seed) {
  SeededRandom random(seed);
  Sealed sealed;
  co_await build(root, random, random.below(4), 1 + random.below(4), sealed);
  PackSource source;
  source.chain = sealed.volume->parts();
  source.first = random.below(source.chain.sealed.size());
  source.last = source.first + random.below(source.chain.sealed.size() - source.first);
  source.size = sealed.contents[source.first].size();
  CAPTURE(source.first, source.last, source.size);
  PackOptions options;
  options.encoding = random.below(2) == 0 ? Encoding::kRaw : Encoding::kZstd;
  std::vector<std::pair<std::uint64_t, std::uint64_t>> told;
  options.progress = [&told](std::uint64_t done, std::uint64_t total) {
    told.emplace_back(done, total);
  };
  const std::size_t first = source.first;
  const std::size_t last = source.last;
  co_await pack_to(root, "packed", source, options);
  auto file = must(co_await root.open("packed", OpenFlags{}));
  auto layer = must(co_await Layer::open(std::move(file), std::nullopt));
  CHECK(layer->info().virtual_size == sealed.contents[first].size());
  must(co_await layer->verify_all([](std::uint64_t) {}));
  co_await check_layer(*layer, sealed.contents[last + 1], sealed.contents[first]);
  for (std::size_t i = 1; i < told.size(); ++i)
    CHECK(told[i].first >= told[i - 1].first);
  if (!told.empty()) CHECK(told.back().first == told.back().second);
  must(co_await sealed.volume->close());
}

}  // namespace

TEST_CASE("a packed layer holds exactly the blocks that differ from what lies below") {
  const std::uint64_t seed = GENERATE(take(40, random(1u, 1u << 30)));
  CAPTURE(seed);
  TestRig rig("simulated");
  rig.loop = std::make_unique<SimLoop>(seed);
  rig.loop->run(pack_random(*rig.root, seed));
}

TEST_CASE("packing comes to the same on real files") {
  const auto* kind = GENERATE("threads", "uring");
  const std::uint64_t seed = GENERATE(take(2, random(1u, 1u << 30)));
  CAPTURE(kind, seed);
  TestRig rig(kind);
  rig.loop->run(pack_random(*rig.root, seed));
}

namespace {

constexpr std::uint64_t kBig = 24u << 20;

/// One sealed delta with 24 MiB of random bytes over an image without layers.
Task<PackSource> big_source(Directory& root, Sealed& sealed) {
  SeededRandom random(8);
  Record record;
  record.size = kBig;
  record.deltas.push_back({"delta", kBig});
  auto delta = co_await create_delta(root, "delta", kBig, random);
  must(co_await delta->close());
  sealed.volume = co_await open_volume(root, record);
  const Bytes bytes = random_bytes(random, kBig);
  must(co_await sealed.volume->write(ByteOffset(0), bytes, {}));
  auto fresh = co_await create_delta(root, "fresh", kBig, random);
  must(co_await sealed.volume->push_delta(fresh, succeed));
  PackSource source;
  source.chain = sealed.volume->parts();
  source.size = kBig;
  co_return source;
}

Task<void> cancelled(Directory& root) {
  Sealed sealed;
  const PackSource source = co_await big_source(root, sealed);
  int asked = 0;
  std::uint64_t done = 0;
  PackOptions options;
  options.cancelled = [&asked] { return ++asked == 5; };
  options.progress = [&done](std::uint64_t now, std::uint64_t) { done = now; };
  std::shared_ptr<File> out = must(co_await root.open("packed", for_write()));
  auto packed = co_await pack(source, out, options);
  REQUIRE_FALSE(packed.has_value());
  CHECK(packed.error().code() == ErrorCode::kCancelled);
  CHECK(done > 0);
  CHECK(done < kBig / 2);
  must(co_await sealed.volume->close());
}

Task<void> at_a_rate(Directory& root) {
  Sealed sealed;
  const PackSource source = co_await big_source(root, sealed);
  PackOptions options;
  options.bytes_per_second = 8u << 20;
  const auto begin = EventLoop::current()->now();
  co_await pack_to(root, "packed", source, options);
  const auto took = EventLoop::current()->now() - begin;
  CHECK(took >= std::chrono::milliseconds(2800));
  CHECK(took <= std::chrono::milliseconds(3200));
  must(co_await sealed.volume->close());
}

Task<void> below_is_damaged(Directory& root) {
  SeededRandom random(9);
  LayerSpec spec;
  spec.virtual_size = kChunkSize;
  spec.blocks[3] = random_bytes(random, kBlockSize);
  co_await make_layer(root, "layer", spec);
  Record record;
  record.size = kChunkSize;
  record.layers = {"layer"};
  record.deltas.push_back({"delta", kChunkSize});
  auto delta = co_await create_delta(root, "delta", kChunkSize, random);
  must(co_await delta->close());
  auto volume = co_await open_volume(root, record);
  must(co_await volume->write(ByteOffset(0), random_bytes(random, kChunkSize), {}));
  auto fresh = co_await create_delta(root, "fresh", kChunkSize, random);
  must(co_await volume->push_delta(fresh, succeed));
  auto file = must(co_await root.open("layer", for_write()));
  must(co_await write_all(*file, Bytes(1, ~(*spec.blocks[3])[7]), ByteOffset(4096 + 7)));
  PackSource source;
  source.chain = volume->parts();
  source.size = kChunkSize;
  std::shared_ptr<File> out = must(co_await root.open("packed", for_write()));
  auto packed = co_await pack(source, out, {});
  REQUIRE_FALSE(packed.has_value());
  CHECK(packed.error().code() == ErrorCode::kCorrupt);
  source.last = 1;
  packed = co_await pack(source, out, {});
  REQUIRE_FALSE(packed.has_value());
  CHECK(packed.error().code() == ErrorCode::kInvalidArgument);
  must(co_await volume->close());
}

}  // namespace

TEST_CASE("packing ends soon after it was cancelled") {
  TestRig rig("threads");
  rig.loop->run(cancelled(*rig.root));
}

TEST_CASE("packing keeps to its rate") {
  TestRig rig("simulated");
  rig.loop->run(at_a_rate(*rig.root));
}

TEST_CASE("packing over a damaged layer fails and names it") {
  TestRig rig("threads");
  rig.loop->run(below_is_damaged(*rig.root));
}
