// TlsSession: TLS on a connected socket, for the server's side. GnuTLS never sees the socket: it
// takes what was received from one buffer and puts what is to be sent into another, so it never
// waits, and everything that waits is an operation of the loop.
//
// Invariants:
// - One task receives and one sends at a time, on one loop (as for ByteStream). They share the
//   session between awaits only.
// - A send takes at most kTlsSendBytes, so what waits to go out stays within that and the few
//   records that GnuTLS adds by itself.
// - An end of the connection without the peer's good-bye (close_notify) is an end like any other: a
//   client that has left. Requests carry their lengths, so nothing that is cut off passes for
//   whole.
#pragma once

#include <gnutls/gnutls.h>

#include <cstddef>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "engine/io/socket.h"
#include "engine/nbd/tls_credentials.h"
#include "snap/result.h"
#include "snap/task.h"

namespace snap::nbd {

class TlsSession {
 public:
  /// `socket` outlives the session.
  TlsSession(const Socket& socket, std::shared_ptr<const TlsCredentials> credentials);
  TlsSession(const TlsSession&) = delete;
  TlsSession& operator=(const TlsSession&) = delete;
  ~TlsSession();

  /// Agrees on keys and checks who the client is. Protocol (it broke the rules, proved nothing, or
  /// hung up) or Io.
  Task<Result<void>> handshake();

  /// Decrypted bytes, at least 1; 0 if the peer has ended.
  Task<Result<std::size_t>> receive_some(std::span<std::byte> out);
  /// Encrypts and sends a first part of `parts`: bytes of them that are gone.
  Task<Result<std::size_t>> send_some(std::span<const iovec> parts);

  /// Says good-bye, if that takes no waiting. Nothing is sent afterwards.
  void close() noexcept;

 private:
  // What GnuTLS calls.
  static ssize_t push(gnutls_transport_ptr_t self, const giovec_t* parts, int count) noexcept;
  static ssize_t pull(gnutls_transport_ptr_t self, void* out, std::size_t size) noexcept;

  Result<void> encrypt(std::span<const std::byte> bytes);
  Result<void> encrypt_gathered();
  Task<Result<void>> flush();
  void flush_without_waiting() noexcept;
  Task<Result<void>> receive_records();
  std::size_t decrypt(std::span<std::byte> out);
  Error handshake_error(int code) const;

  const Socket& socket_;
  std::shared_ptr<const TlsCredentials> credentials_;
  gnutls_session_t session_ = nullptr;
  int setup_ = 0;  ///< a GnuTLS error code

  // Received and not decrypted yet.
  std::unique_ptr<std::byte[]> in_;
  std::size_t in_begin_ = 0;
  std::size_t in_end_ = 0;
  bool peer_closed_ = false;

  std::vector<std::byte> gathered_;  ///< plaintext for the next record
  std::vector<std::byte> out_;       ///< encrypted, not sent yet
  std::vector<std::byte> sending_;   ///< on its way
  bool send_failed_ = false;
  bool established_ = false;

  bool end_seen_ = false;        ///< no more will be decrypted
  std::optional<Error> broken_;  ///< why, if it was no end in order
};

}  // namespace snap::nbd
