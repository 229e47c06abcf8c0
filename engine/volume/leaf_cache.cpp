#include "engine/volume/leaf_cache.h"

#include <utility>

namespace snap {

LeafCache::LeafCache(std::size_t leaf_count, std::size_t memory)
    : pages_((leaf_count + kSlotsPerPage - 1) / kSlotsPerPage), memory_(memory) {}

LeafCache::~LeafCache() {
  for (std::atomic<Page*>& page : pages_)
    delete page.load(std::memory_order_relaxed);
}

LeafCache::Slot* LeafCache::slot(std::size_t index) const noexcept {
  Page* page = pages_[index / kSlotsPerPage].load(std::memory_order_acquire);
  return page == nullptr ? nullptr : &page->slots[index % kSlotsPerPage];
}

LeafCache::Slot& LeafCache::make_slot(std::size_t index) {
  std::atomic<Page*>& page = pages_[index / kSlotsPerPage];
  if (page.load(std::memory_order_acquire) == nullptr)
    page.store(new Page, std::memory_order_release);
  return *slot(index);
}

LeafCache::Leaf LeafCache::find(std::size_t index) const noexcept {
  Slot* s = slot(index);
  if (s == nullptr) return nullptr;
  // Looked at before it is set, so that readers of a hot leaf do not write to a shared line.
  if (!s->used.load(std::memory_order_relaxed)) s->used.store(true, std::memory_order_relaxed);
  std::lock_guard guard(s->lock);
  return s->leaf;
}

LeafCache::Claim LeafCache::claim(std::size_t index) {
  std::lock_guard guard(lock_);
  Claim claim;
  claim.leaf = find(index);  // a fill may have ended since the caller missed
  if (claim.leaf != nullptr) return claim;
  std::shared_ptr<Fill>& fill = fills_[index];
  claim.mine = fill == nullptr;
  if (claim.mine) fill = std::make_shared<Fill>();
  claim.fill = fill;
  return claim;
}

void LeafCache::finish(std::size_t index, std::shared_ptr<Fill> fill, Result<Leaf> result) {
  std::vector<Leaf> dropped;  // freed outside of the locks
  {
    std::lock_guard guard(lock_);
    fills_.erase(index);
    if (result) {
      Slot& s = make_slot(index);
      s.used.store(true, std::memory_order_relaxed);
      {
        std::lock_guard slot_guard(s.lock);
        s.leaf = *result;
      }
      resident_.push_back(index);
      filled_.fetch_add(1, std::memory_order_relaxed);
      bytes_.fetch_add((*result)->memory(), std::memory_order_relaxed);
      evict(dropped);
    }
  }
  fill->result.emplace(std::move(result));
  fill->done.set();
}

void LeafCache::evict(std::vector<Leaf>& dropped) {
  // The leaf that was just filled stands last and stays, or two leaves that do not fit together
  // would chase each other out before they are read.
  std::size_t spared = 0;
  while (bytes() > memory_ && resident_.size() > 1) {
    const std::size_t index = resident_.front();
    Slot& s = *slot(index);
    resident_.pop_front();
    if (s.used.exchange(false, std::memory_order_relaxed) && spared < resident_.size()) {
      ++spared;
      // Before the new one, which keeps its place at the end.
      resident_.insert(resident_.end() - 1, index);
      continue;
    }
    Leaf leaf;
    {
      std::lock_guard slot_guard(s.lock);
      leaf = std::exchange(s.leaf, nullptr);
    }
    bytes_.fetch_sub(leaf->memory(), std::memory_order_relaxed);
    dropped.push_back(std::move(leaf));
  }
}

}  // namespace snap
