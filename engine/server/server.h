// Server: takes connections on listeners and spreads them over worker threads, until it is stopped.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "engine/io/socket.h"
#include "engine/io/sync.h"
#include "engine/nbd/export.h"
#include "engine/server/pending_ops.h"
#include "engine/server/worker.h"
#include "snap/limits.h"
#include "snap/result.h"
#include "snap/task.h"

namespace snap::server {

/// Used on one loop, which accepts; the connections run on the workers' loops.
class Server {
 public:
  struct Options {
    WorkerPool::Options workers;
    EventLoop::Clock::duration drain = kDrainTimeout;
  };

  /// Starts the workers. `exports` outlives the server.
  static Result<std::unique_ptr<Server>> start(nbd::ExportTable& exports,
                                               std::vector<Listener> listeners, Options options);

  /// Accepts until request_stop(), then closes the listeners, lets what is in flight finish,
  /// answers later requests with ESHUTDOWN, and returns once every connection has ended, which
  /// takes no longer than `drain`, whatever clients do.
  Task<void> run();
  /// From the loop's thread; again does nothing.
  void request_stop();
  /// Ends connections without waiting for clients any longer. After request_stop().
  void cut() { workers_->abort(); }

  /// Where devices of this machine are served beside the connections that it takes.
  WorkerPool& workers() noexcept { return *workers_; }
  const std::vector<Listener>& listeners() const noexcept { return listeners_; }
  std::size_t connections() const noexcept { return workers_->connections(); }
  /// Counts of connections.
  const WorkerShared& shared() const noexcept { return workers_->shared(); }

 private:
  Server(std::unique_ptr<WorkerPool> workers, std::vector<Listener> listeners, Options options)
      : workers_(std::move(workers)), listeners_(std::move(listeners)), options_(options) {}
  Task<void> accept_from(int fd);

  std::unique_ptr<WorkerPool> workers_;
  std::vector<Listener> listeners_;
  const Options options_;
  PendingOps waits_;
  AsyncEvent stop_requested_;
  WaitGroup acceptors_;
};

}  // namespace snap::server
