// The block map of a delta in memory: one 64-bit word a chunk.
//
//   bits  0-15  data   the block's bytes are in the data file
//   bits 16-31  zero   the block reads zero; disjoint from data
//   bits 32-47  busy   an operation on the block is in flight
//   bits 48-63  dirty  written or zeroed since the last capture
//
// Two levels: a table of 2^23 leaf pointers in an anonymous mapping that costs nothing until it is
// touched, and leaves of 512 chunks (32 MiB of volume), on the heap or in a live map. A leaf is
// never removed while the map lives, so readers take no lock and no reference. Only blocks in
// neither mask are absent.
//
// Invariants: a data bit is set after the block's bytes were written completely. busy is held by
// exactly one operation; the holder alone changes the block's data and zero bits.
// docs/durability.md, Map words.
#pragma once

#include <array>
#include <atomic>
#include <coroutine>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "engine/base/lazy_memory.h"
#include "engine/delta/delta_format.h"
#include "engine/delta/live_map.h"
#include "engine/io/sync.h"
#include "snap/result.h"
#include "snap/units.h"

namespace snap {

using MapWord = std::uint64_t;
constexpr BlockMask data_of(MapWord w) {
  return static_cast<BlockMask>(w);
}
constexpr BlockMask zero_of(MapWord w) {
  return static_cast<BlockMask>(w >> 16);
}
constexpr BlockMask busy_of(MapWord w) {
  return static_cast<BlockMask>(w >> 32);
}
constexpr BlockMask dirty_of(MapWord w) {
  return static_cast<BlockMask>(w >> 48);
}
constexpr MapWord make_word(BlockMask data, BlockMask zero, BlockMask busy, BlockMask dirty) {
  return MapWord{data} | MapWord{zero} << 16 | MapWord{busy} << 32 | MapWord{dirty} << 48;
}

class BlockMap {
  struct Leaf;

 public:
  /// OutOfMemory if address space is short.
  static Result<std::unique_ptr<BlockMap>> make();
  ~BlockMap();
  BlockMap(const BlockMap&) = delete;
  BlockMap& operator=(const BlockMap&) = delete;

  // ---- Reading: one or two plain atomic loads

  MapWord word(ChunkIndex chunk) const noexcept {
    const Leaf* leaf = table_[chunk.value / kLeafChunks].load(std::memory_order_acquire);
    if (leaf == nullptr) return 0;
    return leaf->words[chunk.value % kLeafChunks].load(std::memory_order_acquire);
  }
  /// The first chunk at or after `from` with a data or zero bit.
  std::optional<ChunkIndex> next_present(ChunkIndex from) const noexcept;
  /// The last chunk with a data bit, for the check against the data file's size.
  std::optional<ChunkIndex> last_data() const noexcept;

  // ---- Holding blocks

  /// Makes the leaf of `chunk`. OutOfMemory. Must precede every call below for that chunk.
  Result<void> touch(ChunkIndex chunk);

  /// `MapWord before = co_await map.hold(chunk, mask);` sets the busy bits of all of `mask` at
  /// once, waiting while any is set. Gives the word as it was. No lock unless it must wait.
  class HoldAwaiter {
   public:
    HoldAwaiter(BlockMap& map, ChunkIndex chunk, BlockMask mask)
        : map_(map), chunk_(chunk), mask_(mask) {}
    bool await_ready() { return map_.try_hold(chunk_, mask_, before_); }
    bool await_suspend(std::coroutine_handle<> h);
    MapWord await_resume() const noexcept { return before_; }

   private:
    friend class BlockMap;
    BlockMap& map_;
    ChunkIndex chunk_;
    BlockMask mask_;
    MapWord before_ = 0;
    Waiter waiter_;
  };
  HoldAwaiter hold(ChunkIndex chunk, BlockMask mask) { return {*this, chunk, mask}; }
  /// The same without waiting: nothing if one of the bits is set.
  std::optional<MapWord> hold_now(ChunkIndex chunk, BlockMask mask);
  /// Ends the hold without a change.
  void release(ChunkIndex chunk, BlockMask mask);
  /// Sets the data bits of held blocks, marks them dirty, and ends the hold. True if the chunk held
  /// nothing before.
  bool publish_data(ChunkIndex chunk, BlockMask mask);
  /// Sets the zero bits of held blocks and marks what changed dirty; the hold goes on. True if the
  /// chunk held nothing before.
  bool publish_zero(ChunkIndex chunk, BlockMask mask);

