// OpenItems: what a server has open: opened when it is first asked for, closed when nobody has used
// it for a while. One process has a volume at a time, so what is open here and used by no one is
// given up when another process needs it (let_go()).
//
// Used on the loop of the store; leases may be given back on any thread.
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "engine/io/sync.h"
#include "engine/server/serve_item.h"
#include "snap/limits.h"
#include "snap/result.h"
#include "snap/store.h"
#include "snap/task.h"

namespace snap::server {

/// One open volume, image or snapshot.
struct OpenItem {
  ServedItem served;
  std::shared_ptr<Volume> volume;
  std::shared_ptr<OpenVolume> writable;       ///< null for images and snapshots
  std::atomic<std::size_t> users{0};          ///< leases
  std::atomic<std::size_t> clients{0};        ///< of these, for connections
  std::atomic<std::int64_t> unused_since{0};  ///< ticks of the steady clock; of its last lease
};

class OpenItems {
 public:
  struct Options {
    std::string control_socket;  ///< what the lock of a volume says of its holder
    std::chrono::milliseconds idle = kIdleOpen;
    bool close_idle = true;  ///< false: what is open stays so until close_all()
  };
  /// Keeps an item open while it lives.
  using Lease = std::shared_ptr<OpenItem>;
  enum class For { kClient, kCommand };

  OpenItems(Store& store, Options options);
  ~OpenItems();

  /// Opens it unless it is open. Busy, with the pid, if another process has the volume and does not
  /// give it back within a second.
  Task<Result<Lease>> open(ServedItem item, For purpose);
  /// The open item, or null. No lease: it may be closed meanwhile, but not destroyed.
  std::shared_ptr<const OpenItem> peek(const std::string& identity) const;
  /// Closes the volume called `name` if it is open. Busy if someone uses it, and still does half a
  /// second later.
  Task<Result<void>> let_go(std::string name);

  /// Everything that is open. As with peek().
  std::vector<std::shared_ptr<const OpenItem>> all() const;
  /// The counts of an export: of what is open and of what was.
  Volume::Stats stats(const OpenItem& item) const;
  /// Exports that are closed again: the last kMaxRemembered.
  struct Remembered {
    ServedItem served;
    Volume::Stats stats;
  };
  std::vector<Remembered> remembered() const;

  /// Closes what is idle, until stop().
  Task<void> run();
  /// Opens nothing any more.
  void stop();
  /// After stop(), when no lease is left. The first error.
  Task<Result<void>> close_all();

 private:
  /// A name's place: who opens or closes holds its turn.
  struct Slot {
    AsyncMutex turn;
    std::size_t interested = 0;  ///< tasks that hold or want the turn
    std::shared_ptr<OpenItem> item;
  };
  class Turn;

  Task<Result<std::shared_ptr<OpenItem>>> open_now(ServedItem item);
  Task<Result<std::unique_ptr<OpenVolume>>> open_volume(std::string name);
  Task<Result<void>> close_now(Slot* slot);
  Task<void> close_idle();
  void remember(const OpenItem& item);
  static Lease lease(std::shared_ptr<OpenItem> item, For purpose);

  Store& store_;
  const Options options_;
  std::map<std::string, std::shared_ptr<Slot>> slots_;  ///< by identity
  std::map<std::string, Remembered> remembered_;        ///< by name of the export
  std::list<std::string> remembered_order_;             ///< the oldest first
  bool stopping_ = false;
  Sleep* pause_ = nullptr;
};

}  // namespace snap::server
