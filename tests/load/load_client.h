// LoadClient: one NBD connection that keeps a number of requests in flight, at as little cost to
// itself as can be: no client library, one send for all requests that are ready, one receive for
// all replies that have come. Blocking, for a thread of its own. Simple replies only.
#pragma once

#include <sys/uio.h>

#include <chrono>
#include <cstdint>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "engine/io/unique_fd.h"
#include "snap/result.h"
#include "tests/load/latencies.h"

namespace snap::load {

struct Workload {
  std::uint64_t begin = 0;  ///< of the part of the export that is used; multiples of `block`
  std::uint64_t end = 0;
  std::uint32_t block = 4096;  ///< bytes a request
  unsigned depth = 32;
  unsigned read_percent = 100;
  bool sequential = false;
  bool once = false;         ///< no block twice; ends when each had its turn, or at the deadline
  unsigned flush_every = 0;  ///< after so many requests: all are awaited, then flushed; 0: never
  bool verify = false;       ///< reads of what this client wrote are compared
  std::uint64_t seed = 1;
};

struct Tally {
  std::uint64_t reads = 0, writes = 0, flushes = 0, compared = 0;
  Latencies requests, flush_times;

  void add(const Tally& other);
};

class LoadClient {
 public:
  /// Connects to "unix:PATH" or "HOST:PORT" and enters the export; gives its size.
  Result<std::uint64_t> connect(const std::string& address, const std::string& export_name);
  /// Runs until `deadline`; Corrupt if a read gives what was not written, Io with what the server
  /// answered or that it is gone.
  Result<void> run(const Workload& workload, std::chrono::steady_clock::time_point deadline);
  const Tally& tally() const noexcept { return tally_; }

 private:
  using Clock = std::chrono::steady_clock;
  enum class Kind : std::uint8_t { kNone, kRead, kWrite, kFlush };
  struct Slot {
    Kind kind = Kind::kNone;
    std::uint64_t block = 0;  ///< number of it, from workload.begin
    Clock::time_point sent;
    std::vector<std::byte> data;  ///< with verify: what is written, or was read
  };

  Result<void> enter(const std::string& export_name);
  Result<void> send_all(std::vector<iovec>& pieces);
  Result<void> receive_exactly(std::span<std::byte> out);
  /// Fills the free slots, as far as the next flush allows, and sends them.
  Result<void> send_requests();
  void prepare(Slot& slot, std::size_t index);
  std::uint64_t choose_block();
  std::uint64_t blocks() const noexcept { return (work_.end - work_.begin) / work_.block; }
  bool all_had_their_turn() const noexcept { return work_.once && next_block_ == blocks(); }
  /// Receives once, and takes all replies that are there.
  Result<void> receive_replies();
  Result<void> finish(Slot& slot, Clock::time_point now);
  void fill(std::span<std::byte> out, std::uint64_t block, std::uint32_t version) const;

  UniqueFd fd_;
  std::uint64_t size_ = 0;
  Workload work_;
  Tally tally_;
  std::mt19937_64 random_;

  std::vector<Slot> slots_;
  std::vector<std::size_t> free_;
  std::vector<std::byte> headers_;  ///< of each slot
  std::vector<std::byte> payload_;  ///< of writes without verify
  std::uint64_t next_block_ = 0;
  std::vector<std::uint32_t> order_;  ///< with once: of the blocks, where they are not in sequence
  std::uint64_t since_flush_ = 0;

  std::vector<std::uint32_t> versions_;  ///< with verify: of each block; 0: not written by us
  std::vector<bool> busy_;               ///< with verify: in flight

  std::vector<std::byte> received_;
  std::size_t at_ = 0, end_ = 0;
  std::size_t reading_ = 0;       ///< the slot whose data is being received
  std::size_t data_missing_ = 0;  ///< bytes of it
};

}  // namespace snap::load
