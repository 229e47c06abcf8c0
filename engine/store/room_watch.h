// RoomWatch: keeps a command that fills a scratch folder within the store's limit, beside others
// that do the same at that moment.
//
// What lies in tmp/ counts as used, so each command sees what the others have written so far. Two
// that pass the limit together would both see too much, and both give way though there is room for
// one. So whoever finds the store above its limit looks once more under index.lock, and keeps it
// until its scratch folder is gone: one gives way at a time. The same lock is held from the last
// look to the adoption, so what is adopted fits.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/store/blob_store.h"
#include "engine/store/scratch.h"
#include "engine/store/store_lock.h"
#include "snap/event_loop.h"
#include "snap/store.h"

namespace snap {

class RoomWatch {
 public:
  /// Of what the command writes to `scratch`. Both are borrowed.
  RoomWatch(Store& store, Scratch& scratch) : store_(&store), scratch_(&scratch) {}

  /// To be told of all bytes that are written to the scratch folder. NoSpace: the store is above
  /// its limit with them, and this command gives way: its scratch folder is gone.
  Task<Result<void>> wrote(std::uint64_t bytes);

  /// A finished, synced file of the scratch folder, and its digest.
  struct Offer {
    std::string name;
    BlobDigest digest;
  };
  /// BlobStore::adopt() of each; the results are in the same order. NoSpace as above, before any of
  /// them is adopted; those that the store has already need no room. The caller holds the store
  /// lock.
  Task<Result<std::vector<BlobStore::Put>>> adopt(std::vector<Offer> offers);

 private:
  /// Under index.lock: the right to add to the store, while that is held; or NoSpace as above, and
  /// the lock is given back. `at_least` stands in the error before what this command has written.
  Task<Result<void>> look_again(FileLock& lock, std::string_view at_least);
  Task<void> give_way(FileLock& lock);

  Store* store_;
  Scratch* scratch_;
  std::uint64_t unseen_ = 0;             ///< written since wrote() looked at anything
  std::uint64_t since_ = 0;              ///< written since the last look
  std::optional<std::uint64_t> left_;    ///< of the limit, by the last look
  EventLoop::Clock::time_point next_{};  ///< when what others have written is looked at
};

}  // namespace snap
