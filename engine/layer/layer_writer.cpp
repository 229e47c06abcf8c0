// Writes a layer file front to back (docs/format.md, Layer file).
//
// Three batches go round. While the caller fills one, helper threads hash (and compress) the chunks
// of the one before; while that goes on, the one before that is written, in pieces, and hashed once
// more, in order, for the blob digest. So two cores hash at the same time and the loop's thread
// only copies.
//
// The file is synced as it grows, so that the disk works while helpers hash, and the sync at the
// end finds little left: the writer is bound by the processor, a copy of the same bytes by the
// disk.
//
// What runs in the background shares what it works on (batches, the file, SyncState) and never
// touches the writer. So a writer may be destroyed at any time that no call on it is under way.
//
// Memory: three batches of kLayerBatchBytes (three times that for zstd), a piece, the share table,
// and 64 bytes for each entry of the chunk table (1 MiB a GiB of data), which can be written only
// last.
#include <array>
#include <bit>
#include <string>

#include "engine/base/checksum.h"
#include "engine/io/piece_writer.h"
#include "engine/layer/layer_batch.h"
#include "engine/layer/layer_format.h"
#include "snap/limits.h"

namespace snap {

namespace format = layer_format;
static_assert(PieceWriter::kPieceBytes == kLayerPieceBytes);

namespace {

using BatchPtr = std::shared_ptr<LayerBatch>;
using BlobHash = std::shared_ptr<Sha256Stream>;

/// The same for every file. Static, for a helper may read it when the writer is gone.
std::span<const std::byte> file_header() {
  static const auto header = [] {
    std::array<std::byte, format::kHeaderBytes> bytes;
    format::encode_header(FeatureMasks{}, bytes);
    return bytes;
  }();
  return header;
}

Task<void> hash_lane(BatchPtr batch, std::size_t lane) {
  LayerBatch* raw = batch.get();
  auto work = offload([raw, lane] { raw->hash(lane); });
  co_await work;
  batch->hashing.done();
}

Task<void> hash_for_blob(BatchPtr batch, BlobHash blob) {
  LayerBatch* raw = batch.get();
  Sha256Stream* stream = blob.get();
  auto work = offload([raw, stream] {
    for (auto piece : raw->pieces())
      stream->update(piece);
  });
  co_await work;
  batch->reading.done();
}

/// The sync that runs in the background, one at a time, and what became of it and those before.
struct SyncState {
  WaitGroup running;
  bool busy = false;
  std::optional<Error> failed;
};

Task<void> sync_written(std::shared_ptr<File> file, std::shared_ptr<SyncState> state) {
  auto synced = co_await data_sync(*file);
  if (!synced) state->failed = synced.error();
  state->busy = false;
  state->running.done();
}

}  // namespace

class LayerWriter::Impl {
 public:
  Impl(std::shared_ptr<File> out, Options options) : file_(std::move(out)), options_(options) {
    for (auto* batch : {&filling_, &hashing_, &written_})
      *batch = std::make_shared<LayerBatch>(options_);
  }

  Task<Result<void>> add(ChunkIndex chunk, BlockMask data, BlockMask zero,
                         std::span<const std::byte> blocks) {
    if (failed_) co_return *failed_;
    auto accepted = accept(chunk, data, zero, blocks.size());
    SNAP_CO_RETURN_IF_ERROR(accepted);
    if (!filling_->has_room(blocks.size())) {
      auto turned = co_await turn();
      if (!turned) co_return fail(turned.error());
    }
    filling_->append(chunk, data, zero, blocks, options_.virtual_size);
    co_return Result<void>{};
  }

  void set_virtual_size(std::uint64_t bytes) { options_.virtual_size = bytes; }

  Task<Result<Written>> finish() {
    if (failed_) co_return *failed_;
    auto written = co_await finish_file();
    if (!written) co_return fail(written.error());
    failed_.emplace(ErrorCode::kInvalidArgument,
                    "layer " + file_->path() + " is finished: nothing can be added to it");
    co_return written;
  }

 private:
  Error fail(const Error& error) {
    failed_ = error;
    return error;
  }

  Error refuse(std::string why) const {
    return Error(ErrorCode::kInvalidArgument, "layer " + file_->path() + ": " + std::move(why));
  }

