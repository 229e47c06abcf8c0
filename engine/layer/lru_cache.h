// A bounded cache of immutable values, shared by all threads of the process: least recently used
// goes first. Shards keep threads off each other's lock, which is held for a few instructions.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <utility>

namespace snap {

struct CacheKey {
  std::uint64_t owner = 0;  ///< unique in the process and never used again
  std::uint64_t id = 0;

  friend bool operator==(const CacheKey&, const CacheKey&) = default;
  std::size_t hash() const noexcept {
    std::uint64_t h = (owner * 0x9e3779b97f4a7c15u ^ id) * 0xd6e8feb86659fd93u;
    return static_cast<std::size_t>(h ^ h >> 32);
  }
};

/// Thread-safe. What is handed out lives as long as its holder wants, evicted or not.
template <class Value>
class ShardedLru {
 public:
  using Ptr = std::shared_ptr<const Value>;

  /// `capacity` in bytes, over all shards.
  explicit ShardedLru(std::size_t capacity) : shard_capacity_(capacity / kShards) {}

  /// The value, or null.
  Ptr get(CacheKey key) {
    Shard& shard = shard_of(key);
    std::lock_guard guard(shard.lock);
    auto found = shard.index.find(key);
    if (found == shard.index.end()) return nullptr;
    shard.recent.splice(shard.recent.begin(), shard.recent, found->second);
    return found->second->value;
  }

  /// Keeps `value`, which takes `bytes` of memory, unless the key is there already.
  void put(CacheKey key, Ptr value, std::size_t bytes) {
    if (bytes > shard_capacity_) return;
    Shard& shard = shard_of(key);
    std::list<Item> evicted;  // freed when the lock is released
    std::lock_guard guard(shard.lock);
    if (shard.index.contains(key)) return;
    shard.recent.push_front({key, std::move(value), bytes});
    shard.index.emplace(key, shard.recent.begin());
    shard.bytes += bytes;
    while (shard.bytes > shard_capacity_) {
      auto oldest = std::prev(shard.recent.end());
      shard.bytes -= oldest->bytes;
      shard.index.erase(oldest->key);
      evicted.splice(evicted.begin(), shard.recent, oldest);
    }
  }

  /// Bytes held now.
  std::size_t bytes() {
    std::size_t sum = 0;
    for (Shard& shard : shards_) {
      std::lock_guard guard(shard.lock);
      sum += shard.bytes;
    }
    return sum;
  }

 private:
  static constexpr std::size_t kShards = 16;

  struct Item {
    CacheKey key;
    Ptr value;
    std::size_t bytes;
  };
  struct Hash {
    std::size_t operator()(const CacheKey& key) const noexcept { return key.hash(); }
  };
  struct Shard {
    std::mutex lock;
    std::list<Item> recent;  // the most recently used first
    std::unordered_map<CacheKey, typename std::list<Item>::iterator, Hash> index;
    std::size_t bytes = 0;
  };

  Shard& shard_of(CacheKey key) { return shards_[key.hash() >> 8 & (kShards - 1)]; }

  const std::size_t shard_capacity_;
  std::array<Shard, kShards> shards_;
};

}  // namespace snap
