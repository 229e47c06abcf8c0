// What a volume counts: the buckets of the histogram, and requests from several threads at once.
#include <catch2/catch.hpp>
#include <thread>

#include "engine/io/test_rig.h"
#include "engine/volume/layer_stack.h"
#include "snap/latency.h"
#include "snap/volume.h"

namespace snap {
namespace {

using std::chrono::microseconds;
using std::chrono::nanoseconds;

TEST_CASE("every time falls into the bucket whose bounds it lies between") {
  std::size_t last = 0;
  for (std::int64_t ns = 0; ns < 70'000'000'000; ns += 1 + ns / 7) {
    const std::size_t bucket = LatencyHistogram::bucket_of(nanoseconds(ns));
    INFO(ns << " ns in bucket " << bucket);
    REQUIRE(bucket >= last);
    last = bucket;
    CHECK(LatencyHistogram::lower_bound(bucket) <= nanoseconds(ns));
    if (bucket + 1 < LatencyHistogram::kBuckets)
      CHECK(nanoseconds(ns) < LatencyHistogram::lower_bound(bucket + 1));
  }
  CHECK(last == LatencyHistogram::kBuckets - 1);
  CHECK(LatencyHistogram::bucket_of(std::chrono::hours(1)) == LatencyHistogram::kBuckets - 1);
  CHECK(LatencyHistogram::bucket_of(nanoseconds(-1)) == 0);
  // No bucket is wider than a quarter of what it begins with, from 4 us on.
  for (std::size_t i = 4; i < LatencyHistogram::kBuckets; ++i) {
    const auto begin = LatencyHistogram::lower_bound(i);
    CHECK(LatencyHistogram::lower_bound(i + 1) - begin <= begin / 4);
  }
  // Powers of two are bounds: metrics tell of these.
  for (unsigned bit = 0; bit < 26; ++bit) {
    const microseconds bound(std::int64_t{1} << bit);
    CHECK(LatencyHistogram::lower_bound(LatencyHistogram::bucket_of(bound)) == bound);
  }
}

TEST_CASE("quantiles are the ends of the buckets that hold them") {
  LatencyHistogram h;
  CHECK(h.quantile(0.5) == microseconds(0));
  const auto add = [&h](microseconds time, std::uint64_t n) {
    h.counts[LatencyHistogram::bucket_of(time)] += n;
  };
  add(microseconds(100), 98);
  add(microseconds(3000), 1);
  add(std::chrono::seconds(2), 1);
  CHECK(h.count() == 100);
  CHECK(h.quantile(0.5) == microseconds(112));
  CHECK(h.quantile(0.99) == microseconds(3072));
  CHECK(h.quantile(1.0) > std::chrono::seconds(2));
  CHECK(h.below(microseconds(64)) == 0);
  CHECK(h.below(microseconds(128)) == 98);
  LatencyHistogram later = h;
  later.counts[3] += 5;
  later -= h;
  CHECK(later.count() == 5);
}

Task<void> read_often(Volume* volume, int times) {
  std::vector<std::byte> bytes(512);
  for (int i = 0; i < times; ++i) {
    if (i % 2 == 0 && volume->read_now(ByteOffset(0), bytes)) continue;
    must(co_await volume->read(ByteOffset(0), bytes));
  }
  auto beyond = co_await volume->read(ByteOffset(volume->size()), bytes);
  CHECK_FALSE(beyond);
}

TEST_CASE("requests of many threads are all counted") {
  constexpr int kThreads = 12;  // more than there are shards
  constexpr int kReads = 500;
  Volume::Parts parts;
  parts.size = 1u << 20;
  parts.layers = LayerStack::make({});
  Volume volume(std::move(parts));
  CHECK(volume.stats().of(Volume::RequestKind::kRead).requests() == 0);
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&volume] {
      auto own = must(make_event_loop());
      own->run(read_often(&volume, kReads));
    });
  }
  for (std::thread& thread : threads)
    thread.join();
  const Volume::Stats stats = volume.stats();
  const auto& reads = stats.of(Volume::RequestKind::kRead);
  CHECK(reads.requests() == kThreads * (kReads + 1));
  CHECK(reads.errors == kThreads);
  CHECK(reads.bytes == std::uint64_t{kThreads} * kReads * 512);
  CHECK(reads.latency.total > nanoseconds(0));
  CHECK(stats.in_flight == 0);
}

}  // namespace
}  // namespace snap
