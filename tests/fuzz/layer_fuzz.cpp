// A layer file: opening, reading and verifying it (docs/format.md, Layer file).
//
// Input: flags, and the pages of the file (unpack_pages). Every other mutation changes a field of
// the format instead of bytes: a file has few bytes that matter, and random ones seldom meet them.
#include <zstd.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <random>

#include "engine/base/checksum.h"
#include "engine/base/codec.h"
#include "engine/layer/layer_forge.h"
#include "fuzz.h"

namespace snap::fuzz {

namespace {

namespace format = layer_format;

enum Flag : unsigned {
  kFixPages = 1,   ///< checksums of header and footer
  kFixChunks = 2,  ///< checksums of stored bytes in the chunk table
  kFixIndex = 4,   ///< what the slice index says of the slices
  kFixFooter = 8,  ///< index checksum, content digest, and the size of the file
};
constexpr unsigned kFixAll = kFixPages | kFixChunks | kFixIndex | kFixFooter;

constexpr std::size_t kMaxPages = 64;
constexpr std::size_t kFileSizeAt = 64;
constexpr std::size_t kEntriesAt = 72;
constexpr std::size_t kTableAt = 96;
constexpr std::size_t kIndexSumAt = 104;
constexpr std::size_t kContentAt = 112;
constexpr std::size_t kStoredAt = 8;  // of an entry
constexpr std::size_t kSumAt = 24;
constexpr std::size_t kHashAt = 32;

void put_hash(std::byte* to, const Sha256& hash) {
  std::memcpy(to, hash.data(), hash.size());
}

/// The data blocks that the stored bytes stand for; the stored bytes where they are no frame.
Bytes raw_of(std::span<const std::byte> stored, bool compressed) {
  Bytes raw(kChunkSize);
  const std::size_t n =
      compressed ? ZSTD_decompress(raw.data(), raw.size(), stored.data(), stored.size()) : 0;
  if (!compressed || ZSTD_isError(n) != 0) return {stored.begin(), stored.end()};
  raw.resize(n);
  return raw;
}

void fix_entry(std::span<std::byte> file, std::byte* entry) {
  if (load_le<std::uint16_t>(entry + 4) == 0) return;
  const auto offset = load_le<std::uint64_t>(entry + kStoredAt);
  const auto length = load_le<std::uint32_t>(entry + 16) & 0xffffff;
  if (offset > file.size() || length > file.size() - offset) return;
  const auto stored = std::span<const std::byte>(file).subspan(offset, length);
  store_le(entry + kSumAt, xxh3(stored));
  put_hash(entry + kHashAt, sha256(raw_of(stored, entry[19] == std::byte{1})));
}

/// What slice_content() reads of the entries of a slice, believing everything.
std::vector<ChunkEntry> entries_of(const std::byte* slice, std::size_t count) {
  std::vector<ChunkEntry> entries(count);
  for (ChunkEntry& e : entries) {
    e.chunk = ChunkIndex(load_le<std::uint32_t>(slice));
    e.data = load_le<std::uint16_t>(slice + 4);
    e.zero = load_le<std::uint16_t>(slice + 6);
    std::memcpy(e.content.data(), slice + kHashAt, e.content.size());
    slice += format::kEntryBytes;
  }
  return entries;
}

/// Corrects what the flags say, as far as the footer's table lies in the file.
void fix(Bytes& file, unsigned flags) {
  if (file.size() < format::kHeaderBytes + format::kFooterBytes) return;
  std::byte* footer = file.data() + file.size() - format::kFooterBytes;
  if ((flags & kFixFooter) != 0)
    store_le(footer + kFileSizeAt, static_cast<std::uint64_t>(file.size()));
  format::Footer f;
  f.info.entries = load_le<std::uint64_t>(footer + kEntriesAt);
  f.table_offset = load_le<std::uint64_t>(footer + kTableAt);
  const std::uint64_t end = file.size() - format::kFooterBytes;
  if (f.table_offset <= end && f.info.entries <= end && f.footer_offset() <= end) {
    format::ContentHash content(load_le<std::uint64_t>(footer + 56));
    for (std::uint64_t i = 0; i < f.slices(); ++i) {
      std::byte* slice = file.data() + f.slice_offset(i).value;
      std::byte* record = file.data() + f.index_offset() + i * format::kIndexRecordBytes;
      for (std::size_t n = 0; (flags & kFixChunks) != 0 && n < f.entries_in(i); ++n)
        fix_entry(file, slice + n * format::kEntryBytes);
      if ((flags & kFixIndex) != 0) {
        store_le(record + 4, xxh3(std::span(slice, format::kSliceBytes)));
        put_hash(record + 12, format::slice_content(entries_of(slice, f.entries_in(i))));
      }
      Sha256 slice_hash;
      std::memcpy(slice_hash.data(), record + 12, slice_hash.size());
      content.add_slice(slice_hash);
    }
    if ((flags & kFixFooter) != 0) {
      const auto index =
          std::span(file).subspan(f.index_offset(), f.footer_offset() - f.index_offset());
      store_le(footer + kIndexSumAt, xxh3(index));
      put_hash(footer + kContentAt, content.finish().bytes);
    }
  }
  if ((flags & kFixPages) == 0) return;
  seal_page(std::span<std::byte, kPageBytes>(file.data(), kPageBytes));
  seal_page(std::span<std::byte, kPageBytes>(footer, kPageBytes));
}

/// Reads whatever the layer says it has. True if no read failed.
Task<bool> read_all(Layer* layer) {
  bool good = true;
  Bytes out(kChunkSize);
  for (std::size_t i = 0; i < layer->slice_count(); ++i) {
    auto slice = co_await layer->read_slice(i);
    if (!slice) {
      good = false;
      continue;
    }
    for (const ChunkEntry& entry : **slice) {
      auto found = co_await layer->find(entry.chunk);
      if (!found || !*found || **found != entry) broken("an entry is found by its chunk");
      // The last block first, so that the whole chunk is verified for it; then all of them.
      const BlockMask one = std::bit_floor(entry.data);
      for (const BlockMask which : {one, entry.data}) {
        if (which == 0) continue;
        const auto to = std::span(out).first(format::raw_length(which));
        auto read = co_await layer->read_blocks(entry, which, to);
        good = good && read.has_value();
      }
    }
  }
  co_return good;
}

Task<void> visit(Bytes* file) {
  auto layer = co_await layer_test::open_bytes(*file);
  if (!layer) co_return;
  const bool readable = co_await read_all(layer->get());
  auto verified = co_await (*layer)->verify_all({});
  if (verified && !readable) broken("what verify takes for sound can be read");
}

}  // namespace

void run(std::span<const std::byte> input) {
  const unsigned flags = take_byte(input);
  Bytes file = unpack_pages(input, kMaxPages);
  fix(file, flags);
  SimLoop loop(1);
  loop.run(visit(&file));
}

namespace {

/// Packs a layer without what the flags put in.
Bytes packed(Bytes file) {
  for (const std::size_t page : {std::size_t{0}, file.size() - kPageBytes})
    store_le(file.data() + page + kPageChecksumAt, std::uint64_t{0});
  return pack_pages(kFixAll, file);
}

/// Blocks whose first byte alone is set: a seed stays small.
layer_test::TestChunk chunk_of(std::uint64_t number, BlockMask data, BlockMask zero,
                               std::uint8_t first) {
  layer_test::TestChunk chunk{number, data, zero, Bytes(format::raw_length(data))};
  for (std::size_t at = 0; at < chunk.blocks.size(); at += kBlockSize)
    chunk.blocks[at] = std::byte{first};
  return chunk;
}

// ---- Mutation of fields

struct Field {
  std::size_t at = 0;  ///< in the file
  std::size_t bytes = 0;
};

/// A field of the footer, of an entry, or of the slice index; of nothing where the file ends
/// before.
Field any_field(const Bytes& file, std::minstd_rand& random) {
  static constexpr Field kOfFooter[] = {{56, 8}, {kFileSizeAt, 8}, {kEntriesAt, 8}, {kTableAt, 8}};
  static constexpr Field kOfEntry[] = {{0, 4},  {4, 2},  {6, 2}, {kStoredAt, 8},
                                       {16, 3}, {19, 1}, {20, 4}};
  const std::size_t footer = file.size() - format::kFooterBytes;
  if (random() % 8 == 0) {
    const Field field = kOfFooter[random() % std::size(kOfFooter)];
    return {footer + field.at, field.bytes};
  }
  const auto entries = load_le<std::uint64_t>(file.data() + footer + kEntriesAt);
  const auto table = load_le<std::uint64_t>(file.data() + footer + kTableAt);
  if (entries == 0 || entries > 4096 || table > footer) return {};
  const std::size_t slices = (entries + kSliceEntries - 1) / kSliceEntries;
  Field field = kOfEntry[random() % std::size(kOfEntry)];
  field.at += table + random() % entries * format::kEntryBytes;
  if (random() % 8 == 0) {
    field = {table + slices * format::kSliceBytes + random() % slices * format::kIndexRecordBytes,
             4};
  }
  return field.at + field.bytes <= footer ? field : Field{};
}

std::uint64_t load_field(const Bytes& file, Field field) {
  std::uint64_t value = 0;
  for (std::size_t i = field.bytes; i-- > 0;)
    value = value << 8 | std::to_integer<std::uint64_t>(file[field.at + i]);
  return value;
}

std::uint64_t other_value(const Bytes& file, Field field, std::minstd_rand& random) {
  const std::uint64_t value = load_field(file, field);
  const std::uint64_t bit = std::uint64_t{1} << random() % (8 * field.bytes);
  switch (random() % 7) {
    case 0:
      return value + 1;
    case 1:
      return value - 1;
    case 2:
      return value + kBlockSize;
    case 3:
      return value - kBlockSize;
    case 4:
      return random() % 2 == 0 ? 0 : ~std::uint64_t{0};
    case 5:
      return load_field(file, {field.at + format::kEntryBytes < file.size() - field.bytes
                                   ? field.at + format::kEntryBytes
                                   : field.at,
                               field.bytes});
    default:
      return value ^ bit;
  }
}

/// The input with one or two fields changed; nothing if it is no layer.
Bytes mutated_fields(std::span<const std::byte> input, std::minstd_rand& random) {
  unsigned flags = take_byte(input);
  if (random() % 4 != 0) flags = kFixAll;
  Bytes file = unpack_pages(input, kMaxPages);
  if (file.size() < format::kHeaderBytes + format::kFooterBytes) return {};
  for (std::size_t n = 1 + random() % 2; n != 0; --n) {
    const Field field = any_field(file, random);
    if (field.bytes == 0) return {};
    std::uint64_t value = other_value(file, field, random);
    for (std::size_t i = 0; i < field.bytes; ++i, value >>= 8)
      file[field.at + i] = static_cast<std::byte>(value);
  }
  return pack_pages(static_cast<std::uint8_t>(flags), file);
}

}  // namespace

std::vector<Seed> seeds() {
  std::vector<Seed> out;
  SimLoop loop(1);
  const auto make = [&](const LayerWriter::Options& options,
                        const std::vector<layer_test::TestChunk>& chunks) {
    return packed(loop.run(layer_test::layer_bytes(options, chunks)));
  };
  LayerWriter::Options options;
  options.virtual_size = layer_test::kExampleSize;
  out.push_back({"empty", make(options, {})});
  std::vector<layer_test::TestChunk> chunks{chunk_of(0, 0x0001, 0x0006, 1),
                                            chunk_of(2, 0x0003, 0, 2), chunk_of(3, 0, 0xffff, 0),
                                            chunk_of(4, 0x0100, 0, 1), chunk_of(5, 0x0001, 0, 3)};
  out.push_back({"raw", make(options, chunks)});
  options.encoding = Encoding::kZstd;
  out.push_back({"zstd", make(options, chunks)});
  chunks.clear();
  for (std::uint64_t i = 0; i < 70; ++i)
    chunks.push_back(chunk_of(i * 3, i % 30 == 0 ? 0x8000 : 0, static_cast<BlockMask>(i + 1), 7));
  options.virtual_size = chunks.size() * 3 * kChunkSize;
  out.push_back({"slices", make(options, chunks)});
  return out;
}

}  // namespace snap::fuzz

extern "C" std::size_t LLVMFuzzerMutate(std::uint8_t* data, std::size_t size, std::size_t room);

extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size,
                                               std::size_t room, unsigned seed) {
  std::minstd_rand random(seed);
  if (random() % 2 == 0) {
    const auto input = std::as_bytes(std::span(data, size));
    const snap::fuzz::Bytes mutated = snap::fuzz::mutated_fields(input, random);
    if (!mutated.empty() && mutated.size() <= room) {
      std::memcpy(data, mutated.data(), mutated.size());
      return mutated.size();
    }
  }
  return LLVMFuzzerMutate(data, size, room);
}
