// See load_source.h.
#include "engine/store/load_source.h"

#include <sys/stat.h>

#include <algorithm>

#include "engine/io/piece_writer.h"
#include "engine/store/blob_store.h"
#include "engine/store/names.h"
#include "engine/store/space.h"
#include "engine/store/store_impl.h"
#include "snap/limits.h"

namespace snap {

namespace {

constexpr std::size_t kCopyBytes = 1u << 20;
constexpr std::size_t kMaxEntries = 200000;  // of a tar; an image has at most a few thousand
constexpr std::size_t kMaxLayoutBytes = 4096;
constexpr std::string_view kBlobPrefix = "blobs/sha256/";

/// A blob on its way into scratch: written and hashed; it stays only if the digest is right.
class IncomingBlob {
 public:
  static Task<Result<std::unique_ptr<IncomingBlob>>> begin(Directory& dir, BlobDigest digest) {
    auto file = co_await dir.open(digest.hex(), kNewBlob);
    if (!file) co_return file.error();
    co_return std::unique_ptr<IncomingBlob>(new IncomingBlob(std::move(*file), digest));
  }

  Task<Result<void>> add(std::span<const std::byte> bytes) {
    auto hashing = offload([this, bytes] { hash_.update(bytes); });
    co_await hashing;
    size_ += bytes.size();
    auto written = co_await out_.append(bytes);
    co_return written;
  }

  /// Checks the digest and makes the bytes durable.
  Task<Result<void>> finish() {
    if (hash_.finish() != digest_.bytes) {
      co_return Error(ErrorCode::kCorrupt, "blob " + digest_.str() + ": its " +
                                               std::to_string(size_) +
                                               " bytes have another digest; the file is damaged");
    }
    auto written = co_await out_.finish();
    if (!written) co_return written.error();
    auto synced = co_await full_sync(*file_);
    if (!synced) co_return synced.error();
    co_return Result<void>();
  }

 private:
  IncomingBlob(std::unique_ptr<File> file, BlobDigest digest)
      : file_(std::move(file)), digest_(digest) {}

  std::unique_ptr<File> file_;
  PieceWriter out_{*file_};
  const BlobDigest digest_;
  Sha256Stream hash_;
  std::uint64_t size_ = 0;
};

std::optional<BlobDigest> digest_of_name(std::string_view name) {
  if (!name.starts_with(kBlobPrefix)) return std::nullopt;
  auto bytes = parse_sha256_hex(name.substr(kBlobPrefix.size()));
  if (!bytes) return std::nullopt;
  return BlobDigest{*bytes};
}

bool is_folder(const std::string& path) {
  struct stat st {};
  return path != "-" && ::stat(path.c_str(), &st) == 0 && S_ISDIR(st.st_mode);
}

std::string text_of(const std::vector<std::byte>& bytes) {
  return std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size());
}

}  // namespace

LoadSource::LoadSource(Store& store, Directory& scratch, RoomWatch& watch, std::string path,
                       const Progress& progress)
    : whole_(&store),
      store_(&store.impl().blobs),
      scratch_(&scratch),
      watch_(&watch),
      path_(std::move(path)),
      progress_(&progress) {}

Result<void> LoadSource::take_room(std::uint64_t bytes) {
  const std::uint64_t left = room_.left();
  if (bytes > left - std::min(left, taken_)) {
    return no_room(in_units(taken_ + bytes) + " or more", room_, whole_->path())
        .with_context("load " + path_);
  }
  taken_ += bytes;
  return {};
}

Task<Result<void>> LoadSource::fetch_all() {
  auto room = co_await noted_room(*whole_);
  if (!room) co_return room.error().with_context("load " + path_);
  room_ = std::move(*room);
  const std::string* path = &path_;
  auto looking = offload([path] { return is_folder(*path); });
  const bool folder = co_await looking;
  Result<void> fetched;
  if (folder) {
    fetched = co_await open_folder();
  } else {
    fetched = co_await fetch_tar();
  }
  if (!fetched) co_return fetched.error();
  if (!layout_seen_ || index_.empty()) {
    co_return refusal(ErrorCode::kInvalidArgument,
                      "it is no OCI image layout: oci-layout or index.json is missing (is it a "
                      "file of `snapctl save`, and whole?)");
  }
  co_return Result<void>();
}

