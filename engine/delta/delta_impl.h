// DeltaImpl: the one implementation of Delta. Its members are split over files by idea:
//
//   delta.cpp       create, read and write of data
//   zero.cpp        trim and write_zeroes
//   flush.cpp       group commit: the flush protocol
//   checkpoint.cpp  checkpoints, compaction, reserved space, seal, resize, close
//   recovery.cpp    open
//
// Locks, in the order in which they may be taken: busy bits of blocks, commit_lock_,
// checkpoint_lock_, data_sync_lock_. Nothing that holds one of the locks waits for busy bits.
// docs/durability.md is what all of this keeps.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "engine/delta/block_map.h"
#include "engine/delta/delta.h"
#include "engine/delta/journal.h"
#include "engine/delta/map_file.h"
#include "engine/io/sync.h"

namespace snap {

inline constexpr const char* kDataName = "data";
inline constexpr const char* kMapName = "map";
inline constexpr const char* kMapNewName = "map.new";  ///< a compaction being written, or its space
inline constexpr const char* kJournalName = "journal";

class DeltaImpl final : public Delta {
 public:
  struct Files {
    std::unique_ptr<Directory> dir;
    std::unique_ptr<File> data;
    std::unique_ptr<BlockMap> blocks;
    MapFile map;
    std::unique_ptr<Journal> journal;  ///< none: sealed
  };
  explicit DeltaImpl(Files files);

  const Uuid& id() const noexcept override { return id_; }
  std::uint64_t size() const noexcept override { return size_.load(std::memory_order_acquire); }
  BlockState lookup(ChunkIndex chunk) const noexcept override;
  std::optional<ChunkIndex> next_present(ChunkIndex from) const noexcept override;
  Task<Result<void>> read(ByteOffset at, std::span<std::byte> out) override;
  bool read_now(ByteOffset at, std::span<std::byte> out) noexcept override;
  Task<Result<void>> write(ByteOffset at, std::span<const std::byte> bytes, BlockSource& below,
                           WriteMode mode) override;
  std::optional<Result<void>> write_now(ByteOffset at, std::span<const std::byte> bytes) override;
  Task<Result<void>> write_zeroes(ByteOffset at, std::uint64_t length, BlockSource& below,
                                  bool keep_allocated, Durability durability) override;
  Task<Result<void>> trim(ByteOffset at, std::uint64_t length, Durability durability) override;
  Task<Result<void>> flush() override;
  Task<Result<void>> flush_data() override;
  void check_writeback() override;
  Task<Result<void>> seal() override;
  Task<Result<void>> resize(std::uint64_t size) override;
  Task<Result<void>> close() override;
  Stats stats() const override;
  void set_limit(std::optional<std::uint64_t> bytes) override;
  void share_quota(std::shared_ptr<BlockQuota> quota) override { shared_quota_ = std::move(quota); }
  void stop(const Error& why) override { (void)fail(why); }
  std::optional<Error> failure() const override;
  const std::optional<Error>& live_trouble() const noexcept override { return live_trouble_; }

  // ---- For open()

  /// Applies what the journal held beyond the map, and makes it durable in the map. With `live`,
  /// all that a dead process knew, whose data is synced: that in place of the journal's blocks.
  Task<Result<void>> recover(std::optional<std::vector<Change>> live);
  /// Last, before anything is served. Fails only if the token of an earlier process stays; why
  /// there is no live map is told by live_trouble().
  /// `noted`: the token that the file `run` has got already.
  Task<Result<void>> go_live(std::string folder, std::optional<LiveMap::Token> noted = {});

 private:
  /// What a write has of one chunk: its blocks are held.
  struct Piece;
  /// The rest of a write of many pieces, shared by those who work on it.
  struct Pieces;
  /// Blocks on their way into a record, shared by those who read them.
  struct Gathering;
  /// Flushes and writes with FUA that are answered together.
  struct Round {
    bool all = false;            ///< a flush is among them
    std::vector<Change> blocks;  ///< else what the writes with FUA wrote, as data bits
    bool done = false;
    Result<void> result;
  };

