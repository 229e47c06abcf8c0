#include "engine/layer/layer_format.h"

#include <bit>

#include "engine/base/checksum.h"
#include "engine/base/codec.h"

namespace snap::layer_format {

namespace {

Error corrupt(std::string message) {
  return Error(ErrorCode::kCorrupt, std::move(message));
}

std::string quantity(std::uint64_t n) {
  return std::to_string(n);
}

void encode_entry(Encoder& out, const ChunkEntry& e) {
  out.le(static_cast<std::uint32_t>(e.chunk.value));
  out.le(e.data);
  out.le(e.zero);
  out.le(e.offset);
  out.le(e.stored_length | static_cast<std::uint32_t>(e.encoding) << 24);
  out.le<std::uint32_t>(0);
  out.le(e.checksum);
  out.bytes(std::as_bytes(std::span(e.content)));
}

Result<ChunkEntry> decode_entry(Decoder& in, const Footer& footer) {
  ChunkEntry e;
  e.chunk = ChunkIndex(in.le<std::uint32_t>());
  e.data = in.le<std::uint16_t>();
  e.zero = in.le<std::uint16_t>();
  e.offset = in.le<std::uint64_t>();
  auto length_and_encoding = in.le<std::uint32_t>();
  e.stored_length = length_and_encoding & 0xffffff;
  auto encoding = length_and_encoding >> 24;
  auto reserved = in.le<std::uint32_t>();
  e.checksum = in.le<std::uint64_t>();
  auto content = in.bytes(e.content.size());
  std::memcpy(e.content.data(), content.data(), content.size());
  std::string where = "entry of chunk " + quantity(e.chunk.value);
  if (encoding > static_cast<std::uint32_t>(Encoding::kZstd))
    return corrupt(where + ": encoding " + quantity(encoding) + " is unknown");
  if (reserved != 0) return corrupt(where + ": reserved bytes are not zero");
  e.encoding = static_cast<Encoding>(encoding);
  auto checked = check_entry(e, footer);
  if (!checked) return checked.error().with_context(where);
  return e;
}

Result<void> check_stored(const ChunkEntry& e, const Footer& footer) {
  const std::uint64_t raw = raw_length(e.data);
  if (e.encoding == Encoding::kRaw) {
    if (e.stored_length != raw)
      return corrupt("stores " + quantity(e.stored_length) + " bytes, its data mask means " +
                     quantity(raw));
    if (e.offset % kBlockSize != 0)
      return corrupt("raw bytes at " + quantity(e.offset) + " are not on a 4096-byte boundary");
  } else if (e.stored_length == 0 || e.stored_length >= raw) {
    return corrupt("claims " + quantity(e.stored_length) + " compressed bytes for " +
                   quantity(raw));
  }
  // Written so that nothing overflows: table_offset is at least kHeaderBytes.
  if (e.offset < kHeaderBytes || e.offset > footer.table_offset ||
      e.stored_length > footer.table_offset - e.offset)
    return corrupt("claims " + quantity(e.stored_length) + " bytes at " + quantity(e.offset) +
                   ", outside of the chunks (4096 to " + quantity(footer.table_offset) + ")");
  return {};
}

}  // namespace

std::uint64_t Footer::slices() const noexcept {
  return (info.entries + kSliceEntries - 1) / kSliceEntries;
}
std::uint64_t Footer::index_offset() const noexcept {
  return table_offset + slices() * kSliceBytes;
}
std::uint64_t Footer::index_bytes() const noexcept {
  return slices() * kIndexRecordBytes;
}
std::uint64_t Footer::footer_offset() const noexcept {
  return round_up(index_offset() + index_bytes(), kBlockSize);
}
std::size_t Footer::entries_in(std::uint64_t i) const noexcept {
  std::uint64_t before = i * kSliceEntries;
  return static_cast<std::size_t>(
      std::min<std::uint64_t>(kSliceEntries, info.entries - std::min(before, info.entries)));
}
ByteOffset Footer::slice_offset(std::uint64_t i) const noexcept {
  return ByteOffset(table_offset + i * kSliceBytes);
}

void lay_out(Footer& footer, std::uint64_t chunks_end) noexcept {
  footer.table_offset = round_up(chunks_end, kBlockSize);
  footer.info.file_size = footer.footer_offset() + kFooterBytes;
}

void encode_header(const FeatureMasks& features, std::span<std::byte, kHeaderBytes> out) {
  Encoder e(out);
  encode_preamble(e, kHeaderMagic, features);
  e.zeros(out.size() - e.position());
  seal_page(out);
}

Result<FeatureMasks> decode_header(std::span<const std::byte, kHeaderBytes> in) {
  Decoder d(in);
  auto preamble = decode_preamble(in, d, kHeaderMagic, "header");
  if (!preamble) return preamble.error();
  auto rest = check_reserved(in, d.position(), preamble->features, "header");
  if (!rest) return rest.error();
  return preamble->features;
}

void encode_footer(const Footer& footer, std::span<std::byte, kFooterBytes> out) {
  Encoder e(out);
  encode_preamble(e, kFooterMagic, footer.features);
  e.le(footer.info.virtual_size);
  e.le(footer.info.file_size);
  e.le(footer.info.entries);
  e.le(footer.info.data_blocks);
  e.le(footer.info.zero_blocks);
  e.le(footer.table_offset);
  e.le(footer.index_checksum);
  e.bytes(std::as_bytes(std::span(footer.info.content.bytes)));
  e.zeros(out.size() - e.position());
  seal_page(out);
}

Result<Footer> decode_footer(std::span<const std::byte, kFooterBytes> in, std::uint64_t file_size) {
  Decoder d(in);
  auto preamble = decode_preamble(in, d, kFooterMagic, "footer");
  if (!preamble) return preamble.error();
  Footer f;
  f.features = preamble->features;
  f.info.virtual_size = d.le<std::uint64_t>();
  f.info.file_size = d.le<std::uint64_t>();
  f.info.entries = d.le<std::uint64_t>();
  f.info.data_blocks = d.le<std::uint64_t>();
  f.info.zero_blocks = d.le<std::uint64_t>();
  f.table_offset = d.le<std::uint64_t>();
  f.index_checksum = d.le<std::uint64_t>();
  auto content = d.bytes(f.info.content.bytes.size());
  std::memcpy(f.info.content.bytes.data(), content.data(), content.size());
  auto rest = check_reserved(in, d.position(), f.features, "footer");
  if (!rest) return rest.error();
  const LayerInfo& info = f.info;
  if (info.file_size != file_size)
    return corrupt("the footer says that the file has " + quantity(info.file_size) +
                   " bytes, it has " + quantity(file_size));
  if (info.virtual_size > kMaxVolumeSize)
    return corrupt("the footer claims a virtual size of " + quantity(info.virtual_size) + " bytes");
  if (info.entries > chunk_count(info.virtual_size))
    return corrupt("the footer claims " + quantity(info.entries) + " chunks, a volume of " +
                   quantity(info.virtual_size) + " bytes has " +
                   quantity(chunk_count(info.virtual_size)));
  // entries is at most 2^32 from here on, so that no sum below overflows once table_offset is
  // known to lie in the file.
  if (info.data_blocks > info.entries * kBlocksPerChunk ||
      info.zero_blocks > info.entries * kBlocksPerChunk - info.data_blocks ||
      info.data_blocks + info.zero_blocks < info.entries)
    return corrupt("the footer claims " + quantity(info.data_blocks) + " data and " +
                   quantity(info.zero_blocks) + " zero blocks in " + quantity(info.entries) +
                   " chunks");
  if (f.table_offset < kHeaderBytes || f.table_offset > file_size ||
      f.table_offset % kBlockSize != 0 || f.footer_offset() + kFooterBytes != file_size)
    return corrupt("the footer claims a table of " + quantity(info.entries) + " entries at " +
                   quantity(f.table_offset) + ", which does not fit a file of " +
                   quantity(file_size) + " bytes");
  return f;
}

void encode_index_record(const IndexRecord& record, std::span<std::byte, kIndexRecordBytes> out) {
  Encoder e(out);
  e.le(static_cast<std::uint32_t>(record.first.value));
  e.le(record.checksum);
  e.bytes(std::as_bytes(std::span(record.content)));
}

IndexRecord decode_index_record(std::span<const std::byte, kIndexRecordBytes> in) {
  Decoder d(in);
  IndexRecord r;
  r.first = ChunkIndex(d.le<std::uint32_t>());
  r.checksum = d.le<std::uint64_t>();
  auto content = d.bytes(r.content.size());
  std::memcpy(r.content.data(), content.data(), content.size());
  return r;
}

void encode_slice(std::span<const ChunkEntry> entries, std::span<std::byte, kSliceBytes> out) {
  Encoder e(out);
  for (const ChunkEntry& entry : entries)
    encode_entry(e, entry);
  e.zeros(out.size() - e.position());
}

Result<std::vector<ChunkEntry>> decode_slice(std::span<const std::byte, kSliceBytes> in,
                                             const Footer& footer, std::uint64_t i,
                                             const IndexRecord& record, ChunkIndex limit) {
  std::string where =
      "slice " + quantity(i) + " of the chunk table at " + quantity(footer.slice_offset(i).value);
  if (xxh3(in) != record.checksum)
    return corrupt(where + ": the checksum does not match: it is damaged");
  const std::size_t count = footer.entries_in(i);
  std::vector<ChunkEntry> entries;
  entries.reserve(count);
  Decoder d(in);
  for (std::size_t n = 0; n < count; ++n) {
    auto entry = decode_entry(d, footer);
    if (!entry) return entry.error().with_context(where);
    if (n == 0 && entry->chunk != record.first)
      return corrupt(where + " begins with chunk " + quantity(entry->chunk.value) +
                     ", the slice index says " + quantity(record.first.value));
    if ((n != 0 && entry->chunk <= entries.back().chunk) || entry->chunk >= limit)
      return corrupt(where + ": chunk " + quantity(entry->chunk.value) + " is out of order");
    entries.push_back(*entry);
  }
  if (!is_zero(in.subspan(d.position())))
    return corrupt(where + ": bytes after the last entry are not zero");
  if (slice_content(entries) != record.content)
    return corrupt(where + ": its content is not what the slice index says");
  return entries;
}

Sha256 slice_content(std::span<const ChunkEntry> entries) {
  std::array<std::byte, kSliceEntries * 40> canonical;
  Encoder e(canonical);
  for (const ChunkEntry& entry : entries) {
    e.le(static_cast<std::uint32_t>(entry.chunk.value));
    e.le(entry.data);
    e.le(entry.zero);
    e.bytes(std::as_bytes(std::span(entry.content)));
  }
  return sha256(std::span(canonical).first(e.position()));
}

ContentHash::ContentHash(std::uint64_t virtual_size) {
  std::array<std::byte, 8> size;
  store_le(size.data(), virtual_size);
  stream_.update(kContentDomain);
  stream_.update(size);
}
void ContentHash::add_slice(const Sha256& content) {
  stream_.update(std::as_bytes(std::span(content)));
}
ContentDigest ContentHash::finish() {
  return ContentDigest{stream_.finish()};
}

std::size_t bytes_within(ChunkIndex chunk, unsigned block, std::uint64_t virtual_size) noexcept {
  std::uint64_t begin = offset_of(chunk).value + block * kBlockSize;
  if (begin >= virtual_size) return 0;
  return static_cast<std::size_t>(std::min(kBlockSize, virtual_size - begin));
}

BlockMask blocks_within(ChunkIndex chunk, std::uint64_t virtual_size) noexcept {
  std::uint64_t begin = offset_of(chunk).value;
  if (begin >= virtual_size) return 0;
  std::uint64_t blocks = round_up(virtual_size - begin, kBlockSize) / kBlockSize;
  return block_range(0, static_cast<unsigned>(std::min<std::uint64_t>(blocks, kBlocksPerChunk)));
}

std::size_t raw_length(BlockMask data) noexcept {
  return static_cast<std::size_t>(std::popcount(data)) * kBlockSize;
}

Result<void> check_entry(const ChunkEntry& e, const Footer& footer) {
  if (e.chunk.value >= chunk_count(footer.info.virtual_size))
    return corrupt("lies beyond the virtual size of " + quantity(footer.info.virtual_size) +
                   " bytes");
  if ((e.data & e.zero) != 0) return corrupt("marks a block both data and zero");
  const auto marked = static_cast<BlockMask>(e.data | e.zero);
  if (marked == 0) return corrupt("marks no block");
  if ((marked & ~blocks_within(e.chunk, footer.info.virtual_size)) != 0)
    return corrupt("marks a block beyond the virtual size of " +
                   quantity(footer.info.virtual_size) + " bytes");
  if (e.data != 0) return check_stored(e, footer);
  if (e.offset != 0 || e.stored_length != 0 || e.encoding != Encoding::kRaw || e.checksum != 0 ||
      e.content != Sha256{})
    return corrupt("has no data but fields that describe some");
  return {};
}

}  // namespace snap::layer_format
