// What the tests of names that change beside something else share. For tests only.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "engine/store/ops_test_support.h"

namespace snap {

/// A store on a disk of its own.
struct Sim {
  explicit Sim(std::unique_ptr<SimDisk> d, std::uint64_t seed) : disk(std::move(d)), loop(seed) {
    store = must(loop.run(Store::open(disk->root(), Store::OpenOptions{})));
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

}  // namespace snap