Task<Result<void>> LoadSource::check_tar() {
  auto tar = co_await TarReader::open(path_);
  if (!tar) co_return tar.error();
  // A file that is smaller than what is left holds no more, unless it is compressed: then each
  // blob is refused at its turn.
  if ((*tar)->total() <= room_.left()) co_return Result<void>();
  std::uint64_t needed = 0;
  for (std::size_t entries = 0; entries < kMaxEntries; ++entries) {
    auto entry = co_await (*tar)->next();
    if (!entry || !*entry) break;  // told when it is read for good
    const auto digest = digest_of_name((*entry)->name);
    if (!digest) continue;
    auto there = co_await store_->exists(*digest);
    if (there && !*there) needed += std::min((*entry)->size, (*tar)->total());
  }
  if (needed > room_.left())
    co_return no_room(in_units(needed), room_, whole_->path()).with_context("load " + path_);
  co_return Result<void>();
}

Task<Result<void>> LoadSource::fetch_tar() {
  if (path_ != "-") {
    auto fits = co_await check_tar();
    if (!fits) co_return fits.error();
  }
  auto tar = co_await TarReader::open(path_);
  if (!tar) co_return tar.error();
  for (std::size_t entries = 0;; ++entries) {
    auto entry = co_await (*tar)->next();
    if (!entry) co_return entry.error().with_context("load");
    if (!*entry) break;
    if (entries == kMaxEntries)
      co_return refusal(ErrorCode::kTooLarge, "it has more entries than an image can");
    if ((*entry)->directory) continue;
    auto taken = co_await take_entry(**tar, **entry);
    if (!taken) co_return taken.error();
  }
  co_return Result<void>();
}

Task<Result<void>> LoadSource::take_entry(TarReader& tar, TarReader::Entry entry) {
  if (entry.name == "oci-layout") {
    auto text = co_await take_text(tar, entry);
    if (!text) co_return text.error();
    layout_seen_ = true;
    co_return Result<void>();
  }
  if (entry.name == "index.json") {
    if (!index_.empty()) co_return refusal(ErrorCode::kInvalidArgument, "it has two index.json");
    auto text = co_await take_text(tar, entry);
    if (!text) co_return text.error();
    index_ = std::move(*text);
    co_return Result<void>();
  }
  const auto digest = digest_of_name(entry.name);
  if (!digest) co_return Result<void>();  // docker writes files of its own beside the layout
  auto there = co_await store_->exists(*digest);
  if (!there) co_return there.error();
  if (*there || in_scratch_.contains(*digest)) co_return Result<void>();
  auto taken = co_await take_blob(tar, *digest, entry.size);
  co_return taken;
}

Task<Result<std::string>> LoadSource::take_text(TarReader& tar, TarReader::Entry entry) {
  if (entry.size > kMaxJsonBytes) {
    co_return refusal(ErrorCode::kTooLarge, entry.name + " has " + std::to_string(entry.size) +
                                                " bytes, more than is allowed");
  }
  std::string text;
  for (;;) {
    auto block = co_await tar.read();
    if (!block) co_return block.error().with_context("load");
    if (block->empty()) co_return text;
    if (text.size() + block->size() > kMaxJsonBytes)
      co_return refusal(ErrorCode::kTooLarge, entry.name + " is longer than is allowed");
    text.append(reinterpret_cast<const char*>(block->data()), block->size());
  }
}

Task<Result<void>> LoadSource::take_blob(TarReader& tar, BlobDigest digest, std::uint64_t size) {
  auto fits = take_room(size);
  if (!fits) co_return fits;
  auto blob = co_await IncomingBlob::begin(*scratch_, digest);
  if (!blob) co_return blob.error();
  const std::string stage = "load " + digest.str();
  for (;;) {
    if (progress_->is_cancelled()) co_return refusal(ErrorCode::kCancelled, "cancelled");
    auto block = co_await tar.read();
    if (!block) co_return block.error().with_context("load");
    if (block->empty()) break;
    auto added = co_await (*blob)->add(*block);
    if (!added) co_return added.error();
    auto allowed = co_await watch_->wrote(block->size());
    if (!allowed) co_return allowed.error().with_context("load " + path_);
    progress_->tell(stage, tar.position(), tar.total());
  }
  auto finished = co_await (*blob)->finish();
  if (!finished) co_return finished.error().with_context("load " + path_);
  in_scratch_.insert(digest);
  co_return Result<void>();
}

