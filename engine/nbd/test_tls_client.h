// The client's side of the wire under TLS, by GnuTLS, with a key that both sides know. For tests
// only.
#pragma once

#include <gnutls/gnutls.h>

#include <cerrno>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "engine/nbd/test_client.h"

namespace snap::nbd {

struct TlsClientOptions {
  std::string name = "alice";
  std::string key = "0123456789abcdef0123456789abcdef";  ///< in hexadecimal
  std::string versions = "+VERS-TLS1.3:+VERS-TLS1.2";
  /// Bytes that leave during the handshake; what is beyond them gets lost.
  std::size_t most_sent = ~std::size_t{0};
};

/// Before start() it speaks plaintext.
class TlsWire final : public Wire {
 public:
  explicit TlsWire(int fd, TlsClientOptions options = {})
      : Wire(fd), socket_(fd), options_(std::move(options)) {}
  ~TlsWire() override {
    if (session_ != nullptr) gnutls_deinit(session_);
    if (credentials_ != nullptr) gnutls_psk_free_client_credentials(credentials_);
  }

  /// STARTTLS and the TLS handshake; the latter's GnuTLS code.
  int start() {
    option(Option::kStartTls);
    must_ack(Option::kStartTls);
    return handshake();
  }
  /// A whole handshake under TLS. Throws unless it succeeds.
  void enter_encrypted(std::string_view name) {
    greet();
    if (start() != 0) throw std::runtime_error("the TLS handshake failed");
    option(Option::kGo, info_data(name));
    must_ack(Option::kGo);
  }
  int handshake() {
    std::string key = options_.key;
    const gnutls_datum_t datum{reinterpret_cast<unsigned char*>(key.data()),
                               static_cast<unsigned>(key.size())};
    gnutls_psk_allocate_client_credentials(&credentials_);
    gnutls_psk_set_client_credentials(credentials_, options_.name.c_str(), &datum,
                                      GNUTLS_PSK_KEY_HEX);
    gnutls_init(&session_, GNUTLS_CLIENT | GNUTLS_NO_SIGNAL);
    const std::string priority =
        "NORMAL:-VERS-ALL:" + options_.versions + ":-KX-ALL:+ECDHE-PSK:+DHE-PSK";
    if (gnutls_priority_set_direct(session_, priority.c_str(), nullptr) != 0)
      throw std::runtime_error("priority " + priority);
    gnutls_credentials_set(session_, GNUTLS_CRD_PSK, credentials_);
    gnutls_transport_set_ptr(session_, this);
    gnutls_transport_set_push_function(session_, &TlsWire::push);
    gnutls_transport_set_pull_function(session_, &TlsWire::pull);
    gnutls_handshake_set_timeout(session_, GNUTLS_INDEFINITE_TIMEOUT);
    int code;
    do {
      code = gnutls_handshake(session_);
    } while (code != 0 && gnutls_error_is_fatal(code) == 0);
    encrypted_ = code == 0;
    return code;
  }
  /// True if the server has ended in order: with a close_notify, after nothing else.
  bool ended_in_order() {
    std::byte b;
    return gnutls_record_recv(session_, &b, 1) == 0;
  }
  gnutls_session_t session() const { return session_; }
  std::size_t sent() const { return sent_; }

 protected:
  ssize_t put(std::span<const std::byte> bytes) override {
    if (!encrypted_) return Wire::put(bytes);
    return as_call(gnutls_record_send(session_, bytes.data(), bytes.size()));
  }
  ssize_t take(std::span<std::byte> out) override {
    if (!encrypted_) return Wire::take(out);
    ssize_t n;
    do {
      n = gnutls_record_recv(session_, out.data(), out.size());
    } while (n == GNUTLS_E_AGAIN || n == GNUTLS_E_INTERRUPTED);
    return as_call(n);
  }

 private:
  static ssize_t as_call(ssize_t n) {
    if (n < 0) errno = ECONNRESET;
    return n < 0 ? -1 : n;
  }
  static ssize_t push(gnutls_transport_ptr_t self, const void* data, std::size_t size) {
    auto* const wire = static_cast<TlsWire*>(self);
    const std::size_t allowed =
        std::min(size, wire->options_.most_sent - std::min(wire->options_.most_sent, wire->sent_));
    wire->sent_ += size;
    // Interrupted it may be by the workers that io_uring starts in this process, for the server.
    for (std::size_t done = 0; done < allowed;) {
      const ssize_t n = ::send(wire->socket_, static_cast<const std::byte*>(data) + done,
                               allowed - done, MSG_NOSIGNAL);
      if (n < 0 && errno != EINTR) return -1;
      if (n > 0) done += static_cast<std::size_t>(n);
    }
    if (allowed < size) ::shutdown(wire->socket_, SHUT_WR);
    return static_cast<ssize_t>(size);
  }
  static ssize_t pull(gnutls_transport_ptr_t self, void* out, std::size_t size) {
    ssize_t n;
    do {
      n = ::recv(static_cast<TlsWire*>(self)->socket_, out, size, 0);
    } while (n < 0 && errno == EINTR);
    return n;
  }

  int socket_;
  TlsClientOptions options_;
  std::size_t sent_ = 0;
  bool encrypted_ = false;
  gnutls_psk_client_credentials_t credentials_ = nullptr;
  gnutls_session_t session_ = nullptr;
};

}  // namespace snap::nbd
