#include "tests/crash/trace.h"

#include <algorithm>

#include "engine/io/sync.h"

namespace snap::crash {

namespace {

constexpr std::uint64_t kRecoverySeed = 1;

/// Records one workload.
class Recorder {
 public:
  Recorder(const Workload& workload, std::uint64_t seed)
      : seed_(seed), disk_(std::make_unique<SimDisk>(seed)) {
    trace_.workload = workload;
    trace_.seed = seed;
  }

  Trace run() {
    seed_system_random(1);
    format();
    if (trace_.failure.empty()) go();
    return std::move(trace_);
  }
  /// The index of the preamble's round in which the event came; nothing if it never did.
  std::optional<unsigned> round_of_event() const { return event_round_; }

 private:
  void format() {
    SimLoop loop(seed_);
    auto rig = make_rig(trace_.workload.level, *disk_);
    auto made = loop.run(rig->format(trace_.workload.size));
    rig.reset();
    if (!made) {
      trace_.failure = "creation: " + made.error().message();
      return;
    }
    // It said that all is durable.
    disk_->crash_all_lost();
    const Recovered first = recover(trace_.workload.level, *disk_->clone());
    auto volume = first.content.find(kVolume);
    if (volume == first.content.end()) {
      trace_.failure = "after creation and a power cut: " + first.failure;
      return;
    }
    trace_.before = volume->second;
  }

  void go() {
    SimLoop loop(seed_ * 2654435761u + 1);
    rig_ = make_rig(trace_.workload.level, *disk_);
    auto gone = loop.run(all());
    if (!gone && trace_.failure.empty()) trace_.failure = gone.error().message();
    if (rig_ != nullptr) rig_->abandon();
    for (SimOp& op : std::vector<SimOp>(disk_->log())) {
      if (op.kind != SimOpKind::kRead) trace_.log.push_back(std::move(op));
    }
    trace_.final_hash = disk_->hash();
  }

  Task<Result<void>> all() {
    auto opened = co_await rig_->open();
    SNAP_CO_RETURN_IF_ERROR(opened);
    const Workload& w = trace_.workload;
    const unsigned rounds = w.preamble.empty() ? 0 : w.repeat;
    for (unsigned round = 0; round < rounds; ++round) {
      for (const Op& op : w.preamble) {
        const WriteId id = ++last_id_;
        auto done = co_await rig_->run(op, id);
        SNAP_CO_RETURN_IF_ERROR(done);
      }
      if (w.repeat_at_most == 0) continue;
      trace_.log = disk_->log();
      const bool came = trace_.has_event(w.event);
      trace_.log.clear();
      if (came) {
        event_round_ = round;
        co_return Result<void>();
      }
    }
    if (rounds != 0) {
      auto content = co_await rig_->read_all();
      SNAP_CO_RETURN_IF_ERROR(content);
      trace_.before = (*content)[kVolume];
    }
    base_ = disk_->changes();
    disk_->clear_log();
    disk_->record_data(true);
    trace_.start = disk_->clone();
    for (const auto& stage : w.stages) {
      auto done = co_await run_stage(&stage);
      SNAP_CO_RETURN_IF_ERROR(done);
    }
    if (rig_ == nullptr) co_return Result<void>();
    auto live = co_await rig_->read_all();
    SNAP_CO_RETURN_IF_ERROR(live);
    trace_.live = std::move(*live);
    Done last;  // as if it were opened again: a close makes all of it durable
    last.op.verb = Verb::kReopen;
    last.process = process_;
    last.start = {++order_, disk_->changes() - base_};
    auto closed = co_await rig_->close();
    SNAP_CO_RETURN_IF_ERROR(closed);
    last.ok = true;
    last.end = Moment{++order_, disk_->changes() - base_};
    trace_.ops.push_back(std::move(last));
    co_return Result<void>();
  }

  Task<Result<void>> run_stage(const std::vector<Op>* stage) {
    // Room first: the tasks below hold indices into it.
    const std::size_t first = trace_.ops.size();
    WaitGroup running;
    running.add(stage->size());
    for (const Op& op : *stage) {
      Done entry;
      entry.op = op;
      entry.id = ++last_id_;
      entry.process = process_;
      entry.start = {++order_, disk_->changes() - base_};
      trace_.ops.push_back(std::move(entry));
    }
    for (std::size_t i = first; i < trace_.ops.size(); ++i)
      EventLoop::current()->spawn(run_one(i, &running));
    co_await running.wait();
    if (!trace_.failure.empty()) co_return Error(ErrorCode::kIo, trace_.failure);
    co_return Result<void>();
  }

