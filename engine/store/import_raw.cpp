// A regular file, by its data extents, or a block device.
//
// Extents are widened to whole chunks, what a hole adds reads zero. Up to kReadsInFlight reads of
// 1 MiB run at once, so that a device is kept busy while what was read is hashed and written.
#include <algorithm>
#include <vector>

#include "engine/base/checksum.h"
#include "engine/io/sync.h"
#include "engine/store/import_source.h"
#include "snap/limits.h"

namespace snap {

namespace {

constexpr std::uint64_t kReadBytes = 1u << 20;

/// Of a file that is shorter than it was.
Error was_cut(const File& file, std::uint64_t end) {
  return Error(ErrorCode::kIo, "read " + file.path() + ": it ends at " + std::to_string(end) +
                                   ", it was cut while it was being imported");
}

Task<Result<void>> read_at(File& file, std::span<std::byte> out, std::uint64_t at) {
  auto got = co_await read_up_to(file, out, ByteOffset(at));
  if (!got) co_return got.error();
  if (*got < out.size()) co_return was_cut(file, at + *got);
  co_return Result<void>();
}

/// Bytes of the blocks of `bytes` that are not all zero.
std::uint64_t data_in(std::span<const std::byte> bytes) {
  std::uint64_t sum = 0;
  for (std::size_t at = 0; at < bytes.size(); at += kBlockSize) {
    const auto block = bytes.subspan(at, std::min<std::size_t>(kBlockSize, bytes.size() - at));
    if (!is_zero(block)) sum += kBlockSize;
  }
  return sum;
}

class RawSource final : public ImportSource {
 public:
  RawSource(std::unique_ptr<File> file, std::uint64_t bytes, std::uint64_t size)
      : file_(std::move(file)), bytes_(bytes), size_(size) {}

  std::optional<std::uint64_t> size() const override { return size_; }

  Task<Result<std::optional<std::uint64_t>>> data_bytes(std::uint64_t enough) override {
    auto data = co_await extent_bytes(enough);
    if (!data) co_return data.error();
    // Zeros in an extent are not stored: they are told from data only by reading it.
    if (*data > enough) data = co_await count_data(enough);
    position_ = extent_end_ = 0;
    if (!data) co_return data.error();
    co_return std::optional<std::uint64_t>(*data);
  }

  Task<Result<std::optional<Piece>>> next(std::span<std::byte> buffer) override {
    if (position_ >= extent_end_) {
      auto more = co_await find_extent();
      if (!more) co_return more.error();
      if (!*more) co_return std::optional<Piece>();
    }
    Piece piece;
    piece.offset = position_;
    piece.length =
        std::min<std::uint64_t>(round_down(buffer.size(), kChunkSize), extent_end_ - position_);
    auto read = co_await read_piece(buffer.first(piece.length), piece.offset);
    if (!read) co_return read.error();
    position_ += piece.length;
    co_return std::optional<Piece>(piece);
  }

 private:
  /// The sum of the extents, counted until it is more than `enough`.
  Task<Result<std::uint64_t>> extent_bytes(std::uint64_t enough) {
    std::uint64_t sum = 0;
    while (sum <= enough) {
      auto more = co_await find_extent();
      if (!more) co_return more.error();
      if (!*more) break;
      sum += extent_end_ - position_;
      position_ = extent_end_;
    }
    position_ = extent_end_ = 0;
    co_return sum;
  }

  /// The bytes of blocks that are not zero, counted until they are more than `enough`.
  Task<Result<std::uint64_t>> count_data(std::uint64_t enough) {
    std::vector<std::byte> buffer(4 * kReadBytes);
    std::uint64_t sum = 0;
    while (sum <= enough) {
      auto piece = co_await next(buffer);
      if (!piece) co_return piece.error();
      if (!*piece) break;
      const auto bytes = std::span(buffer).first((*piece)->length);
      auto counting = offload([bytes] { return data_in(bytes); });
      sum += co_await counting;
    }
    co_return sum;
  }

  /// Moves to the next extent with data; false at the end.
  Task<Result<bool>> find_extent() {
    if (position_ >= bytes_) co_return false;
    auto extent = co_await file_->next_data(position_);
    if (!extent) co_return extent.error();
    if (!*extent || (*extent)->begin >= bytes_) {
      // There is no data beyond the end either, and the end may be another by now.
      auto stat = co_await file_->stat();
      if (!stat) co_return stat.error();
      if (stat->size < bytes_) co_return was_cut(*file_, stat->size);
      position_ = bytes_;
      co_return false;
    }
    position_ = std::max(position_, round_down((*extent)->begin, kChunkSize));
    extent_end_ = std::min(bytes_, round_up((*extent)->end, kChunkSize));
    co_return true;
  }

  Task<Result<void>> read_piece(std::span<std::byte> out, std::uint64_t at) {
    std::vector<Task<Result<void>>> reads;
    for (std::size_t done = 0; done < out.size(); done += kReadBytes) {
      const auto part = out.subspan(done, std::min<std::size_t>(kReadBytes, out.size() - done));
      reads.push_back(read_at(*file_, part, at + done));
    }
    auto results = co_await gather(std::move(reads));
    for (const auto& r : results)
      if (!r) co_return r.error();
    co_return Result<void>();
  }

  std::unique_ptr<File> file_;
  const std::uint64_t bytes_;  // of the file
  const std::uint64_t size_;   // of the image
  std::uint64_t position_ = 0;
  std::uint64_t extent_end_ = 0;  // in a chunk boundary, or bytes_
};

}  // namespace

Task<Result<std::unique_ptr<ImportSource>>> make_raw_source(std::unique_ptr<File> file,
                                                            std::optional<std::uint64_t> grow_to) {
  auto stat = co_await file->stat();
  if (!stat) co_return stat.error();
  auto size = import_size(stat->size, grow_to, file->path());
  if (!size) co_return size.error();
  co_return std::make_unique<RawSource>(std::move(file), stat->size, *size);
}

}  // namespace snap