  Result<void> accept(ChunkIndex chunk, BlockMask data, BlockMask zero, std::size_t bytes) {
    if (options_.virtual_size > kMaxVolumeSize)
      return refuse("a virtual size of " + std::to_string(options_.virtual_size) +
                    " bytes is beyond the limit of " + std::to_string(kMaxVolumeSize));
    if (chunk.value >= chunk_count(options_.virtual_size))
      return refuse("chunk " + std::to_string(chunk.value) + " lies beyond the virtual size of " +
                    std::to_string(options_.virtual_size) + " bytes");
    if (next_chunk_ > chunk)
      return refuse("chunk " + std::to_string(chunk.value) + " is added out of order, chunk " +
                    std::to_string(next_chunk_.value) + " or later is due");
    if ((data & zero) != 0)
      return refuse("chunk " + std::to_string(chunk.value) + " marks a block both data and zero");
    if (bytes != format::raw_length(data))
      return refuse("chunk " + std::to_string(chunk.value) + " comes with " +
                    std::to_string(bytes) + " bytes, its data mask means " +
                    std::to_string(format::raw_length(data)));
    next_chunk_ = chunk + 1;
    return {};
  }

  /// Hands the full batch to the helpers, writes the one before, and gives an empty one to fill.
  Task<Result<void>> turn() {
    filling_->hashing.add(LayerBatch::kLanes);
    for (std::size_t lane = 0; lane < LayerBatch::kLanes; ++lane)
      EventLoop::current()->spawn(hash_lane(filling_, lane));
    co_await yield_now();  // they start before the writes below keep the loop busy
    auto emitted = co_await emit(hashing_);
    SNAP_CO_RETURN_IF_ERROR(emitted);
    // emit() has waited for the readers of written_: it is free.
    written_->clear();
    std::swap(written_, hashing_);
    std::swap(hashing_, filling_);
    co_return Result<void>{};
  }

  /// Lays out and writes a batch that is hashed, or being hashed.
  Task<Result<void>> emit(BatchPtr batch) {
    co_await batch->hashing.wait();
    if (end_ == 0) {
      auto begun = co_await begin_file();
      SNAP_CO_RETURN_IF_ERROR(begun);
      batch->add_piece(file_header());
      end_ = format::kHeaderBytes;
    }
    batch->lay_out(end_, shared_);
    for (const LayerBatch::Chunk& c : batch->chunks())
      add_entry(c.entry);
    // The blob digest is of the file in order: one batch at a time.
    co_await written_->reading.wait();
    batch->reading.add();
    EventLoop::current()->spawn(hash_for_blob(batch, blob_));
    co_await yield_now();
    const std::uint64_t begin = out_.written();
    for (auto piece : batch->pieces()) {
      auto wrote = co_await out_.append(piece);
      SNAP_CO_RETURN_IF_ERROR(wrote);
    }
    if (out_.written() == begin) co_return Result<void>{};
    auto writeback = start_writeback(*file_, ByteOffset(begin), out_.written() - begin);
    auto begun = co_await writeback;
    static_cast<void>(begun);  // a hint: a sync tells of what could not be written
    co_return sync_in_background();
  }

  /// Begins a sync of what is written so far, if it is much and none is under way. Tells of those
  /// that failed: such bytes count as lost, whatever a later sync says.
  Result<void> sync_in_background() {
    if (syncs_->failed) return *syncs_->failed;
    if (syncs_->busy || out_.written() - sync_begun_ < options_.sync_every) return {};
    sync_begun_ = out_.written();
    syncs_->busy = true;
    syncs_->running.add();
    EventLoop::current()->spawn(sync_written(file_, syncs_));
    return {};
  }

  Task<Result<void>> begin_file() {
    auto stat = co_await file_->stat();
    SNAP_CO_RETURN_IF_ERROR(stat);
    if (stat->size != 0)
      co_return refuse("the file to write it to is not empty, it has " +
                       std::to_string(stat->size) + " bytes");
    co_return Result<void>{};
  }

  void add_entry(const ChunkEntry& entry) {
    ++footer_.info.entries;
    footer_.info.data_blocks += static_cast<unsigned>(std::popcount(entry.data));
    footer_.info.zero_blocks += static_cast<unsigned>(std::popcount(entry.zero));
    slice_.push_back(entry);
    if (slice_.size() == kSliceEntries) close_slice();
  }

  void close_slice() {
    if (slice_.empty()) return;
    std::array<std::byte, format::kSliceBytes> bytes;
    format::encode_slice(slice_, bytes);
    append_tail(table_, bytes);
    format::IndexRecord record{slice_.front().chunk, xxh3(bytes), format::slice_content(slice_)};
    std::array<std::byte, format::kIndexRecordBytes> index_bytes;
    format::encode_index_record(record, index_bytes);
    index_.insert(index_.end(), index_bytes.begin(), index_bytes.end());
    slice_contents_.push_back(record.content);
    slice_.clear();
  }

