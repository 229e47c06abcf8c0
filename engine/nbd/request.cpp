#include "engine/nbd/request.h"

#include "engine/nbd/contexts.h"
#include "snap/limits.h"

namespace snap::nbd {

namespace {

// A BLOCK_STATUS payload: a length, and the id of each context at most once.
constexpr std::size_t kMaxBlockStatusPayload = 8 + 4 * kMetaContexts.size();
// A reply's vectors beyond this are not kept: one huge reply must not stay paid for.
constexpr std::size_t kKeptHead = 2u << 10;

/// Flags that make sense for a command; FUA does for all once it is advertised.
unsigned allowed_flags(Command command, Headers headers) noexcept {
  const unsigned payload = headers == Headers::kExtended ? kCmdPayloadLen : 0u;
  switch (command) {
    case Command::kRead:
      return kCmdFua | (headers != Headers::kSimple ? kCmdDf : 0u);
    case Command::kWrite:
      return kCmdFua | payload;
    case Command::kWriteZeroes:
      return kCmdFua | kCmdNoHole | kCmdFastZero;
    case Command::kBlockStatus:
      return kCmdFua | kCmdReqOne | payload;
    default:
      return kCmdFua;
  }
}

bool known(std::uint16_t type) noexcept {
  return type <= static_cast<std::uint16_t>(Command::kBlockStatus);
}

bool writes(Command command) noexcept {
  return command == Command::kWrite || command == Command::kTrim ||
         command == Command::kWriteZeroes;
}

Verdict refuse(Verdict verdict, WireError error, std::string_view reason) noexcept {
  verdict.error = error;
  verdict.reason = reason;
  return verdict;
}

}  // namespace

Verdict check_request(const RequestHeader& h, const RequestRules& rules) noexcept {
  Verdict verdict;
  const auto command = static_cast<Command>(h.type);
  if (command == Command::kDisconnect) {
    verdict.disconnect = true;
    return verdict;
  }
  const bool extended = rules.headers == Headers::kExtended;
  // With extended headers the flag alone says whether a payload follows, whatever the command.
  const bool has_payload = extended ? (h.flags & kCmdPayloadLen) != 0 : command == Command::kWrite;
  if (has_payload) {
    if (h.length > kMaxNbdPayload) {
      verdict.fatal = true;
      return refuse(verdict, WireError::kInval, "the payload is larger than 32 MiB");
    }
    verdict.payload = static_cast<std::size_t>(h.length);
  }
  if (rules.draining) return refuse(verdict, WireError::kShutdown, "the server is shutting down");
  if (rules.no_memory) return refuse(verdict, WireError::kNoMem, "the server is out of memory");
  if (!known(h.type)) return refuse(verdict, WireError::kInval, "unknown command");
  if ((h.flags & ~allowed_flags(command, rules.headers)) != 0)
    return refuse(verdict, WireError::kInval, "unknown command flag");
  if (command == Command::kFlush) {
    if (h.offset.value != 0 || h.length != 0)
      return refuse(verdict, WireError::kInval, "FLUSH takes no offset and no length");
    verdict.touches_data = true;
    return verdict;
  }
  if (command == Command::kWrite && !has_payload)
    return refuse(verdict, WireError::kInval, "a WRITE without its payload flag");
  if (writes(command) && rules.read_only)
    return refuse(verdict, WireError::kPerm, "the export is read-only");
  if (command == Command::kBlockStatus && !rules.has_contexts)
    return refuse(verdict, WireError::kInval, "no metadata context was negotiated");
  if (command == Command::kBlockStatus && has_payload) {
    // The range is in the payload, and checked when that is here (Connection::handle_block_status).
    if (h.length > kMaxBlockStatusPayload)
      return refuse(verdict, WireError::kInval, "more contexts than there are");
    if (h.length == 0)
      return refuse(verdict, WireError::kInval, "BLOCK_STATUS with an empty payload");
    verdict.touches_data = true;
    return verdict;
  }
  // Written so that offset + length cannot wrap.
  if (h.offset.value > rules.size || h.length > rules.size - h.offset.value) {
    const bool grows = command == Command::kWrite || command == Command::kWriteZeroes;
    return refuse(verdict, grows ? WireError::kNoSpace : WireError::kInval,
                  "the range ends beyond the export");
  }
  if (command == Command::kRead && h.length > kMaxNbdPayload)
    return refuse(verdict, WireError::kInval, "the read is larger than 32 MiB");
  if (command == Command::kBlockStatus && h.length == 0)
    return refuse(verdict, WireError::kInval, "BLOCK_STATUS of no bytes");
  verdict.touches_data = h.length != 0;
  return verdict;
}

Request* RequestPool::take() {
  if (free_ == nullptr) {
    all_.push_back(std::make_unique<Request>());
    return all_.back().get();
  }
  Request* request = free_;
  free_ = request->next;
  request->next = nullptr;
  return request;
}

void RequestPool::give_back(Request* request) noexcept {
  request->data.release();
  request->pieces.clear();
  request->head.clear();
  if (request->head.capacity() > kKeptHead) {
    request->head.shrink_to_fit();
    request->pieces.shrink_to_fit();
  }
  request->charged = 0;
  request->next = free_;
  free_ = request;
}

}  // namespace snap::nbd
