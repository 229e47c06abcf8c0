// Volume::extents: the chain's block states as runs, for BLOCK_STATUS, map and copying.
#include <algorithm>

#include "engine/volume/chain.h"

namespace snap {

namespace {

/// Chunks that are looked at before others get their turn on the loop.
constexpr std::uint64_t kChunksBeforeYield = 1024;

/// Collects runs and joins neighbours that say the same.
class ExtentList {
 public:
  explicit ExtentList(std::size_t max) : max_(max) {}

  /// False if this would be one extent more than the caller wants.
  bool add(Extent next) {
    if (next.length == 0) return true;
    if (!list_.empty()) {
      Extent& last = list_.back();
      if (last.data == next.data && last.allocated == next.allocated && last.depth == next.depth) {
        last.length += next.length;
        return true;
      }
    }
    if (list_.size() == max_) return false;
    list_.push_back(next);
    return true;
  }
  std::vector<Extent> take() { return std::move(list_); }

 private:
  std::size_t max_;
  std::vector<Extent> list_;
};

/// Adds the part [begin, end) of a chunk of a chain that has `deltas` deltas.
bool add_chunk(ExtentList& list, const Chain::ChunkView& view, std::size_t deltas,
               std::uint64_t begin, std::uint64_t end) {
  while (begin < end) {
    const unsigned b = block_in_chunk(ByteOffset(begin));
    const std::uint64_t block_end = std::min(end, round_down(begin, kBlockSize) + kBlockSize);
    const bool data = (view.data >> b & 1) != 0;
    const bool zero = (view.zero >> b & 1) != 0;
    const int depth = view.depth[b];
    const bool in_delta = depth >= 0 && static_cast<std::size_t>(depth) < deltas;
    if (!list.add({ByteOffset(begin), block_end - begin, data, data || zero, depth, in_delta}))
      return false;
    begin = block_end;
  }
  return true;
}

}  // namespace

Task<Result<std::vector<Extent>>> Chain::extents(ByteOffset at, std::uint64_t length,
                                                 std::size_t max) const {
  ExtentList list(max);
  std::uint64_t pos = at.value;
  const std::uint64_t end = at.value + length;
  for (std::uint64_t chunks = 1; pos < end; ++chunks) {
    if (chunks % kChunksBeforeYield == 0) co_await yield_now();
    const ChunkIndex chunk = chunk_of(ByteOffset(pos));
    auto view = co_await this->view(0, chunk);
    if (!view) co_return view.error();
    if ((view->data | view->zero) != 0) {
      const std::uint64_t chunk_end = std::min(end, offset_of(chunk).value + kChunkSize);
      if (!add_chunk(list, *view, levels_.size(), pos, chunk_end)) break;
      pos = chunk_end;
      continue;
    }
    auto next = co_await next_mentioned(0, chunk);
    if (!next) co_return next.error();
    // A source may mention blocks of this very chunk that another level hides: one chunk at least.
    const std::uint64_t hole_end =
        std::min(end, std::max(offset_of(*next).value, offset_of(chunk).value + kChunkSize));
    if (!list.add({ByteOffset(pos), hole_end - pos, false, false, -1})) break;
    pos = hole_end;
  }
  co_return list.take();
}

}  // namespace snap
