// LazyMemory: anonymous memory of which only what is touched takes up space.
#pragma once

#include <cstddef>
#include <utility>

#include "snap/result.h"

namespace snap {

/// Zeros, page-aligned, that are there until it is destroyed.
class LazyMemory {
 public:
  LazyMemory() = default;
  LazyMemory(LazyMemory&& o) noexcept
      : address_(std::exchange(o.address_, nullptr)), length_(std::exchange(o.length_, 0)) {}
  LazyMemory& operator=(LazyMemory&& o) noexcept {
    std::swap(address_, o.address_);
    std::swap(length_, o.length_);
    return *this;
  }
  ~LazyMemory();
  static Result<LazyMemory> map(std::size_t length);
  void* address() const { return address_; }

 private:
  void* address_ = nullptr;
  std::size_t length_ = 0;
};

}  // namespace snap
