// The `map` file of a delta: checkpoints of the block map as an append-only list of segments
// (docs/format.md, Delta, Map).
//
// The first segments (the base) are complete before the file gets its name; later ones are appended
// one by one, each synced before the next is begun, so that at most the last may be torn. A segment
// holds the changes since the one before. Callers serialise all but load().
// docs/durability.md, Checkpoint.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "engine/delta/block_map.h"
#include "engine/delta/delta_format.h"
#include "snap/file.h"

namespace snap {

class MapFile {
 public:
  /// What a segment says beside its changes.
  struct Point {
    std::uint64_t through = 0;      ///< journal records up to this sequence are superseded
    std::uint64_t volume_size = 0;  ///< bytes
    bool sealed = false;
    friend bool operator==(const Point&, const Point&) = default;
  };

  /// Writes a new file: a base of `changes` (one per chunk, ascending). Synced unless an error is
  /// returned; its name is the caller's to publish.
  static Task<Result<MapFile>> write_new(Directory& dir, std::string name, const Uuid& id,
                                         const ChecksumSecret& secret, std::uint64_t first_number,
                                         std::span<const Change> changes, Point point);
  /// Reads all segments into `blocks`. Corrupt names file, offset and what was found. A torn last
  /// segment is no error: torn() tells.
  static Task<Result<MapFile>> load(std::unique_ptr<File> file, BlockMap& blocks, bool writable);

  /// Appends segments and syncs each (rule Checkpoint). After an error the file is not to be
  /// written again.
  Task<Result<void>> append(std::span<const Change> changes, Point point);
  /// Makes sure that damage of the last segment that says something is not taken for a torn write:
  /// a valid segment, which says nothing new, follows it. The base needs no guard, and a sealed
  /// delta has its flag.
  Task<Result<void>> append_guard();
  /// Removes the torn segment, so that nothing follows the last valid one.
  Task<Result<void>> cut_tail();
  /// Takes space for `bytes` more of segments.
  Task<Result<void>> reserve(std::uint64_t bytes);

  File& file() { return *file_; }
  const Uuid& id() const { return header_.id; }
  const ChecksumSecret& secret() const { return header_.secret; }
  const Point& point() const { return point_; }
  bool torn() const { return torn_; }
  std::uint64_t bytes() const { return tail_; }
  std::uint64_t next_number() const { return next_number_; }
  bool ends_with_base() const { return tail_ == header_.base_end; }
  /// Number of the last segment that is no guard.
  std::uint64_t last_number() const { return next_number_ - (last_is_guard_ ? 2 : 1); }

 private:
  explicit MapFile(std::unique_ptr<File> file) : file_(std::move(file)) {}
  FrameContext context(std::uint64_t offset) const { return {header_.id, header_.secret, offset}; }
  Task<Result<void>> write_segment(std::span<const Change> changes, Point point);
  /// Reads the segment at tail_; false if there is no valid one.
  Task<Result<bool>> load_segment(BlockMap& blocks, std::uint64_t file_size);
  /// Damage if a valid head follows the invalid segment at tail_.
  Task<Result<void>> check_tail(std::uint64_t file_size);
  Error corrupt(std::uint64_t offset, const std::string& what) const;

  std::unique_ptr<File> file_;
  MapHeader header_;
  Point point_;
  std::uint64_t tail_ = kDeltaHeaderBytes;  ///< where the next segment goes
  std::uint64_t next_number_ = 1;
  std::uint64_t last_checksum_ = 0;
  bool torn_ = false;
  bool last_is_guard_ = false;
};

}  // namespace snap
