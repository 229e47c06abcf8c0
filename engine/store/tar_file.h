// Tar files through libarchive: TarWriter makes one (the same bytes for the same entries), and
// TarReader takes one apart, which may be hostile.
//
// libarchive blocks, so each call here runs on a helper thread. One task at a time uses an object.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "snap/result.h"
#include "snap/task.h"

namespace snap {

/// Writes to a file that gets its name only when it is whole and durable; "-" is standard output.
/// What exists already and is no regular file (a pipe, a device) is written to directly.
class TarWriter {
 public:
  static Task<Result<std::unique_ptr<TarWriter>>> create(std::string path);
  /// Without finish() nothing is left behind.
  ~TarWriter();

  /// Begins an entry of `size` bytes; exactly that many follow through write().
  Task<Result<void>> begin_file(std::string name, std::uint64_t size);
  Task<Result<void>> begin_directory(std::string name);
  Task<Result<void>> write(std::span<const std::byte> bytes);
  /// Ends the archive, syncs it and gives it its name.
  Task<Result<void>> finish();

 private:
  struct Impl;
  explicit TarWriter(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

/// Reads a tar file (gzip, bzip2, xz or zstd around it is fine); "-" is standard input. Only
/// regular files and directories with plain relative names pass; anything else is InvalidArgument.
class TarReader {
 public:
  static Task<Result<std::unique_ptr<TarReader>>> open(std::string path);
  ~TarReader();

  struct Entry {
    std::string name;  ///< no leading "./", no ".."
    bool directory = false;
    std::uint64_t size = 0;  ///< as claimed; what comes is what counts
  };
  /// The next entry; nothing at the end. What was not read of the one before is skipped.
  Task<Result<std::optional<Entry>>> next();
  /// The next bytes of the entry, valid until the next call; empty at its end. An entry that ends
  /// before its size is Corrupt.
  Task<Result<std::span<const std::byte>>> read();
  /// Bytes of the file consumed so far, and its size (0: not known).
  std::uint64_t position() const noexcept;
  std::uint64_t total() const noexcept;

 private:
  struct Impl;
  explicit TarReader(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace snap
