// Layer::verify_all: proves every byte of a layer file (docs/format.md, Layer file).
//
// The file has one form for what is in it, so that every byte is either covered by a checksum or
// must be zero: header, chunks one after the other in the order of the table with the least padding
// between them, padding, table, index, padding, footer. open() has checked the last four.
//
// Two runs go round: one is read while a helper thread checks the other. Memory: two runs of
// kLayerBatchBytes and the share window.
#include <algorithm>
#include <bit>
#include <deque>

#include "engine/base/checksum.h"
#include "engine/io/sync.h"
#include "engine/layer/layer_impl.h"

namespace snap {

namespace format = layer_format;

namespace {

/// Consecutive stored chunks, and the bytes of the file that hold them.
struct Run {
  struct Item {
    ChunkEntry entry;
    std::size_t slice = 0;
    std::size_t index = 0;
  };
  std::vector<Item> items;
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
  std::vector<std::byte> bytes;

  void start_at(std::uint64_t offset) {
    items.clear();
    begin = end = offset;
  }
};

struct Finding {
  ChunkEntry entry;
  std::string what;
};

/// Checks stored bytes, raw bytes and canonical form of one chunk: what is wrong, or nothing.
std::string check_chunk(const ChunkEntry& entry, std::span<const std::byte> stored,
                        std::span<std::byte> scratch) {
  if (xxh3(stored) != entry.checksum)
    return "the checksum does not match: the stored bytes are damaged";
  std::span<const std::byte> raw = stored;
  if (entry.encoding == Encoding::kZstd) {
    auto out = scratch.first(format::raw_length(entry.data));
    auto done = format::decompress_chunk(stored, out);
    if (!done) return done.error().message();
    raw = out;
  }
  if (sha256(raw) != entry.content) return "the SHA-256 of its data does not match";
  for (std::size_t at = 0; at < raw.size(); at += kBlockSize) {
    if (is_zero(raw.subspan(at, kBlockSize))) return "it stores a block that is all zero";
  }
  return {};
}

/// Checks a run that has been read. Runs on a helper thread.
std::optional<Finding> check_run(const Run& run) {
  std::vector<std::byte> scratch(kChunkSize);
  std::span<const std::byte> bytes = run.bytes;
  std::uint64_t at = run.begin;
  for (const Run::Item& item : run.items) {
    const ChunkEntry& e = item.entry;
    if (!is_zero(bytes.subspan(at - run.begin, e.offset - at)))
      return Finding{e, "the padding before it is not zero"};
    auto stored = bytes.subspan(e.offset - run.begin, e.stored_length);
    std::string wrong = check_chunk(e, stored, scratch);
    if (!wrong.empty()) return Finding{e, std::move(wrong)};
    at = e.offset + e.stored_length;
  }
  return std::nullopt;
}

bool same_stored_bytes(const ChunkEntry& a, const ChunkEntry& b) {
  return a.offset == b.offset && a.stored_length == b.stored_length && a.encoding == b.encoding &&
         a.checksum == b.checksum && a.content == b.content &&
         std::popcount(a.data) == std::popcount(b.data);
}

}  // namespace

class Layer::Verifier {
 public:
  Verifier(Impl& layer, std::function<void(std::uint64_t)> progress)
      : layer_(layer), progress_(std::move(progress)) {}

  Task<Result<void>> run() {
    auto header = co_await check_header();
    SNAP_CO_RETURN_IF_ERROR(header);
    Run reading;
    Run checking;
    do {
      reading.start_at(end_);
      auto collected = co_await collect(&reading);
      SNAP_CO_RETURN_IF_ERROR(collected);
      // The check goes first: a read from the page cache may never leave this thread.
      std::vector<Task<Result<void>>> both;
      both.push_back(check(&checking));
      both.push_back(read(&reading));
      auto results = co_await gather(std::move(both));
      for (const auto& result : results)
        SNAP_CO_RETURN_IF_ERROR(result);
      std::swap(reading, checking);
    } while (!checking.items.empty());
    auto rest = co_await check_rest();
    co_return rest;
  }

  Task<Result<void>> run_table() {
    auto header = co_await check_header();
    SNAP_CO_RETURN_IF_ERROR(header);
    Run run;
    do {
      run.start_at(end_);
      auto collected = co_await collect(&run);
      SNAP_CO_RETURN_IF_ERROR(collected);
    } while (!run.items.empty());
    auto rest = co_await check_counts();
    co_return rest;
  }

 private:
  Task<Result<void>> check_header() {
    std::array<std::byte, format::kHeaderBytes> bytes;
    auto read = co_await read_exact(*layer_.file, bytes, ByteOffset(0));
    if (!read) co_return layer_.in_file(read.error());
    auto features = format::decode_header(bytes);
    if (!features) co_return layer_.in_file(features.error());
    if (*features != layer_.footer.features)
      co_return layer_.corrupt("header and footer do not name the same features");
    co_return Result<void>{};
  }

  /// Takes entries from the table until the run is full or the table ends.
  Task<Result<void>> collect(Run* run) {
    for (; slice_ < layer_.slice_count(); ++slice_, index_ = 0) {
      if (index_ == 0) {
        // From the file: what is cached says nothing of the file as it is now.
        auto loaded = co_await layer_.load_slice(slice_);
        SNAP_CO_RETURN_IF_ERROR(loaded);
        entries_ = *loaded;
      }
      for (; index_ < entries_->size(); ++index_) {
        if (run->end - run->begin >= kLayerBatchBytes) co_return Result<void>{};
        auto taken = take((*entries_)[index_], run);
        SNAP_CO_RETURN_IF_ERROR(taken);
      }
    }
    co_return Result<void>{};
  }

