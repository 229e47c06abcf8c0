// A layer: an immutable, packed, sorted, checksummed file of chunks (docs/format.md, Layer file).
//
//   header 4 KiB | chunks | chunk table | slice index | footer 4 KiB
//
// LayerWriter writes one front to back; Layer reads one. A Layer keeps only the slice index in
// memory (about 11 KiB a GiB of layer) and reads slices of the chunk table when they are needed.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "snap/digest.h"
#include "snap/file.h"
#include "snap/limits.h"
#include "snap/result.h"
#include "snap/task.h"
#include "snap/units.h"

namespace snap {

/// How a chunk's data blocks are stored.
enum class Encoding : std::uint8_t { kRaw = 0, kZstd = 1 };

/// One entry of the chunk table.
struct ChunkEntry {
  ChunkIndex chunk;
  BlockMask data = 0;  ///< blocks stored here, in ascending order
  BlockMask zero = 0;  ///< blocks that read zero whatever lies below; disjoint from data
  Encoding encoding = Encoding::kRaw;
  std::uint32_t stored_length = 0;  ///< bytes in the file; 0 if data is 0
  std::uint64_t offset = 0;         ///< in the file; a multiple of 4096 for raw chunks
  std::uint64_t checksum = 0;       ///< XXH3-64 of the stored bytes
  Sha256 content{};                 ///< SHA-256 of the raw data blocks; zeros if data is 0

  friend bool operator==(const ChunkEntry&, const ChunkEntry&) = default;
};

/// What a layer's footer says.
struct LayerInfo {
  ContentDigest content;           ///< diff id: independent of encoding and of write order
  std::uint64_t virtual_size = 0;  ///< bytes of the volume it was made from
  std::uint64_t entries = 0;       ///< chunk table entries
  std::uint64_t data_blocks = 0;   ///< 4 KiB blocks with data
  std::uint64_t zero_blocks = 0;   ///< 4 KiB blocks marked zero
  std::uint64_t file_size = 0;     ///< bytes of the file
};

/// Writes a layer file. One task at a time uses it. Hashing and compression run on helper threads.
class LayerWriter {
 public:
  struct Options {
    std::uint64_t virtual_size = 0;  ///< bytes; at most kMaxVolumeSize
    Encoding encoding =
        Encoding::kRaw;  ///< zstd: per chunk, only where it saves a 4 KiB block or more
    int zstd_level = 3;
    /// Nothing lies below this layer, so zero blocks need no mark: they are left out.
    bool bottom = false;
    std::uint64_t sync_every = kLayerSyncBytes;  ///< bytes after which a sync begins
  };
  struct Written {
    LayerInfo info;
    BlobDigest blob;  ///< SHA-256 of the file's bytes
  };

  /// `out` is empty and open for writing. It may stay open for a moment longer than the writer.
  LayerWriter(std::shared_ptr<File> out, Options options);
  ~LayerWriter();

  /// Adds a chunk; chunks come in ascending order (InvalidArgument otherwise). `blocks` holds
  /// popcount(data) blocks of 4096 bytes in ascending order and is copied. Data blocks that are all
  /// zero become zero marks. Bytes past virtual_size are stored as zero. An entry without data and
  /// zero blocks is left out.
  Task<Result<void>> add(ChunkIndex chunk, BlockMask data, BlockMask zero,
                         std::span<const std::byte> blocks);

  /// Replaces Options::virtual_size, before finish(): the importer of a stream learns its size at
  /// the end and starts with kMaxVolumeSize. At least what was added reaches (its last block may
  /// end past it).
  void set_virtual_size(std::uint64_t bytes);

  /// Writes table, index and footer, and syncs the file (not its name).
  Task<Result<Written>> finish();

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

/// An open layer. Thread-safe; shared by every volume of the process that reads through it.
class Layer {
 public:
  /// A decoded slice of the chunk table: at most kSliceEntries entries, ascending.
  using Slice = std::shared_ptr<const std::vector<ChunkEntry>>;

  /// Reads and checks footer and slice index. Corrupt (naming file and offset) if they are not what
  /// docs/format.md demands, or if `expected` is given and is not the content digest; Unsupported
  /// for an unknown incompatible feature.
  static Task<Result<std::shared_ptr<Layer>>> open(std::unique_ptr<File> file,
                                                   std::optional<ContentDigest> expected);
  ~Layer();

  const LayerInfo& info() const noexcept;
  const std::string& path() const noexcept;

  std::size_t slice_count() const noexcept;
  /// First chunk of slice `i`.
  ChunkIndex slice_first(std::size_t i) const noexcept;
  /// The slice that would hold `chunk`; nothing if `chunk` lies before the first.
  std::optional<std::size_t> slice_of(ChunkIndex chunk) const noexcept;
  /// Slice `i`, checked against the slice index and decoded. A few recent ones are cached.
  Task<Result<Slice>> read_slice(std::size_t i);
  /// The entry of `chunk`, if there is one.
  Task<Result<std::optional<ChunkEntry>>> find(ChunkIndex chunk);

  /// Reads the blocks in `which` (a subset of entry.data, not empty) into `out`, one after the
  /// other, popcount(which) * 4096 bytes. The whole chunk is verified the first time it is touched
  /// in this process; Corrupt names file, chunk and offset.
  Task<Result<void>> read_blocks(ChunkEntry entry, BlockMask which, std::span<std::byte> out);

  /// True once this process has verified the stored bytes of the `index`-th entry of slice `slice`.
  bool verified(std::size_t slice, std::size_t index) const noexcept;
  /// Bytes that were just read from the file, and where.
  struct Known {
    ByteOffset at;
    std::span<const std::byte> bytes;
  };
  /// Verifies the stored bytes of that entry if it has not been done: those in `known`, if they are
  /// all there, else they are read.
  Task<Result<void>> verify_entry(std::size_t slice, std::size_t index, Known known);
  Task<Result<void>> verify_entry(std::size_t slice, std::size_t index) {
    return verify_entry(slice, index, Known{});
  }

  /// A bare read of the file, for raw chunks that are verified: the resolved map reads through
  /// this.
  FileOp read_raw(std::span<std::byte> out, ByteOffset file_offset);
  /// The same, if it takes no waiting; see File::read_now.
  bool read_raw_now(std::span<std::byte> out, ByteOffset file_offset) noexcept;

  /// Checks every byte: slices, chunks, SHA-256 of every chunk, content digest, and canonical form.
  /// `progress` is told the stored bytes checked so far.
  Task<Result<void>> verify_all(std::function<void(std::uint64_t)> progress);
  /// The same without the stored bytes and what pads them: header, slices, the place of each chunk,
  /// counts. Reads a thousandth of the file.
  Task<Result<void>> verify_table();

 private:
  class Impl;
  class Verifier;
  explicit Layer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace snap
