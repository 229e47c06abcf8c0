// The bytes of a delta's map and journal (docs/format.md, Delta): pure functions, no I/O.
//
// Both files are a 4 KiB header and frames. A frame is a 64-byte head, its changes, and padding to
// a multiple of 4 KiB; it starts on a multiple of 4 KiB. A frame's checksums are keyed with the
// delta's secret and bound to the delta, the file offset, the number and the predecessor, so that
// nothing a guest writes and nothing left over from earlier can pass for one.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "engine/base/checksum.h"
#include "engine/base/preamble.h"
#include "engine/base/uuid.h"
#include "snap/limits.h"
#include "snap/result.h"
#include "snap/units.h"

namespace snap {

inline constexpr std::uint64_t kDeltaHeaderBytes = kPageBytes;
inline constexpr std::uint64_t kFrameAlign = 4096;
inline constexpr std::size_t kFrameHeadBytes = 64;
inline constexpr std::size_t kChangeBytes = 8;
/// No frame is longer; what a reader allocates for one is bounded by this.
inline constexpr std::uint64_t kMaxFrameBytes = 2u << 20;
/// More changes than this make several map segments.
inline constexpr std::size_t kMaxSegmentChanges = 65536;

/// What happened to blocks of one chunk: `data` now lie in the data file, `zero` now read zero. The
/// masks are disjoint; blocks in neither are not spoken of.
struct Change {
  std::uint32_t chunk = 0;
  BlockMask data = 0;
  BlockMask zero = 0;
  friend bool operator==(const Change&, const Change&) = default;
};

/// Neighbours in a mask.
struct BlockRun {
  unsigned first = 0;
  unsigned count = 0;
};
/// The first run of set bits at or after bit `from`; of no block if there is none.
constexpr BlockRun next_run(BlockMask mask, unsigned from) {
  const unsigned rest = from < kBlocksPerChunk ? unsigned{mask} >> from : 0;
  if (rest == 0) return {};
  const auto skip = static_cast<unsigned>(std::countr_zero(rest));
  return {from + skip, static_cast<unsigned>(std::countr_one(rest >> skip))};
}

struct MapHeader {
  Uuid id;
  ChecksumSecret secret{};
  /// What lies before this offset was durable before the file got its name: a bad frame there is
  /// damage, never a torn tail.
  std::uint64_t base_end = 0;
};

struct JournalHeader {
  Uuid id;
  /// Area i begins at 4096 + i * area_length. A multiple of 4096.
  std::uint64_t area_length = 0;
  /// Number of the map's last segment but for a guard when the delta was closed; a map that ends
  /// before it was cut short. 0: not closed since the header was written.
  std::uint64_t closed = 0;
};

std::vector<std::byte> encode_map_header(const MapHeader& header);
/// Corrupt or Unsupported, with `path` in the message. `writable`: unknown ro_compat bits count.
Result<MapHeader> decode_map_header(std::span<const std::byte> bytes, std::string_view path,
                                    bool writable);
std::vector<std::byte> encode_journal_header(const JournalHeader& header);
Result<JournalHeader> decode_journal_header(std::span<const std::byte> bytes,
                                            std::string_view path);

enum class FrameKind : std::uint16_t {
  kChanges = 1,  ///< journal record
  kBlocks = 2,   ///< journal record that carries the blocks it names as data
  kSegment = 3,  ///< map segment
};
/// Segment flag: the delta was sealed with this segment.
inline constexpr std::uint16_t kFrameSealed = 1;

/// The greatest number of a frame. No delta comes to it, and a number that wrapped around would
/// make all that follows count for nothing.
inline constexpr std::uint64_t kMaxFrameNumber = std::uint64_t{1} << 62;

/// What a frame's checksums are bound to beside its own fields.
struct FrameContext {
  const Uuid& id;
  const ChecksumSecret& secret;
  std::uint64_t offset = 0;  ///< of the frame in its file
};

struct FrameHead {
  FrameKind kind{};
  std::uint16_t flags = 0;
  std::uint32_t count = 0;    ///< changes
  std::uint64_t number = 0;   ///< record: its sequence; segment: its place in order. Never reset
  std::uint64_t through = 0;  ///< supersedes records up to this sequence
  std::uint64_t volume_size = 0;  ///< segment: bytes the delta addresses; record: 0
  std::uint64_t length = 0;       ///< bytes, padding included
  std::uint64_t previous = 0;     ///< checksum of the predecessor's head, 0 if there is none
  std::uint64_t body_checksum = 0;
  std::uint64_t checksum = 0;  ///< of the head
};

/// Bytes of a frame with `count` changes, without blocks: where those would begin.
constexpr std::uint64_t frame_length(std::size_t count) {
  return round_up(kFrameHeadBytes + kChangeBytes * count, kFrameAlign);
}
/// How many blocks the changes name as data.
std::size_t count_blocks(std::span<const Change> changes);
/// Bytes of the segments that hold `count` changes.
std::uint64_t segments_length(std::size_t count);

/// Encodes a frame without blocks; fills in head.count, length and both checksums.
std::vector<std::byte> encode_frame(FrameHead& head, std::span<const Change> changes,
                                    const FrameContext& context);
/// The same in place. `frame` is as long as the frame; if it is longer than frame_length() of the
/// changes, the blocks of a kBlocks record are there already.
void encode_frame_into(std::span<std::byte> frame, FrameHead& head, std::span<const Change> changes,
                       const FrameContext& context);
/// The head in the first 64 bytes, or nothing if there is no valid one at this place.
std::optional<FrameHead> decode_frame_head(std::span<const std::byte> bytes,
                                           const FrameContext& context);
/// The changes of a frame whose head is valid; `bytes` is the frame. Nothing if the checksum is
/// wrong, Corrupt if the checksum holds but the contents make no sense for `volume_size`.
Result<std::optional<std::vector<Change>>> decode_frame_body(const FrameHead& head,
                                                             std::span<const std::byte> bytes,
                                                             const FrameContext& context,
                                                             std::uint64_t volume_size);

/// Changes in the order they happened, made into one per chunk, ascending.
std::vector<Change> merge_changes(std::vector<Change> changes);
/// Drops what lies beyond `volume_size`.
void clip_changes(std::vector<Change>& changes, std::uint64_t volume_size);

}  // namespace snap
