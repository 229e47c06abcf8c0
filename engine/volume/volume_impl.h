// What is inside of a Volume: the present chain, the gate that writes go through, the counters.
//
// The chain is published once a shard, each with a reference count of its own, and a thread keeps
// to one shard: so loops on different cores do not pass a cache line to and fro with each request.
// A new chain reaches the shards one after the other. That is sound because every change either
// keeps the content (replace_base; push_delta, whose writes wait at the gate until it is done) or
// holds the writes until it is done (resize).
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>

#include "engine/io/sync.h"
#include "engine/volume/chain.h"
#include "engine/volume/spin_lock.h"
#include "snap/volume.h"

namespace snap {

class Volume::Impl {
 public:
  explicit Impl(Parts parts);

  std::shared_ptr<const Chain> chain() const noexcept;
  /// Publishes `next`; from its return on, every request that begins uses it.
  void replace(Parts next);

  /// The right to change the chain: one at a time.
  class Turn {
   public:
    explicit Turn(Impl& impl) : impl_(impl), mine_(!impl.changing_.exchange(true)) {}
    ~Turn() {
      if (mine_) impl_.changing_.store(false);
    }
    Turn(const Turn&) = delete;
    Turn& operator=(const Turn&) = delete;
    /// Busy if someone else has it.
    Result<void> check() const;

   private:
    Impl& impl_;
    bool mine_;
  };

  enum class Kind { kRead, kWrite, kFlush, kTrim };
  /// Counts a request that is answered.
  void count(Kind kind, std::uint64_t bytes, const Result<void>& result) noexcept;
  Stats stats() const noexcept;

  /// Waits until no request uses a chain that was replaced.
  static Task<void> drained(std::weak_ptr<const Chain> old);

  Gate writes;  ///< closed while a chain must not change under the hands of its writers

 private:
  static constexpr std::size_t kShards = 8;
  struct alignas(64) Shard {
    mutable SpinLock lock;
    std::shared_ptr<const Chain> chain;
    std::array<std::atomic<std::uint64_t>, 4> requests{};  ///< by Kind
    std::array<std::atomic<std::uint64_t>, 4> bytes{};
    std::atomic<std::uint64_t> errors{0};
  };
  static std::size_t shard_of_thread() noexcept;

  std::array<Shard, kShards> shards_;
  std::atomic<bool> changing_{false};
};

}  // namespace snap
