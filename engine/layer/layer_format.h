// The bytes of a layer file: encoders and decoders (docs/format.md, Layer file). Pure functions.
//
//   header 4 KiB | chunks | chunk table | slice index | footer 4 KiB
//
// A decoder believes nothing: every field is checked against the format, the file's size and the
// virtual size, and what it returns is safe to compute with. Its errors say what is wrong and
// where; the caller puts the file's name in front.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/base/preamble.h"
#include "engine/layer/layer.h"
#include "snap/digest.h"
#include "snap/limits.h"
#include "snap/result.h"

namespace snap::layer_format {

inline constexpr std::size_t kHeaderBytes = kPageBytes;
inline constexpr std::size_t kFooterBytes = kPageBytes;
inline constexpr std::size_t kEntryBytes = 64;
inline constexpr std::size_t kSliceBytes = kSliceEntries * kEntryBytes;
inline constexpr std::size_t kIndexRecordBytes = 44;
inline constexpr std::string_view kHeaderMagic = "SNAPLAYR";
inline constexpr std::string_view kFooterMagic = "SNAPLEND";
/// Opens the hash of the content digest, so that it is the hash of nothing else.
inline constexpr std::string_view kContentDomain = "snap.layer.content.v1\n";

struct Footer {
  FeatureMasks features;  ///< no bit is defined; read-only compatible ones do not matter here
  LayerInfo info;
  std::uint64_t table_offset = 0;  ///< a multiple of 4096; the chunks end here
  std::uint64_t index_checksum = 0;

  std::uint64_t slices() const noexcept;
  std::uint64_t index_offset() const noexcept;
  std::uint64_t index_bytes() const noexcept;    ///< without padding
  std::uint64_t footer_offset() const noexcept;  ///< where the padding of the index ends
  /// Entries of slice `i`: kSliceEntries, but for the last one.
  std::size_t entries_in(std::uint64_t i) const noexcept;
  ByteOffset slice_offset(std::uint64_t i) const noexcept;
};

/// The table offset and, from it, the file size that a footer must have after chunks that end at
/// `chunks_end`.
void lay_out(Footer& footer, std::uint64_t chunks_end) noexcept;

/// The header says only what the file is: whatever is known last stands in the footer.
void encode_header(const FeatureMasks& features, std::span<std::byte, kHeaderBytes> out);
Result<FeatureMasks> decode_header(std::span<const std::byte, kHeaderBytes> in);

void encode_footer(const Footer& footer, std::span<std::byte, kFooterBytes> out);
/// `file_size` is what the file system says. Corrupt, or Unsupported for an unknown version or
/// incompatible feature, naming the release that the file asks for.
Result<Footer> decode_footer(std::span<const std::byte, kFooterBytes> in, std::uint64_t file_size);

/// One record of the slice index.
struct IndexRecord {
  ChunkIndex first;            ///< first chunk of the slice
  std::uint64_t checksum = 0;  ///< XXH3-64 of the slice's 4096 bytes
  Sha256 content{};            ///< slice_content() of its entries
};

void encode_index_record(const IndexRecord& record, std::span<std::byte, kIndexRecordBytes> out);
IndexRecord decode_index_record(std::span<const std::byte, kIndexRecordBytes> in);

/// Encodes at most kSliceEntries entries; the rest of the slice is zeros.
void encode_slice(std::span<const ChunkEntry> entries, std::span<std::byte, kSliceBytes> out);
/// Decodes slice `i` of a layer with this footer and checks every field of every entry. `record` is
/// its record in the slice index; its chunks lie before `limit` (the first of the next slice).
Result<std::vector<ChunkEntry>> decode_slice(std::span<const std::byte, kSliceBytes> in,
                                             const Footer& footer, std::uint64_t i,
                                             const IndexRecord& record, ChunkIndex limit);

/// SHA-256 of the canonical content of a slice: what its entries say of the volume's bytes, without
/// offsets and encodings.
Sha256 slice_content(std::span<const ChunkEntry> entries);

/// The content digest, slice by slice.
class ContentHash {
 public:
  explicit ContentHash(std::uint64_t virtual_size);
  void add_slice(const Sha256& content);
  ContentDigest finish();

 private:
  Sha256Stream stream_;
};

/// Blocks of `chunk` that begin before `virtual_size`.
BlockMask blocks_within(ChunkIndex chunk, std::uint64_t virtual_size) noexcept;
/// Bytes of block `block` of `chunk` that lie before `virtual_size`, 0 to 4096.
std::size_t bytes_within(ChunkIndex chunk, unsigned block, std::uint64_t virtual_size) noexcept;
/// Bytes of the data blocks of an entry.
std::size_t raw_length(BlockMask data) noexcept;

/// Checks one entry by itself against the footer: masks, bounds, alignment, encoding.
Result<void> check_entry(const ChunkEntry& entry, const Footer& footer);

/// Decompresses the one zstd frame that `stored` must be into `raw`, which it must fill exactly.
/// Writes and allocates nothing beyond that. Blocks: helper threads only. Any thread.
Result<void> decompress_chunk(std::span<const std::byte> stored, std::span<std::byte> raw);

/// Compresses `raw`, at most a chunk, into one frame: its length; or 0 where it saves less than a
/// block, and the chunk is stored raw. `out` has compress_bound() bytes. Helper threads only.
std::size_t compress_chunk(std::span<const std::byte> raw, int level, std::span<std::byte> out);
std::size_t compress_bound() noexcept;

}  // namespace snap::layer_format
