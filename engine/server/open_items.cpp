#include "engine/server/open_items.h"

#include <unistd.h>

#include <algorithm>
#include <set>
#include <utility>

#include "engine/delta/delta.h"
#include "engine/server/log.h"

namespace snap::server {

namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kLookForIdle{500};
// A command that works on a volume at rest holds it for a moment.
constexpr int kBusyTries = 20;
constexpr std::chrono::milliseconds kBusyPause{50};
// A client that has hung up is noticed a moment later.
constexpr int kLetGoTries = 50;
constexpr std::chrono::milliseconds kLetGoPause{10};

Error stopping_error() {
  return Error(ErrorCode::kCancelled, "the server is shutting down");
}

std::int64_t ticks_now() {
  return Clock::now().time_since_epoch().count();
}

}  // namespace

/// The turn of a slot, which is taken out of the map when nothing is left in it.
class OpenItems::Turn {
 public:
  static Task<Turn> take(OpenItems* all, std::string identity) {
    std::shared_ptr<Slot>& place = all->slots_[identity];
    if (!place) place = std::make_shared<Slot>();
    std::shared_ptr<Slot> slot = place;
    ++slot->interested;
    AsyncMutex::Guard guard = co_await slot->turn.lock();
    co_return Turn(all, std::move(identity), std::move(slot), std::move(guard));
  }
  Turn(Turn&& other) noexcept = default;
  Turn& operator=(Turn&&) = delete;
  ~Turn() {
    if (!slot_) return;
    guard_.release();
    if (--slot_->interested == 0 && !slot_->item) all_->slots_.erase(identity_);
  }
  Slot* slot() const noexcept { return slot_.get(); }

 private:
  Turn(OpenItems* all, std::string identity, std::shared_ptr<Slot> slot, AsyncMutex::Guard guard)
      : all_(all),
        identity_(std::move(identity)),
        slot_(std::move(slot)),
        guard_(std::move(guard)) {}

  OpenItems* all_;
  std::string identity_;
  std::shared_ptr<Slot> slot_;
  AsyncMutex::Guard guard_;
};

OpenItems::OpenItems(Store& store, Options options) : store_(store), options_(std::move(options)) {}
OpenItems::~OpenItems() = default;

OpenItems::Lease OpenItems::lease(std::shared_ptr<OpenItem> item, For purpose) {
  ++item->users;
  if (purpose == For::kClient) ++item->clients;
  OpenItem* raw = item.get();
  return Lease(raw, [item = std::move(item), purpose](OpenItem*) {
    if (purpose == For::kClient) --item->clients;
    item->unused_since = ticks_now();
    --item->users;
  });
}

Task<Result<OpenItems::Lease>> OpenItems::open(ServedItem item, For purpose) {
  if (stopping_) co_return stopping_error();
  const Turn turn = co_await Turn::take(this, item.identity);
  if (turn.slot()->item) co_return lease(turn.slot()->item, purpose);
  if (stopping_) co_return stopping_error();
  auto opened = co_await open_now(std::move(item));
  if (!opened) co_return opened.error();
  turn.slot()->item = std::move(*opened);
  co_return lease(turn.slot()->item, purpose);
}

Task<Result<std::shared_ptr<OpenItem>>> OpenItems::open_now(ServedItem item) {
  auto out = std::make_shared<OpenItem>();
  if (item.item.kind == ServeItem::Kind::kVolume) {
    auto opened = co_await open_volume(item.item.name);
    if (!opened) co_return opened.error();
    out->writable = std::move(*opened);
    out->volume = out->writable->shared_volume();
  } else if (item.item.kind == ServeItem::Kind::kSnapshot) {
    auto opened = co_await store_.open_snapshot(item.item.name, item.item.snapshot);
    if (!opened) co_return opened.error();
    out->volume = std::move(*opened);
  } else {
    auto image = co_await store_.image(item.item.name);
    if (!image) co_return image.error();
    auto opened = co_await store_.open_image(*image);
    if (!opened) co_return opened.error();
    out->volume = std::move(*opened);
  }
  out->served = std::move(item);
  out->unused_since = ticks_now();
  co_return out;
}

Task<Result<std::unique_ptr<OpenVolume>>> OpenItems::open_volume(std::string name) {
  Holder holder;
  holder.pid = ::getpid();
  holder.control_socket = options_.control_socket;
  for (int tries = 1;; ++tries) {
    auto opened = co_await store_.open_volume(name, holder);
    if (opened) {
      if (const auto& trouble = (*opened)->volume().parts().delta->live_trouble()) {
        log_warning("volume " + name +
                    ": should this process be killed, answered writes that were not flushed may "
                    "be lost: " +
                    trouble->message());
      }
      co_return opened;
    }
    const bool wait = options_.close_idle && opened.error().code() == ErrorCode::kBusy;
    if (!wait || tries == kBusyTries || stopping_) co_return opened;
    Sleep pause(kBusyPause);
    co_await pause;
  }
}

