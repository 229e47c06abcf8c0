// Connection: one client from its greeting to the last byte of its last reply.
//
// Life of a request: the receiving task parses every request that is in the buffer, and starts each
// as a coroutine of its own; it calls the export, builds its reply and queues it. The sending task
// sends all that is queued with one sendmsg. So a batch of n requests costs one receive, n reads or
// writes that the loop submits together, and one send. Replies go out in the order in which they
// are ready.
//
// Invariants:
// - At most kMaxRequestsInFlight requests and kMaxConnectionBytes of payload are in flight, from
//   their header to the last byte of their reply. Beyond that nothing is received: a client that
//   stops reading stops itself, and no one else.
// - Payload buffers come out of the server's budget, beyond a share that is the connection's own: a
//   request that gets none waits kMemoryPatience, and then gets ENOMEM.
// - Everything runs on the loop that run() was started on.
// - A request that was started is finished, whether its client is still there or not.
// - A kernel's block device is never told of a shutdown or of short memory, which its users would
//   get as I/O errors: it waits, or is hung up on and asks again on another connection. What it has
//   given up is not begun any more.
#pragma once

#include <cstddef>
#include <functional>
#include <string_view>

#include "engine/io/sync.h"
#include "engine/nbd/export.h"
#include "engine/nbd/handshake.h"
#include "engine/nbd/reply_queue.h"
#include "engine/nbd/request.h"
#include "engine/nbd/stream.h"
#include "engine/nbd/wakeup.h"
#include "snap/limits.h"

namespace snap::nbd {

struct ConnectionLimits {
  EventLoop::Clock::duration handshake = kHandshakeTimeout;
  std::size_t requests = kMaxRequestsInFlight;
  std::size_t bytes = kMaxConnectionBytes;
  MemoryBudget* budget = nullptr;  ///< of the server; null: without one
  EventLoop::Clock::duration memory_patience = kMemoryPatience;
};

class Connection {
 public:
  Connection(Socket socket, ExportTable& exports, ConnectionLimits limits = {}, TlsPolicy tls = {});
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  /// Serves the client to its end. Protocol (it broke the rules, or was too slow in the handshake)
  /// or Io say what ended it badly; a client that leaves, politely or not, is no error.
  Task<Result<void>> run();

  /// Called once the client has an export. Before run().
  void when_entered(std::function<void(const Export& device, bool tls)> call) {
    entered_ = std::move(call);
  }

  /// Skips the handshake: the client is known to use `device`, with simple headers, and keeps what
  /// it has asked for until a connection answers it (a block device of the kernel). Before run().
  /// drain() takes no more from such a client, and answers what it took where it would refuse
  /// another's requests.
  void begin_with(std::shared_ptr<Export> device);

  /// Whether any request was begun. After run().
  bool has_served() const noexcept { return has_served_; }

  // From the loop's thread, while run() runs.

  /// Shutdown: what is in flight finishes, requests that come later get ESHUTDOWN, then it ends. A
  /// handshake ends at once.
  void drain() noexcept;
  /// Ends it as soon as its requests in flight have: replies that the client does not take are
  /// dropped.
  void abort() noexcept;

 private:
  Task<Result<void>> serve();
  Task<Result<bool>> enter();
  Task<void> watch_handshake();
  Task<Result<void>> receive_requests();
  Task<void> wait_for_memory(Request* request, std::size_t size);
  bool take_payload(Request* request) noexcept;
  Task<Result<bool>> receive_payload(Request* request);
  Task<void> send_replies();

  Task<void> handle(Request* request);
  Task<void> handle_read(Request* request);
  Task<void> handle_block_status(Request* request);
  Task<Result<void>> call_export(const Request* request);
  Task<Result<void>> clear(const RequestHeader& header);
  Task<Result<void>> read_ahead(ByteOffset at, std::uint64_t length);

  RequestRules rules() const noexcept;
  bool has_room(std::size_t payload) const noexcept;
  void start(Request* request);
  bool do_now(Request* request);
  void drop(Request* request) noexcept;
  void finish(Request* request, const Result<void>& done);
  void fail(Request* request, const Error& error);
  void reply(Request* request) noexcept;
  void release(ReplyQueue::Finished finished) noexcept;

  ExportTable& exports_;
  const ConnectionLimits limits_;
  const TlsPolicy tls_;
  ByteStream stream_;
  Session session_;
  std::function<void(const Export&, bool)> entered_;

  // The order matters: requests hold buffers of the pool.
  MemoryAccount account_;
  BufferPool buffers_;
  RequestPool requests_;
  ReplyQueue replies_;

  std::size_t in_flight_ = 0;      ///< requests that were started or are queued
  std::size_t bytes_charged_ = 0;  ///< payload of these
  Wakeup room_;                    ///< the receiving task waits for room
  Wakeup work_to_send_;            ///< the sending task waits for replies
  bool receiving_ = true;          ///< more requests may come
  bool draining_ = false;
  bool aborted_ = false;
  bool has_served_ = false;
  bool asks_again_ = false;  ///< the client repeats on another connection what has no answer
  bool send_failed_ = false;

  enum class Phase { kHandshake, kTransmission, kEnded } phase_ = Phase::kHandshake;
  bool too_slow_ = false;
  Sleep handshake_timer_;
  WaitGroup helpers_;  ///< tasks beside run() that use this object
};

}  // namespace snap::nbd
