// Which volume a delta is to be looked at through. Commands rename volumes, seal what is on top of
// them and remove what is below while a check runs, which may take hours: what the records said
// when it began is compared with what they say at the moment of the look.
#include <algorithm>

#include "engine/store/check_impl.h"
#include "engine/store/names.h"

namespace snap {

namespace {

constexpr int kTries = 5;
constexpr std::chrono::milliseconds kBetweenTries{50};

}  // namespace

Task<std::vector<std::string>> StoreCheck::volume_names() {
  const auto folders = co_await list(store_.volumes.volumes_dir(), "volumes");
  std::vector<std::string> out;
  for (const DirEntry& folder : folders) {
    if (folder.type == FileStat::Type::kDirectory && check_volume_name(folder.name))
      out.push_back(folder.name);
  }
  std::sort(out.begin(), out.end());
  co_return out;
}

/// A volume that is renamed between the listing and the reading would have no name, or two: so the
/// names are looked at again when all is read.
Task<StoreCheck::Records> StoreCheck::read_records() {
  Records out;
  auto names = co_await volume_names();
  for (int i = 0; i < kTries && !out.settled; ++i) {
    out.by_name.clear();
    for (const std::string& name : names) {
      auto volume = co_await store_.volumes.read(name);
      out.by_name.emplace(name, std::move(volume));
    }
    auto now = co_await volume_names();
    out.settled = now == names;
    names = std::move(now);
    if (!out.settled) co_await Sleep(kBetweenTries);
  }
  co_return out;
}

/// The delta as the one on top of the volume `id`, if that is the volume of this name and the delta
/// is on top of it.
Task<Result<std::optional<StoreCheck::Standing>>> StoreCheck::stands_in(std::string uuid,
                                                                        std::string name,
                                                                        std::string id) {
  using There = std::optional<Standing>;
  auto held = co_await store_.volumes.hold_still(name);
  if (!held && held.error().code() == ErrorCode::kNotFound) co_return There();
  // A lock or a record that cannot be read says nothing of the delta.
  if (!held) co_return held.error().with_context("delta " + uuid).with_code(ErrorCode::kBusy);
  if (held->record.id != id || held->record.delta != uuid) co_return There();
  Standing standing;
  standing.use = held->at_rest ? DeltaUse::kAtRest : DeltaUse::kServing;
  standing.still = std::move(held->handle);
  co_return There(std::move(standing));
}

Task<Result<StoreCheck::Standing>> StoreCheck::where_is(std::string uuid) {
  NamedDelta& named = roots_.deltas[uuid];
  for (int i = 0; i < kTries; ++i) {
    if (named.volume.empty()) co_return Standing();
    auto standing = co_await stands_in(uuid, named.volume, named.volume_id);
    if (!standing) co_return standing.error();
    if (*standing) co_return std::move(**standing);
    // Renamed, removed, or something else is on top of it now.
    auto records = co_await read_records();
    bool sealed = false, found = false, all = records.settled;
    for (const auto& [name, volume] : records.by_name) {
      if (!volume) {
        all = all && volume.error().code() == ErrorCode::kNotFound;
        continue;
      }
      const VolumeRecord& record = volume->record;
      if (record.delta == uuid) {
        named.volume = name;
        named.volume_id = record.id;
        found = true;
        break;
      }
      const auto deltas = deltas_of(record);
      sealed = sealed || std::find(deltas.begin(), deltas.end(), uuid) != deltas.end();
    }
    if (found) continue;  // through its lock
    if (sealed) {
      named.volume.clear();
      co_return Standing();
    }
    if (all) {
      Standing nowhere;
      nowhere.named = false;
      co_return std::move(nowhere);
    }
    co_await Sleep(kBetweenTries);
    if (cancelled()) co_return Error(ErrorCode::kCancelled, "cancelled");
  }
  co_return Error(ErrorCode::kBusy,
                  "delta " + uuid +
                      ": its volume is renamed all the time, or its record cannot be read any "
                      "more; try again");
}

}  // namespace snap