std::shared_ptr<const OpenItem> OpenItems::peek(const std::string& identity) const {
  const auto found = slots_.find(identity);
  if (found == slots_.end()) return nullptr;
  return found->second->item;
}

std::vector<std::shared_ptr<const OpenItem>> OpenItems::all() const {
  std::vector<std::shared_ptr<const OpenItem>> out;
  for (const auto& [identity, slot] : slots_) {
    if (slot->item) out.push_back(slot->item);
  }
  return out;
}

// ---- Closing

Task<Result<void>> OpenItems::let_go(std::string name) {
  const std::string identity = "volume " + name;
  for (int tries = 0; tries < kLetGoTries && options_.close_idle; ++tries) {
    const auto item = peek(identity);
    if (!item || item->users == 0) break;
    Sleep pause(kLetGoPause);
    co_await pause;
  }
  // One that is being closed at this moment has a slot, but no item any more.
  if (!slots_.contains(identity)) co_return Result<void>();
  const Turn turn = co_await Turn::take(this, identity);
  const auto& item = turn.slot()->item;
  if (!item) co_return Result<void>();
  if (item->users != 0 || !options_.close_idle) {
    co_return Error(ErrorCode::kBusy, "volume " + name + " is in use by " +
                                          std::to_string(item->clients) + " clients of process " +
                                          std::to_string(::getpid()));
  }
  auto closed = co_await close_now(turn.slot());
  co_return closed;
}

/// In the slot's turn, with no lease left.
Task<Result<void>> OpenItems::close_now(Slot* slot) {
  const std::shared_ptr<OpenItem> item = std::exchange(slot->item, nullptr);
  Result<void> closed;
  // It flushes: whatever clients wrote and did not flush is kept all the same.
  if (item->writable) closed = co_await item->writable->close();
  remember(*item);
  if (!closed) {
    const Error error = closed.error().with_context("close volume " + item->served.item.name);
    log_error(error.message());
    co_return error;
  }
  co_return closed;
}

Task<void> OpenItems::close_idle() {
  struct Idle {
    std::int64_t since;
    std::string identity;
  };
  std::vector<Idle> idle;
  for (const auto& [identity, slot] : slots_) {
    if (slot->item && slot->item->users == 0) idle.push_back({slot->item->unused_since, identity});
  }
  std::sort(idle.begin(), idle.end(),
            [](const Idle& a, const Idle& b) { return a.since < b.since; });
  const std::int64_t due = (Clock::now() - options_.idle).time_since_epoch().count();
  std::size_t left = idle.size();
  for (const Idle& one : idle) {
    if (stopping_ || (one.since > due && left <= kMaxIdleOpen)) break;
    --left;
    const Turn turn = co_await Turn::take(this, one.identity);
    const auto& item = turn.slot()->item;
    if (!item || item->users != 0) continue;  // someone came meanwhile
    auto closed = co_await close_now(turn.slot());
    (void)closed;  // it has told the log
  }
}

Task<void> OpenItems::run() {
  while (!stopping_ && options_.close_idle) {
    Sleep pause(kLookForIdle);
    pause_ = &pause;
    co_await pause;
    pause_ = nullptr;
    if (!stopping_) co_await close_idle();
  }
}

void OpenItems::stop() {
  stopping_ = true;
  if (pause_ != nullptr) pause_->wake();
}

Task<Result<void>> OpenItems::close_all() {
  Result<void> first;
  for (const auto& item : all()) {
    const Turn turn = co_await Turn::take(this, item->served.identity);
    if (!turn.slot()->item) continue;
    auto closed = co_await close_now(turn.slot());
    if (!closed && first) first = closed;
  }
  co_return first;
}

// ---- Counts

void OpenItems::remember(const OpenItem& item) {
  const std::string& name = item.served.name;
  Remembered& kept = remembered_[name];
  if (kept.served.name.empty()) {
    remembered_order_.push_back(name);
  } else {
    remembered_order_.remove(name);
    remembered_order_.push_back(name);
  }
  kept.served = item.served;
  kept.served.size = item.volume->size();
  kept.stats += item.volume->stats();
  kept.stats.in_flight = 0;
  if (remembered_order_.size() <= kMaxRemembered) return;
  remembered_.erase(remembered_order_.front());
  remembered_order_.pop_front();
}

Volume::Stats OpenItems::stats(const OpenItem& item) const {
  Volume::Stats out = item.volume->stats();
  const auto before = remembered_.find(item.served.name);
  if (before != remembered_.end()) out += before->second.stats;
  return out;
}

std::vector<OpenItems::Remembered> OpenItems::remembered() const {
  std::set<std::string> open;
  for (const auto& [identity, slot] : slots_) {
    if (slot->item) open.insert(slot->item->served.name);
  }
  std::vector<Remembered> out;
  for (const auto& [name, one] : remembered_) {
    if (!open.contains(name)) out.push_back(one);
  }
  return out;
}

}  // namespace snap::server
