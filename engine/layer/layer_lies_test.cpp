// Lies: files whose checksums are right and whose words are not, as an attacker would make them.
// Each is refused with a clear error, without a crash and without much memory; what can be read of
// a forged file is at most what its own bytes say.
#include "engine/layer/layer_forge.h"

#include <zstd.h>

#include <bit>
#include <catch2/catch.hpp>

using namespace snap;
using namespace snap::layer_test;
namespace format = snap::layer_format;

namespace {

Forgery example() {
  return Forgery::of(quick_loop()->run(layer_bytes(example_options(), example_chunks())));
}

/// Opens, reads every slice and every chunk, verifies: the first error.
Task<Result<void>> use(Bytes* bytes) {
  auto layer = co_await open_bytes(*bytes);
  if (!layer) co_return layer.error();
  for (std::size_t i = 0; i < (*layer)->slice_count(); ++i) {
    auto slice = co_await (*layer)->read_slice(i);
    if (!slice) co_return slice.error();
    for (const ChunkEntry& e : **slice) {
      if (e.data == 0) continue;
      Bytes out(static_cast<std::size_t>(std::popcount(e.data)) * kBlockSize);
      auto read = co_await (*layer)->read_blocks(e, e.data, out);
      if (!read) co_return read.error();
    }
  }
  auto verified = co_await (*layer)->verify_all({});
  co_return verified;
}

Result<void> outcome(Bytes bytes) {
  return quick_loop()->run(use(&bytes));
}

/// The lie is refused as damage, with these words in the message.
void check_refused(const Forgery& forgery, const std::string& words) {
  auto result = outcome(forgery.build());
  INFO("expected to hear: " << words);
  REQUIRE_FALSE(result.has_value());
  INFO("got: " << result.error().message());
  CHECK(result.error().code() == ErrorCode::kCorrupt);
  CHECK(result.error().message().find(words) != std::string::npos);
  CHECK(result.error().message().find("layer memory: ") == 0);
}

using Change = void (*)(Forgery&);

void check_lies(const std::vector<std::pair<Change, const char*>>& lies) {
  for (const auto& [change, words] : lies) {
    Forgery f = example();
    change(f);
    check_refused(f, words);
  }
}

Bytes compress(std::span<const std::byte> raw) {
  Bytes out(ZSTD_compressBound(raw.size()));
  out.resize(ZSTD_compress(out.data(), out.size(), raw.data(), raw.size(), 3));
  return out;
}

}  // namespace

TEST_CASE("a forgery that changes nothing is a good layer") {
  CHECK(outcome(example().build()).has_value());
}

TEST_CASE("lies in the masks and the order of chunks are refused") {
  check_lies({
      {[](Forgery& f) { f.entry(0).zero |= 1; }, "both data and zero"},
      {[](Forgery& f) { f.entry(3).zero = 0; }, "marks no block"},
      {[](Forgery& f) { f.entry(5).zero = 2; }, "beyond the virtual size"},
      {[](Forgery& f) { f.entry(5).chunk = ChunkIndex(6); }, "lies beyond the virtual size"},
      {[](Forgery& f) { std::swap(f.entries[1], f.entries[2]); }, "out of order"},
      {[](Forgery& f) { f.entry(3).chunk = ChunkIndex(2); }, "out of order"},
      {[](Forgery& f) { f.entry(2).data = 0x0007; }, "does not say that it holds 12288"},
      {[](Forgery& f) { f.entry(0).data = 0x0009; }, "its data mask means 8192"},
      {[](Forgery& f) { f.entry(3).content[0] = 1; }, "no data but fields that describe some"},
      {[](Forgery& f) { f.entry(3).offset = 4096; }, "no data but fields that describe some"},
      {[](Forgery& f) { f.entry(3).checksum = 1; }, "no data but fields that describe some"},
      {[](Forgery& f) { f.entry(3).stored_length = 1; }, "no data but fields that describe some"},
      {[](Forgery& f) { f.entry(3).encoding = Encoding::kZstd; }, "no data but fields"},
  });
}

