// Writes a file front to back in whole pieces, for those who will read it block by block.
//
// The page cache keeps what one write brings, if it begins at a multiple of its own size, as one
// folio. A block of a file that was written so costs a third less to read than one of small folios
// (docs/performance.md, Where the time goes).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "snap/file.h"

namespace snap {

/// Not to be shared by tasks. The file must outlive it, and nobody else may write to it.
class PieceWriter {
 public:
  static constexpr std::size_t kPieceBytes = 1u << 20;

  /// Begins at offset 0.
  explicit PieceWriter(File& file) : file_(file) {}
  PieceWriter(const PieceWriter&) = delete;
  PieceWriter& operator=(const PieceWriter&) = delete;

  /// Puts bytes behind those before. What does not fill a piece waits in memory.
  Task<Result<void>> append(std::span<const std::byte> bytes);
  /// Writes what waits. To be called once, at the end; what is not written then is lost.
  Task<Result<void>> finish();

  /// Bytes that the file was given so far.
  std::uint64_t written() const noexcept { return written_; }

 private:
  Task<Result<void>> write(std::span<const std::byte> piece);

  File& file_;
  std::uint64_t written_ = 0;
  std::vector<std::byte> held_;  // what follows them, less than a piece
};

}  // namespace snap
