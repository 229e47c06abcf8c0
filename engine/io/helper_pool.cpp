#include "engine/io/helper_pool.h"

#include <pthread.h>
#include <signal.h>

#include <system_error>
#include <utility>

namespace snap {

HelperPool::~HelperPool() {
  {
    std::lock_guard guard(lock_);
    closing_ = true;
  }
  wake_.notify_all();
  for (std::thread& t : threads_)
    t.join();
}

void HelperPool::add(std::function<void()> work) {
  {
    std::lock_guard guard(lock_);
    if (idle_ <= queue_.size() && threads_.size() < max_threads_) start_thread();
    if (!threads_.empty()) {
      queue_.push_back(std::move(work));
      wake_.notify_one();
      return;
    }
  }
  work();
}

void HelperPool::start_thread() {
  // Signals are for the threads that expect them (a loop's signalfd, main); a helper inherits the
  // mask that its creator has at this moment.
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  try {
    threads_.emplace_back(&HelperPool::work_loop, this);
  } catch (const std::system_error&) {
    // At the limit of threads: those that exist, or the caller, do the work
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

void HelperPool::work_loop() {
  std::unique_lock guard(lock_);
  for (;;) {
    ++idle_;
    wake_.wait(guard, [this] { return closing_ || !queue_.empty(); });
    --idle_;
    if (queue_.empty()) return;
    std::function<void()> work = std::move(queue_.front());
    queue_.pop_front();
    guard.unlock();
    work();
    work = nullptr;
    guard.lock();
  }
}

}  // namespace snap
