// What an open Layer is made of, for layer_reader.cpp and layer_verify.cpp only.
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "engine/layer/layer.h"
#include "engine/layer/layer_format.h"
#include "engine/layer/lru_cache.h"

namespace snap {

/// The caches that all layers of the process share, so that the bounds of limits.h hold whatever
/// the number of layers. Nothing in them can go stale: layers are immutable.
struct LayerCaches {
  ShardedLru<std::vector<ChunkEntry>> slices{kSliceCacheBytes};
  ShardedLru<std::vector<std::byte>> chunks{kDecompressedCacheBytes};

  static LayerCaches& of_process();
};

class Layer::Impl {
 public:
  Impl(std::unique_ptr<File> f, layer_format::Footer foot);

  std::unique_ptr<File> file;
  const layer_format::Footer footer;

  // The slice index as it is in the file: 44 bytes a slice is all that an open layer keeps.
  std::vector<std::byte> index;

  std::size_t slice_count() const noexcept { return static_cast<std::size_t>(footer.slices()); }
  layer_format::IndexRecord record(std::size_t i) const noexcept;
  ChunkIndex slice_first(std::size_t i) const noexcept;
  /// The first chunk that cannot be in slice `i`.
  ChunkIndex slice_limit(std::size_t i) const noexcept;

  /// As Layer::slice_of.
  std::optional<std::size_t> slice_of(ChunkIndex chunk) const noexcept;

  /// Reads the index in bounded pieces, each checked before the next: memory is taken only for what
  /// the file really holds. Then its checksum and the content digest.
  Task<Result<void>> load_index();
  /// Reads slice `i` from the file, past the cache.
  Task<Result<Slice>> load_slice(std::size_t i);
  /// As Layer::read_slice.
  Task<Result<Slice>> slice(std::size_t i);

  struct Place {
    std::size_t slice = 0;
    std::size_t index = 0;
  };
  bool is_verified(Place p) const noexcept {
    return (verified_[p.slice].load(std::memory_order_acquire) >> p.index & 1) != 0;
  }
  void mark_verified(Place p) noexcept {
    verified_[p.slice].fetch_or(std::uint64_t{1} << p.index, std::memory_order_release);
  }
  /// Where `entry` is in the table; InvalidArgument if it is not an entry of this layer.
  Task<Result<Place>> locate(ChunkEntry entry);

  /// The stored bytes of `entry` into `out` (of its stored length), checked and marked.
  Task<Result<void>> read_stored(ChunkEntry entry, Place place, std::span<std::byte> out);
  Result<void> verify_stored(const ChunkEntry& entry, Place place,
                             std::span<const std::byte> stored);
  /// The data blocks of a compressed chunk, from the cache or decompressed by a helper thread.
  Task<Result<std::shared_ptr<const std::vector<std::byte>>>> decompressed(ChunkEntry entry,
                                                                           Place place);
  /// As Layer::read_blocks.
  Task<Result<void>> read_blocks(ChunkEntry entry, BlockMask which, std::span<std::byte> out);
  Task<Result<void>> read_raw_blocks(ChunkEntry entry, Place place, BlockMask which,
                                     std::span<std::byte> out);

  Error corrupt(std::string what) const;
  /// Puts the file's name in front.
  Error in_file(const Error& error) const;
  Error damaged(const ChunkEntry& entry, const std::string& what) const;

 private:
  Result<void> check_index_records(std::size_t first, std::size_t count) const;

  const std::uint64_t id_;  // in the caches' keys
  // One word a slice, one bit an entry. Two that touch an entry for the first time at once both
  // verify it, and both set the bit: harmless.
  static_assert(kSliceEntries == 64);
  std::unique_ptr<std::atomic<std::uint64_t>[]> verified_;
};

}  // namespace snap
