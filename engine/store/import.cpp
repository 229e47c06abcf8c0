// Store::import: a source becomes the one layer of a new image.
//
// Reading runs one buffer ahead of the writer, which hashes and writes on helper threads: the three
// overlap. The layer is written under tmp/ and has no name until it is whole and durable; the store
// lock is held only from its adoption to the publishing of the tag (docs/durability.md, Publish).
// So a failure, a cancel or a crash on the way leaves the store as it was.
#include <algorithm>
#include <cstring>
#include <memory>

#include "engine/base/checksum.h"
#include "engine/io/sync.h"
#include "engine/layer/layer.h"
#include "engine/store/chain_ops.h"
#include "engine/store/names.h"
#include "engine/store/room_watch.h"
#include "engine/store/space.h"
#include "engine/store/store_impl.h"
#include "snap/limits.h"

namespace snap {

namespace {

constexpr std::size_t kBufferBytes = 4u << 20;

/// A buffer and what the source put into it.
struct Filled {
  std::unique_ptr<std::byte[]> bytes = std::make_unique<std::byte[]>(kBufferBytes);
  std::optional<Result<std::optional<ImportSource::Piece>>> piece;
};

Task<void> read_ahead(ImportSource& source, Filled& into, const Progress& progress,
                      WaitGroup& reading) {
  // A piece of length 0 means that nothing has come yet: a cancel must not wait for it to come.
  for (;;) {
    into.piece.emplace(co_await source.next(std::span(into.bytes.get(), kBufferBytes)));
    const auto& got = *into.piece;
    if (!got || !*got || (*got)->length != 0 || progress.is_cancelled()) break;
  }
  reading.done();
}

/// Adds the chunks of one piece; bytes past its end, in its last chunk, are zero.
Task<Result<void>> add_piece(LayerWriter& writer, ImportSource::Piece piece,
                             std::span<std::byte> buffer) {
  const std::uint64_t padded = round_up(piece.length, kBlockSize);
  std::memset(buffer.data() + piece.length, 0, padded - piece.length);
  for (std::uint64_t done = 0; done < padded; done += kChunkSize) {
    const auto blocks = buffer.subspan(done, std::min(kChunkSize, padded - done));
    if (is_zero(blocks)) continue;
    const auto mask = block_range(0, static_cast<unsigned>(blocks.size() / kBlockSize));
    auto added = co_await writer.add(chunk_of(ByteOffset(piece.offset + done)), mask, 0, blocks);
    if (!added) co_return added.error();
  }
  co_return Result<void>();
}

/// Copies all of the source into the writer.
Task<Result<void>> copy_source(ImportSource& source, LayerWriter& writer, RoomWatch& watch,
                               const Progress& progress) {
  std::array<Filled, 2> buffers;
  WaitGroup reading;
  reading.add();
  co_await read_ahead(source, buffers[0], progress, reading);
  for (std::size_t current = 0;; current ^= 1) {
    Filled& filled = buffers[current];
    const Result<std::optional<ImportSource::Piece>> got = std::move(*filled.piece);
    if (!got) co_return got.error();
    if (progress.is_cancelled()) co_return Error(ErrorCode::kCancelled, "import: cancelled");
    if (!*got) break;
    const ImportSource::Piece piece = **got;
    reading.add();
    EventLoop::current()->spawn(read_ahead(source, buffers[current ^ 1], progress, reading));
    auto added = co_await add_piece(writer, piece, std::span(filled.bytes.get(), kBufferBytes));
    co_await reading.wait();  // it uses what lives here, so also on failure
    if (!added) co_return added.error();
    auto fits = co_await watch.wrote(piece.length);
    if (!fits) co_return fits.error();
    progress.tell("import", piece.offset + piece.length, source.size().value_or(0));
  }
  co_return Result<void>();
}

/// Refuses what is known not to fit, before anything is read twice or written.
Task<Result<void>> require_room_for(Store& store, ImportSource& source, bool compressed) {
  auto room = co_await noted_room(store);
  if (!room) co_return room.error();
  if (room->left() < layer_bytes(0))
    co_return no_room(in_units(layer_bytes(0)), *room, store.path());
  if (compressed) co_return Result<void>();  // what that makes of it no one knows
  auto data = co_await source.data_bytes(room->left());
  if (!data) co_return data.error();
  if (!*data || layer_bytes(**data) <= room->left()) co_return Result<void>();
  const bool counted = **data <= room->left();
  const std::string needed =
      counted ? "about " + in_units(layer_bytes(**data)) : "more than " + in_units(room->left());
  co_return no_room(needed, *room, store.path(), "; or import it with --compress");
}

/// Writes the layer file `name` in `dir`: whole and synced when it returns.
Task<Result<PackedLayer>> write_layer(Directory& dir, RoomWatch& watch, ImportSource& source,
                                      const Store::ImportOptions& options,
                                      const Progress& progress) {
  auto file = co_await dir.open(kScratchLayer, kNewBlob);
  if (!file) co_return file.error();
  LayerWriter writer(std::move(*file),
                     {.virtual_size = source.size().value_or(kMaxVolumeSize),
                      .encoding = options.compress ? Encoding::kZstd : Encoding::kRaw,
                      .zstd_level = options.zstd_level,
                      .bottom = true});
  auto copied = co_await copy_source(source, writer, watch, progress);
  if (!copied) co_return copied.error();
  if (!source.size()) {
    co_return Error(ErrorCode::kInvalidArgument, "import: the source ended without a size");
  }
  writer.set_virtual_size(*source.size());
  auto written = co_await writer.finish();
  if (!written) co_return written.error();
  co_return PackedLayer{written->info, written->blob};
}

/// Everything of an import but the removal of its scratch folder.
Task<Result<Image>> import_through(Store& whole, Scratch& scratch, ImportSource& source,
                                   const Store::ImportOptions& options, const Progress& progress) {
  Store::Impl& store = whole.impl();
  auto required = co_await require_room_for(whole, source, options.compress);
  if (!required) co_return required.error();
  RoomWatch watch(whole, scratch);
  auto layer = co_await write_layer(scratch.dir(), watch, source, options, progress);
  if (!layer) co_return layer.error();
  if (progress.is_cancelled()) co_return Error(ErrorCode::kCancelled, "import: cancelled");
  Image image;
  image.size = *source.size();
  image.created = now_rfc3339();
  image.author = options.author;
  image.labels = options.labels;
  image.layers.push_back(layer->ref());
  image.history.push_back({.created = image.created,
                           .created_by = options.created_by,
                           .author = options.author,
                           .comment = options.comment});
  auto lock = co_await store.lock.shared("import " + options.name.str());
  if (!lock) co_return lock.error();
  auto adopted = co_await watch.adopt(layer->offer());
  if (!adopted) co_return adopted.error();
  auto published = co_await store.images.publish(std::move(image), options.name);
  co_return published;
}

}  // namespace

Task<Result<Image>> Store::import(ImportSource& source, ImportOptions options, Progress progress) {
  auto scratch = co_await impl_->scratch();
  if (!scratch) co_return scratch.error();
  auto image = co_await import_through(*this, *scratch, source, options, progress);
  auto removed = co_await scratch->remove();
  if (!image) co_return image.error().with_context("import " + options.name.str());
  // The image is published: an empty folder that stays is swept when the store is opened next.
  static_cast<void>(removed);
  co_await note_room(*this);
  co_return image;
}

}  // namespace snap
