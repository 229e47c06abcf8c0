// An Export in memory, for tests and for measuring the protocol alone: sparse, with faults on
// demand.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "engine/nbd/export.h"

namespace snap::nbd {

class MemoryExport final : public Export {
 public:
  MemoryExport(std::string name, std::uint64_t size, bool read_only = false,
               std::string description = {})
      : name_(std::move(name)),
        description_(std::move(description)),
        size_(size),
        read_only_(read_only) {}

  const std::string& name() const noexcept override { return name_; }
  const std::string& description() const noexcept override { return description_; }
  std::uint64_t size() const noexcept override { return size_; }
  bool read_only() const noexcept override { return read_only_; }

  bool read_now(ByteOffset at, std::span<std::byte> out) noexcept override;
  std::optional<Result<void>> write_now(ByteOffset at, std::span<const std::byte> bytes) override;
  Task<Result<void>> read(ByteOffset at, std::span<std::byte> out) override;
  Task<Result<void>> write(ByteOffset at, std::span<const std::byte> bytes,
                           Volume::WriteOptions options) override;
  /// Fast only on whole blocks.
  Task<Result<void>> write_zeroes(ByteOffset at, std::uint64_t length,
                                  Volume::ZeroOptions options) override;
  Task<Result<void>> trim(ByteOffset at, std::uint64_t length,
                          Volume::WriteOptions options) override;
  Task<Result<void>> flush() override;
  Task<Result<std::vector<Extent>>> extents(ByteOffset at, std::uint64_t length,
                                            std::size_t max) override;
  Task<Result<void>> prefetch(ByteOffset at, std::uint64_t length) override;

  /// Every data call fails with this from now on; nothing: they work again.
  void set_fault(std::optional<Error> fault);
  /// Data calls let others run first, so that replies change their order.
  void set_slow(bool slow) { slow_ = slow; }
  /// Reads and writes are done at once. With a fault a write fails at once, and a read is left.
  void set_quick(bool quick) { quick_ = quick; }
  std::uint64_t done_at_once() const { return done_at_once_; }
  std::uint64_t flushes() const { return flushes_; }
  std::uint64_t fua_writes() const { return fua_writes_; }
  /// Writes behind which others waited.
  std::uint64_t crowded_writes() const { return crowded_writes_; }
  std::uint64_t reads() const { return reads_; }
  std::uint64_t prefetched() const { return prefetched_; }
  /// Reads wait from now on until they are let go.
  void hold_reads() { held_ = true; }
  void let_reads_go() { held_ = false; }
  /// Reads that are in it now.
  std::size_t reading() const { return reading_; }

 private:
  Task<Result<void>> begin_call();
  // With the lock held.
  void copy_out(std::uint64_t at, std::span<std::byte> out) const;
  void copy_in(std::uint64_t at, std::span<const std::byte> bytes);
  void zero(std::uint64_t at, std::uint64_t length);

  std::string name_;
  std::string description_;
  std::uint64_t size_;
  bool read_only_;
  std::atomic<bool> slow_{false};
  std::atomic<bool> quick_{false};
  std::atomic<std::uint64_t> done_at_once_{0};
  std::atomic<std::uint64_t> flushes_{0};
  std::atomic<std::uint64_t> fua_writes_{0};
  std::atomic<std::uint64_t> crowded_writes_{0};
  std::atomic<std::uint64_t> reads_{0};
  std::atomic<std::uint64_t> prefetched_{0};
  std::atomic<bool> held_{false};
  std::atomic<std::size_t> reading_{0};
  std::mutex lock_;  // guards what follows
  std::optional<Error> fault_;
  std::map<std::uint64_t, std::vector<std::byte>> blocks_;  ///< by block number; absent: zero
};

}  // namespace snap::nbd
