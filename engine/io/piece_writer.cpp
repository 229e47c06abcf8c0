// See piece_writer.h.
#include "engine/io/piece_writer.h"

#include <algorithm>

namespace snap {

Task<Result<void>> PieceWriter::append(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    if (held_.empty() && bytes.size() >= kPieceBytes) {
      auto wrote = co_await write(bytes.first(kPieceBytes));
      SNAP_CO_RETURN_IF_ERROR(wrote);
      bytes = bytes.subspan(kPieceBytes);
      continue;
    }
    const auto part = bytes.first(std::min(bytes.size(), kPieceBytes - held_.size()));
    held_.insert(held_.end(), part.begin(), part.end());
    bytes = bytes.subspan(part.size());
    if (held_.size() < kPieceBytes) break;
    auto wrote = co_await write(held_);
    SNAP_CO_RETURN_IF_ERROR(wrote);
    held_.clear();
  }
  co_return Result<void>{};
}

Task<Result<void>> PieceWriter::finish() {
  auto wrote = co_await write(held_);
  SNAP_CO_RETURN_IF_ERROR(wrote);
  held_.clear();
  co_return Result<void>{};
}

Task<Result<void>> PieceWriter::write(std::span<const std::byte> piece) {
  auto wrote = co_await write_all(file_, piece, ByteOffset(written_));
  SNAP_CO_RETURN_IF_ERROR(wrote);
  written_ += piece.size();
  co_return Result<void>{};
}

}  // namespace snap