Task<Result<void>> LoadSource::open_folder() {
  auto top = co_await open_directory(path_);
  if (!top) co_return top.error();
  auto layout = co_await read_whole(**top, "oci-layout", kMaxLayoutBytes);
  if (layout) {
    layout_seen_ = true;
  } else if (layout.error().code() != ErrorCode::kNotFound) {
    co_return layout.error();
  }
  auto index = co_await read_whole(**top, "index.json", kMaxJsonBytes);
  if (index) {
    index_ = text_of(*index);
  } else if (index.error().code() != ErrorCode::kNotFound) {
    co_return index.error();
  }
  if (!layout || !index) co_return Result<void>();
  auto blobs = co_await (*top)->open_dir("blobs");
  if (!blobs) co_return blobs.error();
  auto folder = co_await (*blobs)->open_dir("sha256");
  if (!folder) co_return folder.error();
  folder_ = std::move(*folder);
  co_return Result<void>();
}

Task<Result<void>> LoadSource::copy_blob(BlobDigest digest) {
  auto from = co_await folder_->open(digest.hex(), OpenFlags{});
  if (!from) co_return from.error();
  auto stat = co_await (*from)->stat();
  if (!stat) co_return stat.error();
  auto fits = take_room(stat->size);
  if (!fits) co_return fits.error();
  auto blob = co_await IncomingBlob::begin(*scratch_, digest);
  if (!blob) co_return blob.error();
  std::vector<std::byte> buffer(std::min<std::uint64_t>(kCopyBytes, stat->size));
  const std::string stage = "load " + digest.str();
  for (std::uint64_t at = 0; at < stat->size;) {
    if (progress_->is_cancelled()) co_return refusal(ErrorCode::kCancelled, "cancelled");
    const auto piece =
        std::span(buffer).first(std::min<std::uint64_t>(buffer.size(), stat->size - at));
    auto read = co_await read_exact(**from, piece, ByteOffset(at));
    if (!read) co_return read.error();
    auto added = co_await (*blob)->add(piece);
    if (!added) co_return added.error();
    auto allowed = co_await watch_->wrote(piece.size());
    if (!allowed) co_return allowed.error().with_context("load " + path_);
    at += piece.size();
    progress_->tell(stage, at, stat->size);
  }
  auto finished = co_await (*blob)->finish();
  if (!finished) co_return finished.error().with_context("load " + path_);
  in_scratch_.insert(digest);
  co_return Result<void>();
}

Task<Result<LoadSource::Where>> LoadSource::fetch(BlobDigest digest) {
  if (in_scratch_.contains(digest)) co_return Where::kScratch;
  auto there = co_await store_->exists(digest);
  if (!there) co_return there.error();
  if (*there) co_return Where::kStore;
  if (folder_ != nullptr) {
    auto copied = co_await copy_blob(digest);
    if (copied) co_return Where::kScratch;
    if (copied.error().code() != ErrorCode::kNotFound) co_return copied.error();
  }
  co_return refusal(ErrorCode::kCorrupt,
                    "blob " + digest.str() + " is missing: the file is not whole");
}

Task<Result<std::string>> LoadSource::json(BlobDigest digest) {
  auto where = co_await fetch(digest);
  if (!where) co_return where.error();
  if (*where == Where::kStore) {
    auto text = co_await store_->read_json(digest);
    co_return text;
  }
  auto bytes = co_await read_whole(*scratch_, digest.hex(), kMaxJsonBytes);
  if (!bytes) co_return bytes.error();
  co_return text_of(*bytes);
}

Task<Result<std::unique_ptr<File>>> LoadSource::open(BlobDigest digest) {
  auto file = co_await scratch_->open(digest.hex(), OpenFlags{});
  co_return file;
}

}  // namespace snap