  /// Appends to pieces of kLayerPieceBytes, so that a large table never moves in memory.
  static void append_tail(std::vector<std::vector<std::byte>>& pieces,
                          std::span<const std::byte> bytes) {
    if (pieces.empty() || pieces.back().size() + bytes.size() > kLayerPieceBytes) {
      pieces.emplace_back();
    }
    pieces.back().insert(pieces.back().end(), bytes.begin(), bytes.end());
  }

  /// Writes bytes behind the chunks and hashes them.
  Task<Result<void>> put(std::span<const std::byte> bytes) {
    Sha256Stream* stream = blob_.get();
    auto work = offload([stream, bytes] { stream->update(bytes); });
    co_await work;
    auto wrote = co_await out_.append(bytes);
    co_return wrote;
  }

  Task<Result<Written>> finish_file() {
    if (options_.virtual_size > kMaxVolumeSize)
      co_return refuse("a virtual size of " + std::to_string(options_.virtual_size) +
                       " bytes is beyond the limit of " + std::to_string(kMaxVolumeSize));
    if (next_chunk_.value > chunk_count(options_.virtual_size))
      co_return refuse("chunk " + std::to_string(next_chunk_.value - 1) +
                       " was added, which lies beyond the virtual size of " +
                       std::to_string(options_.virtual_size) + " bytes");
    // Only the chunk that was added last may reach past the size. It is in this batch still, or was
    // left out: add() makes room before it appends.
    filling_->trim_last(options_.virtual_size);
    auto turned = co_await turn();
    SNAP_CO_RETURN_IF_ERROR(turned);
    auto emitted = co_await emit(hashing_);
    SNAP_CO_RETURN_IF_ERROR(emitted);
    co_await hashing_->reading.wait();
    close_slice();
    auto wrote = co_await write_tail();
    SNAP_CO_RETURN_IF_ERROR(wrote);
    co_await syncs_->running.wait();
    if (syncs_->failed) co_return *syncs_->failed;
    auto synced = co_await full_sync(*file_);
    SNAP_CO_RETURN_IF_ERROR(synced);
    co_return Written{footer_.info, BlobDigest{blob_->finish()}};
  }

  /// Chunk table, slice index and footer.
  Task<Result<void>> write_tail() {
    footer_.info.virtual_size = options_.virtual_size;
    format::ContentHash content(options_.virtual_size);
    for (const Sha256& slice : slice_contents_)
      content.add_slice(slice);
    footer_.info.content = content.finish();
    format::lay_out(footer_, end_);
    index_.resize(footer_.footer_offset() - footer_.index_offset());
    footer_.index_checksum = xxh3(index_);
    std::vector<std::byte> padding(footer_.table_offset - end_);
    std::array<std::byte, format::kFooterBytes> footer;
    format::encode_footer(footer_, footer);

    auto put_padding = co_await put(padding);
    SNAP_CO_RETURN_IF_ERROR(put_padding);
    for (const auto& piece : table_) {
      auto put_table = co_await put(piece);
      SNAP_CO_RETURN_IF_ERROR(put_table);
    }
    auto put_index = co_await put(index_);
    SNAP_CO_RETURN_IF_ERROR(put_index);
    auto put_footer = co_await put(footer);
    SNAP_CO_RETURN_IF_ERROR(put_footer);
    auto finished = co_await out_.finish();
    co_return finished;
  }

  std::shared_ptr<File> file_;
  PieceWriter out_{*file_};
  Options options_;
  std::shared_ptr<SyncState> syncs_ = std::make_shared<SyncState>();
  std::uint64_t sync_begun_ = 0;  // out_.written() when the last one began
  std::optional<Error> failed_;
  BatchPtr filling_;
  BatchPtr hashing_;
  BatchPtr written_;
  BlobHash blob_ = std::make_shared<Sha256Stream>();
  ShareTable shared_;
  ChunkIndex next_chunk_;  // the first that may be added
  std::uint64_t end_ = 0;  // of the file, once all that is laid out is written
  format::Footer footer_;
  std::vector<ChunkEntry> slice_;  // the one that is not full yet
  std::vector<std::vector<std::byte>> table_;
  std::vector<std::byte> index_;
  std::vector<Sha256> slice_contents_;
};

LayerWriter::LayerWriter(std::shared_ptr<File> out, Options options)
    : impl_(std::make_unique<Impl>(std::move(out), options)) {}
LayerWriter::~LayerWriter() = default;

Task<Result<void>> LayerWriter::add(ChunkIndex chunk, BlockMask data, BlockMask zero,
                                    std::span<const std::byte> blocks) {
  return impl_->add(chunk, data, zero, blocks);
}
void LayerWriter::set_virtual_size(std::uint64_t bytes) {
  impl_->set_virtual_size(bytes);
}
Task<Result<LayerWriter::Written>> LayerWriter::finish() {
  return impl_->finish();
}

}  // namespace snap
