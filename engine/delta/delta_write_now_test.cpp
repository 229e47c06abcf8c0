// Writes at once: which are, what they take, and what is left of one that fails.
#include "engine/delta/delta_rig.h"

using namespace snap;
using namespace snap::delta_test;

TEST_CASE("what is written at once is one chunk's, whole or present, and neither long nor beyond") {
  StepRig rig;
  CHECK_FALSE(rig.put_now(0, kBlockSize));  // space for the map has to be had first
  CHECK(rig.put(0, kBlockSize));
  rig.rig.plan->seen.clear();
  CHECK(rig.put_now(0, 2 * kBlockSize));
  CHECK(rig.put_now(kBlockSize + 512, 512));
  CHECK_FALSE(rig.put_now(2 * kBlockSize + 512, 512));
  CHECK_FALSE(rig.put_now(15 * kBlockSize, 2 * kBlockSize));
  CHECK_FALSE(rig.put_now(kChunkSize, kChunkSize));
  CHECK_FALSE(rig.put_now(kRigSize - 512, 1024));
  CHECK_FALSE(rig.put_now(0, 0));
  CHECK(rig.blocks() == 2);
  CHECK(rig.rig.plan->count(FaultEvent::Kind::kWrite, "data") == 2);
  CHECK(rig.block(0) == filled(kBlockSize, 9));
  CHECK(rig.block(2) != filled(kBlockSize, 9));
  CHECK(rig.rig.loop->run(rig.delta->flush()));
  CHECK(rig.delta->stats().dirty_chunks == 0);
  CHECK(rig.put_now(0, kBlockSize));
  CHECK(rig.delta->stats().dirty_chunks == 1);
  rig.delta->stop(Error(ErrorCode::kIo, "the test says so"));
  CHECK_FALSE(rig.put_now(0, kBlockSize));
  CHECK_FALSE(rig.rig.loop->run(rig.delta->close()));
  rig.delta = nullptr;
}

TEST_CASE("a write at once takes from the limit as any other, and says nothing where it is full") {
  StepRig rig;
  rig.delta->set_limit(4 * kBlockSize);
  CHECK(rig.put(0, kBlockSize));
  CHECK(rig.put_now(0, 3 * kBlockSize));
  CHECK_FALSE(rig.put_now(20 * kBlockSize, 2 * kBlockSize));
  CHECK(rig.delta->stats().limit_hits == 0);
  CHECK(rig.put_now(20 * kBlockSize, kBlockSize));
  CHECK_FALSE(rig.put_now(30 * kBlockSize, kBlockSize));
  CHECK(rig.put_now(2 * kBlockSize, kBlockSize));
  CHECK(rig.trim(1));
  check_one_block_left(rig, 40);
}

TEST_CASE("a write at once that fails or is short leaves dirty blocks behind and no more") {
  StepRig rig;
  rig.delta->set_limit(4 * kBlockSize);
  CHECK(rig.put(0, kBlockSize));
  CHECK(rig.rig.loop->run(rig.delta->flush()));
  for (const FaultAction action : {FaultAction::fail(ENOSPC), FaultAction::half()}) {
    rig.decide(FaultEvent::Kind::kWrite, action);
    CHECK_FALSE(rig.put_now(50 * kBlockSize, 2 * kBlockSize));
    CHECK(rig.blocks() == 1);
    CHECK(rig.delta->stats().dirty_chunks == 0);
    CHECK_FALSE(rig.put_now(0, kBlockSize));
    CHECK(rig.delta->stats().dirty_chunks == 1);  // it may hold new sectors
    rig.rig.plan->decide = nullptr;
    CHECK(rig.block(0).back() == std::byte{7});
    CHECK(rig.rig.loop->run(rig.delta->flush()));
  }
  CHECK(rig.errors_at_once == 2);  // what is short is to be written once more
  CHECK(rig.delta->stats().disk_full_hits == 2);
  CHECK(rig.put(50 * kBlockSize, 2 * kBlockSize));
  check_one_block_left(rig, 60);
}

namespace {
/// The fate of writes at once beside a request that takes its time on block 0.
Task<void> write_now_beside(StepRig* rig, Task<Result<void>> request, bool same, bool other) {
  Result<void> answer;
  bool answered = false;
  const auto wait = [](Task<Result<void>> task, Result<void>* out, bool* done) -> Task<void> {
    *out = co_await std::move(task);
    *done = true;
  };
  EventLoop::current()->spawn(wait(std::move(request), &answer, &answered));
  while (rig->rig.plan->held.empty())
    co_await yield_now();
  CHECK(rig->put_now(0, kBlockSize) == same);
  CHECK(rig->put_now(kBlockSize, kBlockSize) == other);
  rig->rig.plan->release();
  while (!answered)
    co_await yield_now();
  must(answer);
}
}  // namespace

TEST_CASE("a write at once waits for no block that is held, and for no punch") {
  StepRig rig;
  CHECK(rig.put(0, 2 * kBlockSize));
  rig.rig.plan->decide = [first = true](const FaultEvent&) mutable {
    return std::exchange(first, false) ? FaultAction::hold() : FaultAction::pass();
  };
  const auto bytes = filled(kBlockSize, 7);
  const ByteOffset at(0);
  auto write = rig.delta->write(at, bytes, rig.below, Durability::kCached);
  rig.rig.loop->run(write_now_beside(&rig, std::move(write), false, true));
  rig.decide(FaultEvent::Kind::kPunch, FaultAction::hold());
  auto trim = rig.delta->trim(at, kBlockSize, Durability::kCached);
  rig.rig.loop->run(write_now_beside(&rig, std::move(trim), false, false));
  rig.rig.plan->decide = nullptr;
  CHECK(rig.put_now(0, 2 * kBlockSize));
}
