#include "engine/nbd/connection.h"

#include <algorithm>
#include <utility>

#include "engine/base/memory_reserve.h"
#include "engine/io/cached_io.h"
#include "engine/nbd/reply.h"

namespace snap::nbd {

namespace {

// Payloads from this size on are received in place; the copy of smaller ones costs less than a
// receive of their own.
constexpr std::size_t kLargePayload = 32u << 10;
// While payloads are large, one receive takes little more than the next header.
constexpr std::size_t kLargeReadAhead = 4096;
// A BLOCK_STATUS reply of this size is not worth its reserve of memory.
constexpr std::size_t kSmallStatus = 4096;
// Of a TRIM or WRITE_ZEROES, between looks at whether it has been cut off.
constexpr std::uint64_t kClearPiece = std::uint64_t{1} << 30;
// Of a CACHE request, between looks at whether the client is still there.
constexpr std::uint64_t kCachePiece = 8u << 20;
// Of replies, between turns of other connections: sends that need not wait do not suspend.
constexpr std::size_t kSendTurn = 1u << 20;
// How often memory is looked for while there is none.
constexpr std::chrono::milliseconds kMemoryPause{2};
// With REQ_ONE: enough to merge what differs in depth only.
constexpr std::size_t kExtentsForOne = 64;

/// Bytes of payload buffer that a request takes. BLOCK_STATUS takes what its reply may grow to.
std::size_t buffer_bytes(const RequestHeader& header, const Verdict& verdict,
                         const Session& session) {
  if (!verdict.touches_data) return 0;
  switch (static_cast<Command>(header.type)) {
    case Command::kRead:
    case Command::kWrite:
      return static_cast<std::size_t>(header.length);
    case Command::kBlockStatus: {
      constexpr std::size_t kDescriptor = 16;
      if ((header.flags & kCmdReqOne) != 0) return kSmallStatus;
      return kSmallStatus + session.contexts.size() * kMaxStatusExtents * kDescriptor;
    }
    default:
      return 0;
  }
}

}  // namespace

Connection::Connection(Socket socket, ExportTable& exports, ConnectionLimits limits, TlsPolicy tls)
    : exports_(exports),
      limits_(limits),
      tls_(std::move(tls)),
      stream_(std::move(socket)),
      account_(limits.budget),
      buffers_(kKeptBuffers, account_),
      replies_(requests_),
      handshake_timer_(limits.handshake) {}

void Connection::begin_with(std::shared_ptr<Export> device) {
  session_.device = std::move(device);
  asks_again_ = true;
  phase_ = Phase::kTransmission;
}

Task<Result<void>> Connection::run() {
  helpers_.add();
  EventLoop::current()->spawn(watch_handshake());
  auto result = co_await serve();
  if (phase_ == Phase::kHandshake) phase_ = Phase::kEnded;
  handshake_timer_.wake();
  co_await helpers_.wait();
  stream_.say_goodbye();
  if (!result && too_slow_) {
    co_return Error(ErrorCode::kProtocol, "the handshake took too long");
  }
  co_return result;
}

Task<void> Connection::watch_handshake() {
  if (phase_ == Phase::kHandshake) co_await handshake_timer_;
  if (phase_ == Phase::kHandshake && !EventLoop::current()->stopping()) {
    too_slow_ = true;
    stream_.hang_up();
  }
  helpers_.done();
}

/// Brings the client to an export. False: it left before.
Task<Result<bool>> Connection::enter() {
  auto session = co_await negotiate(stream_, exports_, tls_);
  if (!session) co_return session.error();
  if (!*session) co_return false;
  session_ = std::move(**session);
  phase_ = Phase::kTransmission;
  handshake_timer_.wake();
  co_return true;
}

Task<Result<void>> Connection::serve() {
  if (phase_ == Phase::kHandshake) {
    auto entered = co_await enter();
    if (!entered) co_return entered.error();
    if (!*entered) co_return Result<void>();
  }
  if (entered_) entered_(*session_.device, stream_.tls() != nullptr);

  helpers_.add();
  EventLoop::current()->spawn(send_replies());
  auto result = co_await receive_requests();
  receiving_ = false;
  work_to_send_.notify();
  // run() waits for the sending task, and this for everything in flight.
  co_return result;
}

void Connection::drain() noexcept {
  draining_ = true;
  if (phase_ == Phase::kHandshake) {
    stream_.hang_up();
  } else {
    stream_.stop_reading();
  }
}

void Connection::abort() noexcept {
  draining_ = true;
  aborted_ = true;
  stream_.hang_up();
}

RequestRules Connection::rules() const noexcept {
  RequestRules rules;
  rules.size = session_.device->size();
  rules.read_only = session_.device->read_only();
  rules.headers = session_.headers;
  rules.has_contexts = !session_.contexts.empty();
  rules.draining = draining_ && !asks_again_;
  // To a block device's users ENOMEM is an I/O error, so what it asks for lives off the reserve.
  rules.no_memory = !asks_again_ && memory_is_short();
  return rules;
}

bool Connection::has_room(std::size_t payload) const noexcept {
  if (in_flight_ == 0) return true;
  return in_flight_ < limits_.requests && bytes_charged_ + payload <= limits_.bytes;
}

// ---- Receiving

Task<Result<void>> Connection::receive_requests() {
  const bool extended = session_.headers == Headers::kExtended;
  const std::size_t header_bytes = extended ? kExtendedRequestBytes : kRequestBytes;
  for (;;) {
    bool waited = false;
    while (stream_.buffered().size() < header_bytes) {
      waited = true;
      const std::span<std::byte> room = stream_.room_for(header_bytes);
      Result<std::size_t> got = std::size_t{0};
      if (TlsSession* tls = stream_.tls()) {
        got = co_await tls->receive_some(room);
      } else {
        got = co_await recv_some(stream_.socket(), room);
      }
      if (!got) co_return got.error();
      if (*got == 0) {
        if (stream_.buffered().empty() || asks_again_) co_return Result<void>();
        co_return Error(ErrorCode::kProtocol, "the client hung up in the middle of a request");
      }
      stream_.received(*got);
    }
    const RequestHeader header = decode_request(stream_.buffered(), session_.headers);
    stream_.consume(header_bytes);
    if (header.magic != (extended ? kExtendedRequestMagic : kRequestMagic))
      co_return Error(ErrorCode::kProtocol, "a request does not begin with the request magic");
    const Verdict verdict = check_request(header, rules());
    if (verdict.disconnect) co_return Result<void>();
    if (verdict.fatal) {
      co_return Error(ErrorCode::kProtocol, "a request of " + std::to_string(header.length) +
                                                " bytes: " + std::string(verdict.reason));
    }
    const std::size_t size = buffer_bytes(header, verdict, session_);
    const std::size_t charge = size == 0 ? 0 : BufferPool::rounded(size);
    while (!has_room(charge)) {
      waited = true;
      co_await room_.wait();
    }
    // What a client that has gone had queued concerns no one: thousands of reads, perhaps.
    if (send_failed_) co_return Result<void>();

    Request* request = requests_.take();
    request->header = header;
    request->verdict = verdict;
    request->charged = charge;
    bytes_charged_ += charge;
    ++in_flight_;
    if (size != 0) {
      request->data = buffers_.take(size);
      if (!request->data) {
        waited = true;
        co_await wait_for_memory(request, size);
      }
      if (!request->data && asks_again_) {
        drop(request);
        co_return Result<void>();
      }
    }
    if (verdict.payload != 0) {
      Result<bool> whole = true;
      if (!take_payload(request)) {
        waited = true;
        whole = co_await receive_payload(request);
      }
      if (!whole || !*whole) {
        drop(request);
        if (!whole) co_return whole.error();
        if (asks_again_) co_return Result<void>();
        co_return Error(ErrorCode::kProtocol, "the client hung up in the middle of a payload");
      }
    }
    // A device that has given this connection up asks on another one; done here as well, later, an
    // old write could come after a new one.
    if (asks_again_ && waited && stream_.peer_has_gone()) {
      drop(request);
      co_return Result<void>();
    }
    start(request);
  }
}

/// Forgets a request that was not started.
void Connection::drop(Request* request) noexcept {
  --in_flight_;
  bytes_charged_ -= request->charged;
  requests_.give_back(request);
}

/// Until other connections, or this one's own replies, give some back. A block device waits as long
/// as it takes: to its users ENOMEM is an I/O error.
Task<void> Connection::wait_for_memory(Request* request, std::size_t size) {
  const auto give_up = EventLoop::current()->now() + limits_.memory_patience;
  while (!request->data) {
    const bool late = !asks_again_ && EventLoop::current()->now() >= give_up;
    if (draining_ || send_failed_ || late) {
      request->verdict.error = draining_ ? WireError::kShutdown : WireError::kNoMem;
      request->verdict.reason = "the server has no memory for the request now";
      co_return;
    }
    Sleep pause(kMemoryPause);
    co_await pause;
    request->data = buffers_.take(size);
  }
}

/// From what has been received. False: it has not come as a whole, or is to be dropped.
bool Connection::take_payload(Request* request) noexcept {
  const std::size_t size = request->verdict.payload;
  stream_.set_read_ahead(size >= kLargePayload ? kLargeReadAhead : ByteStream::kCapacity);
  return request->verdict.error == WireError::kNone &&
         stream_.take(request->data.bytes().first(size));
}

Task<Result<bool>> Connection::receive_payload(Request* request) {
  const std::size_t size = request->verdict.payload;
  if (request->verdict.error != WireError::kNone) co_return co_await stream_.skip(size);
  co_return co_await stream_.read_into(request->data.bytes().first(size));
}

void Connection::start(Request* request) {
  has_served_ = true;
  if (!do_now(request)) EventLoop::current()->spawn(handle(request));
}

/// Most reads are of what is in the page cache, and most writes go there: a call, without a task.
/// False: it is not answered.
bool Connection::do_now(Request* request) {
  const RequestHeader& h = request->header;
  if (request->verdict.error != WireError::kNone || !request->data) return false;
  const auto command = static_cast<Command>(h.type);
  if (command == Command::kRead) {
    if (!session_.device->read_now(h.offset, request->data.bytes())) return false;
    build_read(*request, session_.headers);
    reply(request);
    return true;
  }
  if (command != Command::kWrite || (h.flags & kCmdFua) != 0) return false;
  const auto written = session_.device->write_now(h.offset, request->data.bytes());
  if (written) finish(request, *written);
  return written.has_value();
}

// ---- One request

Task<void> Connection::handle(Request* request) {
  const Verdict& verdict = request->verdict;
  const auto command = static_cast<Command>(request->header.type);
  if (verdict.error != WireError::kNone) {
    build_error(*request, verdict.error, verdict.reason, session_.headers);
    reply(request);
  } else if (command == Command::kRead) {
    co_await handle_read(request);
  } else if (command == Command::kBlockStatus) {
    co_await handle_block_status(request);
  } else {
    Result<void> done;
    if (verdict.touches_data) done = co_await call_export(request);
    finish(request, done);
  }
}

Task<void> Connection::handle_read(Request* request) {
  const RequestHeader& h = request->header;
  if (h.length != 0) {
    auto done = co_await session_.device->read(h.offset, request->data.bytes());
    if (!done) {
      fail(request, done.error());
      co_return;
    }
  }
  build_read(*request, session_.headers);
  reply(request);
}

Task<void> Connection::handle_block_status(Request* request) {
  RequestHeader& h = request->header;
  MetaContexts contexts = session_.contexts;
  if (request->verdict.payload != 0) {
    const auto asked =
        decode_block_status_payload(request->data.bytes().first(request->verdict.payload));
    if (asked) contexts = contexts.chosen_by(asked->ids);
    const std::uint64_t size = session_.device->size();
    if (!asked || contexts.empty() || asked->length == 0 || h.offset.value > size ||
        asked->length > size - h.offset.value) {
      fail(request, Error(ErrorCode::kInvalidArgument,
                          "the payload is not a length within the export and ids of contexts"));
      co_return;
    }
    h.length = asked->length;
  }
  const bool one = (h.flags & kCmdReqOne) != 0;
  auto extents = co_await session_.device->extents(h.offset, h.length,
                                                   one ? kExtentsForOne : kMaxStatusExtents);
  if (extents && (extents->empty() || extents->front().length == 0))
    extents = Error(ErrorCode::kIo, "the export gave no extents");
  if (!extents) {
    fail(request, extents.error());
    co_return;
  }
  build_block_status(*request, *extents, contexts, session_.headers);
  if (request->head.size() <= kSmallStatus) request->data.release();
  reply(request);
}

Task<Result<void>> Connection::call_export(const Request* request) {
  const RequestHeader& h = request->header;
  const bool fua = (h.flags & kCmdFua) != 0;
  Export& device = *session_.device;
  switch (static_cast<Command>(h.type)) {
    case Command::kWrite: {
      const bool is_long = h.length >= kLongBytes;
      const bool others_wait = is_long && (in_flight_ > 1 || stream_.more_has_come());
      return device.write(h.offset, request->data.bytes(),
                          {.fua = fua, .others_wait = others_wait});
    }
    case Command::kTrim:
    case Command::kWriteZeroes:
      return clear(h);
    case Command::kCache:
      return read_ahead(h.offset, h.length);
    default:  // check_request lets nothing else through
      return device.flush();
  }
}

/// TRIM and WRITE_ZEROES, in pieces: one of many TiB would hold up the end of a server that has cut
/// its client off. A fast one whose ends are no whole blocks is refused as a whole.
Task<Result<void>> Connection::clear(const RequestHeader& h) {
  const bool trim = static_cast<Command>(h.type) == Command::kTrim;
  const bool fua = (h.flags & kCmdFua) != 0;
  Volume::ZeroOptions options;
  options.fua = fua;
  options.no_hole = (h.flags & kCmdNoHole) != 0;
  options.fast_only = (h.flags & kCmdFastZero) != 0;
  const bool whole_blocks = (h.offset.value | h.length) % kBlockSize == 0;
  const bool whole = options.fast_only && !whole_blocks;
  ByteOffset at = h.offset;
  for (std::uint64_t left = h.length; left != 0;) {
    const std::uint64_t piece = whole ? left : std::min(left, kClearPiece - at.value % kClearPiece);
    auto clearing = trim ? session_.device->trim(at, piece, {.fua = fua})
                         : session_.device->write_zeroes(at, piece, options);
    auto done = co_await std::move(clearing);
    if (!done) co_return done;
    at = at + piece;
    left -= piece;
    if (left != 0 && aborted_)
      co_return Error(ErrorCode::kCancelled, "the server has cut its clients off");
  }
  co_return Result<void>();
}

/// In pieces, and no further than someone may come for it: a CACHE of a whole volume would go on
/// long after its client has gone, and hold up a shutdown.
Task<Result<void>> Connection::read_ahead(ByteOffset at, std::uint64_t length) {
  while (length != 0 && receiving_ && !draining_) {
    const std::uint64_t piece = std::min(length, kCachePiece);
    auto done = co_await session_.device->prefetch(at, piece);
    if (!done) co_return done;
    at = at + piece;
    length -= piece;
  }
  co_return Result<void>();
}

/// Answers a request whose reply has no payload.
void Connection::finish(Request* request, const Result<void>& done) {
  if (!done) return fail(request, done.error());
  build_done(*request, session_.headers);
  reply(request);
}

void Connection::fail(Request* request, const Error& error) {
  request->data.release();
  build_error(*request, wire_error(error.code()), error.message(), session_.headers);
  reply(request);
}

// ---- Sending

void Connection::reply(Request* request) noexcept {
  replies_.push(request);
  work_to_send_.notify();
}

void Connection::release(ReplyQueue::Finished finished) noexcept {
  in_flight_ -= finished.requests;
  bytes_charged_ -= finished.bytes;
  if (finished.requests != 0) room_.notify();
}

Task<void> Connection::send_replies() {
  std::size_t since_yield = 0;
  while (receiving_ || in_flight_ != 0) {
    if (replies_.empty()) {
      co_await work_to_send_.wait();
      continue;
    }
    if (send_failed_) {
      release(replies_.drop_all());
      continue;
    }
    Result<std::size_t> sent = std::size_t{0};
    if (stream_.tls() != nullptr) {
      sent = co_await stream_.tls()->send_some(replies_.gather());
    } else {
      sent = co_await send_some(stream_.socket(), replies_.gather());
    }
    if (sent) {
      release(replies_.advance(*sent));
      since_yield += *sent;
      if (since_yield >= kSendTurn) {
        since_yield = 0;
        co_await yield_now();
      }
    } else {
      // The client has gone. Nothing more is received either; what runs is finished for its effect.
      send_failed_ = true;
      stream_.hang_up();
    }
  }
  helpers_.done();
}

}  // namespace snap::nbd
