#include "engine/nbd/stream.h"

#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <cassert>
#include <cstring>
#include <utility>

#include "snap/event_loop.h"

namespace snap::nbd {

ByteStream::ByteStream(UniqueFd fd)
    : fd_(std::move(fd)), buffer_(std::make_unique_for_overwrite<std::byte[]>(kCapacity)) {}

void ByteStream::consume(std::size_t n) noexcept {
  assert(n <= end_ - begin_);
  begin_ += n;
  if (begin_ == end_) begin_ = end_ = 0;
}

Task<Result<bool>> ByteStream::fill(std::size_t n) {
  assert(n <= kCapacity);
  if (n > kCapacity - begin_) {
    std::memmove(buffer_.get(), buffer_.get() + begin_, end_ - begin_);
    end_ -= begin_;
    begin_ = 0;
  }
  while (end_ - begin_ < n) {
    const std::size_t missing = n - (end_ - begin_);
    IoOp op;
    op.opcode = IoOpcode::kRecv;
    op.fd = fd_.get();
    op.buffer = buffer_.get() + end_;
    op.length = std::min(kCapacity - end_, std::max(missing, read_ahead_));
    auto got = co_await op;
    if (!got) co_return got.error();
    if (*got == 0) co_return false;
    end_ += *got;
  }
  co_return true;
}

Task<Result<bool>> ByteStream::read_into(std::span<std::byte> out) {
  const std::size_t have = std::min(out.size(), end_ - begin_);
  if (have != 0) {
    std::memcpy(out.data(), buffer_.get() + begin_, have);
    consume(have);
  }
  std::size_t done = have;
  while (done < out.size()) {
    IoOp op;
    op.opcode = IoOpcode::kRecv;
    op.fd = fd_.get();
    op.buffer = out.data() + done;
    op.length = out.size() - done;
    auto got = co_await op;
    if (!got) co_return got.error();
    if (*got == 0) co_return false;
    done += *got;
  }
  co_return true;
}

Task<Result<bool>> ByteStream::skip(std::uint64_t n) {
  while (n != 0) {
    if (begin_ == end_) {
      auto got = co_await fill(1);
      if (!got || !*got) co_return got;
    }
    const std::size_t step = static_cast<std::size_t>(std::min<std::uint64_t>(n, end_ - begin_));
    consume(step);
    n -= step;
  }
  co_return true;
}

Task<Result<std::size_t>> ByteStream::send_some(msghdr* message) {
  IoOp op;
  op.opcode = IoOpcode::kSendMsg;
  op.fd = fd_.get();
  op.message = message;
  co_return co_await op;
}

Task<Result<void>> ByteStream::send_all(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    iovec piece{const_cast<std::byte*>(bytes.data()), bytes.size()};
    msghdr message{};
    message.msg_iov = &piece;
    message.msg_iovlen = 1;
    auto sent = co_await send_some(&message);
    if (!sent) co_return sent.error();
    bytes = bytes.subspan(*sent);
  }
  co_return Result<void>();
}

void ByteStream::stop_reading() noexcept {
  // Fails only if the peer has gone, and then there is nothing left to stop.
  ::shutdown(fd_.get(), SHUT_RD);
}

void ByteStream::hang_up() noexcept {
  ::shutdown(fd_.get(), SHUT_RDWR);
}

}  // namespace snap::nbd