  // delta.cpp
  Result<void> check_change(ByteOffset at, std::uint64_t length) const;
  // How a piece ends: nothing was written, something perhaps, or all of it.
  void give_up(const Piece& piece) noexcept;
  void half_written(const Piece& piece) noexcept;
  void written(const Piece& piece) noexcept;
  /// `brief`: by this loop's own thread, if nothing makes it wait.
  Task<Result<void>> write_piece(ByteOffset at, std::span<const std::byte> bytes,
                                 BlockSource& below, bool brief);
  Task<Result<void>> write_pieces(ByteOffset at, std::span<const std::byte> bytes,
                                  BlockSource& below, bool brief);
  Task<void> work_on(Pieces* pieces);
  /// Writes within one chunk whose blocks are held; completes edges where `before` has no data.
  Task<Result<void>> write_held(ByteOffset at, std::span<const std::byte> bytes, MapWord before,
                                BlockSource& below);
  Task<Result<void>> write_data(ByteOffset at, std::span<const std::byte> bytes);
  Task<Result<void>> flush_if(Durability durability);
  /// Takes so many new data blocks from the quotas; NoSpace says which is full.
  Result<void> take_blocks(unsigned blocks);
  /// The same without a word, and without counting what was refused.
  bool take_blocks_now(unsigned blocks) noexcept;
  void give_blocks(std::uint64_t blocks) noexcept;
  /// Counts it if the disk is full.
  Error counted(const Error& error);

  // zero.cpp
  Task<Result<void>> zero_blocks(std::uint64_t begin, std::uint64_t end);
  Task<Result<void>> zero_piece(std::uint64_t begin, std::uint64_t end);
  Task<Result<void>> hold_for_zero(std::uint64_t begin, std::uint64_t end, bool* any_data);
  Task<Result<void>> write_zero_bytes(std::uint64_t begin, std::uint64_t end, BlockSource& below);
  std::uint64_t end_of_blocks(std::uint64_t end) const;

  // recovery.cpp
  /// Applies what the live map knows beyond map and journal, and gives that.
  Result<std::vector<Change>> take_live(std::vector<Change> live);
  Task<Result<void>> start_live(std::string folder, std::optional<LiveMap::Token> noted);

  // flush.cpp
  void mark(std::atomic<std::uint64_t>& epoch_of_last);
  /// Makes a write that is done durable, and it alone if it is small.
  Task<Result<void>> flush_write(ByteOffset at, std::uint64_t length);
  /// Waits for a round and what it makes durable: all, or with `blocks` at least these.
  Task<Result<void>> join_round(std::span<const Change> blocks);
  /// False if there is no room for the record as it is; then nothing has been recorded.
  Task<Result<bool>> commit_blocks(std::vector<Change> blocks);
  /// How a commit makes the data durable: kSmall by a record that carries the blocks if they are
  /// few, else, and kLarge always, by a sync of the data file.
  enum class Path { kSmall, kLarge };
  Task<Result<void>> commit(Path path);
  Result<void> committed(std::uint64_t epoch);
  bool fits_small(std::span<const Change> changes) const;
  /// False if the blocks could not be had at once.
  Task<Result<bool>> record_with_blocks(std::span<const Change> changes);
  Task<bool> gather(std::span<const Change> changes, std::span<std::byte> out);
  Task<void> gather_some(Gathering* gathering);
  /// After a record of `bytes`: has the kernel begin to write back a part of the data file.
  void begin_writeback(std::uint64_t bytes);
  Task<void> write_back();
  Task<Result<void>> record(std::vector<Change> changes, std::uint64_t through);
  /// Room in the journal for a record of `length` bytes, which an area can hold.
  Task<Result<void>> make_room(std::uint64_t length);
  /// Returns once a sync of the data file with that number, or a later one, is done. Numbers are
  /// given when syncs begin, so next_sync() covers all that was written before it was asked for.
  Task<Result<void>> sync_data(std::uint64_t number);
  std::uint64_t next_sync() const { return syncs_.load() + 1; }
  Error fail(const Error& error);

  // checkpoint.cpp
  Task<Result<void>> checkpoint_all(std::span<const Change> more, bool sealed,
                                    std::uint64_t volume_size);
  Task<Result<void>> checkpoint_frozen();
  Task<void> checkpoint_in_background();
  void start_background_checkpoint();
  Task<void> extend_journal_in_background(std::uint64_t area_length);
  /// Begins to make room for areas that hold a record of `length`, if that is possible.
  void want_larger_journal(std::uint64_t length);
  Task<Result<void>> write_checkpoint(std::vector<Change> changes, MapFile::Point point);
  Task<Result<bool>> compact(std::span<const Change> changes, MapFile::Point point);
  Task<Result<std::vector<Change>>> merged_with_map(std::span<const Change> changes,
                                                    std::uint64_t volume_size);
  Task<void> drop_reserve_file();
  /// Rule Space: whether a change of bits of a chunk that was `before` has its space on the disk. A
  /// chunk that held nothing is claimed, also if this is false.
  bool has_space(MapWord before) {
    if ((data_of(before) | zero_of(before)) != 0) return space_taken_.load();
    return claimed_.fetch_add(1) + 1 <= reserved_chunks_.load();
  }
  /// After has_space() was false.
  Task<Result<void>> reserve_more();
  Task<Result<void>> reserve_for(std::uint64_t chunks);
  Task<Result<void>> prepare_grow(std::uint64_t from, std::uint64_t to);
  Task<void> end_live();

