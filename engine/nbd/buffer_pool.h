// Page-aligned payload buffers of one connection, used again: the first touch of fresh memory costs
// more than the request that it is for.
#pragma once

#include <array>
#include <cstddef>
#include <span>
#include <utility>
#include <vector>

#include "engine/nbd/memory_budget.h"

namespace snap::nbd {

class BufferPool;

/// A buffer on loan; it goes back to its pool when destroyed. Its bytes are not initialised.
class Buffer {
 public:
  Buffer() = default;
  Buffer(Buffer&& o) noexcept
      : pool_(std::exchange(o.pool_, nullptr)), data_(o.data_), size_(o.size_), class_(o.class_) {}
  Buffer& operator=(Buffer&& o) noexcept {
    if (this != &o) {
      release();
      pool_ = std::exchange(o.pool_, nullptr);
      data_ = o.data_;
      size_ = o.size_;
      class_ = o.class_;
    }
    return *this;
  }
  ~Buffer() { release(); }

  explicit operator bool() const noexcept { return pool_ != nullptr; }
  /// As many bytes as were asked for.
  std::span<std::byte> bytes() const noexcept { return {data_, size_}; }
  void release() noexcept;

 private:
  friend class BufferPool;
  BufferPool* pool_ = nullptr;
  std::byte* data_ = nullptr;
  std::size_t size_ = 0;
  std::size_t class_ = 0;
};

/// Buffers come in sizes of powers of two from 4 KiB on. Not thread-safe; outlives its buffers.
class BufferPool {
 public:
  /// What a take of `size` bytes counts as.
  static std::size_t rounded(std::size_t size) noexcept;

  /// Keeps at most `keep_bytes` of unused buffers, and none of them while memory is scarce. All of
  /// its memory, in use or not, is on `account`, which outlives it.
  BufferPool(std::size_t keep_bytes, MemoryAccount& account)
      : keep_bytes_(keep_bytes), account_(account) {}
  BufferPool(const BufferPool&) = delete;
  BufferPool& operator=(const BufferPool&) = delete;
  ~BufferPool();

  /// A buffer of `size` bytes, 1 to kMaxNbdPayload; an empty one if there is no memory,
  /// or the account grants none.
  Buffer take(std::size_t size) noexcept;

 private:
  friend class Buffer;
  static constexpr std::size_t kSmallest = 12;  // 4 KiB
  static constexpr std::size_t kClasses = 14;   // up to 32 MiB
  static std::size_t class_of(std::size_t size) noexcept;
  void give_back(std::byte* data, std::size_t size_class) noexcept;
  void free_kept() noexcept;

  std::size_t keep_bytes_;
  MemoryAccount& account_;
  std::size_t kept_ = 0;
  std::array<std::vector<std::byte*>, kClasses> free_;
};

inline void Buffer::release() noexcept {
  if (pool_ != nullptr) std::exchange(pool_, nullptr)->give_back(data_, class_);
}

}  // namespace snap::nbd
