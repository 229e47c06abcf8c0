// A batch: some MiB of chunks on their way into a layer file, from copy to hashes to bytes.
//
// A batch is filled and laid out by its writer's task, and hashed by helper threads in between;
// never by two at once. See layer_writer.cpp for how batches follow each other.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <span>
#include <vector>

#include "engine/io/sync.h"
#include "engine/layer/layer.h"

namespace snap {

/// What was stored not long ago: content to stored bytes, so that equal chunks share them. Holds
/// the last kShareWindow; ordered by digest, so that no choice of content makes it slow.
class ShareTable {
 public:
  /// The entry whose stored bytes `content` may share, or null.
  const ChunkEntry* find(const Sha256& content) const;
  void add(const ChunkEntry& stored);

 private:
  using Map = std::map<Sha256, ChunkEntry>;
  Map by_content_;
  std::deque<Map::iterator> oldest_first_;
};

class LayerBatch {
 public:
  static constexpr std::size_t kLanes = 2;  ///< helper threads that hash one batch

  explicit LayerBatch(const LayerWriter::Options& options);

  /// Empties it for use again.
  void clear();
  bool empty() const noexcept { return chunks_.empty(); }
  bool has_room(std::size_t bytes) const noexcept;

  /// Copies a chunk in canonical form: no mark and no byte past `virtual_size`, all-zero data
  /// blocks as zero marks, no zero marks in a bottom layer, nothing at all if no mark is left.
  void append(ChunkIndex chunk, BlockMask data, BlockMask zero, std::span<const std::byte> blocks,
              std::uint64_t virtual_size);
  /// Brings the last chunk into canonical form again, for a smaller virtual size.
  void trim_last(std::uint64_t virtual_size);

  /// Content hashes, compression and checksums of the chunks of one lane. Lanes may run at once.
  void hash(std::size_t lane);
  /// Gives every chunk its place in the file, `end` being where the file ends so far: moves `end`
  /// and fills pieces(). Equal chunks share.
  void lay_out(std::uint64_t& end, ShareTable& shared);

  struct Chunk {
    ChunkEntry entry;
    std::span<const std::byte> raw;
    std::span<const std::byte> stored;
  };
  const std::vector<Chunk>& chunks() const noexcept { return chunks_; }
  /// Bytes to write, in order.
  const std::vector<std::span<const std::byte>>& pieces() const noexcept { return pieces_; }
  void add_piece(std::span<const std::byte> piece);

  WaitGroup hashing;  ///< lanes that run
  WaitGroup reading;  ///< readers of pieces() on helper threads

 private:
  const LayerWriter::Options options_;
  std::unique_ptr<std::byte[]> raw_;
  std::size_t raw_used_ = 0;
  std::array<std::unique_ptr<std::byte[]>, kLanes> compressed_;
  std::vector<Chunk> chunks_;
  std::vector<std::span<const std::byte>> pieces_;
};

}  // namespace snap
