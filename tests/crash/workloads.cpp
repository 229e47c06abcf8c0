// The workloads. Blocks are named by number here: 4 KiB each, 16 to a chunk.
#include "engine/base/uuid.h"
#include "tests/crash/workload.h"

namespace snap::crash {

namespace {

constexpr std::uint64_t kB = kBlockSize;

Op on(Verb verb, std::uint64_t block, std::uint64_t blocks = 1) {
  return {verb, block * kB, blocks * kB, {}};
}
Op bytes(Verb verb, std::uint64_t at, std::uint64_t length) {
  return {verb, at, length, {}};
}
Op write(std::uint64_t block, std::uint64_t blocks = 1) {
  return on(Verb::kWrite, block, blocks);
}
Op fua(std::uint64_t block, std::uint64_t blocks = 1) {
  return on(Verb::kFuaWrite, block, blocks);
}
Op flush() {
  return {Verb::kFlush, 0, 0, {}};
}
Op named(Verb verb, std::string name) {
  return {verb, 0, 0, std::move(name)};
}
Op plain(Verb verb) {
  return {verb, 0, 0, {}};
}
Op resize(std::uint64_t size) {
  return {Verb::kResize, 0, size, {}};
}

Workload delta(std::string name, std::vector<std::vector<Op>> stages) {
  Workload w;
  w.name = std::move(name);
  w.size = 2 * kChunkSize;
  w.stages = std::move(stages);
  return w;
}

Workload store(std::string name, std::vector<std::vector<Op>> stages) {
  Workload w = delta(std::move(name), std::move(stages));
  w.level = Level::kStore;
  return w;
}

/// A few rounds that end just before the event.
Workload full(Workload w, std::vector<Op> round, unsigned at_most, std::string event) {
  w.preamble = std::move(round);
  w.repeat_at_most = at_most;
  w.event = std::move(event);
  return w;
}

}  // namespace

std::vector<Workload> fixed_workloads() {
  std::vector<Workload> all;
  const auto add = [&all](Workload w) { all.push_back(std::move(w)); };

  // ---- A delta
  add(delta("write-flush", {{write(1)}, {flush()}, {write(1)}, {flush()}}));
  add(delta("writes-flush-writes",
            {{write(0), write(3, 2), write(17)}, {flush()}, {write(0), write(4)}}));
  add(delta("sub-block",
            {{bytes(Verb::kWrite, kB + 512, 1024), bytes(Verb::kWrite, 3 * kB + 3584, 1024)},
             {flush()},
             {bytes(Verb::kWrite, kB + 1024, 512), bytes(Verb::kFuaWrite, kB + 3072, 512)},
             {flush()}}));
  add(delta("neighbours-in-a-block",
            {{write(2)},
             {flush()},
             {bytes(Verb::kWrite, 2 * kB, 512), bytes(Verb::kFuaWrite, 2 * kB + 512, 512)},
             {flush()}}));
  add(delta("overlapping",
            {{write(0, 3), write(1, 3)}, {flush()}, {write(1, 2), write(2, 2)}, {flush()}}));
  add(delta("overlapping-fua", {{write(5, 2), fua(6, 2)}, {flush()}, {fua(5), write(5)}}));
  add(delta("fua-beside-unflushed", {{write(0)}, {fua(1)}, {write(2), fua(3)}, {flush()}}));
  add(delta("fua-during-flush",
            {{write(0, 4), write(20)}, {flush(), fua(7), write(8)}, {flush(), fua(8)}}));
  add(delta("flushes-together", {{write(0)}, {flush(), flush(), write(1)}, {flush(), flush()}}));
  add(delta("flush-beside-writes",
            {{write(0), flush(), write(1), flush()}, {flush(), write(0)}, {flush()}}));
  add(delta("trim-of-data",
            {{write(0, 4)}, {flush()}, {on(Verb::kTrim, 1, 2)}, {flush()}, {write(1)}}));
  add(delta(
      "trim-of-nothing",
      {{on(Verb::kTrim, 4, 3)}, {flush()}, {bytes(Verb::kWrite, 5 * kB + 512, 512)}, {flush()}}));
  add(delta("zero-then-write",
            {{write(2, 2)}, {on(Verb::kZero, 2, 2)}, {write(3)}, {flush()}, {on(Verb::kZero, 3)}}));
  add(delta("zero-edges", {{write(0, 3)}, {flush()}, {bytes(Verb::kZero, 1024, 8192)}, {flush()}}));
  add(delta("zero-keep",
            {{write(1, 2)}, {flush()}, {on(Verb::kZeroKeep, 1, 3)}, {flush()}, {write(3)}}));
  add(delta("fua-trim", {{write(0, 2)}, {flush()}, {on(Verb::kFuaTrim, 0), write(1)}, {flush()}}));
  add(delta("trim-beside-write",
            {{write(0, 2)}, {flush()}, {on(Verb::kTrim, 0, 2), write(1, 2)}, {flush()}}));
  add(delta(
      "trim-flush-write",
      {{write(6)}, {on(Verb::kTrim, 6)}, {flush()}, {write(6)}, {flush()}, {on(Verb::kTrim, 6)}}));
  add(delta("two-chunks", {{write(14, 4)}, {flush()}, {write(15, 2)}, {fua(16)}}));
  add(delta(
      "reopen",
      {{write(0)}, {flush()}, {write(1)}, {plain(Verb::kReopen)}, {write(0), fua(2)}, {flush()}}));
  add(delta(
      "killed",
      {{write(0)}, {flush()}, {write(0), write(1)}, {plain(Verb::kKill)}, {write(2)}, {flush()}}));
  add(delta("killed-in-a-row", {{fua(0), on(Verb::kTrim, 4)},
                                {plain(Verb::kKill)},
                                {fua(1)},
                                {plain(Verb::kKill)},
                                {fua(0)}}));
  add(delta("full-disk", {{write(0)},
                          {flush()},
                          {{Verb::kFillSpace, 0, 8192, {}}},
                          {write(1), write(2), write(18)},
                          {flush()},
                          {on(Verb::kTrim, 0), write(0)},
                          {flush()}}));
  add(delta("full-disk-again", {{write(0), write(16)},
                                {flush()},
                                {{Verb::kFillSpace, 0, 0, {}}},
                                {write(1)},
                                {write(0)},
                                {flush()},
                                {plain(Verb::kFreeSpace)},
                                {write(1)},
                                {flush()}}));

  // ---- Wide writes: torn in many places
  add(delta("wide",
            {{write(0, 8), write(10, 4)}, {flush()}, {write(2, 8)}, {fua(4, 2)}, {flush()}}));
  add(delta("wide-overlapping",
            {{write(0, 8), write(4, 8)}, {flush()}, {write(2, 4), fua(3, 6)}, {flush()}}));
  add(delta("wide-two-chunks",
            {{write(12, 8)}, {flush(), write(10, 12)}, {fua(14, 4), write(20, 4)}, {flush()}}));
  add(delta("wide-sub-block", {{bytes(Verb::kWrite, 512, 7 * kB)},
                               {flush()},
                               {bytes(Verb::kFuaWrite, kB + 1024, 6 * kB), write(20, 6)},
                               {flush()}}));
  add(delta("wide-zero", {{write(0, 10)},
                          {flush()},
                          {on(Verb::kZero, 2, 6), write(7, 5)},
                          {flush()},
                          {on(Verb::kTrim, 0, 10)}}));
  add(delta("wide-fua", {{fua(0, 6), fua(8, 6), fua(17, 6)}, {write(0, 6), fua(9, 4)}}));

  // ---- Checkpoints: the journal is about to be full, the map about to be compacted
  add(full(delta("checkpoint",
                 {{write(1)}, {flush()}, {write(2), fua(17)}, {flush(), write(2)}, {flush()}}),
           {write(0), write(9), flush()}, 2000, "write map"));
  {
    Workload w = delta("compaction", {{write(1)},
                                      {resize(2 * kChunkSize)},
                                      {write(0), fua(2)},
                                      {resize(2 * kChunkSize)},
                                      {flush()}});
    add(full(std::move(w), {write(0), flush(), resize(2 * kChunkSize)}, 2000, "rename map.new"));
  }

  // ---- A store
  add(store("snapshot",
            {{write(1), write(20)}, {named(Verb::kSnapshot, "s")}, {write(1)}, {flush()}}));
  add(store("snapshots",
            {{write(3)}, {named(Verb::kSnapshot, "s")}, {fua(3)}, {named(Verb::kSnapshot, "t")}}));
  add(store("snapshot-removed", {{write(2)},
                                 {named(Verb::kSnapshot, "s")},
                                 {write(2)},
                                 {named(Verb::kRemoveSnapshot, "s")},
                                 {plain(Verb::kPrune)}}));
  add(store("clone", {{write(0, 2)}, {named(Verb::kClone, "w")}, {write(1)}, {flush()}}));
  add(store("commit",
            {{write(4, 2), on(Verb::kTrim, 1)}, {named(Verb::kCommit, "img:1")}, {fua(4)}}));
  add(store(
      "commit-twice",
      {{write(4)}, {named(Verb::kCommit, "img:1")}, {write(5)}, {named(Verb::kCommit, "img:2")}}));
  add(store("snapshot-commit", {{write(4)},
                                {named(Verb::kSnapshot, "s")},
                                {write(5)},
                                {named(Verb::kCommit, "img:1")},
                                {write(4)}}));
  add(store("remove", {{write(1)}, {flush()}, {plain(Verb::kRemoveVolume)}}));
  add(store("shrink-grow", {{write(1), write(20)},
                            {flush()},
                            {resize(kChunkSize)},
                            {resize(2 * kChunkSize)},
                            {write(18)},
                            {flush()}}));
  add(store("grow-shrink", {{resize(3 * kChunkSize)},
                            {write(40), write(20)},
                            {flush()},
                            {resize(20 * kB)},
                            {resize(3 * kChunkSize)}}));
  add(store("shrink-zero-grow", {{write(0, 3)},
                                 {flush()},
                                 {resize(2 * kB + 512)},
                                 {bytes(Verb::kZero, 2 * kB, 512)},
                                 {resize(2 * kChunkSize)},
                                 {write(1)}}));
  add(store("volume-writes", {{write(0, 2), write(17)},
                              {flush(), fua(3)},
                              {on(Verb::kTrim, 0), bytes(Verb::kWrite, kB + 512, 512)},
                              {flush()}}));
  add(store(
      "volume-killed",
      {{write(0)}, {named(Verb::kSnapshot, "s")}, {write(1)}, {plain(Verb::kKill)}, {fua(2)}}));
  return all;
}

Workload random_workload(std::uint64_t seed) {
  SeededRandom random(seed * 7919 + 17);
  Workload w;
  w.name = "random";
  w.level = random.below(4) == 0 ? Level::kStore : Level::kDelta;
  const bool is_store = w.level == Level::kStore;
  w.size = 2 * kChunkSize;
  const std::uint64_t blocks = w.size / kB;
  int names = 0;
  const std::uint64_t stages = 3 + random.below(4);
  for (std::uint64_t s = 0; s < stages; ++s) {
    const std::uint64_t roll = random.below(10);
    if (roll < 3) {
      w.stages.push_back({flush()});
    } else if (is_store && roll == 3) {
      constexpr Verb kMakers[] = {Verb::kSnapshot, Verb::kClone, Verb::kCommit};
      const Verb verb = kMakers[random.below(3)];
      std::string name = "o" + std::to_string(++names);
      if (verb == Verb::kCommit) name += ":1";
      w.stages.push_back({named(verb, std::move(name))});
    } else if (roll == 4) {
      w.stages.push_back({plain(random.below(2) == 0 ? Verb::kReopen : Verb::kKill)});
    } else if (is_store && roll == 5) {
      w.stages.push_back({resize((1 + random.below(2 * blocks * 8)) * kSectorSize)});
      w.stages.push_back({resize(w.size)});
    } else {
      std::vector<Op> stage;
      // What makes objects needs one history: there no two operations are in flight together.
      const std::uint64_t together = is_store ? 1 : 1 + random.below(3);
      for (std::uint64_t i = 0; i < together; ++i) {
        constexpr Verb kVerbs[] = {Verb::kWrite, Verb::kWrite,    Verb::kFuaWrite, Verb::kTrim,
                                   Verb::kZero,  Verb::kZeroKeep, Verb::kFuaTrim,  Verb::kFlush};
        const Verb verb = kVerbs[random.below(8)];
        const std::uint64_t first = random.below(blocks / 4) * (random.below(2) == 0 ? 1 : 3);
        Op op = on(verb, first, 1 + random.below(3));
        if (random.below(3) == 0) {
          op.at += random.below(8) * kSectorSize;
          op.length = (1 + random.below(12)) * kSectorSize;
        }
        if (verb == Verb::kFlush) op = flush();
        stage.push_back(std::move(op));
      }
      w.stages.push_back(std::move(stage));
    }
  }
  return w;
}

}  // namespace snap::crash