  /// Checks where the stored bytes of an entry are, and adds them to the run if they are new.
  Result<void> take(const ChunkEntry& e, Run* run) {
    data_blocks_ += static_cast<unsigned>(std::popcount(e.data));
    zero_blocks_ += static_cast<unsigned>(std::popcount(e.zero));
    if (e.data == 0) return {};
    last_ = e;
    if (e.offset < end_) return take_shared(e);
    const std::uint64_t due = e.encoding == Encoding::kRaw ? round_up(end_, kBlockSize) : end_;
    if (e.offset != due) return layer_.damaged(e, "stored bytes are due at " + std::to_string(due));
    end_ = e.offset + e.stored_length;
    run->items.push_back({e, slice_, index_});
    run->end = end_;
    window_.push_back(e);
    if (window_.size() > kShareWindow) window_.pop_front();
    return {};
  }

  Result<void> take_shared(const ChunkEntry& e) {
    auto found = std::lower_bound(
        window_.begin(), window_.end(), e.offset,
        [](const ChunkEntry& stored, std::uint64_t offset) { return stored.offset < offset; });
    if (found == window_.end() || !same_stored_bytes(*found, e))
      return layer_.damaged(e, "it overlaps what is stored there, and is not equal to it");
    return {};
  }

  Task<Result<void>> read(Run* run) {
    run->bytes.resize(run->end - run->begin);
    std::span<std::byte> rest = run->bytes;
    std::uint64_t at = run->begin;
    while (!rest.empty()) {
      auto piece = rest.first(std::min(rest.size(), kLayerPieceBytes));
      auto read = co_await read_exact(*layer_.file, piece, ByteOffset(at));
      if (!read) co_return layer_.in_file(read.error());
      at += piece.size();
      rest = rest.subspan(piece.size());
    }
    co_return Result<void>{};
  }

  Task<Result<void>> check(Run* run) {
    if (run->items.empty()) co_return Result<void>{};
    auto work = offload([run] { return check_run(*run); });
    std::optional<Finding> finding = co_await work;
    if (finding) co_return layer_.damaged(finding->entry, finding->what);
    for (const Run::Item& item : run->items)
      layer_.mark_verified({item.slice, item.index});
    checked_ += run->end - run->begin;
    if (progress_) progress_(checked_);
    co_return Result<void>{};
  }

  /// What is left once all chunks are proven.
  Task<Result<void>> check_rest() {
    auto counts = co_await check_counts();
    SNAP_CO_RETURN_IF_ERROR(counts);
    auto tail = co_await check_tail();
    co_return tail;
  }

  /// The table against the footer, and the padding between the chunks and the table.
  Task<Result<void>> check_counts() {
    const format::Footer& footer = layer_.footer;
    if (round_up(end_, kBlockSize) != footer.table_offset)
      co_return layer_.corrupt("the chunks end at " + std::to_string(end_) +
                               ", the footer says that the table begins at " +
                               std::to_string(footer.table_offset));
    std::vector<std::byte> padding(footer.table_offset - end_);
    auto read = co_await read_exact(*layer_.file, padding, ByteOffset(end_));
    if (!read) co_return layer_.in_file(read.error());
    if (!is_zero(padding))
      co_return layer_.corrupt("the padding at " + std::to_string(end_) + " is not zero");
    if (data_blocks_ != footer.info.data_blocks || zero_blocks_ != footer.info.zero_blocks)
      co_return layer_.corrupt("the footer counts " + std::to_string(footer.info.data_blocks) +
                               " data and " + std::to_string(footer.info.zero_blocks) +
                               " zero blocks, the table has " + std::to_string(data_blocks_) +
                               " and " + std::to_string(zero_blocks_));
    co_return Result<void>{};
  }

  /// The bytes past the virtual size in its last block are zero.
  Task<Result<void>> check_tail() {
    const std::uint64_t size = layer_.footer.info.virtual_size;
    const ChunkEntry last = last_;
    const unsigned block = block_in_chunk(ByteOffset(size));
    const auto bit = static_cast<BlockMask>(1u << block);
    if (size % kBlockSize == 0 || last.chunk != chunk_of(ByteOffset(size)) ||
        (last.data & bit) == 0)
      co_return Result<void>{};
    std::array<std::byte, kBlockSize> bytes;
    auto read = co_await layer_.read_blocks(last, bit, bytes);
    SNAP_CO_RETURN_IF_ERROR(read);
    if (!is_zero(std::span(bytes).subspan(size % kBlockSize)))
      co_return layer_.damaged(last, "bytes past the virtual size are not zero");
    co_return Result<void>{};
  }

  Impl& layer_;
  std::function<void(std::uint64_t)> progress_;
  std::size_t slice_ = 0;  // slice and index of the next entry
  std::size_t index_ = 0;
  Slice entries_;                             // of slice_
  std::uint64_t end_ = format::kHeaderBytes;  // of the chunks so far
  std::deque<ChunkEntry> window_;             // the last that were stored, offsets ascend
  ChunkEntry last_;                           // with data
  std::uint64_t data_blocks_ = 0;
  std::uint64_t zero_blocks_ = 0;
  std::uint64_t checked_ = 0;
};

Task<Result<void>> Layer::verify_all(std::function<void(std::uint64_t)> progress) {
  Verifier verifier(*impl_, std::move(progress));
  auto result = co_await verifier.run();
  co_return result;
}

Task<Result<void>> Layer::verify_table() {
  Verifier verifier(*impl_, nullptr);
  auto result = co_await verifier.run_table();
  co_return result;
}

}  // namespace snap
