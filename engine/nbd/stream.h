// ByteStream: a connected socket with a receive buffer, for the handshake and for requests; in
// plaintext, or from start_tls() on under TLS.
//
// One task reads and one task sends at a time, on the loop where the stream lives.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "engine/io/socket.h"
#include "engine/nbd/tls_session.h"
#include "snap/result.h"
#include "snap/task.h"

namespace snap::nbd {

class ByteStream {
 public:
  /// Holds a batch of small WRITE requests with their payloads, and any option with its data.
  static constexpr std::size_t kCapacity = 256u << 10;

  explicit ByteStream(Socket socket);

  /// What has been received and not consumed. Valid until the next receive.
  std::span<const std::byte> buffered() const noexcept {
    return {buffer_.get() + begin_, end_ - begin_};
  }
  void consume(std::size_t n) noexcept;

  /// What fill() is made of, for who can have no task on its way: where the next receive puts its
  /// bytes, at least as many as `n` (at most kCapacity) buffered ones lack; and how many it got.
  std::span<std::byte> room_for(std::size_t n) noexcept;
  void received(std::size_t n) noexcept { end_ += n; }
  /// Receives until `n` bytes (at most kCapacity) are buffered. False: the peer closed before.
  Task<Result<bool>> fill(std::size_t n);
  /// Fills `out` from the buffer. False: it does not hold so much, and nothing was taken.
  bool take(std::span<std::byte> out) noexcept;
  /// Fills `out`: first from the buffer, the rest straight from the socket. False: closed before.
  Task<Result<bool>> read_into(std::span<std::byte> out);
  /// Drops the next `n` bytes. False: closed before.
  Task<Result<bool>> skip(std::uint64_t n);

  /// How much one receive may take ahead of what is asked for. Small while payloads are large, so
  /// that these are received in place and not copied out of the buffer.
  void set_read_ahead(std::size_t bytes) noexcept { read_ahead_ = bytes; }

  /// All of `bytes`.
  Task<Result<void>> send(std::span<const std::byte> bytes);
  /// For the data path, which sends on the socket itself while there is no TLS.
  const Socket& socket() const noexcept { return socket_; }
  TlsSession* tls() const noexcept { return tls_.get(); }

  /// Does the server's part of a TLS handshake; everything is encrypted from then on. Nothing may
  /// be buffered: it would be plaintext that passes for encrypted.
  Task<Result<void>> start_tls(std::shared_ptr<const TlsCredentials> credentials);
  /// The last word under TLS, if it can be said without waiting.
  void say_goodbye() noexcept {
    if (tls_) tls_->close();
  }

  /// No more is received than what has arrived; a pending receive ends.
  void stop_reading() noexcept { socket_.shutdown(SHUT_RD); }
  /// Whether the peer has closed both directions, though what it sent before can still be received.
  bool peer_has_gone() const noexcept;
  /// Whether the peer has sent more than was consumed.
  bool more_has_come() const noexcept;
  /// Ends both directions: pending and later sends fail, receives see the end.
  void hang_up() noexcept { socket_.shutdown(SHUT_RDWR); }

 private:
  Socket socket_;
  std::unique_ptr<TlsSession> tls_;
  std::unique_ptr<std::byte[]> buffer_;
  std::size_t begin_ = 0;
  std::size_t end_ = 0;
  std::size_t read_ahead_ = kCapacity;
};

}  // namespace snap::nbd
