#include "engine/server/worker.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <algorithm>
#include <system_error>
#include <utility>

#include "engine/base/memory_reserve.h"

namespace snap::server {

namespace {

// A client that has vanished from the network is asked for after a while, and holds its volume and
// its place for five minutes in all: a machine that is paused or moved meanwhile is back by then.
// One that is there but takes no replies is left alone.
constexpr int kIdleSeconds = 120;
constexpr int kProbeSeconds = 30;
constexpr int kProbes = 6;

/// Replies leave at once, and a peer that is gone is noticed. Has no meaning, and so no effect, on
/// unix sockets.
void set_tcp_options(int fd) {
  const auto set = [fd](int level, int option, int value) {
    (void)::setsockopt(fd, level, option, &value, sizeof value);
  };
  set(IPPROTO_TCP, TCP_NODELAY, 1);
  set(IPPROTO_TCP, TCP_KEEPIDLE, kIdleSeconds);
  set(IPPROTO_TCP, TCP_KEEPINTVL, kProbeSeconds);
  set(IPPROTO_TCP, TCP_KEEPCNT, kProbes);
  set(SOL_SOCKET, SO_KEEPALIVE, 1);
}

}  // namespace

// ---- Worker

Result<std::unique_ptr<Worker>> Worker::start(WorkerShared& shared, LoopOptions loop_options) {
  auto loop = make_event_loop(loop_options);
  if (!loop) return loop.error().with_context("start a worker thread");
  std::unique_ptr<Worker> worker(new Worker(shared, std::move(*loop)));
  shared.running.add();
  try {
    worker->thread_ = std::thread([w = worker.get()] {
      w->loop_->run(w->serve());
      w->shared_.running.done();
    });
  } catch (const std::system_error& e) {
    shared.running.done();
    return Error::from_errno(e.code().value(), "start a worker thread");
  }
  return worker;
}

Worker::~Worker() {
  if (thread_.joinable()) thread_.join();
}

void Worker::give(Socket socket, Device device) {
  {
    std::lock_guard guard(lock_);
    arrived_.push_back({std::move(socket), std::move(device)});
  }
  inbox_.set();
}

void Worker::run(std::function<Task<void>()> part) {
  {
    std::lock_guard guard(lock_);
    parts_.push_back(std::move(part));
  }
  inbox_.set();
}

void Worker::set_phase(Phase phase) {
  {
    std::lock_guard guard(lock_);
    phase_ = std::max(phase_, phase);  // an abort may come before the drain that it cuts short
  }
  inbox_.set();
}

Task<void> Worker::serve() {
  Phase seen = Phase::kServing;
  while (seen == Phase::kServing || !connections_.empty()) {
    co_await inbox_.wait();
    inbox_.reset();  // before the inbox is looked at: what comes later sets it again
    std::vector<Arrival> arrived;
    std::vector<std::function<Task<void>()>> parts;
    Phase phase;
    {
      std::lock_guard guard(lock_);
      arrived.swap(arrived_);
      parts.swap(parts_);
      phase = phase_;
    }
    for (const auto& part : parts)
      EventLoop::current()->spawn(part());
    if (phase == Phase::kServing) {
      for (Arrival& arrival : arrived)
        EventLoop::current()->spawn(serve_connection(std::move(arrival)));
      // They register themselves before this task runs again.
      co_await yield_now();
      continue;
    }
    shared_.connections -= arrived.size();
    if (phase == seen) continue;
    seen = phase;
    for (nbd::Connection* connection : connections_)
      phase == Phase::kDraining ? connection->drain() : connection->abort();
  }
}

Task<void> Worker::serve_connection(Arrival arrival) {
  set_tcp_options(arrival.socket.fd());
  const std::string name = arrival.socket.name();
  {
    nbd::Connection connection(std::move(arrival.socket), *shared_.exports, shared_.limits,
                               shared_.tls);
    if (arrival.device.from) connection.begin_with(std::move(arrival.device.from));
    ClientList::Place place(shared_.clients, name);
    connection.when_entered(
        [&place](const nbd::Export& device, bool tls) { place.has_entered(device.name(), tls); });
    connections_.insert(&connection);
    auto ended = co_await connection.run();
    connections_.erase(&connection);
    if (arrival.device.lost && connection.has_served()) arrival.device.lost();
    if (!ended) {
      ++shared_.ended_badly;
      log_limited(shared_.complaints, name + ": connection ended: " + ended.error().message());
    }
  }
  --shared_.connections;
  inbox_.set();
}

// ---- WorkerPool

Result<std::unique_ptr<WorkerPool>> WorkerPool::start(nbd::ExportTable& exports, Options options) {
  std::size_t threads = options.threads;
  if (threads == 0) {
    threads = std::clamp<std::size_t>(std::thread::hardware_concurrency(), 1, kDefaultThreads);
  }
  if (threads > kMaxThreads)
    return Error(ErrorCode::kInvalidArgument, "at most " + std::to_string(kMaxThreads) +
                                                  " worker threads make sense, not " +
                                                  std::to_string(threads));
  auto kept = keep_memory_reserve();
  if (!kept) return kept.error();
  std::unique_ptr<WorkerPool> pool(new WorkerPool(options));
  pool->shared_.exports = &exports;
  pool->shared_.limits = options.limits;
  pool->shared_.tls = options.tls;
  if (pool->shared_.limits.budget == nullptr) pool->shared_.limits.budget = &pool->shared_.memory;
  for (std::size_t i = 0; i < threads; ++i) {
    auto worker = Worker::start(pool->shared_, options.loop);
    if (!worker) return worker.error();
    pool->workers_.push_back(std::move(*worker));
  }
  return pool;
}

void WorkerPool::run_on_all(const std::function<Task<void>()>& part) {
  for (auto& worker : workers_)
    worker->run(part);
}

bool WorkerPool::give(Socket socket, Worker::Device device) {
  if (memory_is_short()) {
    ++shared_.turned_away;
    log_limited(shared_.complaints, "a client was turned away: the server is out of memory");
    return false;
  }
  if (shared_.connections >= max_connections_) {
    ++shared_.turned_away;
    log_limited(shared_.complaints,
                "a client was turned away: " + std::to_string(max_connections_) +
                    " connections are open, which is the limit");
    return false;
  }
  ++shared_.accepted;
  ++shared_.connections;
  workers_[next_]->give(std::move(socket), std::move(device));
  next_ = (next_ + 1) % workers_.size();
  return true;
}

Task<void> WorkerPool::stop(EventLoop::Clock::duration limit) {
  for (auto& worker : workers_)
    worker->drain();
  Sleep timer(limit);
  AsyncEvent watcher_ended;
  EventLoop::current()->spawn(abort_after(&timer, &watcher_ended));
  co_await shared_.running.wait();
  all_ended_ = true;
  timer.wake();
  co_await watcher_ended.wait();
  workers_.clear();
}

void WorkerPool::abort() {
  for (auto& worker : workers_)
    worker->abort();
}

Task<void> WorkerPool::abort_after(Sleep* limit, AsyncEvent* ended) {
  co_await *limit;
  if (!all_ended_) {
    log_warning("clients did not let go in time: their connections are cut");
    abort();
  }
  ended->set();
}

}  // namespace snap::server
