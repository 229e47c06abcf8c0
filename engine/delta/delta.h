// A delta: the writable layer of one volume, crash-safe and in place (docs/format.md, Delta;
// docs/durability.md).
//
//   data     sparse; volume offset = file offset. No allocator: the file system provisions.
//   map      checkpoints of the block map: an append-only file of checksummed segments
//   journal  records of what changed since the last checkpoint
//
// The block map says for each 4 KiB block: data here, zero here, or absent (looked up below).
// Nothing is assumed about the data file's bytes where there is no data bit. All calls are
// thread-safe and may come from any loop of the process; writes to one block are ordered by its
// busy bit.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "engine/base/uuid.h"
#include "engine/delta/block_quota.h"
#include "snap/file.h"
#include "snap/result.h"
#include "snap/task.h"
#include "snap/units.h"

namespace snap {

/// What a delta holds of one chunk; the masks are disjoint. A block in neither is absent.
struct BlockState {
  BlockMask data = 0;
  BlockMask zero = 0;
};

/// What lies under a delta: asked for whole blocks by sub-block writes to absent blocks.
class BlockSource {
 public:
  virtual ~BlockSource() = default;
  /// Fills `out` (a multiple of 4096 bytes) from `at` (a multiple of 4096).
  virtual Task<Result<void>> read_blocks(ByteOffset at, std::span<std::byte> out) = 0;
};

class Delta {
 public:
  struct CreateOptions {
    Uuid id;
    std::uint64_t size = 0;   ///< bytes that it may address; at most kMaxVolumeSize
    std::string live_folder;  ///< as of open()
  };
  enum class Mode {
    kReadWrite,  ///< recovers, then takes writes
    kSealed,     ///< reads only; a sealed delta has no journal to replay
  };
  struct Stats {
    std::uint64_t data_blocks = 0;  ///< blocks with a data bit
    std::uint64_t zero_blocks = 0;
    std::uint64_t dirty_chunks = 0;  ///< changed since the last durable record
    std::uint64_t flushes = 0;       ///< flush calls that were answered
    std::uint64_t syncs = 0;         ///< fdatasync calls of the data file
    std::uint64_t records = 0;       ///< journal records written
    std::uint64_t checkpoints = 0;
    /// Pieces of requests that failed with NoSpace, by what was full.
    std::uint64_t limit_hits = 0, shared_limit_hits = 0, disk_full_hits = 0;
  };
  /// Replies to the caller before or after the write is durable.
  enum class Durability { kCached, kDurable };
  /// How a write is done.
  struct WriteMode {
    WriteMode(Durability d, bool waiting = false) : durability(d), others_wait(waiting) {}
    Durability durability;
    bool others_wait;  ///< see Volume::WriteOptions
  };

  /// Makes the files of a new delta in `dir` (empty, its own) and syncs them and `dir`; writes less
  /// than 64 KiB. The caller makes `dir`'s name durable.
  static Task<Result<std::unique_ptr<Delta>>> create(std::unique_ptr<Directory> dir,
                                                     CreateOptions options);
  /// Opens and recovers (docs/durability.md, Recovery). Corrupt names file, offset and what was
  /// found. `live_folder`: on tmpfs, where the live map goes while the delta is open to write, so
  /// that the death of this process loses nothing that was answered; empty: no live map.
  static Task<Result<std::unique_ptr<Delta>>> open(std::unique_ptr<Directory> dir, Mode mode,
                                                   std::string live_folder = {});
  /// Takes away the live map that a dead process left of the delta in `dir`, which is to be
  /// removed.
  static Task<void> forget_live(Directory& dir, Uuid id, std::string live_folder);
  virtual ~Delta() = default;

  virtual const Uuid& id() const noexcept = 0;
  virtual std::uint64_t size() const noexcept = 0;

  // ---- Map: no lock, no wait

