// What the tests of the store's limit and its marks share. For tests only.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "engine/store/event_log.h"
#include "engine/store/ops_test_support.h"

namespace snap {

inline constexpr std::uint64_t kMiB = 1u << 20;

template <class T>
Result<void> nothing_of(const Result<T>& result) {
  return result ? Result<void>() : Result<void>(result.error());
}

/// A store with limits, on the simulated disk.
struct Limited {
  Limited(std::optional<std::uint64_t> limit, std::optional<std::uint64_t> low_water,
          std::uint64_t seed = 7) {
    rig.store.reset();
    rig.loop = std::make_unique<SimLoop>(seed);
    rig.reopen();
    set(limit, low_water);
  }
  void set(std::optional<std::uint64_t> limit, std::optional<std::uint64_t> low_water) {
    Store::Limits limits;
    limits.limit = limit;
    limits.low_water = low_water;
    must(rig.run(rig.store->set_limits(limits)));
  }
  /// The kinds of the store's events, in order.
  std::vector<std::string> events() const {
    std::vector<std::string> kinds;
    const auto files = rig.disk.visible_files();
    const auto log = files.find("events/log");
    if (log == files.end()) return kinds;
    const std::string_view text(reinterpret_cast<const char*>(log->second.data()),
                                log->second.size());
    for (std::size_t at = 0; at < text.size();) {
      const std::size_t end = std::min(text.find('\n', at), text.size());
      const auto event = decode_event(text.substr(at, end - at));
      kinds.push_back(event ? event->kind : "not an event");
      at = end + 1;
    }
    return kinds;
  }
  std::uint64_t used() { return must(rig.run(rig.store->room())).used; }
  void fill(const std::string& image, std::uint64_t bytes, std::uint64_t seed = 1) {
    rig.import(image, random_bytes(bytes, seed));
  }
  void remove_image(const std::string& name) {
    must(rig.run(rig.store->remove_image(name, false, false)));
  }
  Result<void> write(OpenVolume& volume, std::uint64_t at, std::uint64_t bytes,
                     std::uint64_t seed) {
    const Bytes data = random_bytes(bytes, seed);
    return rig.run(volume.volume().write(ByteOffset(at), data, {}));
  }
  Result<void> snapshot(OpenVolume& volume, std::string name) {
    return nothing_of(rig.run(rig.store->snapshot(volume, std::move(name))));
  }

  StoreRig rig{"simulated"};
};

/// A blob that nothing names.
inline Task<Result<void>> leave_blob(Store::Impl* store, std::uint64_t bytes,
                                     std::uint64_t seed = 3) {
  auto scratch = co_await store->scratch();
  if (!scratch) co_return scratch.error();
  const Bytes data = random_bytes(bytes, seed);
  auto file = co_await scratch->dir().open("blob", kNewBlob);
  if (!file) co_return file.error();
  auto written = co_await write_all(**file, data, ByteOffset(0));
  if (!written) co_return written.error();
  auto adopted = co_await store->blobs.adopt(scratch->dir(), "blob", BlobDigest{sha256(data)});
  if (!adopted) co_return adopted.error();
  auto removed = co_await scratch->remove();
  co_return removed;
}

using Kinds = std::vector<std::string>;

}  // namespace snap
