#include "scripted_loop.h"

#include <errno.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <cstring>

#include "engine/io/socket_calls.h"
#include "fuzz.h"

// Every connection is the script, and no one listens.
namespace snap::net {
int connect_unix(const std::string&, int) {
  return fuzz::ScriptedLoop::kDescriptor;
}
UnixListener listen_unix(const std::string&, unsigned) {
  return {};
}
TcpSocket listen_tcp(const std::string&, const std::string&) {
  return {};
}
TcpSocket connect_tcp(const std::string&, const std::string&, int) {
  return {};
}
void describe_bound(int, std::string&, unsigned&) {}
}  // namespace snap::net

namespace snap::fuzz {

bool ScriptedLoop::submit(IoOp& op) {
  switch (op.opcode) {
    case IoOpcode::kRecv:
      op.result = receive(op);
      return false;
    case IoOpcode::kSendMsg:
      op.result = send(op);
      return false;
    case IoOpcode::kAccept:
      if (!accepted_) {
        accepted_ = true;
        op.result = kDescriptor;
        return false;
      }
      waiting_.push_back(&op);
      return true;
    case IoOpcode::kPoll:
      waiting_.push_back(&op);
      return true;
    default:
      broken("only sockets are used");
  }
}

std::int64_t ScriptedLoop::receive(const IoOp& op) {
  const std::size_t n =
      hung_up_ ? 0 : std::min({op.length, script_.most_received, script_.input.size()});
  if (n == 0) {
    if (op.length == 0) broken("no one receives nothing");
    ended_ = true;
    return 0;
  }
  std::memcpy(op.buffer, script_.input.data(), n);
  script_.input = script_.input.subspan(n);
  return static_cast<std::int64_t>(n);
}

std::int64_t ScriptedLoop::send(const IoOp& op) {
  std::size_t n = 0;
  for (std::size_t i = 0; i < op.message->msg_iovlen && n < script_.most_sent; ++i) {
    const iovec& part = op.message->msg_iov[i];
    const auto* bytes = static_cast<const std::byte*>(part.iov_base);
    const std::size_t taken = std::min(part.iov_len, script_.most_sent - n);
    sent_.insert(sent_.end(), bytes, bytes + taken);
    n += taken;
  }
  if (n == 0) broken("no one sends nothing");
  hung_up_ = hung_up_ || sent_.size() > script_.hangs_up_after;
  return hung_up_ ? -EPIPE : static_cast<std::int64_t>(n);
}

void ScriptedLoop::cancel(IoOp& op) {
  const auto found = std::find(waiting_.begin(), waiting_.end(), &op);
  if (found == waiting_.end()) return;
  waiting_.erase(found);
  complete(op, -ECANCELED);
}

void ScriptedLoop::cancel_waits() {
  while (!waiting_.empty())
    cancel(*waiting_.back());
}

void ScriptedLoop::turn(bool may_wait, std::optional<Clock::time_point> deadline) {
  if (!may_wait) return;
  if (!deadline) broken("no task waits for what never happens");
  now_ = std::max(now_, *deadline);
}

}  // namespace snap::fuzz