TEST_CASE("lies about where chunks are stored are refused") {
  check_lies({
      {[](Forgery& f) { f.entry(0).offset = 0; }, "outside of the chunks"},
      {[](Forgery& f) { f.entry(0).offset = 5000; }, "not on a 4096-byte boundary"},
      {[](Forgery& f) { f.entry(0).offset = 0x4000; }, "outside of the chunks"},
      {[](Forgery& f) { f.entry(0).offset = ~std::uint64_t{4095}; }, "outside of the chunks"},
      {[](Forgery& f) { f.entry(2).offset = ~std::uint64_t{0}; }, "outside of the chunks"},
      {[](Forgery& f) { f.entry(2).offset = 0x4000 - 1; }, "outside of the chunks"},
      {[](Forgery& f) { f.entry(2).stored_length = 0xffffff; }, "compressed bytes for 8192"},
      {[](Forgery& f) { f.entry(2).stored_length = 8192; }, "compressed bytes for 8192"},
      {[](Forgery& f) { f.entry(2).stored_length = 0; }, "compressed bytes for 8192"},
      {[](Forgery& f) { f.entry(0).stored_length = 4095; }, "its data mask means 4096"},
      {[](Forgery& f) { f.entry(0).encoding = static_cast<Encoding>(2); }, "encoding 2 is unknown"},
      // One chunk inside, before or beside another, with the right checksums for what is there.
      {[](Forgery& f) {
         ChunkEntry& e = f.entry(4);
         e.offset = 0x2000;
         e.checksum = xxh3(std::span(f.chunks).subspan(0x2000, 4096));
         e.content = sha256(std::span(f.chunks).subspan(0x2000, 4096));
       },
       "overlaps what is stored there"},
      {[](Forgery& f) {
         std::swap(f.entry(0).offset, f.entry(5).offset);
         std::swap(f.entry(0).content, f.entry(5).content);
         std::swap(f.entry(0).checksum, f.entry(5).checksum);
         ChunkEntry& sharer = f.entry(4);
         sharer = f.entry(0);
         sharer.chunk = ChunkIndex(4);
         sharer.zero = 0;
       },
       "stored bytes are due at 4096"},
      {[](Forgery& f) { f.entry(4).content[5] ^= 1; }, "overlaps what is stored there"},
      {[](Forgery& f) { f.chunks.resize(f.chunks.size() + 8192); }, "the chunks end at"},
  });
}

TEST_CASE("stored bytes that are not what the entry says are refused") {
  check_lies({
      {[](Forgery& f) { f.entry(5).checksum ^= 1; }, "the checksum does not match"},
      {[](Forgery& f) { f.entry(5).content[31] ^= 1; }, "SHA-256 of its data does not match"},
      {[](Forgery& f) { f.entry(2).content[31] ^= 1; }, "SHA-256 of its data does not match"},
      {[](Forgery& f) { f.chunks[0x2fff] = std::byte{1}; }, "padding before it is not zero"},
      {[](Forgery& f) {
         Bytes zeros(kBlockSize);
         f.store(5, Encoding::kRaw, zeros, sha256(zeros));
         f.chunks.erase(f.chunks.begin() + 0x3000, f.chunks.begin() + 0x4000);
         f.entry(5).offset = 0x3000;
       },
       "stores a block that is all zero"},
      {[](Forgery& f) {
         f.chunks[0x3000 + 2320] = std::byte{1};
         auto stored = std::span(f.chunks).subspan(0x3000, 4096);
         f.entry(5).checksum = xxh3(stored);
         f.entry(5).content = sha256(stored);
       },
       "bytes past the virtual size are not zero"},
      // The same by sharing the bytes of a chunk that may have them.
      {[](Forgery& f) {
         ChunkIndex chunk = f.entry(5).chunk;
         f.entry(5) = f.entry(0);
         f.entries.back().chunk = chunk;
         f.entries.back().zero = 0;
         f.entry(0).zero = 6;
         f.chunks.resize(0x3000);
       },
       "bytes past the virtual size are not zero"},
  });
}

TEST_CASE("lies in the slices and the slice index are refused") {
  check_lies({
      {[](Forgery& f) {
         f.touch_slice = [](std::size_t, std::span<std::byte> s) { s[5 * 64] = std::byte{1}; };
       },
       "bytes after the last entry are not zero"},
      {[](Forgery& f) {
         f.touch_slice = [](std::size_t, std::span<std::byte> s) { s[20] = std::byte{1}; };
       },
       "reserved bytes are not zero"},
      {[](Forgery& f) {  // masks changed under the index's hash of the content
         f.touch_slice = [](std::size_t, std::span<std::byte> s) { s[6] = std::byte{8}; };
       },
       "content is not what the slice index says"},
      {[](Forgery& f) {
         f.touch_slice = [](std::size_t, std::span<std::byte> s) { s[0] = std::byte{1}; };
       },
       "the slice index says 0"},
      {[](Forgery& f) { f.entry(0).chunk = ChunkIndex(4000); }, "cannot begin with chunk 4000"},
      {[](Forgery& f) {
         f.touch_index = [](std::span<std::byte> index) { index.back() = std::byte{1}; };
       },
       "its padding is not zero"},
      {[](Forgery& f) { f.touch_footer = [](auto& foot) { foot.index_checksum ^= 1; }; },
       "checksum does not match"},
      {[](Forgery& f) { f.touch_footer = [](auto& foot) { foot.info.content.bytes[0] ^= 1; }; },
       "amounts to content digest"},
  });
}

