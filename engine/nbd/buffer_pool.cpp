#include "engine/nbd/buffer_pool.h"

#include <bit>
#include <cassert>
#include <cstdlib>

#include "snap/limits.h"
#include "snap/units.h"

namespace snap::nbd {

std::size_t BufferPool::class_of(std::size_t size) noexcept {
  assert(size >= 1 && size <= kMaxNbdPayload);
  const auto bits = static_cast<std::size_t>(std::bit_width(size - 1));
  return bits <= kSmallest ? 0 : bits - kSmallest;
}

std::size_t BufferPool::rounded(std::size_t size) noexcept {
  return std::size_t{1} << (kSmallest + class_of(size));
}

BufferPool::~BufferPool() {
  free_kept();
}

void BufferPool::free_kept() noexcept {
  for (auto& list : free_) {
    for (std::byte* data : list)
      std::free(data);
    list.clear();
  }
  account_.remove(kept_);
  kept_ = 0;
}

Buffer BufferPool::take(std::size_t size) noexcept {
  Buffer buffer;
  buffer.class_ = class_of(size);
  buffer.size_ = size;
  auto& list = free_[buffer.class_];
  if (!list.empty()) {
    buffer.data_ = list.back();
    list.pop_back();
    kept_ -= rounded(size);
  } else {
    if (!account_.add(rounded(size))) {
      free_kept();
      if (!account_.add(rounded(size))) return {};
    }
    buffer.data_ = static_cast<std::byte*>(std::aligned_alloc(kBlockSize, rounded(size)));
    if (buffer.data_ == nullptr) {
      account_.remove(rounded(size));
      return {};
    }
  }
  buffer.pool_ = this;
  return buffer;
}

void BufferPool::give_back(std::byte* data, std::size_t size_class) noexcept {
  const std::size_t bytes = std::size_t{1} << (kSmallest + size_class);
  if (kept_ + bytes > keep_bytes_ || account_.scarce()) {
    std::free(data);
    account_.remove(bytes);
    return;
  }
  kept_ += bytes;
  free_[size_class].push_back(data);
}

}  // namespace snap::nbd
