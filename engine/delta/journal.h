// The `journal` file of a delta: records of what changed since the last checkpoint
// (docs/format.md, Delta, Journal).
//
// Two areas: records go to the active one; when it is full it is frozen and the other becomes
// active, while a checkpoint covers the frozen one in the background. A frozen area is used again
// only after free_frozen(), which the caller may call once a durable segment covers it. The areas
// begin small; extend() and grow() make them larger.
//
// Records are written past the page cache where the file system can, into space that was written
// before: then a sync has no metadata to write.
//
// Threads: the caller holds the commit lock for everything but frozen(), frozen_changes(),
// frozen_through() and free_frozen(), for which it holds the checkpoint lock, and extend(), of
// which one call at a time may run beside all others.
// docs/durability.md, Journal.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "engine/base/lazy_memory.h"
#include "engine/delta/delta_format.h"
#include "snap/file.h"

namespace snap {

/// What a scan found beyond the last checkpoint.
struct JournalTail {
  std::vector<Change> changes;  ///< of the valid records, in order
  /// Records whose blocks count: those after the last record that stands for a sync of the data.
  struct Blocks {
    FrameHead head;
    std::uint64_t offset = 0;
  };
  std::vector<Blocks> blocks;
  std::uint64_t synced_end = 0;     ///< of the data file, as far as records without blocks say
  std::uint64_t last_sequence = 0;  ///< of the last valid record, or the checkpoint's `through`
  std::uint64_t records = 0;
  bool torn = false;  ///< an incomplete record follows the last valid one
};

class Journal {
 public:
  struct Files {
    std::unique_ptr<File> buffered;
    std::unique_ptr<File> direct;  ///< the same file, past the page cache; null: not possible here
    bool syncs_writes = false;     ///< takes_durable_writes()
  };
  /// Opens the file for both ways.
  static Task<Result<Files>> open(Directory& dir, std::string name, OpenFlags flags);
  /// The file may be empty: then the header is written before the first record.
  Journal(Files files, Uuid id, const ChecksumSecret& secret, std::uint64_t last_sequence);

  /// Reads what continues from `through`. Corrupt if a record is missing or makes no sense.
  Task<Result<JournalTail>> scan(std::uint64_t through, std::uint64_t volume_size);
  /// Numbers up to `sequence` are taken.
  void skip_to(std::uint64_t sequence) { last_sequence_ = sequence; }

  /// Writes the blocks of `tail` to where they belong in `data`, oldest first.
  Task<Result<void>> replay(const JournalTail& tail, File& data, std::uint64_t volume_size);

  File& file() { return *file_; }
  std::uint64_t last_sequence() const { return last_sequence_; }
  std::uint64_t area_length() const { return area_length_; }
  bool fits(std::uint64_t length) const { return used_ + length <= area_length_; }

  /// Writes a record and syncs (rule Journal). It must fit.
  Task<Result<void>> append(std::span<const Change> changes, std::uint64_t through);
  /// The place for the blocks of a record of `changes` in all, `blocks` of them; then the record.
  Result<std::span<std::byte>> place_for_blocks(std::size_t changes, std::size_t blocks);
  /// `data_sync`: number of a sync of the data file that makes the blocks stable there.
  Task<Result<void>> append_with_blocks(std::span<const Change> changes, std::uint64_t data_sync);
  /// Freezes the active area and begins to fill the other. There must be no frozen one.
  void switch_area();
  /// Changes in the active area, in order.
  const std::vector<Change>& active_changes() const { return changes_; }
  /// A durable segment covers the active area: it is filled again from its start.
  void free_active();
  /// Takes space for both areas.
  Task<Result<void>> reserve();
  /// The next larger length of an area that holds a record of `record` bytes; that of now if there
  /// is no larger one.
  std::uint64_t larger_area_length(std::uint64_t record) const;
  /// Writes zeros to `file`, this journal's opened once more, where areas of that length will lie
  /// beyond those of now, and syncs.
  Task<Result<void>> extend(File& file, std::uint64_t area_length);
  /// extend() is done, and durable segments cover all records: areas have that length from now on.
  Task<Result<void>> grow(std::uint64_t area_length);
  /// Durable segments cover all records: gives the areas' space back, and says in the header that
  /// the map goes up to segment `last_segment`; 0 when the map tells by itself: empties the file.
  Task<Result<void>> release_space(std::uint64_t last_segment);
  /// What release_space() said when the delta was last closed, known after scan(); 0: nothing.
  std::uint64_t closed() const { return closed_; }

  bool frozen() const { return frozen_.load(std::memory_order_acquire); }
  const std::vector<Change>& frozen_changes() const { return frozen_changes_; }
  std::uint64_t frozen_through() const { return frozen_through_; }
  void free_frozen();

  /// The number of the sync of the data file that must be done before a segment covers the frozen
  /// area, or all records: for the blocks that they carry may be nowhere else yet.
  std::uint64_t frozen_sync() const { return frozen_sync_.load(); }
  std::uint64_t last_sync() const { return std::max(frozen_sync_.load(), active_sync_); }

 private:
  struct Found {
    FrameHead head;
    std::uint64_t offset = 0;
  };
  FrameContext context(std::uint64_t offset) const { return {id_, secret_, offset}; }
  std::uint64_t area_begin(unsigned area) const { return kDeltaHeaderBytes + area * area_length_; }
  Task<Result<void>> write_header();
  static Task<Result<void>> write_zeros(File& file, std::uint64_t begin, std::uint64_t end);
  Task<Result<void>> read_header(std::uint64_t file_size);
  /// All valid heads beyond `through`, ascending.
  Task<Result<std::vector<Found>>> find_heads(std::uint64_t through, std::uint64_t file_size);
  /// Checks the frames of all heads, in order, and gathers what they say.
  Task<Result<JournalTail>> check_records(std::span<const Found> found, std::uint64_t through,
                                          std::uint64_t volume_size);
  Error corrupt(std::uint64_t offset, const std::string& what) const;
  Result<std::span<std::byte>> frame_memory(std::uint64_t length);
  Task<Result<void>> write_frame(FrameHead head, std::span<std::byte> frame,
                                 std::span<const Change> changes);
  /// Returns when all of it is stable.
  Task<Result<void>> write_stable(std::span<const std::byte> bytes, std::uint64_t offset);

  std::unique_ptr<File> file_;
  std::unique_ptr<File> direct_;
  const bool syncs_writes_;
  LazyMemory frame_;  ///< in which records are made
  Uuid id_;
  ChecksumSecret secret_;
  std::uint64_t area_length_ = kJournalAreaInitial;
  bool has_header_ = false;
  bool has_areas_ = false;  ///< their space was written before
  std::uint64_t closed_ = 0;
  std::uint64_t last_sequence_;
  std::uint64_t last_checksum_ = 0;

  unsigned active_ = 0;
  std::uint64_t used_ = 0;  ///< bytes of the active area
  std::vector<Change> changes_;
  std::uint64_t active_sync_ = 0;

  std::atomic<bool> frozen_{false};
  std::atomic<std::uint64_t> frozen_sync_{0};
  std::vector<Change> frozen_changes_;
  std::uint64_t frozen_through_ = 0;
};

}  // namespace snap
