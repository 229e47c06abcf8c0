// Volume: a chain of [delta, sealed deltas, layers of an image] as one block device.
//
// Any number of tasks on any number of loops may use a volume at once. Offsets and lengths are
// bytes, of any alignment, within size() (InvalidArgument beyond). Two requests in flight that
// overlap may complete in either order, but no block mixes more than what the two wrote.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "snap/latency.h"
#include "snap/result.h"
#include "snap/task.h"
#include "snap/units.h"

namespace snap {

class Delta;
class LayerStack;

/// A run of blocks that have the same source.
struct Extent {
  ByteOffset offset;
  std::uint64_t length = 0;  ///< bytes
  bool data = false;         ///< false: reads zero
  bool allocated = false;    ///< some source of the chain says what it is (data or zero)
  /// The source in the chain, 0 for the delta, then the sealed deltas and the layers, top first; -1
  /// if none mentions it.
  int depth = -1;
  bool in_delta = false;  ///< the source is the delta or a sealed one: changed since the image
};

class Volume {
 public:
  /// One sealed delta of the chain. `floor` is the smallest size that the volume had while the
  /// delta was on top: what lies below it is visible only up to there.
  struct Sealed {
    std::shared_ptr<Delta> delta;
    std::uint64_t floor = 0;
  };
  struct Parts {
    std::uint64_t size = 0;        ///< bytes; a multiple of 512
    std::shared_ptr<Delta> delta;  ///< null: the volume is read-only (an image, or a sealed chain)
    std::uint64_t floor = 0;       ///< as in Sealed, for the delta on top
    std::vector<Sealed> sealed;    ///< top first, at most kMaxSealedDeltas
    std::shared_ptr<LayerStack> layers;
  };
  struct WriteOptions {
    bool fua = false;  ///< durable before it returns
    /// More requests have come to this loop: a long write had better be copied by another
    /// processor.
    bool others_wait = false;
  };
  struct ZeroOptions {
    bool fua = false;
    bool no_hole = false;  ///< keep or take the space
    bool fast_only =
        false;  ///< Unsupported at once, with nothing changed, if zeros would be written
  };

  explicit Volume(Parts parts);
  ~Volume();
  Volume(const Volume&) = delete;
  Volume& operator=(const Volume&) = delete;

  std::uint64_t size() const noexcept;
  bool read_only() const noexcept;

  // ---- Data. On failure: ReadOnly, NoSpace, Io, Corrupt, OutOfMemory, InvalidArgument, Cancelled.

  Task<Result<void>> read(ByteOffset at, std::span<std::byte> out);
  /// The same in one call without a task, if that takes no waiting: most reads of less than 64 KiB
  /// do not. False: not done, nothing is counted, `out` may be filled in part; read() does it, or
  /// says why not.
  bool read_now(ByteOffset at, std::span<std::byte> out) noexcept;
  Task<Result<void>> write(ByteOffset at, std::span<const std::byte> bytes, WriteOptions options);
  /// As write() with no options, in one call without a task, if that takes no waiting and no bytes
  /// from below: most writes of whole blocks, less than 64 KiB in one chunk, do not. Nothing: not
  /// done, or in part, and not counted; write() does it, or says why not.
  std::optional<Result<void>> write_now(ByteOffset at, std::span<const std::byte> bytes);
  Task<Result<void>> write_zeroes(ByteOffset at, std::uint64_t length, ZeroOptions options);
  Task<Result<void>> trim(ByteOffset at, std::uint64_t length, WriteOptions options);
  /// Makes durable every write that was answered before, on whatever loop. (A read-only volume has
  /// nothing to do.)
  Task<Result<void>> flush();
  /// Extents from `at`, neighbours merged, at most `max` of them and covering at most `length`.
  Task<Result<std::vector<Extent>>> extents(ByteOffset at, std::uint64_t length, std::size_t max);
  /// Reads the range into the page cache (NBD_CMD_CACHE).
  Task<Result<void>> prefetch(ByteOffset at, std::uint64_t length);

  // ---- Changes of the chain, one at a time (Busy otherwise)

  using Publish = std::function<Task<Result<void>>()>;

  /// How long writes waited.
  struct Pause {
    std::chrono::microseconds writes{0};
  };
  /// Seals the delta and puts `fresh` on top of it: dirty data is flushed before writes pause and
  /// again inside; writes drain; `publish` records the new chain; then the new chain serves. If
  /// sealing or publishing fails the old delta goes on, and `fresh` is not used.
  Task<Result<Pause>> push_delta(std::shared_ptr<Delta> fresh, Publish publish);
  /// Replaces the sealed deltas from index `first` of sealed() to the end, and the layers, by
  /// `layers`, which has the same content: after a commit packed them. `publish` records it first.
  Task<Result<void>> replace_base(std::size_t first, std::shared_ptr<LayerStack> layers,
                                  Publish publish);
  /// Grows or shrinks; writes pause meanwhile. `publish` gets to record the size and the floor: for
  /// a shrink before bits beyond are cleared, for growth before the new size shows.
  Task<Result<void>> resize(std::uint64_t size, Publish publish);

  // ---- What it is made of (a copy of the present chain)

  Parts parts() const;

  enum class RequestKind { kRead, kWrite, kZero, kTrim, kFlush, kMap, kCache };
  static constexpr std::size_t kRequestKinds = 7;
  /// Requests of one kind that were answered.
  struct RequestStats {
    LatencyHistogram latency;  ///< of all, those that failed too
    std::uint64_t errors = 0;  ///< that failed
    std::uint64_t bytes = 0;   ///< of those that did not
    std::uint64_t requests() const noexcept { return latency.count(); }
  };
  struct Stats {
    std::array<RequestStats, kRequestKinds> kinds;
    std::uint64_t in_flight = 0;  ///< requests that are not answered yet
    const RequestStats& of(RequestKind kind) const noexcept {
      return kinds[static_cast<std::size_t>(kind)];
    }
    Stats& operator+=(const Stats& other) noexcept;
    /// What came since `before`, an earlier state of this one; in_flight stays.
    Stats& operator-=(const Stats& before) noexcept;
  };
  Stats stats() const noexcept;

  /// Closes the delta: flush, checkpoint, end of background work. Requests must have ended.
  Task<Result<void>> close();

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace snap