  // ---- Capture, under the owner's commit lock

  /// Takes the dirty bits of some leaves and appends what they stand for to `out`, ascending; false
  /// once all have been looked at. `*cursor` begins at 0. To be called in a loop that yields.
  bool capture_some(std::uint64_t* cursor, std::vector<Change>& out);
  /// Takes the dirty bits of some blocks of one chunk, whose leaf is there.
  void capture(ChunkIndex chunk, BlockMask mask, std::vector<Change>& out);
  /// Gives back what capture() took: dirty again.
  void give_back(const Change& change);

  // ---- Loading and resizing, while no operation is in flight

  /// Applies a durable change; nothing becomes dirty. OutOfMemory.
  Result<void> restore(const Change& change);
  /// Forgets all blocks that begin at or beyond `volume_size`.
  void drop_beyond(std::uint64_t volume_size);
  /// Appends all that is present in some leaves from `*from` on; false once there is no more.
  bool list_some(ChunkIndex* from, std::vector<Change>& out) const;

  // ---- Live map, while no operation is in flight

  /// Moves all leaves there, where those that come later go too. If tmpfs is full they stay, and
  /// the live map does not count.
  void go_live(std::unique_ptr<LiveMap> live);
  /// Null if there is none.
  LiveMap* live() const noexcept { return live_.get(); }
  static Result<std::unique_ptr<LiveMap>> make_live(const LivePlace& place, LiveMap::Token token);
  /// All that is present in the live map that a process left which died; nothing if there is none
  /// that counts. OutOfMemory.
  static Result<std::optional<std::vector<Change>>> read_live(const LivePlace& place,
                                                              LiveMap::Token token);

  std::uint64_t data_blocks() const noexcept { return data_blocks_.load(); }
  std::uint64_t zero_blocks() const noexcept { return zero_blocks_.load(); }
  std::uint64_t dirty_chunks() const noexcept { return dirty_chunks_.load(); }
  std::uint64_t present_chunks() const noexcept { return present_chunks_.load(); }

 private:
  static constexpr std::uint64_t kLeafChunks = 512;
  static constexpr std::uint64_t kLeaves = (kMaxVolumeSize / kChunkSize) / kLeafChunks;
  static constexpr std::size_t kShards = 64;
  struct Leaf {
    std::array<std::atomic<MapWord>, kLeafChunks> words{};
    std::array<std::atomic<std::uint64_t>, kLeafChunks / 64> dirty{};  ///< chunks with dirty bits
  };
  /// Those who wait for busy bits, by chunk number.
  struct alignas(64) Shard {
    std::atomic<std::size_t> waiting{0};
    std::mutex lock;
    std::vector<HoldAwaiter*> waiters;
  };

  BlockMap() = default;
  std::atomic<MapWord>& slot(ChunkIndex chunk) noexcept {
    return table_[chunk.value / kLeafChunks]
        .load(std::memory_order_acquire)
        ->words[chunk.value % kLeafChunks];
  }
  Shard& shard(ChunkIndex chunk) { return shards_[chunk.value % kShards]; }
  bool try_hold(ChunkIndex chunk, BlockMask mask, MapWord& before);
  void wake(ChunkIndex chunk);
  void free_leaf(Leaf* leaf) const noexcept;
  void mark_dirty(ChunkIndex chunk);
  void count(MapWord before, MapWord after);
  void capture_leaf(std::uint64_t leaf_index, std::vector<Change>& out);
  /// The first set bit at or after `from`; `end` or more if there is none below.
  static std::uint64_t next_bit(const std::atomic<std::uint64_t>* bits, std::uint64_t from,
                                std::uint64_t end);

  std::unique_ptr<LiveMap> live_;
  LazyMemory memory_;  ///< of all three below
  std::atomic<Leaf*>* table_ = nullptr;
  std::atomic<std::uint64_t>* leaves_ = nullptr;  ///< one bit a leaf that exists or is made
  std::atomic<std::uint64_t>* dirty_ = nullptr;   ///< one bit a leaf with dirty chunks
  std::atomic<std::uint64_t> leaves_end_{0};      ///< beyond the highest leaf that exists
  std::array<Shard, kShards> shards_;
  std::atomic<std::uint64_t> data_blocks_{0}, zero_blocks_{0}, dirty_chunks_{0}, present_chunks_{0};
};

}  // namespace snap
