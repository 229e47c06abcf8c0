// SpaceMonitor: looks once a second what room the store has and how its volumes fare, tells the log
// and the store's events when something changes, and has the process keep to the store's limit.
#pragma once

#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "engine/io/unique_fd.h"
#include "engine/server/pending_ops.h"
#include "snap/result.h"
#include "snap/store.h"
#include "snap/task.h"

namespace snap::server {

class SpaceMonitor {
 public:
  /// What is open to write at the moment.
  using Volumes = std::function<std::vector<std::shared_ptr<OpenVolume>>()>;
  /// The store outlives this.
  SpaceMonitor(Store& store, Volumes volumes) : store_(store), volumes_(std::move(volumes)) {}

  /// The first look, before the first request.
  Task<Result<void>> prepare();
  /// Looks until stop().
  Task<void> run();
  void stop() { waits_.stop(); }

 private:
  /// What is known of one volume.
  struct Known {
    std::string delta;  ///< whose counts these are
    std::uint64_t limit_hits = 0, shared_limit_hits = 0, disk_full_hits = 0;
    std::string cause;  ///< of being out of space; empty: it is not
    bool failed = false;
  };

  Task<void> look();
  Task<void> look_at_store();
  Task<void> look_at(OpenVolume& volume, Known& known);
  /// Whether what a volume ran out of is there again, with some to spare.
  Task<bool> has_room_again(OpenVolume& volume, const Known& known);
  Task<void> tell(StoreEvent event, bool is_error);
  void complain(const Error& error);

  Store& store_;
  const Volumes volumes_;
  std::map<std::string, Known> known_;  ///< of the volumes that are open
  std::chrono::steady_clock::time_point next_store_{};
  bool looked_ = false;  ///< at the store, in this round
  std::string last_complaint_;
  UniqueFd timer_;
  PendingOps waits_;
};

}  // namespace snap::server
