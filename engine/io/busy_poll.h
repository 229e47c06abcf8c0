// Whether a loop that has nothing to do looks for work for a moment before it sleeps.
//
// A processor that goes to sleep takes its time to wake up, in a virtual machine some 40 us: more
// than a cached request costs. Where a client waits for each answer, both ends pay that for every
// request. Looking busily spares it, but takes the processor from whoever else has work; there a
// sleep ends soon, for nobody sleeps. So what both cost is measured all the time: of 64 waits one
// is made the other way, and the better one is used for the rest. Where requests are rare a loop
// always sleeps.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>

namespace snap {

/// Not thread-safe.
class BusyPoll {
 public:
  using Duration = std::chrono::steady_clock::duration;

  /// `limit` is how long it looks at most; 0: never.
  explicit BusyPoll(Duration limit) noexcept : limit_(limit), slept_(kMost * limit) {}

  bool enabled() const noexcept { return limit_ > Duration::zero(); }
  Duration limit() const noexcept { return limit_; }

  /// How the wait that begins is made.
  bool polls() noexcept {
    if (!enabled() || slept_ >= 2 * limit_ || slept_ < kWakeUp) return false;
    const bool better = polled_ + polled_ / 2 < slept_;
    return ++waits_ % kProbe == 0 ? !better : better;
  }
  /// How long it took until there was something to do; with polling in vain the sleep after it,
  /// too.
  void waited(bool polled, Duration took) noexcept {
    Duration& usual = polled ? polled_ : slept_;
    usual += (std::min(took, kMost * limit_) - usual) / kRemembered;
  }

 private:
  /// A sleep that ends sooner was none: the processor had other work.
  static constexpr std::chrono::microseconds kWakeUp{25};
  static constexpr int kMost = 4;        ///< a wait counts for at most so many limits
  static constexpr int kRemembered = 8;  ///< and is one part of so many in what is usual
  static constexpr std::uint32_t kProbe = 64;

  Duration limit_;
  Duration slept_;
  Duration polled_{};
  std::uint32_t waits_ = 0;
};

}  // namespace snap