  std::unique_ptr<Directory> dir_;
  std::unique_ptr<File> data_;
  std::unique_ptr<File> data_watch_;  ///< the same file: the kernel tells each File of a lost write
  std::unique_ptr<BlockMap> blocks_;
  MapFile map_;                       ///< under checkpoint_lock_
  std::unique_ptr<Journal> journal_;  ///< null: sealed
  Uuid id_;
  std::atomic<std::uint64_t> size_;

  // The flush protocol. Epochs: what completes while epoch_ is e is covered by the commit that
  // raises it to e + 1.
  std::atomic<std::uint64_t> epoch_{1};
  std::atomic<std::uint64_t> written_{0};        ///< epoch of the last completed write of data
  std::atomic<std::uint64_t> zeroed_{0};         ///< epoch of the last zero bits
  std::atomic<std::uint64_t> synced_{0};         ///< epochs up to this are durable
  std::atomic<std::uint64_t> writeback_due_{0};  ///< bytes of the data file, rounds and rounds
  std::atomic<bool> writing_back_{false};
  std::uint64_t writeback_hand_ = 0;  ///< how far it has come; of the task that has writing_back_
  std::uint64_t data_synced_ = 0;     ///< data written up to this is; under commit_lock_
  AsyncMutex data_sync_lock_;
  AsyncMutex commit_lock_;
  std::mutex round_lock_;
  std::shared_ptr<Round> next_round_;  ///< of those who wait for commit_lock_; under round_lock_

  AsyncMutex checkpoint_lock_;
  WaitGroup background_;
  EventLoop::Clock::time_point area_begun_{};  ///< under commit_lock_
  bool extending_ = false;                     ///< tried once for each length; under commit_lock_
  std::atomic<std::uint64_t> extended_{0};     ///< length for which there is room; 0: none
  std::atomic<std::uint64_t> claimed_{0};      ///< chunks present or about to be
  std::atomic<std::uint64_t> reserved_chunks_{0};  ///< chunks whose map entries have space
  std::atomic<bool> space_taken_{false};           ///< the journal and the next segment have theirs
  std::uint64_t tail_reserved_ = 0;                ///< bytes behind map_'s end; checkpoint_lock_
  std::uint64_t compact_above_ = 0;  ///< an abandoned compaction is not tried again below this

  BlockQuota quota_;                          ///< data blocks present or about to be, and the limit
  std::shared_ptr<BlockQuota> shared_quota_;  ///< null: none
  std::atomic<std::uint64_t> limit_hits_{0}, shared_limit_hits_{0}, disk_full_hits_{0};

  std::atomic<unsigned> punching_{0};  ///< holes that are being punched

  std::optional<Error> live_trouble_;
  mutable std::mutex failure_lock_;  // over the next
  std::optional<Error> failure_;
  std::atomic<bool> failed_{false};
  std::atomic<bool> closed_{false};  ///< takes no more changes, so nothing can fail any more

  std::atomic<std::uint64_t> syncs_{0};        ///< of the data file that were begun
  std::atomic<std::uint64_t> synced_data_{0};  ///< number of the last that succeeded
  std::atomic<std::uint64_t> flushes_{0}, records_{0}, checkpoints_{0};
};

// ---- What opening and verify_delta() check alike (recovery.cpp)

/// A data file that ends before a block of `blocks`, or before `synced_end`, has lost it. Blocks
/// that only records of the journal carry are in neither.
Task<Result<void>> check_data_size(File& data, const BlockMap& blocks, std::uint64_t synced_end);
/// Corrupt unless the map ends with a seal.
Result<void> check_sealed(MapFile& map);
/// Corrupt if the map lacks segments that the journal's header tells of; known after its scan().
Result<void> check_not_cut_short(MapFile& map, const Journal& journal);

/// Bytes of the data file of a delta that addresses `volume_size`: whole blocks.
constexpr std::uint64_t data_file_size(std::uint64_t volume_size) {
  return round_up(volume_size, kBlockSize);
}

}  // namespace snap
