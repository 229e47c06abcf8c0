#include "engine/nbd/stream.h"

#include <poll.h>
#include <sys/ioctl.h>

#include <algorithm>
#include <cassert>
#include <cstring>
#include <utility>

namespace snap::nbd {

ByteStream::ByteStream(Socket socket)
    : socket_(std::move(socket)), buffer_(std::make_unique_for_overwrite<std::byte[]>(kCapacity)) {}

void ByteStream::consume(std::size_t n) noexcept {
  assert(n <= end_ - begin_);
  begin_ += n;
  if (begin_ == end_) begin_ = end_ = 0;
}

std::span<std::byte> ByteStream::room_for(std::size_t n) noexcept {
  assert(n <= kCapacity && n > end_ - begin_);
  if (n > kCapacity - begin_) {
    std::memmove(buffer_.get(), buffer_.get() + begin_, end_ - begin_);
    end_ -= begin_;
    begin_ = 0;
  }
  const std::size_t missing = n - (end_ - begin_);
  return {buffer_.get() + end_, std::min(kCapacity - end_, std::max(missing, read_ahead_))};
}

Task<Result<bool>> ByteStream::fill(std::size_t n) {
  while (end_ - begin_ < n) {
    const std::span<std::byte> room = room_for(n);
    Result<std::size_t> got = std::size_t{0};
    if (tls_) {
      got = co_await tls_->receive_some(room);
    } else {
      got = co_await recv_some(socket_, room);
    }
    if (!got) co_return got.error();
    if (*got == 0) co_return false;
    received(*got);
  }
  co_return true;
}

bool ByteStream::take(std::span<std::byte> out) noexcept {
  if (out.size() > end_ - begin_) return false;
  if (!out.empty()) std::memcpy(out.data(), buffer_.get() + begin_, out.size());
  consume(out.size());
  return true;
}

Task<Result<bool>> ByteStream::read_into(std::span<std::byte> out) {
  const std::size_t have = std::min(out.size(), end_ - begin_);
  (void)take(out.first(have));
  std::size_t done = have;
  while (done < out.size()) {
    Result<std::size_t> got = std::size_t{0};
    if (tls_) {
      got = co_await tls_->receive_some(out.subspan(done));
    } else {
      got = co_await recv_some(socket_, out.subspan(done));
    }
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

Task<Result<void>> ByteStream::send(std::span<const std::byte> bytes) {
  if (!tls_) co_return co_await send_all(socket_, bytes);
  while (!bytes.empty()) {
    iovec part{const_cast<std::byte*>(bytes.data()), bytes.size()};
    const std::span<const iovec> parts(&part, 1);
    auto sent = co_await tls_->send_some(parts);
    if (!sent) co_return sent.error();
    bytes = bytes.subspan(*sent);
  }
  co_return Result<void>();
}

Task<Result<void>> ByteStream::start_tls(std::shared_ptr<const TlsCredentials> credentials) {
  assert(begin_ == end_ && !tls_);
  auto session = std::make_unique<TlsSession>(socket_, std::move(credentials));
  auto done = co_await session->handshake();
  if (done) tls_ = std::move(session);
  co_return done;
}

bool ByteStream::more_has_come() const noexcept {
  int waiting = 0;
  return begin_ != end_ || (::ioctl(socket_.fd(), FIONREAD, &waiting) == 0 && waiting > 0);
}

bool ByteStream::peer_has_gone() const noexcept {
  pollfd look{socket_.fd(), 0, 0};
  return ::poll(&look, 1, 0) > 0 && (look.revents & (POLLHUP | POLLERR)) != 0;
}

}  // namespace snap::nbd
