// What the tests of names that come, go and change share: a store on a simulated disk, commands,
// and what they are done beside. For tests only.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "engine/store/ops_test_support.h"

namespace snap {

/// A store on a disk of its own.
struct Sim {
  explicit Sim(std::unique_ptr<SimDisk> d, std::uint64_t seed = 1)
      : disk(std::move(d)), loop(seed) {
    store = must(loop.run(Store::open(disk->root(), Store::OpenOptions{})));
  }
  template <class T>
  auto run(Task<T> task) {
    return loop.run(std::move(task));
  }
  std::unique_ptr<SimDisk> disk;
  SimLoop loop;
  std::unique_ptr<Store> store;
};

/// A volume v with a snapshot s and blocks of its own, and an image that nothing uses.
inline Task<void> prepare(Store* store, Bytes* content) {
  SeededRandom random(11);
  Model model{random_bytes(kTestSize, 1)};
  Store::CreateOptions options;
  options.name = "v";
  options.image = must(co_await import_bytes(*store, "base:1", model.bytes));
  must(co_await import_bytes(*store, "spare:1", random_bytes(kTestSize, 2)));
  must(co_await store->create_volume(options));
  const Holder nobody;
  auto volume = must(co_await store->open_volume("v", nobody));
  must(co_await mutate_often(volume->volume(), model, random, 6));
  must(co_await store->snapshot(*volume, "s"));
  must(co_await mutate_often(volume->volume(), model, random, 6));
  *content = model.bytes;
  must(co_await volume->close());
}

/// Lets others run for a while.
inline Task<void> wait_for(Store* store, int operations) {
  for (int i = 0; i < operations; ++i) {
    auto stat = co_await store->impl().root->stat("format");
    static_cast<void>(stat);
  }
}

/// Does both at once.
inline Task<std::vector<Result<void>>> beside(Task<Result<void>> one, Task<Result<void>> other) {
  std::vector<Task<Result<void>>> both;
  both.push_back(std::move(one));
  both.push_back(std::move(other));
  auto results = co_await gather(std::move(both));
  co_return results;
}

// ---- Commands

using Change = Task<Result<void>> (*)(Store* store);

inline Task<Result<void>> create(Store* store, std::string name, std::uint64_t size = kChunkSize) {
  Store::CreateOptions options;
  options.name = std::move(name);
  options.size = size;
  auto done = co_await store->create_volume(options);
  SNAP_CO_RETURN_IF_ERROR(done);
  co_return Result<void>();
}
inline Task<Result<void>> rename_it(Store* store) {
  auto done = co_await store->rename_volume("v", "a");
  co_return done;
}
inline Task<Result<void>> remove_it(Store* store) {
  auto done = co_await store->remove_volume("v", false);
  SNAP_CO_RETURN_IF_ERROR(done);
  co_return Result<void>();
}
inline Task<Result<void>> remove_its_snapshot(Store* store) {
  auto done = co_await store->remove_snapshot("v", "s");
  co_return done;
}
inline Task<Result<void>> reset_it(Store* store) {
  auto done = co_await store->reset("v");
  co_return done;
}
inline Task<Result<void>> snapshot_it(Store* store) {
  const Holder nobody;
  auto volume = co_await store->open_volume("v", nobody);
  SNAP_CO_RETURN_IF_ERROR(volume);
  auto done = co_await store->snapshot(**volume, "t");
  auto closed = co_await (*volume)->close();
  SNAP_CO_RETURN_IF_ERROR(done);
  co_return closed;
}
inline Task<Result<void>> commit_it(Store* store) {
  const Holder nobody;
  auto volume = co_await store->open_volume("v", nobody);
  SNAP_CO_RETURN_IF_ERROR(volume);
  Store::CommitOptions options;
  options.name = reference("app:1");
  const Progress silent;
  auto done = co_await store->commit(**volume, options, silent);
  auto closed = co_await (*volume)->close();
  SNAP_CO_RETURN_IF_ERROR(done);
  co_return closed;
}
inline Task<Result<void>> remove_the_image(Store* store) {
  auto done = co_await store->remove_image("spare:1", false, false);
  SNAP_CO_RETURN_IF_ERROR(done);
  co_return Result<void>();
}

/// A process that does `change` on `disk`, and dies after so many of its changes at the latest.
/// True if it came to its end.
inline bool dies_after(SimDisk& disk, Change change, std::uint64_t changes) {
  SimLoop loop(changes);
  auto store = must(loop.run(Store::open(disk.root(), Store::OpenOptions{})));
  disk.freeze_after(changes);
  auto done = loop.run(change(store.get()));
  const bool whole = !disk.frozen();
  disk.kill();
  if (whole) must(done);
  return whole;
}

}  // namespace snap