  virtual BlockState lookup(ChunkIndex chunk) const noexcept = 0;
  /// The first chunk at or after `from` that holds anything.
  virtual std::optional<ChunkIndex> next_present(ChunkIndex from) const noexcept = 0;

  // ---- Data

  /// Reads bytes of the data file. The caller has seen data bits for all blocks that it touches.
  virtual Task<Result<void>> read(ByteOffset at, std::span<std::byte> out) = 0;
  /// The same, if it takes no waiting. False: not done; read() does it, or says why not.
  virtual bool read_now(ByteOffset at, std::span<std::byte> out) noexcept = 0;
  /// Writes any bytes within size. Blocks that are covered in part and absent are completed from
  /// `below`. The data bit is set after the write has completed.
  virtual Task<Result<void>> write(ByteOffset at, std::span<const std::byte> bytes,
                                   BlockSource& below, WriteMode mode) = 0;
  /// The same without kDurable, if it takes no waiting and nothing from below: one chunk's blocks
  /// that no one holds, whole or present, for which there is space. Nothing: not done, or in part,
  /// and write() does it or says why not.
  virtual std::optional<Result<void>> write_now(ByteOffset at,
                                                std::span<const std::byte> bytes) = 0;
  /// Makes the range read zero: whole blocks by zero bits and a hole (with `keep_allocated`: by
  /// writing zeros), the edges by writing.
  virtual Task<Result<void>> write_zeroes(ByteOffset at, std::uint64_t length, BlockSource& below,
                                          bool keep_allocated, Durability durability) = 0;
  /// As write_zeroes for the whole blocks in the range; the edges are left as they are.
  virtual Task<Result<void>> trim(ByteOffset at, std::uint64_t length, Durability durability) = 0;
  /// Makes durable every write that completed before the call, on whatever thread.
  virtual Task<Result<void>> flush() = 0;
  /// The same by a sync of the data file, so that a seal which follows finds little to sync.
  virtual Task<Result<void>> flush_data() = 0;

  /// Looks whether the kernel could not write data back that no sync has asked for yet, which ends
  /// writes as a failed sync does (failure()). Cheap, and waits for nothing.
  virtual void check_writeback() = 0;

  // ---- Space

  /// The most bytes that its data blocks may take, from now on; none: as the disk has. At the limit
  /// a request that needs a block more fails alone, with NoSpace; reads, overwrites and trims go
  /// on, and a trim makes room.
  virtual void set_limit(std::optional<std::uint64_t> bytes) = 0;
  /// From now on each data block is taken from `quota` too, and given back to it, blocks of before
  /// as well. Not while requests are in flight.
  virtual void share_quota(std::shared_ptr<BlockQuota> quota) = 0;

  // ---- Life

  /// Flushes and writes a checkpoint. Afterwards the delta may be opened kSealed; this object goes
  /// on to serve reads, and writes too if the caller lets them through (a failed snapshot).
  virtual Task<Result<void>> seal() = 0;
  /// Grows or shrinks what it may address. A shrink durably clears the bits beyond first; the
  /// caller keeps writes out meanwhile.
  virtual Task<Result<void>> resize(std::uint64_t size) = 0;
  /// Drains, checkpoints, and ends background work; then no change is taken any more. Must be
  /// awaited before destruction of a delta that is open kReadWrite; a process that dies without it
  /// loses nothing that was flushed.
  virtual Task<Result<void>> close() = 0;
  virtual Stats stats() const = 0;
  /// From now on every write and flush fails, until the delta is opened again: as after a sync that
  /// failed.
  virtual void stop(const Error& why) = 0;
  /// Why the delta takes no more writes (a sync failed, or stop()), if so.
  virtual std::optional<Error> failure() const = 0;
  /// Why the death of this process may lose answered writes that no flush covered, if so: a live
  /// map was asked for and could not be made. Nothing fails for that.
  virtual const std::optional<Error>& live_trouble() const noexcept = 0;
};

}  // namespace snap
