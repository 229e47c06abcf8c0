// Worker: a thread with an event loop of its own that serves connections. WorkerPool: several,
// which take new connections in turn.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_set>
#include <vector>

#include "engine/io/socket.h"
#include "engine/io/sync.h"
#include "engine/nbd/connection.h"
#include "engine/nbd/export.h"
#include "engine/server/client_list.h"
#include "engine/server/log.h"
#include "snap/event_loop.h"
#include "snap/result.h"
#include "snap/task.h"

namespace snap::server {

/// What the workers of a pool share.
struct WorkerShared {
  nbd::ExportTable* exports = nullptr;
  nbd::MemoryBudget memory;
  nbd::ConnectionLimits limits;
  nbd::TlsPolicy tls;
  std::atomic<std::size_t> connections{0};
  std::atomic<std::uint64_t> accepted{0}, turned_away{0}, ended_badly{0};  ///< since the start
  WaitGroup running;  ///< workers whose thread has not ended
  ClientList clients;
  RateLimit complaints{20, 1};
};

class Worker {
 public:
  /// Makes the loop and starts the thread.
  static Result<std::unique_ptr<Worker>> start(WorkerShared& shared, LoopOptions loop);
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;
  /// The thread must be on its way out: drain() or abort() were called.
  ~Worker();

  // From any thread

  /// What a block device of this machine uses; its connections begin behind the handshake
  /// (nbd::Connection::begin_with()).
  struct Device {
    std::shared_ptr<nbd::Export> from;
    /// Called when a connection ends that has served requests. On the worker's thread.
    std::function<void()> lost;
  };
  /// Serves a connected socket, which it owns from now on and which counts already.
  void give(Socket socket, Device device);
  /// Runs a task on its loop, and ends only after it has.
  void run(std::function<Task<void>()> part);
  /// Takes no more; ends when its connections have finished what is in flight.
  void drain() { set_phase(Phase::kDraining); }
  /// Ends without waiting for clients.
  void abort() { set_phase(Phase::kAborting); }

 private:
  enum class Phase { kServing, kDraining, kAborting };

  Worker(WorkerShared& shared, std::unique_ptr<EventLoop> loop)
      : shared_(shared), loop_(std::move(loop)) {}
  void set_phase(Phase phase);
  Task<void> serve();
  struct Arrival {
    Socket socket;
    Device device;
  };
  Task<void> serve_connection(Arrival arrival);

  WorkerShared& shared_;
  std::unique_ptr<EventLoop> loop_;
  std::unordered_set<nbd::Connection*> connections_;  ///< used on the worker's thread only

  std::mutex lock_;  // guards the inbox: the next three
  std::vector<Arrival> arrived_;
  std::vector<std::function<Task<void>()>> parts_;
  Phase phase_ = Phase::kServing;
  AsyncEvent inbox_;  ///< something has changed: the inbox, or a connection has ended

  std::thread thread_;
};

class WorkerPool {
 public:
  struct Options {
    std::size_t threads = 0;  ///< 0: one a core, at most kDefaultThreads
    std::size_t max_connections = kMaxConnections;
    LoopOptions loop;
    nbd::ConnectionLimits limits;
    nbd::TlsPolicy tls;
  };
  static constexpr std::size_t kDefaultThreads = 4;
  static constexpr std::size_t kMaxThreads = 64;

  static Result<std::unique_ptr<WorkerPool>> start(nbd::ExportTable& exports, Options options);
  /// Cuts off who is still served: without stop(), as when a server fails late in its start.
  ~WorkerPool() { abort(); }
  WorkerPool(const WorkerPool&) = delete;
  WorkerPool& operator=(const WorkerPool&) = delete;

  /// Hands a connected socket to the next worker; with a device, as Worker::give(). False: closed
  /// it instead (and said so in the log), for there are too many, or memory is short.
  bool give(Socket socket, Worker::Device device = {});
  /// Runs `part` once on every worker's loop, side by side; each worker ends only after it has.
  /// drain() and abort() do not end it: whoever gave it does. Before stop().
  void run_on_all(const std::function<Task<void>()>& part);
  std::size_t threads() const noexcept { return workers_.size(); }
  std::size_t connections() const noexcept { return shared_.connections; }
  const WorkerShared& shared() const noexcept { return shared_; }

  /// Ends all workers: what is in flight finishes, within `limit` whatever clients do. On the loop
  /// that gave the sockets.
  Task<void> stop(EventLoop::Clock::duration limit);
  /// Makes stop() end without waiting for clients any longer.
  void abort();

 private:
  explicit WorkerPool(Options options) : max_connections_(options.max_connections) {}
  Task<void> abort_after(Sleep* limit, AsyncEvent* ended);

  WorkerShared shared_;
  const std::size_t max_connections_;
  std::vector<std::unique_ptr<Worker>> workers_;  // after what they share
  std::size_t next_ = 0;
  bool all_ended_ = false;
};

}  // namespace snap::server
