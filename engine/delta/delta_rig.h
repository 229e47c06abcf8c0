// A delta on the real loop and the real disk, whose operations can be given a fate; and the same
// for tests that do one operation after the other. For tests only.
#pragma once

#include <catch2/catch.hpp>
#include <memory>
#include <optional>
#include <vector>

#include "engine/delta/delta_test_util.h"
#include "engine/delta/fault_disk.h"

namespace snap::delta_test {

inline constexpr std::uint64_t kRigSize = 3 * (1u << 20) + 512;

using Durability = Delta::Durability;

struct Rig {
  TempDir temp;
  std::unique_ptr<EventLoop> loop = must(make_event_loop());
  std::shared_ptr<FaultPlan> plan = std::make_shared<FaultPlan>();

  Task<std::unique_ptr<Directory>> directory() {
    auto dir = co_await open_directory(temp.path());
    std::unique_ptr<Directory> real = must(std::move(dir));
    std::unique_ptr<Directory> wrapped = std::make_unique<FaultDirectory>(std::move(real), plan);
    co_return std::move(wrapped);
  }
  Task<std::unique_ptr<Delta>> create(std::uint64_t size) {
    auto dir = co_await directory();
    Delta::CreateOptions options{test_uuid(1), size};
    auto delta = co_await Delta::create(std::move(dir), options);
    co_return must(std::move(delta));
  }
  Task<Result<std::unique_ptr<Delta>>> open(Delta::Mode mode) {
    auto dir = co_await directory();
    auto delta = co_await Delta::open(std::move(dir), mode);
    co_return std::move(delta);
  }
};

inline std::vector<std::byte> filled(std::size_t n, int value) {
  return std::vector<std::byte>(n, static_cast<std::byte>(value));
}

/// A delta, one operation after the other, on one loop.
struct StepRig {
  Rig rig;
  PatternSource below;
  std::unique_ptr<Delta> delta = rig.loop->run(rig.create(kRigSize));

  ~StepRig() {
    if (delta != nullptr) must(rig.loop->run(delta->close()));
  }
  Result<void> put(std::uint64_t at, std::size_t length) {
    const auto bytes = filled(length, 7);
    return rig.loop->run(delta->write(ByteOffset(at), bytes, below, Durability::kCached));
  }
  Result<void> zero(std::uint64_t at, std::uint64_t length, bool keep_allocated) {
    return rig.loop->run(
        delta->write_zeroes(ByteOffset(at), length, below, keep_allocated, Durability::kCached));
  }
  Result<void> trim(std::uint64_t block) {
    return rig.loop->run(
        delta->trim(ByteOffset(block * kBlockSize), kBlockSize, Durability::kCached));
  }
  /// Whether it was done at once, and well.
  bool put_now(std::uint64_t at, std::size_t length) {
    const auto done = delta->write_now(ByteOffset(at), filled(length, 9));
    if (done && !*done) ++errors_at_once;
    return done && *done;
  }
  int errors_at_once = 0;
  std::vector<std::byte> block(std::uint64_t number) {
    std::vector<std::byte> got(kBlockSize);
    must(rig.loop->run(read_through(*delta, ByteOffset(number * kBlockSize), got)));
    return got;
  }
  /// From now on the data file's operations of this kind have this fate.
  void decide(FaultEvent::Kind kind, FaultAction action) {
    rig.plan->decide = [kind, action](const FaultEvent& event) {
      return event.kind == kind && event.name == "data" ? action : FaultAction::pass();
    };
  }
  std::uint64_t blocks() const { return delta->stats().data_blocks; }
};

inline bool is_full(const Result<void>& result) {
  return !result && result.error().code() == ErrorCode::kNoSpace;
}

/// Exactly one block more can be had.
inline void check_one_block_left(StepRig& rig, std::uint64_t unused) {
  CHECK(is_full(rig.put(unused * kBlockSize, 2 * kBlockSize)));
  CHECK(rig.put(unused * kBlockSize, kBlockSize));
  CHECK(is_full(rig.put((unused + 1) * kBlockSize, kBlockSize)));
}

}  // namespace snap::delta_test
