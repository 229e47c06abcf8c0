// LatencyHistogram: how long requests took, in buckets a quarter of an octave wide, from 1
// microsecond to 67 seconds.
#pragma once

#include <array>
#include <bit>
#include <chrono>
#include <cstddef>
#include <cstdint>

namespace snap {

class LatencyHistogram {
 public:
  static constexpr std::size_t kBuckets = 100;

  std::array<std::uint64_t, kBuckets> counts{};
  std::chrono::nanoseconds total{0};  ///< the sum of all

  /// Which bucket counts a request that took `time`; what is longer than all goes to the last.
  static constexpr std::size_t bucket_of(std::chrono::nanoseconds time) noexcept {
    const auto us = static_cast<std::uint64_t>(time.count() < 0 ? 0 : time.count()) / 1000;
    if (us < kPerOctave) return static_cast<std::size_t>(us);
    const auto octave = static_cast<unsigned>(std::bit_width(us)) - 3;
    const auto bucket = static_cast<std::size_t>(kPerOctave * octave + (us >> octave));
    return bucket < kBuckets ? bucket : kBuckets - 1;
  }
  /// The shortest time of a bucket; for `kBuckets` the end of the last one.
  static constexpr std::chrono::microseconds lower_bound(std::size_t bucket) noexcept {
    if (bucket < kPerOctave) return std::chrono::microseconds(bucket);
    const std::size_t octave = bucket / kPerOctave - 1;
    return std::chrono::microseconds((kPerOctave + bucket % kPerOctave) << octave);
  }

  std::uint64_t count() const noexcept {
    std::uint64_t sum = 0;
    for (const std::uint64_t n : counts)
      sum += n;
    return sum;
  }
  /// How many took less than `time`, which is the bound of a bucket.
  std::uint64_t below(std::chrono::microseconds time) const noexcept {
    std::uint64_t sum = 0;
    for (std::size_t i = 0; i < kBuckets && lower_bound(i + 1) <= time; ++i)
      sum += counts[i];
    return sum;
  }
  /// The end of the bucket in which the `part` (0.5: the median) of all requests has ended; 0
  /// without any.
  std::chrono::microseconds quantile(double part) const noexcept {
    const std::uint64_t all = count();
    std::uint64_t sum = 0;
    for (std::size_t i = 0; i < kBuckets; ++i) {
      sum += counts[i];
      if (sum != 0 && static_cast<double>(sum) >= part * static_cast<double>(all))
        return lower_bound(i + 1);
    }
    return std::chrono::microseconds(0);
  }

  LatencyHistogram& operator+=(const LatencyHistogram& other) noexcept {
    for (std::size_t i = 0; i < kBuckets; ++i)
      counts[i] += other.counts[i];
    total += other.total;
    return *this;
  }
  /// What came since `before`, an earlier state of this one.
  LatencyHistogram& operator-=(const LatencyHistogram& before) noexcept {
    for (std::size_t i = 0; i < kBuckets; ++i)
      counts[i] -= before.counts[i];
    total -= before.total;
    return *this;
  }

 private:
  static constexpr std::size_t kPerOctave = 4;
};

}  // namespace snap
