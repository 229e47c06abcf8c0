// What a volume counts of its requests. A thread keeps to one shard, so its additions meet no other
// core's; they are atomic because more threads than shards may exist, and relaxed because nobody
// concludes anything from one number about another.
#include <algorithm>

#include "engine/volume/volume_impl.h"

namespace snap {

namespace {
using Count = std::atomic<std::uint64_t>;

void add(Count& count, std::uint64_t n = 1) noexcept {
  count.fetch_add(n, std::memory_order_relaxed);
}
}  // namespace

struct Volume::Impl::Counters {
  struct Kind {
    std::array<Count, LatencyHistogram::kBuckets> latency{};
    Count total_ns{0}, bytes{0}, errors{0};
  };
  Count begun{0};
  std::array<Kind, kRequestKinds> kinds;

  void end(RequestKind kind, EventLoop::Clock::time_point at, std::uint64_t bytes,
           bool ok) noexcept;
};

/// Of a request that began at `at`.
void Volume::Impl::Counters::end(RequestKind request, EventLoop::Clock::time_point at,
                                 std::uint64_t bytes, bool ok) noexcept {
  const std::chrono::nanoseconds took = EventLoop::current()->now() - at;
  Kind& kind = kinds[static_cast<std::size_t>(request)];
  add(kind.latency[LatencyHistogram::bucket_of(took)]);
  add(kind.total_ns, static_cast<std::uint64_t>(std::max<std::int64_t>(took.count(), 0)));
  if (ok) {
    add(kind.bytes, bytes);
  } else {
    add(kind.errors);
  }
}

Volume::Impl::~Impl() {
  for (Shard& shard : shards_)
    delete shard.counters.load();
}

Volume::Impl::Counters& Volume::Impl::counters() noexcept {
  std::atomic<Counters*>& place = shards_[shard_of_thread()].counters;
  Counters* found = place.load(std::memory_order_acquire);
  if (found != nullptr) return *found;
  auto made = std::make_unique<Counters>();
  // Two threads of one shard may meet here.
  if (place.compare_exchange_strong(found, made.get(), std::memory_order_acq_rel))
    return *made.release();
  return *found;
}

Volume::Impl::Counted::Counted(Impl& impl, RequestKind kind) noexcept
    : counters_(impl.counters()), kind_(kind), begun_(EventLoop::current()->now()) {
  add(counters_.begun);
}

void Volume::Impl::Counted::end(std::uint64_t bytes, bool ok) noexcept {
  counters_.end(kind_, begun_, bytes, ok);
}

void Volume::Impl::count(RequestKind kind, EventLoop::Clock::time_point begun, std::uint64_t bytes,
                         bool ok) noexcept {
  Counters& mine = counters();
  add(mine.begun);
  mine.end(kind, begun, bytes, ok);
}

Volume::Stats Volume::Impl::stats() const noexcept {
  Stats out;
  std::uint64_t ended = 0;
  for (const Shard& shard : shards_) {
    const Counters* counters = shard.counters.load(std::memory_order_acquire);
    if (counters == nullptr) continue;
    for (std::size_t k = 0; k < kRequestKinds; ++k) {
      const Counters::Kind& from = counters->kinds[k];
      RequestStats& to = out.kinds[k];
      for (std::size_t i = 0; i < LatencyHistogram::kBuckets; ++i) {
        const std::uint64_t n = from.latency[i].load(std::memory_order_relaxed);
        to.latency.counts[i] += n;
        ended += n;
      }
      to.latency.total += std::chrono::nanoseconds(from.total_ns.load(std::memory_order_relaxed));
      to.bytes += from.bytes.load(std::memory_order_relaxed);
      to.errors += from.errors.load(std::memory_order_relaxed);
    }
  }
  std::uint64_t begun = 0;
  for (const Shard& shard : shards_) {
    const Counters* counters = shard.counters.load(std::memory_order_acquire);
    if (counters != nullptr) begun += counters->begun.load(std::memory_order_relaxed);
  }
  out.in_flight = begun - std::min(begun, ended);
  return out;
}

Volume::Stats& Volume::Stats::operator+=(const Stats& other) noexcept {
  for (std::size_t k = 0; k < kRequestKinds; ++k) {
    kinds[k].latency += other.kinds[k].latency;
    kinds[k].errors += other.kinds[k].errors;
    kinds[k].bytes += other.kinds[k].bytes;
  }
  in_flight += other.in_flight;
  return *this;
}

Volume::Stats& Volume::Stats::operator-=(const Stats& before) noexcept {
  for (std::size_t k = 0; k < kRequestKinds; ++k) {
    kinds[k].latency -= before.kinds[k].latency;
    kinds[k].errors -= before.kinds[k].errors;
    kinds[k].bytes -= before.kinds[k].bytes;
  }
  return *this;
}

}  // namespace snap