  Task<void> run_one(std::size_t index, WaitGroup* running) {
    const Op op = trace_.ops[index].op;
    trace_.ops[index].start = {++order_, disk_->changes() - base_};
    Result<void> done;
    if (op.verb == Verb::kReopen || op.verb == Verb::kKill) {
      done = co_await restart(op.verb == Verb::kKill);
      if (!done) trace_.failure = std::string(verb_name(op.verb)) + ": " + done.error().message();
    } else if (op.verb == Verb::kFillSpace || op.verb == Verb::kFreeSpace) {
      auto root = disk_->root();
      auto space = co_await root->space();
      const bool fill = op.verb == Verb::kFillSpace;
      disk_->set_space_limit(fill ? space->total - space->available + op.length : ~0ull);
    } else {
      done = co_await rig_->run(op, trace_.ops[index].id);
      const bool may_fail = done || done.error().code() == ErrorCode::kNoSpace;
      if (!may_fail)
        trace_.failure = std::string(verb_name(op.verb)) + ": " + done.error().message();
    }
    Done& entry = trace_.ops[index];
    entry.ok = done.has_value();
    entry.end = Moment{++order_, disk_->changes() - base_};
    running->done();
  }

  Task<Result<void>> restart(bool kill) {
    if (kill) {
      disk_->kill();
      rig_->abandon();
      ++process_;
    } else {
      auto closed = co_await rig_->close();
      SNAP_CO_RETURN_IF_ERROR(closed);
    }
    auto opened = co_await rig_->open();
    SNAP_CO_RETURN_IF_ERROR(opened);
    co_return Result<void>();
  }

  const std::uint64_t seed_;
  std::unique_ptr<SimDisk> disk_;
  std::unique_ptr<Rig> rig_;
  Trace trace_;
  std::uint64_t base_ = 0;
  std::uint64_t order_ = 0;
  WriteId last_id_ = 0;
  unsigned process_ = 0;
  std::optional<unsigned> event_round_;
};

Task<Result<Content>> open_and_read(Rig* rig, bool tidy) {
  auto opened = co_await rig->open();
  SNAP_CO_RETURN_IF_ERROR(opened);
  if (tidy) {
    auto tidied = co_await rig->tidy();
    SNAP_CO_RETURN_IF_ERROR(tidied);
  }
  auto content = co_await rig->read_all();
  SNAP_CO_RETURN_IF_ERROR(content);
  auto closed = co_await rig->close();
  SNAP_CO_RETURN_IF_ERROR(closed);
  co_return std::move(*content);
}

Task<Result<void>> open_and_write(Rig* rig, ByteOffset block) {
  auto opened = co_await rig->open();
  SNAP_CO_RETURN_IF_ERROR(opened);
  Op op;
  op.verb = Verb::kFuaWrite;
  op.at = block.value;
  op.length = kBlockSize;
  auto done = co_await rig->run(op, kAfterwards);
  co_return done;
}

}  // namespace

bool Trace::has_event(const std::string& event) const {
  return std::ranges::any_of(log, [&event](const SimOp& op) {
    const std::string file = op.name.empty() ? op.path.substr(op.path.rfind('/') + 1) : op.name;
    return std::string(sim_op_name(op.kind)) + " " + file == event;
  });
}

Trace record(const Workload& workload, std::uint64_t seed) {
  if (workload.repeat_at_most == 0) return Recorder(workload, seed).run();
  // How many rounds of the preamble until the event would come; then one fewer.
  Workload search = workload;
  search.repeat = workload.repeat_at_most;
  Recorder searcher(search, seed);
  Trace failed = searcher.run();
  const auto round = searcher.round_of_event();
  if (!round) {
    if (failed.failure.empty()) failed.failure = "the preamble never does: " + workload.event;
    return failed;
  }
  Workload exact = workload;
  exact.repeat_at_most = 0;
  exact.repeat = *round;
  return Recorder(exact, seed).run();
}

Recovered recover(Level level, SimDisk& disk, bool tidy) {
  seed_system_random(2);
  SimLoop loop(kRecoverySeed);
  auto rig = make_rig(level, disk);
  auto content = loop.run(open_and_read(rig.get(), tidy));
  Recovered out;
  if (!content) {
    out.failure = content.error().message();
    rig->abandon();
  } else {
    out.content = std::move(*content);
  }
  return out;
}

std::string recover_and_write(Level level, SimDisk& disk, ByteOffset block) {
  seed_system_random(3);
  SimLoop loop(kRecoverySeed);
  auto rig = make_rig(level, disk);
  auto done = loop.run(open_and_write(rig.get(), block));
  rig->abandon();
  return done ? std::string() : done.error().message();
}

}  // namespace snap::crash
