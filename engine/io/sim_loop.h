// SimLoop: the event loop of the crash tests. One thread, no kernel: the order in which operations
// in flight make progress comes from a seed, time jumps to the next timer when nothing else can
// happen, offload() runs at once. The same seed and the same tasks give the same run.
//
// Operations of a SimDisk (sim_disk.h) go step by step between the tasks. Files of the real disk
// work too, blocking; sockets do not.
#pragma once

#include <random>
#include <vector>

#include "engine/io/loop_core.h"

namespace snap {

/// What simulated operations are for.
class SimDevice {
 public:
  virtual ~SimDevice() = default;
  /// Lets `op` make some progress: its result once it is done.
  virtual std::optional<std::int64_t> step(IoOp& op) = 0;
};

class SimLoop final : public LoopCore {
 public:
  explicit SimLoop(std::uint64_t seed) : LoopCore(1), random_(seed) {}

  const char* name() const noexcept override { return "simulated"; }
  bool submit(IoOp& op) override;
  void cancel(IoOp& op) override;
  Clock::time_point now() override { return now_; }
  void offload_raw(std::function<void()> work) override { work(); }

  /// Puts `op` in flight; op.waiter is resumed when `device` says that it is done.
  void add(IoOp& op, SimDevice& device) { in_flight_.push_back({&op, &device}); }

 protected:
  void turn(bool may_wait, std::optional<Clock::time_point> deadline) override;
  void cancel_waits() override {}  // there are no sockets
  void wake() override {}          // it never sleeps

 private:
  struct Flight {
    IoOp* op;
    SimDevice* device;
  };

  std::mt19937_64 random_;
  Clock::time_point now_{std::chrono::hours(24)};
  std::vector<Flight> in_flight_;
};

}  // namespace snap
