// LiveMap: the words of a delta's block map in a file on tmpfs, which outlives the process but not
// the boot (docs/durability.md, Live map).
//
// What a killed process had answered is in the data file's page cache; which blocks those are stood
// in its memory alone. In this file they stand where the kernel keeps them. It is never a source of
// truth after a power cut: it names the boot that it belongs to.
//
//   0     header, one page
//   4096  leaf i of the block map, at 4096 + i * leaf_bytes
//
// The calls below are system calls on memory: none waits for a disk.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "engine/base/uuid.h"
#include "engine/io/unique_fd.h"
#include "snap/file.h"
#include "snap/result.h"

namespace snap {

/// Which file, and whose.
struct LivePlace {
  std::string path;
  Uuid delta;
};
/// Where the live map of a delta stands in `folder`: named after the delta and its data file, for
/// the copy of a store has deltas of the same UUID. `folder` is made (0700) if it is not there;
/// Permission if it is someone else's.
Result<LivePlace> live_place(const std::string& folder, const Uuid& delta, const File& data);

class LiveMap {
 public:
  /// Of each opening of a delta, and in its file `run`: who does not find his there is not the last
  /// to have opened it.
  using Token = Uuid;

  /// Makes an empty one in place of what is there. It counts for nothing before count().
  static Result<std::unique_ptr<LiveMap>> make(const LivePlace& place, Token token,
                                               std::uint64_t leaves, std::size_t leaf_bytes);
  /// What a process left that died: calls `each` with every leaf that may hold something,
  /// ascending. False if there is no live map of this boot, delta and token, or it does not count;
  /// the first error of `each`, or of the file.
  using EachLeaf = std::function<Result<void>(std::uint64_t index, const void* leaf)>;
  static Result<bool> read(const LivePlace& place, Token token, std::uint64_t leaves,
                           std::size_t leaf_bytes, const EachLeaf& each);
  static void remove(const LivePlace& place) noexcept;

  ~LiveMap();
  LiveMap(const LiveMap&) = delete;
  LiveMap& operator=(const LiveMap&) = delete;

  /// Memory for a leaf, zero at first: the same for each call. Null where tmpfs has no page left
  /// (touching one would be a SIGBUS); then the map no longer counts. Thread-safe.
  void* leaf(std::uint64_t index) noexcept;
  bool owns(const void* address) const noexcept;
  /// From now on it is what recovery goes by.
  void count() noexcept;
  /// From now on it is not: the words are not all here, or what they say may not be in the file.
  void discount() noexcept;
  bool counts() const noexcept;
  const LivePlace& place() const noexcept { return place_; }

 private:
  struct Header;
  LiveMap(LivePlace place, UniqueFd fd, std::byte* base, std::size_t length,
          std::size_t leaf_bytes);
  Header* header() const noexcept { return reinterpret_cast<Header*>(base_); }

  const LivePlace place_;
  const UniqueFd fd_;
  std::byte* const base_;
  const std::size_t length_;
  const std::size_t leaf_bytes_;
};

}  // namespace snap
