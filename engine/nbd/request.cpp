#include "engine/nbd/request.h"

#include "snap/limits.h"

namespace snap::nbd {

namespace {

// A reply's vectors beyond this are not kept: one huge reply must not stay paid for.
constexpr std::size_t kKeptHead = 16u << 10;

/// Flags that make sense for a command; FUA does for all once it is advertised.
unsigned allowed_flags(Command command, bool structured_replies) noexcept {
  switch (command) {
    case Command::kRead:
      return kCmdFua | (structured_replies ? kCmdDf : 0u);
    case Command::kWriteZeroes:
      return kCmdFua | kCmdNoHole | kCmdFastZero;
    case Command::kBlockStatus:
      return kCmdFua | kCmdReqOne;
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
  if (command == Command::kWrite) {
    verdict.payload = h.length;
    if (h.length > kMaxNbdPayload) {
      verdict.fatal = true;
      return refuse(verdict, WireError::kInval, "the payload is larger than 32 MiB");
    }
  }
  if (rules.draining) return refuse(verdict, WireError::kShutdown, "the server is shutting down");
  if (!known(h.type)) return refuse(verdict, WireError::kInval, "unknown command");
  if ((h.flags & ~allowed_flags(command, rules.structured_replies)) != 0)
    return refuse(verdict, WireError::kInval, "unknown command flag");
  if (command == Command::kFlush) {
    if (h.offset.value != 0 || h.length != 0)
      return refuse(verdict, WireError::kInval, "FLUSH takes no offset and no length");
    verdict.touches_data = true;
    return verdict;
  }
  if (writes(command) && rules.read_only)
    return refuse(verdict, WireError::kPerm, "the export is read-only");
  // Written so that offset + length cannot wrap.
  if (h.offset.value > rules.size || h.length > rules.size - h.offset.value) {
    const bool grows = command == Command::kWrite || command == Command::kWriteZeroes;
    return refuse(verdict, grows ? WireError::kNoSpace : WireError::kInval,
                  "the range ends beyond the export");
  }
  if (command == Command::kRead && h.length > kMaxNbdPayload)
    return refuse(verdict, WireError::kInval, "the read is larger than 32 MiB");
  if (command == Command::kBlockStatus) {
    if (!rules.has_contexts)
      return refuse(verdict, WireError::kInval, "no metadata context was negotiated");
    if (h.length == 0) return refuse(verdict, WireError::kInval, "BLOCK_STATUS of no bytes");
  }
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
