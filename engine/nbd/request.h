// A request from its header to its last reply byte, and the rules that a header is checked against.
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "engine/nbd/buffer_pool.h"
#include "engine/nbd/protocol.h"
#include "snap/result.h"

namespace snap::nbd {

/// What the checks need to know about the connection and its export, at this moment.
struct RequestRules {
  std::uint64_t size = 0;  ///< bytes
  bool read_only = false;
  Headers headers = Headers::kSimple;
  bool has_contexts = false;  ///< SET_META_CONTEXT chose at least one
  bool draining = false;      ///< the server is shutting down
  bool no_memory = false;     ///< the server has no memory for anything new
};

struct Verdict {
  WireError error = WireError::kNone;
  std::string_view reason;    ///< for the client's user, when there is an error
  std::size_t payload = 0;    ///< bytes that follow the header, to be read or dropped
  bool disconnect = false;    ///< the client says good-bye
  bool fatal = false;         ///< the stream cannot be followed any further: drop the connection
  bool touches_data = false;  ///< neither refused nor empty: the export is asked
};

/// Checks a header (checklist: doc/proto.md, "Request types" and "Error values").
Verdict check_request(const RequestHeader& header, const RequestRules& rules) noexcept;

/// Lives in the connection's pool. Buffers stay until the last byte of the reply is sent.
struct Request {
  RequestHeader header;
  Verdict verdict;
  Buffer data;              ///< of a WRITE, or of a READ's reply
  std::size_t charged = 0;  ///< bytes that it counts for in the connection's limit
  Request* next = nullptr;  ///< in the reply queue or the free list

  // The reply, once it is known (engine/nbd/reply.h).
  std::vector<std::byte> head;  ///< headers and everything else that is not data
  std::vector<iovec> pieces;    ///< what is sent, in order; points into head and data
};

/// Requests are used again, with the memory that their vectors have grown. At most as many exist as
/// are in flight at once; the connection limits these.
class RequestPool {
 public:
  Request* take();
  void give_back(Request* request) noexcept;

 private:
  std::vector<std::unique_ptr<Request>> all_;
  Request* free_ = nullptr;
};

}  // namespace snap::nbd
