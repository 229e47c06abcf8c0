// Latencies: a histogram of durations with 1.6 % resolution, from 1 ns to over an hour: finer than
// the server's (snap/latency.h), for ratios of what servers do.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <chrono>
#include <cstddef>
#include <cstdint>

namespace snap::load {

class Latencies {
 public:
  using Duration = std::chrono::nanoseconds;

  void add(Duration d) noexcept {
    const auto ns = static_cast<std::uint64_t>(d.count() < 0 ? 0 : d.count());
    ++counts_[slot_of(ns)];
    ++count_;
    if (ns > worst_) worst_ = ns;
  }
  void add(const Latencies& other) noexcept {
    for (std::size_t i = 0; i < kSlots; ++i)
      counts_[i] += other.counts_[i];
    count_ += other.count_;
    if (other.worst_ > worst_) worst_ = other.worst_;
  }
  std::uint64_t count() const noexcept { return count_; }
  /// Microseconds that a share of `q` (0 to 1) stayed within; 0 of nothing.
  double percentile(double q) const noexcept {
    const auto rank = static_cast<std::uint64_t>(q * static_cast<double>(count_));
    std::uint64_t seen = 0;
    for (std::size_t i = 0; i < kSlots; ++i) {
      seen += counts_[i];
      if (seen > rank) return std::min(static_cast<double>(upper_end(i)) / 1e3, worst());
    }
    return worst();
  }
  double worst() const noexcept { return static_cast<double>(worst_) / 1e3; }

 private:
  static constexpr unsigned kBits = 6;  ///< 64 slots for each power of two
  static constexpr std::size_t kSlots = (43 - kBits) << kBits;

  static std::size_t slot_of(std::uint64_t ns) noexcept {
    const auto width = static_cast<unsigned>(std::bit_width(ns | 1));
    if (width <= kBits + 1) return static_cast<std::size_t>(ns);
    const unsigned shift = width - kBits - 1;
    const std::size_t slot = (std::size_t{shift} << kBits) + (ns >> shift);
    return slot < kSlots ? slot : kSlots - 1;
  }
  static std::uint64_t upper_end(std::size_t slot) noexcept {
    if (slot < (std::size_t{2} << kBits)) return slot;
    const std::size_t shift = (slot >> kBits) - 1;
    return ((slot - (shift << kBits) + 1) << shift) - 1;
  }

  std::array<std::uint64_t, kSlots> counts_{};
  std::uint64_t count_ = 0;
  std::uint64_t worst_ = 0;
};

}  // namespace snap::load
