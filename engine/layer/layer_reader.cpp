// Reads layer files (docs/format.md, Layer file).
//
// Every byte that is handed out was checked: the index by the footer, a slice by the index, stored
// bytes by their slice entry when a chunk is first touched. Nothing is mapped: a read of a missing
// page must wait on the ring, and a media error must be an error, not a signal.
#include "engine/layer/layer_impl.h"

#include <algorithm>
#include <bit>

#include "engine/base/checksum.h"
#include "engine/base/codec.h"
#include "engine/io/cached_io.h"

namespace snap {

namespace format = layer_format;

namespace {

std::uint64_t next_layer_id() {
  static std::atomic<std::uint64_t> next{1};
  return next.fetch_add(1, std::memory_order_relaxed);
}

/// Number of data blocks of the chunk that are stored before block `bit`.
unsigned rank_of(BlockMask data, unsigned bit) {
  return static_cast<unsigned>(std::popcount(static_cast<BlockMask>(data & block_range(0, bit))));
}

std::optional<std::size_t> position_of(const std::vector<ChunkEntry>& slice, ChunkIndex chunk) {
  auto found = std::lower_bound(slice.begin(), slice.end(), chunk,
                                [](const ChunkEntry& e, ChunkIndex c) { return e.chunk < c; });
  if (found == slice.end() || found->chunk != chunk) return std::nullopt;
  return static_cast<std::size_t>(found - slice.begin());
}

/// Copies the blocks in `which` out of all data blocks of a chunk.
void pick_blocks(std::span<const std::byte> all, BlockMask data, BlockMask which,
                 std::span<std::byte> out) {
  std::size_t done = 0;
  for (unsigned bit = 0; bit < kBlocksPerChunk; ++bit) {
    if ((which >> bit & 1) == 0) continue;
    std::memcpy(out.data() + done, all.data() + rank_of(data, bit) * kBlockSize, kBlockSize);
    done += kBlockSize;
  }
}

}  // namespace

LayerCaches& LayerCaches::of_process() {
  static LayerCaches caches;
  return caches;
}

// ---- Impl

Layer::Impl::Impl(std::unique_ptr<File> f, format::Footer foot)
    : file(std::move(f)), footer(foot), id_(next_layer_id()) {}

Error Layer::Impl::corrupt(std::string what) const {
  return in_file(Error(ErrorCode::kCorrupt, std::move(what)));
}
Error Layer::Impl::in_file(const Error& error) const {
  return error.with_context("layer " + file->path());
}
Error Layer::Impl::damaged(const ChunkEntry& entry, const std::string& what) const {
  return corrupt("chunk " + std::to_string(entry.chunk.value) + ", " +
                 std::to_string(entry.stored_length) + " bytes at " + std::to_string(entry.offset) +
                 ": " + what);
}

format::IndexRecord Layer::Impl::record(std::size_t i) const noexcept {
  return format::decode_index_record(
      std::span(index).subspan(i * format::kIndexRecordBytes).first<format::kIndexRecordBytes>());
}
ChunkIndex Layer::Impl::slice_first(std::size_t i) const noexcept {
  return ChunkIndex(load_le<std::uint32_t>(index.data() + i * format::kIndexRecordBytes));
}
ChunkIndex Layer::Impl::slice_limit(std::size_t i) const noexcept {
  if (i + 1 < slice_count()) return slice_first(i + 1);
  return ChunkIndex(chunk_count(footer.info.virtual_size));
}

Result<void> Layer::Impl::check_index_records(std::size_t first, std::size_t count) const {
  for (std::size_t i = first; i < first + count; ++i) {
    const std::uint64_t chunk = slice_first(i).value;
    const std::uint64_t least = i == 0 ? 0 : slice_first(i - 1).value + kSliceEntries;
    if (chunk < least || chunk + footer.entries_in(i) > chunk_count(footer.info.virtual_size))
      return corrupt("slice index at " + std::to_string(footer.index_offset()) + ": slice " +
                     std::to_string(i) + " cannot begin with chunk " + std::to_string(chunk));
  }
  return {};
}

Task<Result<void>> Layer::Impl::load_index() {
  const std::uint64_t padded = footer.footer_offset() - footer.index_offset();
  std::size_t checked = 0;  // records
  while (index.size() < padded) {
    const std::size_t have = index.size();
    index.resize(have + std::min<std::uint64_t>(kLayerPieceBytes, padded - have));
    auto piece = std::span(index).subspan(have);
    auto read = co_await read_exact(*file, piece, ByteOffset(footer.index_offset() + have));
    if (!read) co_return in_file(read.error());
    const std::size_t whole = std::min(slice_count(), index.size() / format::kIndexRecordBytes);
    auto ordered = check_index_records(checked, whole - checked);
    SNAP_CO_RETURN_IF_ERROR(ordered);
    checked = whole;
  }
  struct Sums {
    std::uint64_t checksum;
    ContentDigest content;
  };
  auto work = offload([this] {
    format::ContentHash content(footer.info.virtual_size);
    for (std::size_t i = 0; i < slice_count(); ++i)
      content.add_slice(record(i).content);
    return Sums{xxh3(index), content.finish()};
  });
  Sums sums = co_await work;
  const std::string where = "slice index at " + std::to_string(footer.index_offset());
  if (sums.checksum != footer.index_checksum)
    co_return corrupt(where + ": the checksum does not match: it is damaged");
  if (!is_zero(std::span(index).subspan(footer.index_bytes())))
    co_return corrupt(where + ": its padding is not zero");
  if (sums.content != footer.info.content)
    co_return corrupt(where + ": it amounts to content digest " + sums.content.str() +
                      ", the footer says " + footer.info.content.str());
  index.resize(footer.index_bytes());
  index.shrink_to_fit();
  verified_ = std::make_unique<std::atomic<std::uint64_t>[]>(slice_count());
  co_return Result<void>{};
}

Task<Result<Layer::Slice>> Layer::Impl::load_slice(std::size_t i) {
  std::array<std::byte, format::kSliceBytes> bytes;
  auto read = co_await read_exact(*file, bytes, footer.slice_offset(i));
  if (!read) co_return in_file(read.error());
  auto entries = format::decode_slice(bytes, footer, i, record(i), slice_limit(i));
  if (!entries) co_return in_file(entries.error());
  co_return std::make_shared<const std::vector<ChunkEntry>>(*std::move(entries));
}

Task<Result<Layer::Slice>> Layer::Impl::slice(std::size_t i) {
  if (i >= slice_count())
    co_return Error(ErrorCode::kInvalidArgument,
                    "layer " + file->path() + " has no slice " + std::to_string(i));
  auto& cache = LayerCaches::of_process().slices;
  const CacheKey key{id_, i};
  if (Slice cached = cache.get(key)) co_return cached;
  auto loaded = co_await load_slice(i);
  if (loaded) cache.put(key, *loaded, sizeof(ChunkEntry) * (*loaded)->size());
  co_return loaded;
}

std::optional<std::size_t> Layer::Impl::slice_of(ChunkIndex chunk) const noexcept {
  std::size_t begins_before = 0;  // slices that begin at or before the chunk
  for (std::size_t step = std::bit_ceil(slice_count() + 1); step != 0; step /= 2) {
    const std::size_t more = begins_before + step;
    if (more <= slice_count() && slice_first(more - 1) <= chunk) begins_before = more;
  }
  if (begins_before == 0) return std::nullopt;
  return begins_before - 1;
}

Task<Result<Layer::Impl::Place>> Layer::Impl::locate(ChunkEntry entry) {
  if (auto i = slice_of(entry.chunk)) {
    auto entries = co_await slice(*i);
    SNAP_CO_RETURN_IF_ERROR(entries);
    auto found = position_of(**entries, entry.chunk);
    if (found && (**entries)[*found] == entry) co_return Place{*i, *found};
  }
  co_return Error(
      ErrorCode::kInvalidArgument,
      "layer " + file->path() + " has no such entry of chunk " + std::to_string(entry.chunk.value));
}

Task<Result<void>> Layer::Impl::read_stored(ChunkEntry entry, Place place,
                                            std::span<std::byte> out) {
  auto read = co_await read_exact(*file, out, ByteOffset(entry.offset));
  if (!read) co_return in_file(read.error());
  co_return verify_stored(entry, place, out);
}

Result<void> Layer::Impl::verify_stored(const ChunkEntry& entry, Place place,
                                        std::span<const std::byte> stored) {
  if (xxh3(stored) != entry.checksum)
    return damaged(entry, "the checksum does not match: the stored bytes are damaged");
  mark_verified(place);
  return {};
}

Task<Result<std::shared_ptr<const std::vector<std::byte>>>> Layer::Impl::decompressed(
    ChunkEntry entry, Place place) {
  // By offset, so that chunks that share stored bytes share memory too.
  const CacheKey key{id_, entry.offset};
  auto& cache = LayerCaches::of_process().chunks;
  const std::size_t length = format::raw_length(entry.data);
  auto cached = cache.get(key);
  // Only a damaged table has two lengths at one offset.
  if (cached != nullptr && is_verified(place) && cached->size() == length) co_return cached;
  std::vector<std::byte> stored(entry.stored_length);
  auto read = co_await read_stored(entry, place, stored);
  SNAP_CO_RETURN_IF_ERROR(read);
  auto raw = std::make_shared<std::vector<std::byte>>(length);
  std::span<const std::byte> from = stored;
  std::span<std::byte> to = *raw;
  auto work = offload([from, to] { return format::decompress_chunk(from, to); });
  auto done = co_await work;
  if (!done) co_return damaged(entry, done.error().message());
  std::shared_ptr<const std::vector<std::byte>> result = std::move(raw);
  cache.put(key, result, length);
  co_return result;
}

Task<Result<void>> Layer::Impl::read_raw_blocks(ChunkEntry entry, Place place, BlockMask which,
                                                std::span<std::byte> out) {
  if (which == entry.data && !is_verified(place)) {
    auto whole = co_await read_stored(entry, place, out);
    co_return whole;
  }
  if (!is_verified(place)) {
    std::vector<std::byte> all(entry.stored_length);
    auto read = co_await read_stored(entry, place, all);
    SNAP_CO_RETURN_IF_ERROR(read);
    pick_blocks(all, entry.data, which, out);
    co_return Result<void>{};
  }
  // One read from the first wanted block to the last: reading over a gap is cheaper than a second
  // system call.
  const auto low = static_cast<unsigned>(std::countr_zero(which));
  const auto high = static_cast<unsigned>(std::bit_width(which)) - 1;
  const std::size_t begin = rank_of(entry.data, low) * kBlockSize;
  const std::size_t end = (rank_of(entry.data, high) + 1) * kBlockSize;
  const auto at = ByteOffset(entry.offset + begin);
  if (end - begin == out.size()) {
    auto read = co_await read_exact(*file, out, at);
    if (!read) co_return in_file(read.error());
    co_return Result<void>{};
  }
  std::vector<std::byte> run(end - begin);
  auto read = co_await read_exact(*file, run, at);
  if (!read) co_return in_file(read.error());
  const auto spanned = static_cast<BlockMask>(entry.data & block_range(low, high - low + 1));
  pick_blocks(run, spanned, which, out);
  co_return Result<void>{};
}

Task<Result<void>> Layer::Impl::read_blocks(ChunkEntry entry, BlockMask which,
                                            std::span<std::byte> out) {
  if (which == 0 || (which & ~entry.data) != 0 || out.size() != format::raw_length(which))
    co_return Error(ErrorCode::kInvalidArgument,
                    "layer " + file->path() + ": chunk " + std::to_string(entry.chunk.value) +
                        " is read with a mask or buffer that does not fit its data");
  auto place = co_await locate(entry);
  SNAP_CO_RETURN_IF_ERROR(place);
  if (entry.encoding == Encoding::kRaw) {
    auto read = co_await read_raw_blocks(entry, *place, which, out);
    co_return read;
  }
  auto all = co_await decompressed(entry, *place);
  SNAP_CO_RETURN_IF_ERROR(all);
  pick_blocks(**all, entry.data, which, out);
  co_return Result<void>{};
}

// ---- Layer

Layer::Layer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Layer::~Layer() = default;

Task<Result<std::shared_ptr<Layer>>> Layer::open(std::unique_ptr<File> file,
                                                 std::optional<ContentDigest> expected) {
  const std::string context = "layer " + file->path();
  auto stat = co_await file->stat();
  if (!stat) co_return stat.error().with_context(context);
  if (stat->size < format::kHeaderBytes + format::kFooterBytes)
    co_return Error(ErrorCode::kCorrupt,
                    context + ": the file has " + std::to_string(stat->size) +
                        " bytes, a layer has at least 8192: it is truncated, or no layer");
  std::array<std::byte, format::kFooterBytes> bytes;
  auto read = co_await read_exact(*file, bytes, ByteOffset(stat->size - bytes.size()));
  if (!read) co_return read.error().with_context(context);
  auto footer = format::decode_footer(bytes, stat->size);
  if (!footer) co_return footer.error().with_context(context);
  if (expected && *expected != footer->info.content)
    co_return Error(ErrorCode::kCorrupt, context + ": its content digest is " +
                                             footer->info.content.str() + ", expected " +
                                             expected->str() + ": this is another layer");
  auto impl = std::make_unique<Impl>(std::move(file), *footer);
  auto loaded = co_await impl->load_index();
  SNAP_CO_RETURN_IF_ERROR(loaded);
  co_return std::shared_ptr<Layer>(new Layer(std::move(impl)));
}

const LayerInfo& Layer::info() const noexcept {
  return impl_->footer.info;
}
const std::string& Layer::path() const noexcept {
  return impl_->file->path();
}
std::size_t Layer::slice_count() const noexcept {
  return impl_->slice_count();
}
ChunkIndex Layer::slice_first(std::size_t i) const noexcept {
  return impl_->slice_first(i);
}

std::optional<std::size_t> Layer::slice_of(ChunkIndex chunk) const noexcept {
  return impl_->slice_of(chunk);
}

Task<Result<Layer::Slice>> Layer::read_slice(std::size_t i) {
  return impl_->slice(i);
}

Task<Result<std::optional<ChunkEntry>>> Layer::find(ChunkIndex chunk) {
  auto i = slice_of(chunk);
  if (!i) co_return std::optional<ChunkEntry>();
  auto entries = co_await impl_->slice(*i);
  SNAP_CO_RETURN_IF_ERROR(entries);
  auto found = position_of(**entries, chunk);
  if (!found) co_return std::optional<ChunkEntry>();
  co_return std::optional<ChunkEntry>((**entries)[*found]);
}

Task<Result<void>> Layer::read_blocks(ChunkEntry entry, BlockMask which, std::span<std::byte> out) {
  return impl_->read_blocks(entry, which, out);
}

bool Layer::verified(std::size_t slice, std::size_t index) const noexcept {
  return slice < slice_count() && index < kSliceEntries && impl_->is_verified({slice, index});
}

Task<Result<void>> Layer::verify_entry(std::size_t slice, std::size_t index, Known known) {
  auto entries = co_await impl_->slice(slice);
  SNAP_CO_RETURN_IF_ERROR(entries);
  if (index >= (*entries)->size())
    co_return Error(ErrorCode::kInvalidArgument, "layer " + path() + ": slice " +
                                                     std::to_string(slice) + " has no entry " +
                                                     std::to_string(index));
  const Impl::Place place{slice, index};
  const ChunkEntry entry = (**entries)[index];
  if (impl_->is_verified(place)) co_return Result<void>{};
  if (entry.data == 0) {
    impl_->mark_verified(place);
    co_return Result<void>{};
  }
  if (entry.offset >= known.at.value &&
      entry.offset + entry.stored_length <= known.at.value + known.bytes.size()) {
    co_return impl_->verify_stored(
        entry, place, known.bytes.subspan(entry.offset - known.at.value, entry.stored_length));
  }
  const auto stored = std::make_unique_for_overwrite<std::byte[]>(entry.stored_length);
  auto read = co_await impl_->read_stored(entry, place, {stored.get(), entry.stored_length});
  co_return read;
}

bool Layer::read_raw_now(std::span<std::byte> out, ByteOffset file_offset) noexcept {
  return impl_->file->read_now(out, file_offset);
}

FileOp Layer::read_raw(std::span<std::byte> out, ByteOffset file_offset) {
  return read_cached(*impl_->file, out, file_offset);
}

}  // namespace snap
