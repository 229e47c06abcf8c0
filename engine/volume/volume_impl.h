// What is inside of a Volume: the present chain, the gate that writes go through, the counters.
//
// The chain is published once a shard, each with a reference count of its own, and a thread keeps
// to one shard: so loops on different cores do not pass a cache line to and fro with each request.
// The counters are a shard's own for the same reason: a request costs two reads of the clock and
// four additions to memory that no other core writes (engine/volume/volume_stats.cpp).
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
  ~Impl();

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

  struct Counters;
  /// Counts one request, from its beginning to end(), on one loop.
  class Counted {
   public:
    Counted(Impl& impl, RequestKind kind) noexcept;
    /// The request is answered; `bytes` is what it moved.
    void end(std::uint64_t bytes, bool ok) noexcept;

   private:
    Counters& counters_;
    const RequestKind kind_;
    const EventLoop::Clock::time_point begun_;
  };
  /// Counts one that began and has ended without waiting.
  void count(RequestKind kind, EventLoop::Clock::time_point begun, std::uint64_t bytes,
             bool ok) noexcept;
  Stats stats() const noexcept;

  /// Waits until no request uses a chain that was replaced.
  static Task<void> drained(std::weak_ptr<const Chain> old);

  Gate writes;  ///< closed while a chain must not change under the hands of its writers

 private:
  static constexpr std::size_t kShards = 8;
  struct alignas(64) Shard {
    mutable SpinLock lock;
    std::shared_ptr<const Chain> chain;
    std::atomic<Counters*> counters{nullptr};  ///< made by the first request that counts
  };
  static std::size_t shard_of_thread() noexcept;
  Counters& counters() noexcept;

  std::array<Shard, kShards> shards_;
  std::atomic<bool> changing_{false};
};

}  // namespace snap
