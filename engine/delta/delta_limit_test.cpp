// Limits of what a delta may hold, its own and one that deltas share.
#include "engine/delta/delta_rig.h"

using namespace snap;
using namespace snap::delta_test;

TEST_CASE("a limit counts each block of data once, and all else goes on when it is reached") {
  StepRig rig;
  rig.delta->set_limit(10 * kBlockSize + 4095);
  CHECK(rig.put(0, 4 * kBlockSize));
  CHECK(rig.put(4 * kBlockSize + 512, 512));        // a part of an absent block takes a whole one
  CHECK(rig.put(15 * kBlockSize, 2 * kBlockSize));  // in two chunks
  CHECK(rig.put(2 * kBlockSize, 3 * kBlockSize));   // nothing new
  CHECK(is_full(rig.put(20 * kBlockSize, 4 * kBlockSize)));
  CHECK(rig.put(20 * kBlockSize, 3 * kBlockSize));
  CHECK(rig.blocks() == 10);
  CHECK(is_full(rig.put(40 * kBlockSize + 512, 512)));
  CHECK(is_full(rig.zero(40 * kBlockSize, kBlockSize, true)));
  CHECK(rig.delta->stats().limit_hits == 3);

  CHECK(rig.put(100, 2 * kBlockSize));
  CHECK(rig.zero(0, kBlockSize, true));
  std::vector<std::byte> got(kBlockSize);
  CHECK(rig.rig.loop->run(read_through(*rig.delta, ByteOffset(40 * kBlockSize), got)));
  CHECK(rig.rig.loop->run(rig.delta->flush()));
  CHECK(rig.trim(40));  // zeros take nothing
  CHECK(rig.blocks() == 10);
}

TEST_CASE("what is discarded, cut off or failed to be written makes room below a limit") {
  StepRig rig;
  rig.delta->set_limit(8 * kBlockSize);
  CHECK(rig.put(0, 8 * kBlockSize));
  CHECK(rig.trim(1));
  CHECK(rig.trim(1));
  check_one_block_left(rig, 40);
  CHECK(rig.zero(2 * kBlockSize, kBlockSize, false));
  check_one_block_left(rig, 50);

  CHECK(rig.trim(3));
  rig.rig.plan->decide = [](const FaultEvent& event) {
    const bool data = event.kind == FaultEvent::Kind::kWrite && event.name == "data";
    return data ? FaultAction::fail(ENOSPC) : FaultAction::pass();
  };
  CHECK(is_full(rig.put(60 * kBlockSize, kBlockSize)));
  CHECK(rig.delta->stats().disk_full_hits == 1);
  rig.rig.plan->decide = nullptr;
  check_one_block_left(rig, 60);

  CHECK(rig.rig.loop->run(rig.delta->resize(60 * kBlockSize)));
  CHECK(rig.rig.loop->run(rig.delta->resize(kRigSize)));
  check_one_block_left(rig, 70);
}

TEST_CASE("a limit can be set anew at any time, and counts what was there before the opening") {
  StepRig rig;
  CHECK(rig.put(0, 8 * kBlockSize));
  rig.delta->set_limit(4 * kBlockSize);
  CHECK(is_full(rig.put(9 * kBlockSize, kBlockSize)));
  CHECK(rig.put(0, 8 * kBlockSize));
  CHECK(rig.trim(0));
  CHECK(is_full(rig.put(9 * kBlockSize, kBlockSize)));
  rig.delta->set_limit(8 * kBlockSize);
  check_one_block_left(rig, 9);
  const bool killed = GENERATE(false, true);
  if (!killed) must(rig.rig.loop->run(rig.delta->close()));
  if (killed) must(rig.rig.loop->run(rig.delta->flush()));
  rig.delta.reset();
  auto opened = rig.rig.loop->run(rig.rig.open(Delta::Mode::kReadWrite));
  rig.delta = must(std::move(opened));
  CHECK(rig.blocks() == 8);
  rig.delta->set_limit(9 * kBlockSize);
  check_one_block_left(rig, 20);
  rig.delta->set_limit(std::nullopt);
  CHECK(rig.put(30 * kBlockSize, 100 * kBlockSize));
}

TEST_CASE("deltas that share a quota have no more than that together") {
  StepRig one, other;
  const auto quota = std::make_shared<BlockQuota>();
  one.delta->share_quota(quota);
  other.delta->share_quota(quota);
  quota->set_bound(8);
  other.delta->set_limit(3 * kBlockSize);
  CHECK(one.put(0, 6 * kBlockSize));
  CHECK(is_full(other.put(0, 3 * kBlockSize)));
  CHECK(other.put(0, 2 * kBlockSize));
  CHECK(is_full(one.put(10 * kBlockSize, kBlockSize)));
  CHECK(one.delta->stats().shared_limit_hits == 1);
  CHECK(one.trim(0));
  check_one_block_left(other, 30);  // and not at its own limit twice for what the quota refused
  quota->set_bound(20);
  CHECK(one.put(10 * kBlockSize, 12 * kBlockSize));
  CHECK(quota->full());
}
