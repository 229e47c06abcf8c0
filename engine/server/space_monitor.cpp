#include "engine/server/space_monitor.h"

#include <poll.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "engine/delta/delta.h"
#include "engine/server/log.h"

namespace snap::server {

namespace {

constexpr std::chrono::seconds kPeriod{1};
/// Measuring a store looks at all of its files: it may take no more than this share of the time.
constexpr int kShare = 50;
constexpr std::chrono::seconds kLongest{60};
/// What must be free before a volume counts as having room again.
constexpr std::uint64_t kRoomOfDisk = 16u << 20;
constexpr std::uint64_t kMostRoomOfLimit = std::uint64_t{1} << 30;

constexpr const char* kCauseLimit = "the volume's limit";
constexpr const char* kCauseStore = "the store's limit";
constexpr const char* kCauseDisk = "a full disk";

}  // namespace

Task<Result<void>> SpaceMonitor::prepare() {
  timer_ = UniqueFd(::timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK));
  itimerspec period{};
  period.it_interval.tv_sec = period.it_value.tv_sec = kPeriod.count();
  if (!timer_ || ::timerfd_settime(timer_.get(), 0, &period, nullptr) != 0)
    co_return Error::from_errno(errno, "make a timer");
  // A store whose room cannot be told is served all the same: its volumes are needed.
  auto prepared = co_await store_.prepare_events();
  if (!prepared) complain(prepared.error());
  co_await look_at_store();
  co_return Result<void>();
}

Task<void> SpaceMonitor::run() {
  while (!waits_.stopped()) {
    auto tick = co_await waits_.poll(timer_.get(), POLLIN);
    if (!tick) break;
    std::uint64_t ticks = 0;
    const auto got = ::read(timer_.get(), &ticks, sizeof ticks);
    static_cast<void>(got);  // that it fired is all there is to know
    co_await look();
  }
}

Task<void> SpaceMonitor::look_at_store() {
  const auto begin = std::chrono::steady_clock::now();
  auto events = co_await store_.watch_room();
  const auto took = std::chrono::steady_clock::now() - begin;
  next_store_ = begin + std::min<std::chrono::steady_clock::duration>(took * kShare, kLongest);
  if (!events) {
    complain(events.error());
    co_return;
  }
  last_complaint_.clear();
  for (const StoreEvent& event : *events)
    event.kind == "store-normal" ? log_info(event.message) : log_warning(event.message);
}

Task<void> SpaceMonitor::look() {
  looked_ = std::chrono::steady_clock::now() >= next_store_;
  if (looked_) co_await look_at_store();
  const std::vector<std::shared_ptr<OpenVolume>> volumes = volumes_();
  std::map<std::string, Known> known;
  for (const auto& volume : volumes) {
    const std::string& name = volume->record().name;
    known[name] = std::move(known_[name]);
    co_await look_at(*volume, known[name]);
  }
  known_ = std::move(known);
}

Task<void> SpaceMonitor::look_at(OpenVolume& volume, Known& known) {
  const std::shared_ptr<Delta> delta = volume.volume().parts().delta;
  const std::string& name = volume.record().name;
  // A lost write is told of within a second or two, not at a sync of the data, which may be far.
  delta->check_writeback();
  const Delta::Stats stats = delta->stats();
  const std::string id = delta->id().str();
  if (known.delta != id) {
    known.limit_hits = known.shared_limit_hits = known.disk_full_hits = 0;
    known.delta = id;
  }
  const char* cause = nullptr;
  if (stats.limit_hits > known.limit_hits) cause = kCauseLimit;
  if (stats.shared_limit_hits > known.shared_limit_hits) cause = kCauseStore;
  if (stats.disk_full_hits > known.disk_full_hits) cause = kCauseDisk;
  known.limit_hits = stats.limit_hits;
  known.shared_limit_hits = stats.shared_limit_hits;
  known.disk_full_hits = stats.disk_full_hits;

  StoreEvent event;
  event.volume = name;
  event.numbers["allocated"] = stats.data_blocks * kBlockSize;
  if (volume.record().limit) event.numbers["limit"] = *volume.record().limit;
  if (cause != nullptr) {
    const bool news = known.cause.empty();
    known.cause = cause;
    if (news) {
      event.kind = "volume-no-space";
      event.message = "volume " + name + " got no new block because of " + cause +
                      ": such writes fail with ENOSPC, all else goes on; discard in it, free some, "
                      "or raise the limit";
      co_await tell(event, false);
    }
  } else if (!known.cause.empty()) {
    const bool normal = co_await has_room_again(volume, known);
    if (normal) {
      known.cause.clear();
      event.kind = "volume-normal";
      event.message = "volume " + name + " can take new blocks again";
      co_await tell(event, false);
    }
  }
  const auto failure = delta->failure();
  if (failure && !known.failed) {
    event.kind = "volume-read-only";
    event.message =
        "volume " + name + " takes no writes until it is opened again: " + failure->message();
    co_await tell(event, true);
  }
  known.failed = failure.has_value();
}

Task<bool> SpaceMonitor::has_room_again(OpenVolume& volume, const Known& known) {
  if (known.cause == kCauseLimit) {
    const auto limit = volume.record().limit;
    if (!limit) co_return true;
    const Delta::Stats stats = volume.volume().parts().delta->stats();
    const std::uint64_t left = *limit - std::min(*limit, stats.data_blocks * kBlockSize);
    co_return left >= std::clamp(*limit / 16, kBlockSize, kMostRoomOfLimit);
  }
  // The quota of this process has what the last look found, not what there is now.
  if (known.cause == kCauseStore && !looked_) co_return false;
  auto room = co_await store_.room();
  if (!room) co_return false;
  if (known.cause == kCauseDisk) co_return room->available >= kRoomOfDisk;
  if (!room->limits.limit) co_return true;
  co_return room->left_of_limit() >= std::min(*room->limits.limit / 16, kMostRoomOfLimit);
}

Task<void> SpaceMonitor::tell(StoreEvent event, bool is_error) {
  if (is_error) {
    log_error(event.message);
  } else if (event.kind == "volume-normal") {
    log_info(event.message);
  } else {
    log_warning(event.message);
  }
  auto added = co_await store_.add_event(std::move(event));
  if (!added) complain(added.error());
}

void SpaceMonitor::complain(const Error& error) {
  if (error.message() == last_complaint_) return;
  last_complaint_ = error.message();
  log_error(error.message());
}

}  // namespace snap::server
