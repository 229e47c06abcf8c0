// Replies that are ready, in the order in which they became so, gathered for sendmsg.
#pragma once

#include <sys/uio.h>

#include <array>
#include <cstddef>
#include <span>

#include "engine/nbd/request.h"

namespace snap::nbd {

/// Not thread-safe. Requests in the queue belong to it until advance() or drop_all() gives them
/// back to the pool.
class ReplyQueue {
 public:
  explicit ReplyQueue(RequestPool& pool) : pool_(pool) {}

  void push(Request* request) noexcept;
  bool empty() const noexcept { return first_ == nullptr; }

  /// What is to be sent next: as much as one sendmsg takes. Valid until the next call.
  std::span<iovec> gather() noexcept;

  /// What replies gave back: requests and the bytes that they were charged.
  struct Finished {
    std::size_t requests = 0;
    std::size_t bytes = 0;
  };
  /// `n` bytes of what gather() gave have been sent.
  Finished advance(std::size_t n) noexcept;
  /// No one will read them any more.
  Finished drop_all() noexcept;

 private:
  void pop(Finished& finished) noexcept;

  RequestPool& pool_;
  Request* first_ = nullptr;
  Request* last_ = nullptr;
  // How far the first request has been sent.
  std::size_t pieces_sent_ = 0;
  std::size_t piece_offset_ = 0;
  // 1024 is the kernel's IOV_MAX; a batch of this many pieces is far beyond any socket buffer.
  std::array<iovec, 512> gathered_;
};

}  // namespace snap::nbd
