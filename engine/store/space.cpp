// The store's limit and low-water mark: how much room there is, what refuses when there is too
// little, and events when a mark is crossed.
//
// What a store takes is measured by what its files take on the disk, from time to time, not kept as
// a sum: so it is right whatever other processes do, and as old as the last measurement. Between
// two, the volumes of one process share a quota of what was left, so that process alone never
// exceeds it; several processes may, by what the others write between two measurements.
#include <algorithm>
#include <utility>

#include "engine/store/image_store.h"
#include "engine/store/names.h"
#include "engine/store/settings.h"
#include "engine/store/space.h"
#include "engine/store/store_impl.h"
#include "engine/store/sweep.h"
#include "snap/units.h"

namespace snap {

namespace {

constexpr std::uint64_t kEndless = std::numeric_limits<std::uint64_t>::max();
constexpr int kMaxDepth = 3;  // deltas/<uuid>/data, tmp/<uuid>/x
/// So near to the limit nothing more can be done with what is left.
constexpr std::uint64_t kNothingLeft = kChunkSize;
constexpr std::uint64_t kMostHysteresis = std::uint64_t{1} << 30;

Task<Result<std::uint64_t>> allocated_by(Store::Impl& store) {
  std::uint64_t sum = 0;
  for (Directory* dir : {&store.blobs.dir(), &store.volumes.deltas_dir(), store.tmp.get()}) {
    auto bytes = co_await allocated_below(*dir, kMaxDepth);
    if (!bytes) co_return bytes;
    sum += *bytes;
  }
  co_return sum;
}

std::map<std::string, std::uint64_t> numbers_of(const Store::Room& room) {
  std::map<std::string, std::uint64_t> out = {{"left", room.left()}, {"available", room.available}};
  if (room.limits.limit) {
    out["limit"] = *room.limits.limit;
    out["used"] = room.used;
  }
  if (room.limits.low_water) out["low_water"] = *room.limits.low_water;
  return out;
}

/// What must be left for a crossing of the low-water mark to end: an eighth more than the mark, but
/// no more than an empty store may have, on a disk of `disk` bytes.
std::uint64_t enough_above(std::uint64_t low, const Store::Room& room, std::uint64_t disk) {
  const std::uint64_t most = std::min(disk, room.limits.limit.value_or(kEndless));
  return low + std::min(low / 8, (most - std::min(most, low)) / 2);
}

/// Whether a mark holds now; nothing in the band between, where it holds if it did before.
std::optional<bool> holds(EventLog::Mark mark, const Store::Room& room, std::uint64_t disk) {
  if (mark == EventLog::Mark::kLowWater) {
    if (!room.limits.low_water) return false;
    const std::uint64_t low = *room.limits.low_water;
    if (room.left() < low) return true;
    if (room.left() >= enough_above(low, room, disk)) return false;
    return std::nullopt;
  }
  if (!room.limits.limit) return false;
  const std::uint64_t left = room.left_of_limit();
  if (left < std::min(kNothingLeft, *room.limits.limit)) return true;
  const std::uint64_t enough =
      std::max(2 * kNothingLeft, std::min(*room.limits.limit / 16, kMostHysteresis));
  if (left >= std::min(enough, *room.limits.limit)) return false;
  return std::nullopt;
}

StoreEvent event_of(EventLog::Mark mark, bool on, const Store::Room& room) {
  StoreEvent event;
  event.numbers = numbers_of(room);
  const bool low = mark == EventLog::Mark::kLowWater;
  if (!on) {
    event.kind = "store-normal";
    event.message =
        low ? "the store is above its low-water mark again" : "the store is below its limit again";
    event.message += ": " + in_units(room.left()) + " left";
  } else if (low) {
    event.kind = "low-water";
    event.message = "the store has " + in_units(room.left()) +
                    " left, less than its low-water mark of " + in_units(*room.limits.low_water) +
                    "; free some (prune, rm, rmi, discard in the volumes) or give it more";
  } else {
    event.kind = "limit-reached";
    event.message = "the store takes " + in_units(room.used) + " of its limit of " +
                    in_units(*room.limits.limit) +
                    ": volumes get no new blocks; free some (prune, rm, rmi, discard in the "
                    "volumes) or raise the limit (set --limit)";
  }
  return event;
}

/// Measures the room, and has what this process writes to its volumes keep to the limit.
Task<Result<Store::Room>> measure(Store& store) {
  BlockQuota& quota = *store.impl().quota;
  // Blocks that are taken while the files are looked at count, whether they were seen or not.
  const std::int64_t taken = quota.taken();
  auto room = co_await store.room();
  if (!room) co_return room;
  const std::uint64_t left = room->left_of_limit();
  quota.set_bound(left == kEndless ? BlockQuota::kEndless
                                   : taken + static_cast<std::int64_t>(left / kBlockSize));
  co_return room;
}

/// Notes which marks hold. What is news to the store is among its events then, and in `untold`; and
/// in `untold`, once, if the events cannot be written: this process's log may be all there is.
Task<Result<void>> note_marks(Store::Impl& store, const Store::Room& room) {
  auto disk = co_await store.root->space();
  if (!disk) co_return disk.error();
  Result<void> trouble;
  for (const EventLog::Mark mark : {EventLog::Mark::kLowWater, EventLog::Mark::kLimit}) {
    const auto now = holds(mark, room, disk->total);
    Store::Impl::KnownMark& known = store.known_marks[static_cast<std::size_t>(mark)];
    if (!now || store.denied || (now == known.noted && !known.told)) continue;
    StoreEvent event = event_of(mark, *now, room);
    auto news = co_await store.events.change(mark, *now, event);
    const bool told = known.told.value_or(known.noted.value_or(false));
    const bool tell = news && !known.told ? *news : told != *now;
    if (tell) store.untold.push_back(std::move(event));
    if (news) {
      known.noted = now;
      known.told.reset();
    } else {
      known.told = now;
      trouble = news.error();
    }
  }
  co_return trouble;
}

}  // namespace

std::uint64_t Store::Room::left_of_limit() const noexcept {
  if (!limits.limit) return kEndless;
  return *limits.limit - std::min(*limits.limit, used);
}

std::uint64_t Store::Room::left() const noexcept {
  return std::min(available, left_of_limit());
}

Task<Result<Store::Limits>> Store::limits() {
  auto settings = co_await read_settings(*impl_->root);
  if (!settings) co_return settings.error();
  co_return settings->limits;
}

Task<Result<void>> Store::set_limits(Limits limits) {
  auto valid = check_limits(limits);
  if (!valid) co_return valid;
  if (impl_->denied) co_return *impl_->denied;
  auto lock = co_await lock_file(*impl_->root, kIndexLockName, true, "set the store's limits");
  if (!lock) co_return lock.error();
  auto settings = co_await read_settings(*impl_->root);
  // What is damaged is replaced: it holds nothing else.
  if (!settings && settings.error().code() != ErrorCode::kCorrupt) co_return settings.error();
  StoredSettings next;
  if (settings) next = std::move(*settings);
  next.limits = limits;
  auto written = co_await write_settings(*impl_->root, next);
  if (!written) co_return written;
  lock->release();
  co_await note_room(*this);
  co_return Result<void>();
}

Task<Result<Store::Room>> Store::room() {
  auto limits = co_await this->limits();
  if (!limits) co_return limits.error();
  auto space = co_await impl_->root->space();
  if (!space) co_return space.error();
  Room room;
  room.limits = *limits;
  room.available = space->available;
  if (room.limits.limit) {
    auto used = co_await allocated_by(*impl_);
    if (!used) co_return used.error();
    room.used = *used;
  }
  co_return room;
}

Task<Result<std::vector<StoreEvent>>> Store::watch_room() {
  auto room = co_await measure(*this);
  if (!room) co_return room.error();
  auto noted = co_await note_marks(*impl_, *room);
  // What is new comes first; what hinders the events is said by the next call.
  if (!noted && impl_->untold.empty()) co_return noted.error();
  co_return std::exchange(impl_->untold, {});
}

Task<Result<void>> Store::prepare_events() {
  if (impl_->denied) co_return Result<void>();
  auto prepared = co_await impl_->events.prepare();
  co_return prepared;
}

Task<Result<void>> Store::add_event(StoreEvent event) {
  if (impl_->denied) co_return *impl_->denied;
  auto added = co_await impl_->events.add(std::move(event));
  co_return added;
}

// ---- Refusing early

Task<Result<std::uint64_t>> allocated_below(Directory& dir, int depth) {
  auto entries = co_await dir.list();
  if (!entries) co_return entries.error();
  std::uint64_t sum = 0;
  for (const DirEntry& entry : *entries) {
    Result<std::uint64_t> bytes = std::uint64_t{0};
    if (entry.name == kSweptFolder) continue;
    if (entry.type == FileStat::Type::kDirectory && depth > 0) {
      auto below = co_await dir.open_dir(entry.name);
      if (below) {
        bytes = co_await allocated_below(**below, depth - 1);
      } else {
        bytes = below.error();
      }
    } else if (entry.type == FileStat::Type::kFile) {
      auto stat = co_await dir.stat(entry.name);
      if (stat) {
        bytes = stat->allocated;
      } else {
        bytes = stat.error();
      }
    }
    if (!bytes && bytes.error().code() != ErrorCode::kNotFound) co_return bytes;
    if (bytes) sum += *bytes;
  }
  co_return sum;
}

std::string in_units(std::uint64_t bytes) {
  constexpr std::array<const char*, 5> kUnits = {"bytes", "KiB", "MiB", "GiB", "TiB"};
  std::size_t unit = 0;
  std::uint64_t tenths = bytes;
  for (; unit + 1 < kUnits.size() && tenths >= (unit == 0 ? 1024u : 10240u); ++unit)
    tenths = unit == 0 ? tenths * 10 / 1024 : tenths / 1024;
  if (unit == 0) return std::to_string(bytes) + " bytes";
  return std::to_string(tenths / 10) + "." + std::to_string(tenths % 10) + " " + kUnits[unit];
}

Error no_room(std::string_view needed, const Store::Room& room, std::string_view path,
              std::string_view hint) {
  std::string why = "no space: it needs " + std::string(needed);
  if (room.left_of_limit() <= room.available) {
    why += " and the store's limit of " + in_units(*room.limits.limit) + " leaves " +
           in_units(room.left_of_limit()) +
           "; free some (prune, rm, rmi), or raise the limit (set --limit)";
  } else {
    why += " and the file system of " + std::string(path) + " has " + in_units(room.available) +
           "; free some there, or in the store (prune, rm, rmi)";
  }
  return Error(ErrorCode::kNoSpace, why + std::string(hint));
}

Task<Result<Store::Room>> noted_room(Store& store) {
  auto room = co_await measure(store);
  if (!room) co_return room;
  auto noted = co_await note_marks(store.impl(), *room);
  static_cast<void>(noted);  // events are advice
  co_return room;
}

Task<Result<void>> require_room(Store& store, std::uint64_t needed, std::string_view hint) {
  auto room = co_await noted_room(store);
  if (!room) co_return room.error();
  if (needed <= room->left()) co_return Result<void>();
  co_return no_room(in_units(needed), *room, store.path(), hint);
}

Task<void> note_room(Store& store) {
  auto room = co_await noted_room(store);
  static_cast<void>(room);  // what it is called after has succeeded, and a server looks again
}

}  // namespace snap
