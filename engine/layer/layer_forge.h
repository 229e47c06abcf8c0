// For the tests of layers: makes files whose checksums are right and whose words are lies, as an
// attacker would.
#pragma once

#include <bit>
#include <functional>

#include "engine/layer/layer_format.h"
#include "engine/layer/layer_test_support.h"

namespace snap::layer_test {

/// A layer taken apart. Change what you like, then build().
struct Forgery {
  Bytes chunks;  ///< all before the table, header included, without padding
  std::vector<ChunkEntry> entries;
  layer_format::Footer footer;
  /// Changes slice bytes after they are encoded and before they are summed up.
  std::function<void(std::size_t slice, std::span<std::byte>)> touch_slice;
  /// Changes the slice index and its padding before they are summed up.
  std::function<void(std::span<std::byte>)> touch_index;
  /// Changes the footer after it has been worked out from the rest.
  std::function<void(layer_format::Footer&)> touch_footer;

  static Forgery of(const Bytes& layer) {
    Forgery f;
    auto last = std::span(layer).last<layer_format::kFooterBytes>();
    f.footer = must(layer_format::decode_footer(last, layer.size()));
    std::uint64_t end = layer_format::kHeaderBytes;
    for (std::uint64_t i = 0; i < f.footer.slices(); ++i) {
      auto slice = std::span(layer)
                       .subspan(f.footer.slice_offset(i).value)
                       .first<layer_format::kSliceBytes>();
      auto record = layer_format::decode_index_record(
          std::span(layer)
              .subspan(f.footer.index_offset() + i * layer_format::kIndexRecordBytes)
              .first<layer_format::kIndexRecordBytes>());
      auto entries = must(
          layer_format::decode_slice(slice, f.footer, i, record, ChunkIndex(~std::uint64_t{0})));
      f.entries.insert(f.entries.end(), entries.begin(), entries.end());
    }
    for (const ChunkEntry& e : f.entries)
      end = std::max(end, e.offset + e.stored_length);
    f.chunks.assign(layer.begin(), layer.begin() + static_cast<std::ptrdiff_t>(end));
    return f;
  }

  ChunkEntry& entry(std::uint64_t chunk) {
    for (ChunkEntry& e : entries) {
      if (e.chunk.value == chunk) return e;
    }
    test_failed(Error(ErrorCode::kNotFound, "no such chunk in the forgery"));
  }

  /// Stores other bytes for an entry, at the end, with the right checksums for them.
  void store(std::uint64_t chunk, Encoding encoding, std::span<const std::byte> stored,
             const Sha256& content) {
    ChunkEntry& e = entry(chunk);
    if (encoding == Encoding::kRaw) chunks.resize(round_up(chunks.size(), kBlockSize));
    e.encoding = encoding;
    e.offset = chunks.size();
    e.stored_length = static_cast<std::uint32_t>(stored.size());
    e.checksum = xxh3(stored);
    e.content = content;
    chunks.insert(chunks.end(), stored.begin(), stored.end());
  }

  Bytes build() const {
    layer_format::Footer f = footer;
    f.info.entries = entries.size();
    f.info.data_blocks = f.info.zero_blocks = 0;
    for (const ChunkEntry& e : entries) {
      f.info.data_blocks += static_cast<unsigned>(std::popcount(e.data));
      f.info.zero_blocks += static_cast<unsigned>(std::popcount(e.zero));
    }
    layer_format::lay_out(f, chunks.size());
    Bytes out = chunks;
    out.resize(f.info.file_size);
    layer_format::ContentHash content(f.info.virtual_size);
    auto index = std::span(out).subspan(f.index_offset(), f.footer_offset() - f.index_offset());
    for (std::size_t i = 0; i < f.slices(); ++i) {
      auto part = std::span(entries).subspan(i * kSliceEntries, f.entries_in(i));
      auto bytes =
          std::span(out).subspan(f.slice_offset(i).value).first<layer_format::kSliceBytes>();
      layer_format::encode_slice(part, bytes);
      if (touch_slice) touch_slice(i, bytes);
      layer_format::IndexRecord record{part.front().chunk, xxh3(bytes),
                                       layer_format::slice_content(part)};
      content.add_slice(record.content);
      layer_format::encode_index_record(record, index.subspan(i * layer_format::kIndexRecordBytes)
                                                    .first<layer_format::kIndexRecordBytes>());
    }
    if (touch_index) touch_index(index);
    f.index_checksum = xxh3(index);
    f.info.content = content.finish();
    if (touch_footer) touch_footer(f);
    layer_format::encode_footer(f, std::span(out).last<layer_format::kFooterBytes>());
    return out;
  }
};

/// The layer of docs/format.md, Example: raw, zstd, zero and shared chunks, and a partial last one.
inline std::vector<TestChunk> example_chunks() {
  auto blocks = [](std::string_view letters) {
    Bytes out;
    for (char c : letters)
      out.insert(out.end(), kBlockSize, static_cast<std::byte>(c));
    return out;
  };
  return {{0, 0x0001, 0x0006, blocks("A")},
          {2, 0x0003, 0, blocks("BC")},
          {3, 0, 0xffff, {}},
          {4, 0x0100, 0, blocks("A")},
          {5, 0x0001, 0, blocks("D")}};
}
inline constexpr std::uint64_t kExampleSize = 330000;

inline LayerWriter::Options example_options() {
  LayerWriter::Options options;
  options.virtual_size = kExampleSize;
  options.encoding = Encoding::kZstd;
  return options;
}

}  // namespace snap::layer_test
