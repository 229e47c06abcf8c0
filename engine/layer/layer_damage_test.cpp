// Damage: every flipped byte, every truncation, and garbage. A damaged layer is never read as
// something else: it gives an error, or the right bytes until a verification finds the damage.
#include <catch2/catch.hpp>

#include "engine/layer/layer_forge.h"

using namespace snap;
using namespace snap::layer_test;

namespace {

/// Reads every block through the layer: true if all of them are those of the model, false on an
/// error. Anything else fails the test.
Task<bool> read_all_right(Layer& layer, const std::map<std::uint64_t, Expected>& model) {
  for (const auto& [chunk, want] : model) {
    auto found = co_await layer.find(ChunkIndex(chunk));
    if (!found) co_return false;
    REQUIRE(found->has_value());
    const ChunkEntry entry = **found;
    REQUIRE(entry.data == want.data);
    REQUIRE(entry.zero == want.zero);
    if (entry.data == 0) continue;
    Bytes got(want.blocks.size() * kBlockSize);
    auto read = co_await layer.read_blocks(entry, entry.data, got);
    if (!read) co_return false;
    std::size_t at = 0;
    for (const auto& [block, bytes] : want.blocks) {
      REQUIRE(std::memcmp(got.data() + at, bytes.data(), kBlockSize) == 0);
      at += kBlockSize;
    }
  }
  co_return true;
}

struct Outcome {
  bool opened = false;
  bool read = false;
  bool verified = false;
};

Task<Outcome> examine(Bytes* bytes, const std::map<std::uint64_t, Expected>* model) {
  Outcome outcome;
  auto layer = co_await open_bytes(*bytes);
  if (!layer) co_return outcome;
  outcome.opened = true;
  outcome.read = co_await read_all_right(**layer, *model);
  auto verified = co_await (*layer)->verify_all({});
  outcome.verified = verified.has_value();
  if (!verified) {
    // The message names the file, and is one line.
    CHECK(verified.error().message().find("layer memory: ") == 0);
    CHECK(verified.error().message().find('\n') == std::string::npos);
  }
  co_return outcome;
}

}  // namespace

TEST_CASE("every flipped byte of a layer is found, and none makes it read as something else") {
  // Three values of each byte. What open() and reads do not look at (header, padding between the
  // chunks) must at least fail verification; no byte of the file is free to change.
  auto loop = quick_loop();
  const auto model = model_of(example_chunks(), kExampleSize, false);
  Bytes bytes = loop->run(layer_bytes(example_options(), example_chunks()));
  Outcome whole = loop->run(examine(&bytes, &model));
  REQUIRE((whole.opened && whole.read && whole.verified));
  std::size_t only_verified = 0;
  for (std::size_t at = 0; at < bytes.size(); ++at) {
    for (unsigned flip : {0x01u, 0x80u, 0xffu}) {
      bytes[at] ^= static_cast<std::byte>(flip);
      const Outcome outcome = loop->run(examine(&bytes, &model));
      bytes[at] ^= static_cast<std::byte>(flip);
      if (outcome.verified) FAIL("byte " << at << " ^ " << flip << " is not noticed");
      only_verified += outcome.opened && outcome.read;
    }
  }
  // The header, and the padding behind the zstd chunk at 0x2000.
  CHECK(only_verified >= 3u * 4096);
  CHECK(only_verified < 3u * 8192);
}

TEST_CASE("a layer that is cut off anywhere is refused at open") {
  auto loop = quick_loop();
  const auto model = model_of(example_chunks(), kExampleSize, false);
  const Bytes whole = loop->run(layer_bytes(example_options(), example_chunks()));
  for (std::size_t length = 0; length < whole.size(); ++length) {
    Bytes cut(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(length));
    if (loop->run(examine(&cut, &model)).opened) FAIL("opens with " << length << " bytes");
  }
  Bytes longer = whole;
  longer.push_back(std::byte{0});
  CHECK_FALSE(loop->run(examine(&longer, &model)).opened);
  longer.resize(whole.size() + 4096);
  CHECK_FALSE(loop->run(examine(&longer, &model)).opened);
}

TEST_CASE("garbage is refused at open") {
  auto loop = quick_loop();
  for (std::uint64_t seed = 1; seed <= 300; ++seed) {
    INFO("seed " << seed);
    SeededRandom random(seed);
    Bytes bytes(random.below(40000));
    random.fill(bytes);
    CHECK_FALSE(loop->run(examine(&bytes, nullptr)).opened);
  }
}

namespace {
Task<void> open_another(Bytes* bytes) {
  ContentDigest other;
  other.bytes.fill(7);
  auto layer = co_await open_bytes(*bytes, other);
  REQUIRE_FALSE(layer.has_value());
  CHECK(layer.error().code() == ErrorCode::kCorrupt);
  CHECK(layer.error().message().find(other.str()) != std::string::npos);
}

Task<void> damage_after_open(Bytes* bytes) {
  auto layer = must(co_await open_bytes(*bytes));
  (*bytes)[0x1234] ^= std::byte{1};
  auto entry = must(co_await layer->find(ChunkIndex(0)));
  Bytes out(kBlockSize);
  for (int attempt = 0; attempt < 2; ++attempt) {
    auto read = co_await layer->read_blocks(*entry, 1, out);
    REQUIRE_FALSE(read.has_value());
    CHECK(read.error().code() == ErrorCode::kCorrupt);
    CHECK(read.error().message().find("chunk 0, 4096 bytes at 4096") != std::string::npos);
    CHECK_FALSE(layer->verified(0, 0));
  }
  auto verified = co_await layer->verify_entry(0, 0);
  CHECK_FALSE(verified.has_value());
  // Chunk 4 shares these bytes; chunk 5 does not.
  auto sharer = co_await layer->verify_entry(0, 3);
  CHECK_FALSE(sharer.has_value());
  must(co_await layer->verify_entry(0, 4));
  bytes->resize(0x3800);
  auto last = must(co_await layer->find(ChunkIndex(2)));
  Bytes two(2 * kBlockSize);
  must(co_await layer->read_blocks(*last, 3, two));
  auto gone = must(co_await layer->find(ChunkIndex(5)));
  auto beyond = co_await layer->read_blocks(*gone, 1, out);
  REQUIRE_FALSE(beyond.has_value());
  CHECK(beyond.error().code() == ErrorCode::kCorrupt);
}
}  // namespace

TEST_CASE("a layer with another content digest than the expected one is refused") {
  auto loop = quick_loop();
  Bytes bytes = loop->run(layer_bytes(example_options(), example_chunks()));
  loop->run(open_another(&bytes));
}

TEST_CASE(
    "damage after open is found at first touch, names the chunk, and is not remembered as good") {
  auto loop = quick_loop();
  Bytes bytes = loop->run(layer_bytes(example_options(), example_chunks()));
  loop->run(damage_after_open(&bytes));
}
