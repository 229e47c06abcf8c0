// FuseLane: takes the requests of one FUSE file system on one loop.
//
// A request keeps the buffer that it was received in until it is answered: a write finds its bytes
// there, a read puts them there. So the number of buffers bounds both the requests in flight and
// their memory; when all are in use the kernel keeps further requests.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <utility>
#include <vector>

#include "engine/io/sync.h"
#include "snap/event_loop.h"
#include "snap/task.h"

struct fuse_session;

namespace snap::attach {

inline constexpr std::size_t kMaxFusePayload = 1u << 20;  ///< bytes of one read or write
/// What the kernel wants to have room for beside the payload (FUSE_BUFFER_HEADER_SIZE of libfuse).
inline constexpr std::size_t kFuseHeaderRoom = 4096;
inline constexpr std::size_t kFuseBufferBytes = kMaxFusePayload + kFuseHeaderRoom;
inline constexpr std::size_t kMaxFuseRequests = 64;  ///< in flight, a lane
inline constexpr std::size_t kKeptFuseBuffers = 8;   ///< unused ones that an idle lane keeps
inline constexpr unsigned kFuseRequestsInARow = 16;  ///< received before others get their turn

/// Used on one loop.
class FuseLane {
 private:
  struct FreeBytes {
    void operator()(std::byte* bytes) const noexcept { std::free(bytes); }
  };
  using Buffer = std::unique_ptr<std::byte[], FreeBytes>;

 public:
  /// A request in flight: its place among those and its buffer, which go back when it is destroyed.
  class Ticket {
   public:
    Ticket(Ticket&& o) noexcept
        : lane_(std::exchange(o.lane_, nullptr)), buffer_(std::move(o.buffer_)) {}
    Ticket& operator=(Ticket&&) = delete;
    ~Ticket() {
      if (lane_ != nullptr) lane_->ended(std::move(buffer_));
    }
    /// Room for kMaxFusePayload bytes, page-aligned. It lies over what came with the request.
    std::byte* room() const noexcept { return buffer_.get(); }

   private:
    friend class FuseLane;
    Ticket(FuseLane* lane, Buffer buffer) : lane_(lane), buffer_(std::move(buffer)) {}
    FuseLane* lane_;
    Buffer buffer_;
  };

  /// `session` outlives the lane; its descriptor does not block.
  explicit FuseLane(fuse_session* session);
  FuseLane(const FuseLane&) = delete;
  FuseLane& operator=(const FuseLane&) = delete;

  /// Receives requests until the file system is gone, stop(), or the loop is shut down. Returns
  /// when all of them are answered.
  Task<void> run();
  /// Ends run().
  void stop();

  /// The lane that is handing a request to the session's operations on this thread.
  static FuseLane& receiving() noexcept;
  /// For an operation that answers later: once, before it returns.
  Ticket take();

 private:
  Task<void> find_buffer();
  Task<void> wait_until_readable();
  void process(std::size_t bytes);
  void ended(Buffer buffer);
  bool stopping() const noexcept { return stopped_ || EventLoop::current()->stopping(); }

  fuse_session* session_;
  bool stopped_ = false;
  IoOp* polling_ = nullptr;
  Buffer receiving_;           ///< for the next request
  std::vector<Buffer> spare_;  ///< has room for all
  std::size_t buffers_ = 0;    ///< that exist
  AsyncEvent freed_;           ///< a buffer has come back, or there is no reason to wait for one
  WaitGroup in_flight_;
};

}  // namespace snap::attach
