// Timers of a loop: what is due, in order of time, and cancellation by ticket.
//
// Not thread-safe; it belongs to the loop's thread. Timers that are due at the same time fire in
// the order in which they were added.
#pragma once

#include <chrono>
#include <coroutine>
#include <cstdint>
#include <map>
#include <optional>
#include <unordered_map>
#include <utility>
#include <vector>

namespace snap {

class TimerQueue {
 public:
  using TimePoint = std::chrono::steady_clock::time_point;

  /// The ticket is never 0.
  std::uint64_t add(TimePoint when, std::coroutine_handle<> h) {
    const std::uint64_t ticket = ++last_ticket_;
    by_time_.emplace(Key{when, ticket}, h);
    by_ticket_.emplace(ticket, when);
    return ticket;
  }

  /// Takes a timer out before its time; null if it has fired.
  std::coroutine_handle<> take(std::uint64_t ticket) {
    auto found = by_ticket_.find(ticket);
    if (found == by_ticket_.end()) return nullptr;
    auto timer = by_time_.find(Key{found->second, ticket});
    std::coroutine_handle<> h = timer->second;
    by_time_.erase(timer);
    by_ticket_.erase(found);
    return h;
  }

  /// Appends what is due at `now` to `out`.
  void take_due(TimePoint now, std::vector<std::coroutine_handle<>>& out) {
    while (!by_time_.empty() && by_time_.begin()->first.first <= now) {
      out.push_back(by_time_.begin()->second);
      by_ticket_.erase(by_time_.begin()->first.second);
      by_time_.erase(by_time_.begin());
    }
  }

  void take_all(std::vector<std::coroutine_handle<>>& out) { take_due(TimePoint::max(), out); }

  bool empty() const { return by_time_.empty(); }
  std::optional<TimePoint> next() const {
    if (by_time_.empty()) return std::nullopt;
    return by_time_.begin()->first.first;
  }

 private:
  using Key = std::pair<TimePoint, std::uint64_t>;
  std::map<Key, std::coroutine_handle<>> by_time_;
  std::unordered_map<std::uint64_t, TimePoint> by_ticket_;
  std::uint64_t last_ticket_ = 0;
};

}  // namespace snap
