#include "engine/delta/block_map.h"

#include <bit>
#include <new>

namespace snap {

namespace {
/// Leaves looked at by one step of a capture or a listing: well under a millisecond.
constexpr unsigned kLeavesPerStep = 256;

constexpr bool present(MapWord w) {
  return (data_of(w) | zero_of(w)) != 0;
}
}  // namespace

Result<std::unique_ptr<BlockMap>> BlockMap::make() {
  // Zero bytes of the mapping serve as atomics with the value 0. One mapping, for they are dear.
  static_assert(std::atomic<Leaf*>::is_always_lock_free &&
                sizeof(std::atomic<Leaf*>) == sizeof(void*));
  static_assert(std::atomic<std::uint64_t>::is_always_lock_free);
  constexpr std::size_t kWords = kLeaves / 64;
  auto memory = LazyMemory::map((2 * kWords + kLeaves) * sizeof(std::atomic<std::uint64_t>));
  SNAP_RETURN_IF_ERROR(memory);
  std::unique_ptr<BlockMap> map(new BlockMap);
  map->memory_ = std::move(*memory);
  map->leaves_ = static_cast<std::atomic<std::uint64_t>*>(map->memory_.address());
  map->dirty_ = map->leaves_ + kWords;
  void* const table = map->dirty_ + kWords;
  map->table_ = static_cast<std::atomic<Leaf*>*>(table);
  return map;
}

BlockMap::~BlockMap() {
  if (table_ == nullptr) return;
  const std::uint64_t end = leaves_end_.load();
  for (std::uint64_t i = next_bit(leaves_, 0, end); i < end; i = next_bit(leaves_, i + 1, end))
    free_leaf(table_[i].load());
}

void BlockMap::free_leaf(Leaf* leaf) const noexcept {
  if (live_ == nullptr || !live_->owns(leaf)) delete leaf;
}

std::uint64_t BlockMap::next_bit(const std::atomic<std::uint64_t>* bits, std::uint64_t from,
                                 std::uint64_t end) {
  for (std::uint64_t w = from / 64; w * 64 < end; ++w) {
    std::uint64_t word = bits[w].load(std::memory_order_acquire);
    if (w == from / 64) word &= ~std::uint64_t{0} << (from % 64);
    if (word != 0) return w * 64 + static_cast<unsigned>(std::countr_zero(word));
  }
  return end;
}

std::optional<ChunkIndex> BlockMap::next_present(ChunkIndex from) const noexcept {
  const std::uint64_t end = leaves_end_.load(std::memory_order_acquire);
  for (std::uint64_t i = from.value / kLeafChunks; i < end; ++i) {
    const Leaf* leaf = table_[i].load(std::memory_order_acquire);
    if (leaf == nullptr) {
      i = next_bit(leaves_, i, end);
      if (i >= end) break;
      leaf = table_[i].load(std::memory_order_acquire);
      if (leaf == nullptr) continue;  // about to be made
    }
    const std::uint64_t base = i * kLeafChunks;
    const std::uint64_t first = from.value > base ? from.value - base : 0;
    for (std::uint64_t c = first; c < kLeafChunks; ++c) {
      if (present(leaf->words[c].load(std::memory_order_acquire))) return ChunkIndex(base + c);
    }
  }
  return std::nullopt;
}

std::optional<ChunkIndex> BlockMap::last_data() const noexcept {
  for (std::uint64_t i = leaves_end_.load(); i > 0; --i) {
    const Leaf* leaf = table_[i - 1].load(std::memory_order_acquire);
    if (leaf == nullptr) continue;
    for (std::uint64_t c = kLeafChunks; c > 0; --c) {
      if (data_of(leaf->words[c - 1].load()) != 0) return ChunkIndex((i - 1) * kLeafChunks + c - 1);
    }
  }
  return std::nullopt;
}

Result<void> BlockMap::touch(ChunkIndex chunk) {
  const std::uint64_t index = chunk.value / kLeafChunks;
  if (table_[index].load(std::memory_order_acquire) != nullptr) return {};
  // Its zero bytes are an empty leaf; for all who are about to make this one they are the same.
  Leaf* leaf = live_ != nullptr ? static_cast<Leaf*>(live_->leaf(index)) : nullptr;
  if (leaf == nullptr) leaf = new (std::nothrow) Leaf;
  if (leaf == nullptr) {
    return Error(ErrorCode::kOutOfMemory,
                 "no memory for the block map of chunk " + std::to_string(chunk.value));
  }
  // The summaries before the leaf: whoever finds the leaf, made by another thread, may count on a
  // capture to find what he sets in it.
  leaves_[index / 64].fetch_or(std::uint64_t{1} << (index % 64));
  std::uint64_t end = leaves_end_.load();
  while (end < index + 1 && !leaves_end_.compare_exchange_weak(end, index + 1)) {
  }
  Leaf* expected = nullptr;
  // Who loses the race uses the winner's leaf.
  if (!table_[index].compare_exchange_strong(expected, leaf)) free_leaf(leaf);
  return {};
}

bool BlockMap::try_hold(ChunkIndex chunk, BlockMask mask, MapWord& before) {
  std::atomic<MapWord>& word = slot(chunk);
  MapWord w = word.load();
  do {
    if ((busy_of(w) & mask) != 0) return false;
  } while (!word.compare_exchange_weak(w, w | make_word(0, 0, mask, 0)));
  before = w;
  return true;
}

std::optional<MapWord> BlockMap::hold_now(ChunkIndex chunk, BlockMask mask) {
  MapWord before = 0;
  if (!try_hold(chunk, mask, before)) return std::nullopt;
  return before;
}

bool BlockMap::HoldAwaiter::await_suspend(std::coroutine_handle<> h) {
  Shard& shard = map_.shard(chunk_);
  // Rule: announce, then try again, under the lock. Who releases clears the bits first and looks
  // for announcements afterwards; both are sequentially consistent, so one sees the other.
  shard.waiting.fetch_add(1);
  std::lock_guard guard(shard.lock);
  if (map_.try_hold(chunk_, mask_, before_)) {
    shard.waiting.fetch_sub(1);
    return false;
  }
  waiter_ = Waiter::here(h);
  shard.waiters.push_back(this);
  return true;
}

void BlockMap::wake(ChunkIndex chunk) {
  Shard& s = shard(chunk);
  if (s.waiting.load() == 0) return;
  std::vector<Waiter> ready;
  {
    std::lock_guard guard(s.lock);
    std::size_t kept = 0;
    for (HoldAwaiter* w : s.waiters) {
      // The bits are handed over here, first come first served.
      if (w->chunk_ == chunk && try_hold(chunk, w->mask_, w->before_)) {
        s.waiting.fetch_sub(1);
        ready.push_back(w->waiter_);
      } else {
        s.waiters[kept++] = w;
      }
    }
    s.waiters.resize(kept);
  }
  for (const Waiter& w : ready)
    w.resume();
}

void BlockMap::release(ChunkIndex chunk, BlockMask mask) {
  slot(chunk).fetch_and(~make_word(0, 0, mask, 0));
  wake(chunk);
}

bool BlockMap::publish_data(ChunkIndex chunk, BlockMask mask) {
  std::atomic<MapWord>& word = slot(chunk);
  MapWord w = word.load();
  MapWord after;
  do {
    after = make_word(data_of(w) | mask, static_cast<BlockMask>(zero_of(w) & ~mask),
                      static_cast<BlockMask>(busy_of(w) & ~mask), dirty_of(w) | mask);
  } while (!word.compare_exchange_weak(w, after));
  if (dirty_of(after) != dirty_of(w) || data_of(after) != data_of(w)) {
    mark_dirty(chunk);
    count(w, after);
  }
  wake(chunk);
  return !present(w);
}

bool BlockMap::publish_zero(ChunkIndex chunk, BlockMask mask) {
  std::atomic<MapWord>& word = slot(chunk);
  MapWord w = word.load();
  MapWord after;
  do {
    const auto changed = static_cast<BlockMask>(mask & ~zero_of(w));
    after = make_word(static_cast<BlockMask>(data_of(w) & ~mask), zero_of(w) | mask, busy_of(w),
                      dirty_of(w) | changed);
  } while (!word.compare_exchange_weak(w, after));
  if (after != w) {
    mark_dirty(chunk);
    count(w, after);
  }
  return !present(w);
}

void BlockMap::mark_dirty(ChunkIndex chunk) {
  const std::uint64_t index = chunk.value / kLeafChunks;
  Leaf* leaf = table_[index].load(std::memory_order_acquire);
  const std::uint64_t c = chunk.value % kLeafChunks;
  // Leaf before summary; a capture takes them in the other order, so it misses neither.
  leaf->dirty[c / 64].fetch_or(std::uint64_t{1} << (c % 64));
  dirty_[index / 64].fetch_or(std::uint64_t{1} << (index % 64));
}

void BlockMap::count(MapWord before, MapWord after) {
  const auto bits = [](BlockMask mask) { return static_cast<std::uint64_t>(std::popcount(mask)); };
  constexpr auto relaxed = std::memory_order_relaxed;
  data_blocks_.fetch_add(bits(data_of(after)) - bits(data_of(before)), relaxed);
  zero_blocks_.fetch_add(bits(zero_of(after)) - bits(zero_of(before)), relaxed);
  dirty_chunks_.fetch_add(std::uint64_t{dirty_of(after) != 0} - (dirty_of(before) != 0), relaxed);
  present_chunks_.fetch_add(std::uint64_t{present(after)} - present(before), relaxed);
}

void BlockMap::capture_leaf(std::uint64_t leaf_index, std::vector<Change>& out) {
  Leaf* leaf = table_[leaf_index].load(std::memory_order_acquire);
  for (std::size_t w = 0; w < leaf->dirty.size(); ++w) {
    std::uint64_t chunks = leaf->dirty[w].exchange(0);
    for (; chunks != 0; chunks &= chunks - 1) {
      const std::uint64_t c = w * 64 + static_cast<unsigned>(std::countr_zero(chunks));
      const MapWord before = leaf->words[c].fetch_and(~make_word(0, 0, 0, kAllBlocks));
      if (dirty_of(before) == 0) continue;  // an earlier capture took it before its mark was set
      count(before, before & ~make_word(0, 0, 0, kAllBlocks));
      out.push_back({static_cast<std::uint32_t>(leaf_index * kLeafChunks + c),
                     static_cast<BlockMask>(data_of(before) & dirty_of(before)),
                     static_cast<BlockMask>(zero_of(before) & dirty_of(before))});
    }
  }
}

void BlockMap::capture(ChunkIndex chunk, BlockMask mask, std::vector<Change>& out) {
  // The leaf's mark stays: other blocks may be dirty, and a mark without any is passed over.
  const MapWord taken = make_word(0, 0, 0, mask);
  const MapWord before = slot(chunk).fetch_and(~taken);
  const auto dirty = static_cast<BlockMask>(dirty_of(before) & mask);
  if (dirty == 0) return;
  count(before, before & ~taken);
  out.push_back({static_cast<std::uint32_t>(chunk.value),
                 static_cast<BlockMask>(data_of(before) & dirty),
                 static_cast<BlockMask>(zero_of(before) & dirty)});
}

void BlockMap::give_back(const Change& change) {
  const ChunkIndex chunk(change.chunk);
  const MapWord dirty = make_word(0, 0, 0, change.data | change.zero);
  const MapWord before = slot(chunk).fetch_or(dirty);
  count(before, before | dirty);
  mark_dirty(chunk);
}

bool BlockMap::capture_some(std::uint64_t* cursor, std::vector<Change>& out) {
  const std::uint64_t words = round_up(leaves_end_.load(), 64) / 64;
  unsigned done = 0;
  for (; *cursor < words; ++*cursor) {
    if (done >= kLeavesPerStep) return true;
    const std::uint64_t w = *cursor;
    if (dirty_[w].load() == 0) continue;
    std::uint64_t leaves = dirty_[w].exchange(0);
    for (; leaves != 0; leaves &= leaves - 1, ++done)
      capture_leaf(w * 64 + static_cast<unsigned>(std::countr_zero(leaves)), out);
  }
  return false;
}

Result<void> BlockMap::restore(const Change& change) {
  const ChunkIndex chunk(change.chunk);
  auto touched = touch(chunk);
  SNAP_RETURN_IF_ERROR(touched);
  std::atomic<MapWord>& word = slot(chunk);
  const MapWord before = word.load();
  const MapWord after =
      make_word(static_cast<BlockMask>((data_of(before) & ~change.zero) | change.data),
                static_cast<BlockMask>((zero_of(before) & ~change.data) | change.zero), 0, 0);
  word.store(after);
  count(before, after);
  return {};
}

void BlockMap::drop_beyond(std::uint64_t volume_size) {
  const std::uint64_t first = volume_size / kChunkSize;
  for (std::uint64_t i = first / kLeafChunks; i < leaves_end_.load(); ++i) {
    Leaf* leaf = table_[i].load(std::memory_order_acquire);
    if (leaf == nullptr) continue;
    for (std::uint64_t c = 0; c < kLeafChunks; ++c) {
      const std::uint64_t begin = (i * kLeafChunks + c) * kChunkSize;
      if (begin + kChunkSize <= volume_size) continue;
      const std::uint64_t kept_bytes = volume_size > begin ? volume_size - begin : 0;
      const BlockMask kept =
          block_range(0, static_cast<unsigned>(round_up(kept_bytes, kBlockSize) / kBlockSize));
      const MapWord mask = make_word(kept, kept, kept, kept);
      const MapWord before = leaf->words[c].fetch_and(mask);
      count(before, before & mask);
    }
  }
}

bool BlockMap::list_some(ChunkIndex* from, std::vector<Change>& out) const {
  for (std::uint64_t n = 0; n < kLeavesPerStep * kLeafChunks; ++n) {
    const auto chunk = next_present(*from);
    if (!chunk) return false;
    const MapWord w = word(*chunk);
    out.push_back({static_cast<std::uint32_t>(chunk->value), data_of(w), zero_of(w)});
    *from = *chunk + 1;
  }
  return true;
}

// ---- Live map

Result<std::unique_ptr<LiveMap>> BlockMap::make_live(const LivePlace& place, LiveMap::Token token) {
  return LiveMap::make(place, token, kLeaves, sizeof(Leaf));
}

void BlockMap::go_live(std::unique_ptr<LiveMap> live) {
  const std::uint64_t end = leaves_end_.load();
  live_ = std::move(live);
  for (std::uint64_t i = next_bit(leaves_, 0, end); i < end; i = next_bit(leaves_, i + 1, end)) {
    Leaf* from = table_[i].load();
    if (from == nullptr) continue;
    auto* to = static_cast<Leaf*>(live_->leaf(i));
    if (to == nullptr) return;
    for (std::size_t w = 0; w < to->words.size(); ++w)
      to->words[w].store(from->words[w].load());
    for (std::size_t w = 0; w < to->dirty.size(); ++w)
      to->dirty[w].store(from->dirty[w].load());
    table_[i].store(to);
    free_leaf(from);
  }
  live_->count();
}

Result<std::optional<std::vector<Change>>> BlockMap::read_live(const LivePlace& place,
                                                               LiveMap::Token token) {
  std::vector<Change> changes;
  const auto take = [&changes](std::uint64_t index, const void* memory) -> Result<void> {
    const auto* leaf = static_cast<const Leaf*>(memory);
    for (std::size_t w = 0; w < leaf->words.size(); ++w) {
      const MapWord word = leaf->words[w].load();
      if (!present(word)) continue;
      changes.push_back(
          {static_cast<std::uint32_t>(index * kLeafChunks + w), data_of(word), zero_of(word)});
    }
    return {};
  };
  auto counted = LiveMap::read(place, token, kLeaves, sizeof(Leaf), take);
  SNAP_RETURN_IF_ERROR(counted);
  if (!*counted) return std::optional<std::vector<Change>>();
  return std::optional(std::move(changes));
}

}  // namespace snap
