// ScriptedLoop: an event loop whose sockets are a script: what the other side sends is given, what
// is sent to it is kept. No kernel, one thread, time jumps to the next timer; the same script gives
// the same run. For fuzzing only.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/io/loop_core.h"

namespace snap::fuzz {

struct Script {
  std::span<const std::byte> input;             ///< of the peer, which then closes
  std::size_t most_received = ~std::size_t{0};  ///< by one receive
  std::size_t most_sent = 8u << 20;             ///< by one send
  /// Sends fail once so many bytes were taken: what is sent is kept, and the server may send more
  /// than memory should hold.
  std::size_t hangs_up_after = 16u << 20;
};

class ScriptedLoop final : public LoopCore {
 public:
  /// A number that no descriptor has: closing it does nothing.
  static constexpr int kDescriptor = 1 << 30;

  explicit ScriptedLoop(const Script& script) : LoopCore(1), script_(script) {}

  /// What the peer got.
  const std::vector<std::byte>& sent() const noexcept { return sent_; }
  /// The peer has said all, and who receives has been told.
  bool ended() const noexcept { return ended_; }
  bool hung_up() const noexcept { return hung_up_; }

  const char* name() const noexcept override { return "scripted"; }
  bool submit(IoOp& op) override;
  void cancel(IoOp& op) override;
  Clock::time_point now() override { return now_; }
  void offload_raw(std::function<void()> work) override { work(); }

 protected:
  void turn(bool may_wait, std::optional<Clock::time_point> deadline) override;
  void cancel_waits() override;
  void wake() override {}  // it never sleeps

 private:
  std::int64_t receive(const IoOp& op);
  std::int64_t send(const IoOp& op);

  Script script_;
  std::vector<std::byte> sent_;
  std::vector<IoOp*> waiting_;
  bool accepted_ = false;
  bool ended_ = false;
  bool hung_up_ = false;
  Clock::time_point now_{std::chrono::hours(24)};
};

}  // namespace snap::fuzz