TEST_CASE("slices that overlap each other are refused") {
  std::vector<TestChunk> chunks;
  for (unsigned i = 0; i < 130; ++i)
    chunks.push_back({2 * i, 0, 1, {}});
  LayerWriter::Options options;
  options.virtual_size = 1u << 30;
  const Forgery good = Forgery::of(quick_loop()->run(layer_bytes(options, chunks)));
  CHECK(outcome(good.build()).has_value());
  Forgery f = good;
  f.entries[63].chunk = ChunkIndex(128);  // where the next slice begins
  check_refused(f, "chunk 128 is out of order");
  f = good;
  f.entries[64].chunk = ChunkIndex(63);  // 64 chunks do not fit before it
  check_refused(f, "slice 1 cannot begin with chunk 63");
  f = good;
  f.entries[128].chunk = ChunkIndex((1u << 14) - 1);  // two chunks do not fit behind it
  check_refused(f, "slice 2 cannot begin with chunk 16383");
}

TEST_CASE("lies in the footer are refused") {
  check_lies({
      {[](Forgery& f) { f.touch_footer = [](auto& x) { ++x.info.data_blocks; }; },
       "the footer counts"},
      {[](Forgery& f) { f.touch_footer = [](auto& x) { --x.info.zero_blocks; }; },
       "the footer counts"},
      {[](Forgery& f) { f.touch_footer = [](auto& x) { x.info.data_blocks = ~0ull; }; },
       "the footer claims"},
      {[](Forgery& f) { f.touch_footer = [](auto& x) { x.info.zero_blocks = ~0ull; }; },
       "the footer claims"},
      {[](Forgery& f) { f.touch_footer = [](auto& x) { x.info.virtual_size = ~0ull; }; },
       "virtual size"},
      {[](Forgery& f) { f.touch_footer = [](auto& x) { x.info.virtual_size -= 2 * kChunkSize; }; },
       "the footer claims 5 chunks"},
      {[](Forgery& f) { f.touch_footer = [](auto& x) { x.info.virtual_size += 1; }; },
       "amounts to content digest"},
      {[](Forgery& f) { f.touch_footer = [](auto& x) { x.info.file_size += 4096; }; },
       "the footer says that the file has"},
      {[](Forgery& f) { f.touch_footer = [](auto& x) { x.info.entries = 4; }; },
       "bytes after the last entry are not zero"},
      {[](Forgery& f) { f.touch_footer = [](auto& x) { x.info.entries = ~0ull; }; },
       "the footer claims"},
      {[](Forgery& f) { f.touch_footer = [](auto& x) { x.table_offset += 4096; }; },
       "does not fit a file"},
      {[](Forgery& f) { f.touch_footer = [](auto& x) { x.table_offset = 0; }; },
       "does not fit a file"},
      {[](Forgery& f) { f.touch_footer = [](auto& x) { x.table_offset -= 1; }; },
       "does not fit a file"},
      {[](Forgery& f) { f.touch_footer = [](auto& x) { x.table_offset = ~0ull - 4095; }; },
       "does not fit a file"},
  });
}

namespace {

/// A footer that claims a table of `entries`, consistent with a file size that is as large.
Task<void> open_claiming(std::uint64_t entries) {
  format::Footer f;
  f.info.virtual_size = kMaxVolumeSize;
  f.info.entries = f.info.data_blocks = entries;
  format::lay_out(f, format::kHeaderBytes);
  Bytes bytes(format::kFooterBytes);
  format::encode_footer(f, std::span(bytes).first<format::kFooterBytes>());
  // A sparse file: it takes no space to claim terabytes.
  auto file = std::make_unique<MemoryFile>(bytes);
  MemoryFile* watched = file.get();
  file->claimed_size = f.info.file_size;
  file->on_destroy = [watched] { CHECK(watched->read_bytes <= kLayerPieceBytes + 4096); };
  auto layer = co_await Layer::open(std::move(file), std::nullopt);
  REQUIRE_FALSE(layer.has_value());
  CHECK(layer.error().code() == ErrorCode::kCorrupt);
  CHECK(layer.error().message().find("cannot begin with chunk 0") != std::string::npos);
}

}  // namespace

