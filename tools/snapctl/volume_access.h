// VolumeAccess: a volume to work on, whether it is at rest or being served. Served, the requests go
// to the process that has it, over its control socket; at rest, to the server of the store where
// one runs, so that clients can have the volume meanwhile, else this process opens it.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "engine/server/control_client.h"
#include "snap/result.h"
#include "snap/store.h"
#include "snap/task.h"

namespace snap::cli {

class VolumeAccess {
 public:
  /// Finds the volume and opens it, or notes who serves it. Busy, with the pid, if a process has it
  /// that takes no commands.
  static Task<Result<VolumeAccess>> open(Store& store, std::string text);
  VolumeAccess(VolumeAccess&&) noexcept = default;
  VolumeAccess& operator=(VolumeAccess&&) noexcept = default;

  /// As it was when it was opened here.
  const VolumeSummary& summary() const noexcept { return summary_; }
  const std::string& name() const noexcept { return summary_.record.name; }
  bool served() const noexcept { return opened_ == nullptr; }

  /// How long writes waited.
  Task<Result<std::chrono::microseconds>> snapshot(std::string snapshot_name);
  /// As Store::make_room.
  Task<Result<void>> make_room(Store::CommitOptions how);
  /// As Store::freeze.
  Task<Result<void>> freeze();
  Task<Result<void>> clone(std::string new_name);
  Task<Result<void>> resize(std::uint64_t size);
  /// None: as the disk has.
  Task<Result<void>> set_limit(std::optional<std::uint64_t> bytes);
  struct Committed {
    Image image;
    std::chrono::microseconds pause{0};
    std::chrono::microseconds total{0};
    std::uint64_t packed = 0;  ///< bytes read from the delta
  };
  Task<Result<Committed>> commit(Store::CommitOptions options, Progress progress);

  /// Gives the volume back. Call it last, also after a failure above.
  Task<Result<void>> close();

 private:
  VolumeAccess(Store& store, VolumeSummary summary, std::unique_ptr<OpenVolume> opened)
      : store_(&store), summary_(std::move(summary)), opened_(std::move(opened)) {}
  VolumeAccess(Store& store, VolumeSummary summary, std::unique_ptr<server::ControlClient> server)
      : store_(&store), summary_(std::move(summary)), server_(std::move(server)) {}

  Store* store_;
  VolumeSummary summary_;
  std::unique_ptr<OpenVolume> opened_;  // null: served
  std::unique_ptr<server::ControlClient> server_;
};

/// Gives the volume back after a failure; the failure.
Task<Error> given_back(VolumeAccess volume, Error failure);

/// The server of the whole store (`serve`); null if none runs that understands us.
Task<std::unique_ptr<server::ControlClient>> store_server(std::string store);

/// Has a server close the volume that it has open although no client uses it, for commands that
/// need it at rest; `volume->holder` then is none. Nothing if it is in use.
Task<void> release_idle(VolumeSummary* volume);

}  // namespace snap::cli
