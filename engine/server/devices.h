// Devices: volumes and images of this server as block devices of this machine: /dev/nbdX over
// connections of its own, or a loop device on a file that it serves through FUSE.
//
// The server makes the connections and hands the kernel's ends over; there is no handshake. What it
// attaches it writes down (engine/attach/attachment.h): a server that takes the place of one that
// died finds there what it is to reconnect. To open, flush or look at the device is the business of
// the command that asks, for here it would mean to wait for oneself.
//
// Used on the store's loop.
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "engine/attach/attachment.h"
#include "engine/io/sync.h"
#include "engine/nbd/export.h"
#include "engine/server/catalogue.h"
#include "engine/server/device_wish.h"
#include "engine/server/log.h"
#include "engine/server/open_items.h"
#include "engine/server/worker.h"
#include "snap/result.h"
#include "snap/task.h"

namespace snap::server {

class Devices {
 public:
  struct Options {
    std::string store;        ///< path
    std::string control;      ///< path of this server's control socket
    std::string runtime_dir;  ///< where records are, and mount points for a moment
    bool read_only = false;   ///< refuse writes to everything
    /// Called when the device that this server was started for has gone by itself: given up by the
    /// kernel, or taken away by another program.
    std::function<void()> not_needed;
  };
  static constexpr unsigned kMaxConnections = 16;

  /// All outlive it.
  Devices(Catalogue& catalogue, OpenItems& open, WorkerPool& workers, Options options);
  ~Devices();

  /// Returns once the kernel has the device. Busy if that device is in use.
  Task<Result<attach::Attachment>> attach(DeviceWish wish);
  /// Cuts the device off; users that it still has get I/O errors (nbd), or keep it until they close
  /// it (loop), which is Busy. Only its record is removed if it is another program's by now.
  /// NotFound if no record tells of it.
  Task<Result<void>> detach(std::string device);
  /// Gives an nbd device new connections in place of dead ones; from now on it is this server's.
  /// Exists if the device was made of something else than has its name now.
  Task<Result<void>> reconnect(std::string device);
  /// Busy if a device would be cut short while it is there.
  Task<Result<void>> allow_resize(std::string name, std::uint64_t size);
  /// Tells the devices of an export that its size has changed.
  Task<Result<void>> resized(std::string name);

  /// Whether it serves a device through FUSE, which takes no connection.
  bool has_fuse() const noexcept { return !fuse_.empty(); }

  /// Until stop(). Reconnects the nbd devices that the records say were this server's, by its
  /// control socket; later those that give a connection up, for a request has waited longer than
  /// its timeout, perhaps. What fails is tried again.
  Task<void> run();
  /// Takes loop devices away, or cuts them off if they are in use; nbd devices are hung up on by
  /// their connections and wait for another server.
  void stop();
  /// After stop().
  Task<void> ended();

 private:
  struct FuseServing;
  /// Of the connections of one nbd device: of all that it has had from this server.
  struct Link {
    std::atomic<bool> lost{false};
  };
  /// An export and what it is, to tell it from another that gets its name.
  struct Opened {
    std::shared_ptr<nbd::Export> from;
    std::string content;
  };

  Task<Result<Opened>> open(ServedItem item, bool read_only);
  Result<std::vector<UniqueFd>> connect_workers(unsigned connections,
                                                const std::shared_ptr<nbd::Export>& from,
                                                const std::shared_ptr<Link>& link);
  Task<Result<attach::Attachment>> attach_nbd(DeviceWish wish, std::shared_ptr<nbd::Export> from,
                                              attach::Attachment record);
  Task<Result<attach::Attachment>> attach_fuse(DeviceWish wish, std::shared_ptr<nbd::Export> from,
                                               attach::Attachment record);
  Task<Result<std::vector<attach::Attachment>>> records_of_store();
  Task<Result<attach::Attachment>> find(std::string device);
  Task<Result<void>> offer_connections(attach::Attachment record,
                                       std::shared_ptr<nbd::Export> from);
  Task<Result<void>> reconnect_one(attach::Attachment record);
  Task<bool> look_after(bool all);
  Task<void> watch(std::shared_ptr<FuseServing> serving);
  Task<void> end(std::shared_ptr<FuseServing> serving);

  Catalogue& catalogue_;
  OpenItems& open_;
  WorkerPool& workers_;
  const Options options_;
  const attach::Attachments records_;
  std::map<std::string, std::shared_ptr<FuseServing>> fuse_;  ///< by device
  WaitGroup watchers_;
  std::map<std::string, std::shared_ptr<Link>> links_;  ///< by device
  AsyncEvent lost_;                                     ///< a link is
  Sleep* retry_ = nullptr;
  RateLimit complaints_{5, 1};
  bool stopping_ = false;
};

}  // namespace snap::server