TEST_CASE("a huge table that the file does not really hold is refused after one piece of it") {
  for (std::uint64_t entries : {std::uint64_t{1} << 20, std::uint64_t{1} << 32})
    quick_loop()->run(open_claiming(entries));
}

TEST_CASE("a zstd frame that holds more, or less, or says nothing, or is not alone is refused") {
  const Bytes ones(1u << 20, std::byte{1});
  auto two_blocks = std::span(ones).first(2 * kBlockSize);
  const Bytes good = compress(two_blocks);
  auto try_frame = [&](const Bytes& frame, const std::string& words) {
    Forgery f = example();
    // Chunk 5 goes, so that the frame of chunk 2 is the last thing stored.
    f.entries.pop_back();
    f.chunks.resize(0x2000);
    f.store(2, Encoding::kZstd, frame, sha256(two_blocks));
    if (words.empty()) {
      CHECK(outcome(f.build()).has_value());
    } else {
      check_refused(f, words);
    }
  };
  try_frame(good, "");
  try_frame(compress(ones), "does not say that it holds 8192 bytes");
  try_frame(compress(two_blocks.first(kBlockSize)), "does not say that it holds 8192 bytes");
  Bytes twice = good;
  twice.insert(twice.end(), good.begin(), good.end());
  try_frame(twice, "not one whole zstd frame");
  Bytes trailing = good;
  trailing.push_back(std::byte{0});
  try_frame(trailing, "not one whole zstd frame");
  Bytes cut(good.begin(), good.end() - 1);
  try_frame(cut, "not one whole zstd frame");
  Bytes skippable = {std::byte{0x50}, std::byte{0x2a}, std::byte{0x4d}, std::byte{0x18},
                     std::byte{0},    std::byte{0},    std::byte{0},    std::byte{0}};
  try_frame(skippable, "does not say that it holds 8192 bytes");
  try_frame(Bytes(100, std::byte{0x28}), "does not say that it holds 8192 bytes");
}

TEST_CASE("a zstd frame that says 8192 bytes and yields a megabyte writes no byte too many") {
  // The content size of a frame of a megabyte is a u32 behind magic and descriptor.
  const Bytes ones(1u << 20, std::byte{1});
  Bytes bomb = compress(ones);
  const std::uint32_t lie = 2 * kBlockSize;
  REQUIRE(static_cast<unsigned>(bomb[4]) >> 6 == 2);
  const std::size_t at = (static_cast<unsigned>(bomb[4]) & 0x20) != 0 ? 5 : 6;
  std::memcpy(bomb.data() + at, &lie, 4);
  REQUIRE(ZSTD_getFrameContentSize(bomb.data(), bomb.size()) == lie);
  Bytes raw(2 * kBlockSize + 4096, std::byte{0x55});
  auto done = format::decompress_chunk(bomb, std::span(raw).first(2 * kBlockSize));
  REQUIRE_FALSE(done.has_value());
  CHECK(done.error().code() == ErrorCode::kCorrupt);
  CHECK(std::all_of(raw.begin() + 2 * kBlockSize, raw.end(),
                    [](std::byte b) { return b == std::byte{0x55}; }));
}

TEST_CASE("random lies with right checksums give errors, never a crash") {
  const Forgery good = example();
  unsigned refused = 0;
  constexpr unsigned kRounds = 4000;
  for (std::uint64_t seed = 1; seed <= kRounds; ++seed) {
    INFO("seed " << seed);
    SeededRandom random(seed);
    Forgery f = good;
    // Bytes of entries and of stored chunks change; all sums over them are made right again.
    for (std::uint64_t n = 1 + random.below(3); n != 0; --n) {
      ChunkEntry& e = f.entries[random.below(f.entries.size())];
      switch (random.below(6)) {
        case 0:
          e.data ^= static_cast<BlockMask>(1u << random.below(16));
          break;
        case 1:
          e.offset ^= std::uint64_t{1} << random.below(64);
          break;
        case 2:
          e.stored_length ^= 1u << random.below(24);
          break;
        case 3:
          e.encoding = static_cast<Encoding>(random.below(3));
          break;
        case 4:
          f.chunks[4096 + random.below(f.chunks.size() - 4096)] ^= std::byte{1};
          break;
        default:
          e.chunk = ChunkIndex(random.below(8));
      }
      const bool inside =
          e.offset <= f.chunks.size() && e.stored_length <= f.chunks.size() - e.offset;
      if (inside && e.data != 0)
        e.checksum = xxh3(std::span(f.chunks).subspan(e.offset, e.stored_length));
    }
    refused += !outcome(f.build()).has_value();
  }
  // Few of them hit on something that is right after all.
  CHECK(refused > kRounds * 9 / 10);
}
