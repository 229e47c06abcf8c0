// The `journal` file of a delta: records of what changed since the last checkpoint
// (docs/format.md, Delta, Journal).
//
// Two areas: records go to the active one; when it is full it is frozen and the other becomes
// active, while a checkpoint covers the frozen one in the background. A frozen area is used again
// only after free_frozen(), which the caller may call once a durable segment covers it.
//
// Threads: the caller holds the commit lock for everything but frozen(), frozen_changes(),
// frozen_through() and free_frozen(), for which it holds the checkpoint lock.
// docs/durability.md, Journal.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "engine/delta/delta_format.h"
#include "snap/file.h"

namespace snap {

/// What a scan found beyond the last checkpoint.
struct JournalTail {
  std::vector<Change> changes;      ///< of the valid records, in order
  std::uint64_t last_sequence = 0;  ///< of the last valid record, or the checkpoint's `through`
  std::uint64_t records = 0;
  bool torn = false;  ///< an incomplete record follows the last valid one
};

class Journal {
 public:
  /// `file` may be empty: then the header is written before the first record.
  Journal(std::unique_ptr<File> file, Uuid id, const ChecksumSecret& secret,
          std::uint64_t last_sequence);

  /// Reads what continues from `through`. Corrupt if a record is missing or makes no sense.
  Task<Result<JournalTail>> scan(std::uint64_t through, std::uint64_t volume_size);
  /// Numbers up to `sequence` are taken.
  void skip_to(std::uint64_t sequence) { last_sequence_ = sequence; }

  File& file() { return *file_; }
  std::uint64_t last_sequence() const { return last_sequence_; }
  std::uint64_t area_length() const { return area_length_; }
  bool fits(std::uint64_t length) const { return used_ + length <= area_length_; }

  /// Writes a record and syncs (rule Journal). It must fit.
  Task<Result<void>> append(std::span<const Change> changes, std::uint64_t through);
  /// Freezes the active area and begins to fill the other. There must be no frozen one.
  void switch_area();
  /// Changes in the active area, in order.
  const std::vector<Change>& active_changes() const { return changes_; }
  /// A durable segment covers the active area: it is filled again from its start.
  void free_active();
  /// Takes space for both areas.
  Task<Result<void>> reserve();
  /// Durable segments cover all records: empties the file.
  Task<Result<void>> release_space();

  bool frozen() const { return frozen_.load(std::memory_order_acquire); }
  const std::vector<Change>& frozen_changes() const { return frozen_changes_; }
  std::uint64_t frozen_through() const { return frozen_through_; }
  void free_frozen();

 private:
  struct Found {
    FrameHead head;
    std::uint64_t offset = 0;
  };
  FrameContext context(std::uint64_t offset) const { return {id_, secret_, offset}; }
  std::uint64_t area_begin(unsigned area) const { return kDeltaHeaderBytes + area * area_length_; }
  Task<Result<void>> write_header();
  Task<Result<void>> read_header(std::uint64_t file_size);
  /// All valid heads beyond `through`, ascending.
  Task<Result<std::vector<Found>>> find_heads(std::uint64_t through, std::uint64_t file_size);
  Error corrupt(std::uint64_t offset, const std::string& what) const;

  std::unique_ptr<File> file_;
  Uuid id_;
  ChecksumSecret secret_;
  std::uint64_t area_length_ = kJournalAreaInitial;
  bool has_header_ = false;
  std::uint64_t last_sequence_;
  std::uint64_t last_checksum_ = 0;

  unsigned active_ = 0;
  std::uint64_t used_ = 0;  ///< bytes of the active area
  std::vector<Change> changes_;

  std::atomic<bool> frozen_{false};
  std::vector<Change> frozen_changes_;
  std::uint64_t frozen_through_ = 0;
};

}  // namespace snap
