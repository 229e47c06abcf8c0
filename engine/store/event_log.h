// The events of a store: store/events/log, one JSON object a line (docs/format.md, events). Any
// number of processes append to it, each line under a lock. They are advice: nothing is synced, a
// crash may lose the last ones or leave a part of one, and a reader passes over what is no event.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "snap/file.h"
#include "snap/result.h"
#include "snap/store.h"
#include "snap/task.h"

namespace snap {

std::string encode_event(const StoreEvent& event);
/// Nothing if the line is no event.
std::optional<StoreEvent> decode_event(std::string_view line);

class EventLog {
 public:
  static constexpr std::uint64_t kMaxFile = 1u << 20;  ///< two of these are kept
  static constexpr std::size_t kMaxLine = 4096;

  /// `root` is the store's and outlives this.
  explicit EventLog(Directory& root) : root_(&root) {}

  /// Makes what is not there, with space for some events, so that they find it on a disk that is
  /// full by then.
  Task<Result<void>> prepare();
  Task<Result<void>> add(StoreEvent event);

  /// What holds of the store for all of its processes.
  enum class Mark : std::size_t { kLowWater = 0, kLimit = 1 };
  /// Notes whether it holds. If that is news to the store, adds the event: true.
  Task<Result<bool>> change(Mark mark, bool holds, StoreEvent event);

 private:
  Task<Result<std::unique_ptr<Directory>>> open_folder(bool create);

  Directory* root_;
};

/// Reads events in order, the oldest kept first, and then those that come.
class EventReader {
 public:
  explicit EventReader(std::string store_path) : path_(std::move(store_path)) {}
  struct Batch {
    std::vector<StoreEvent> events;
    std::size_t passed_over = 0;  ///< lines that are no events
  };
  /// What has come since the last call, which may be nothing.
  Task<Result<Batch>> next();

 private:
  Task<Result<void>> read_on(File& file, Batch& batch);

  std::string path_;
  std::unique_ptr<Directory> folder_;
  std::unique_ptr<File> file_;  // the one that is read, whatever its name is by now
  std::uint64_t position_ = 0;
  std::string partial_;  // a line whose end has not been read
  bool oversized_ = false;
};

}  // namespace snap
