// HelperPool: threads for work that would block a loop.
//
// Threads start when there is work and none is idle, up to a maximum; they take no signals.
// Destruction runs what is queued, then joins. add() is thread-safe.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace snap {

class HelperPool {
 public:
  explicit HelperPool(unsigned max_threads) : max_threads_(max_threads == 0 ? 1 : max_threads) {}
  HelperPool(const HelperPool&) = delete;
  HelperPool& operator=(const HelperPool&) = delete;
  ~HelperPool();

  /// Runs `work` on a helper thread; on the caller's if the system gives us no thread at all.
  void add(std::function<void()> work);

 private:
  void start_thread();
  void work_loop();

  const unsigned max_threads_;
  std::mutex lock_;
  std::condition_variable wake_;
  std::deque<std::function<void()>> queue_;
  std::vector<std::thread> threads_;
  std::size_t idle_ = 0;
  bool closing_ = false;
};

}  // namespace snap
