#include "engine/nbd/tls_session.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>
#include <utility>

#include "snap/limits.h"

namespace snap::nbd {

namespace {

/// What a record holds, at most.
constexpr std::size_t kRecordBytes = 16u << 10;
/// Beyond a send's records nothing but alerts and handshake messages may pile up.
constexpr std::size_t kMostWaiting = 2 * kTlsSendBytes;

}  // namespace

TlsSession::TlsSession(const Socket& socket, std::shared_ptr<const TlsCredentials> credentials)
    : socket_(socket),
      credentials_(std::move(credentials)),
      in_(std::make_unique_for_overwrite<std::byte[]>(kTlsReceiveBytes)) {
  setup_ = gnutls_init(&session_, GNUTLS_SERVER | GNUTLS_NONBLOCK | GNUTLS_NO_SIGNAL);
  if (setup_ != 0) return;
  gnutls_transport_set_ptr(session_, this);
  gnutls_transport_set_vec_push_function(session_, &TlsSession::push);
  gnutls_transport_set_pull_function(session_, &TlsSession::pull);
  // The whole handshake has a time limit of its own (Connection).
  gnutls_handshake_set_timeout(session_, GNUTLS_INDEFINITE_TIMEOUT);
  setup_ = credentials_->apply(session_);
}

TlsSession::~TlsSession() {
  if (session_ != nullptr) gnutls_deinit(session_);
}

ssize_t TlsSession::push(gnutls_transport_ptr_t self, const giovec_t* parts, int count) noexcept {
  auto* const s = static_cast<TlsSession*>(self);
  ssize_t taken = 0;
  for (int i = 0; i < count; ++i) {
    if (s->out_.size() + parts[i].iov_len > kMostWaiting) {
      gnutls_transport_set_errno(s->session_, EIO);
      return -1;
    }
    const auto* bytes = static_cast<const std::byte*>(parts[i].iov_base);
    s->out_.insert(s->out_.end(), bytes, bytes + parts[i].iov_len);
    taken += static_cast<ssize_t>(parts[i].iov_len);
  }
  return taken;
}

ssize_t TlsSession::pull(gnutls_transport_ptr_t self, void* out, std::size_t size) noexcept {
  auto* const s = static_cast<TlsSession*>(self);
  const std::size_t n = std::min(size, s->in_end_ - s->in_begin_);
  // Not the end either, when it comes: GnuTLS would then send no more, what is in flight included.
  if (n == 0) {
    gnutls_transport_set_errno(s->session_, EAGAIN);
    return -1;
  }
  std::memcpy(out, s->in_.get() + s->in_begin_, n);
  s->in_begin_ += n;
  return static_cast<ssize_t>(n);
}

// ---- Handshake

Task<Result<void>> TlsSession::handshake() {
  if (setup_ != 0) {
    co_return Error(ErrorCode::kIo,
                    std::string("set up a TLS session: ") + gnutls_strerror(setup_));
  }
  for (;;) {
    const std::size_t before = in_begin_;
    const int code = gnutls_handshake(session_);
    if (code == GNUTLS_E_SUCCESS) established_ = true;
    const bool fatal = code != GNUTLS_E_SUCCESS && gnutls_error_is_fatal(code) != 0;
    if (fatal) {
      (void)gnutls_alert_send_appropriate(session_, code);
      flush_without_waiting();
      co_return handshake_error(code);
    }
    auto flushed = co_await flush();
    if (!flushed) co_return flushed.error();
    if (code == GNUTLS_E_SUCCESS) co_return Result<void>();
    const bool needs_more = in_begin_ == in_end_ || in_begin_ == before;
    if (code != GNUTLS_E_AGAIN || !needs_more) continue;
    auto received = co_await receive_records();
    if (!received) co_return received.error();
    if (peer_closed_) co_return Error(ErrorCode::kProtocol, "TLS handshake: the client hung up");
  }
}

Error TlsSession::handshake_error(int code) const {
  std::string why = gnutls_strerror(code);
  if (code == GNUTLS_E_FATAL_ALERT_RECEIVED) {
    const char* alert = gnutls_alert_get_name(gnutls_alert_get(session_));
    why = std::string("the client gave up: ") + (alert != nullptr ? alert : "unknown alert");
  } else if (code == GNUTLS_E_CERTIFICATE_VERIFICATION_ERROR) {
    gnutls_datum_t text{};
    if (gnutls_certificate_verification_status_print(
            gnutls_session_get_verify_cert_status(session_), GNUTLS_CRT_X509, &text, 0) == 0) {
      why = "the client's certificate: " + std::string(reinterpret_cast<char*>(text.data));
      while (why.ends_with(' '))
        why.pop_back();
      gnutls_free(text.data);
    }
  }
  return Error(ErrorCode::kProtocol, "TLS handshake: " + why);
}

// ---- Receiving

Task<Result<void>> TlsSession::receive_records() {
  if (in_begin_ == in_end_) in_begin_ = in_end_ = 0;
  if (in_end_ == kTlsReceiveBytes) {  // GnuTLS takes all it can get before it asks for more
    std::memmove(in_.get(), in_.get() + in_begin_, in_end_ - in_begin_);
    in_end_ -= in_begin_;
    in_begin_ = 0;
  }
  auto got =
      co_await recv_some(socket_, std::span(in_.get() + in_end_, kTlsReceiveBytes - in_end_));
  if (!got) co_return got.error();
  if (*got == 0) peer_closed_ = true;
  in_end_ += *got;
  co_return Result<void>();
}

/// As much as has arrived whole and `out` takes, so that requests that came together are seen
/// together.
std::size_t TlsSession::decrypt(std::span<std::byte> out) {
  std::size_t done = 0;
  while (done < out.size() && !end_seen_) {
    const std::size_t before = in_begin_;
    const ssize_t n = gnutls_record_recv(session_, out.data() + done, out.size() - done);
    const int code = static_cast<int>(n);
    if (n > 0) {
      done += static_cast<std::size_t>(n);
    } else if (code == GNUTLS_E_AGAIN) {
      // It says so, too, after a message of its own (new keys), with more to come.
      if (in_begin_ == in_end_ || in_begin_ == before) break;
    } else if (n == 0) {
      end_seen_ = true;
    } else if (code == GNUTLS_E_REHANDSHAKE || gnutls_error_is_fatal(code) != 0) {
      // New keys by a handshake in the middle belong to TLS 1.2 alone, and no client needs them.
      end_seen_ = true;
      broken_ = Error(ErrorCode::kProtocol, std::string("TLS: ") + gnutls_strerror(code));
    }
  }
  return done;
}

Task<Result<std::size_t>> TlsSession::receive_some(std::span<std::byte> out) {
  for (;;) {
    const std::size_t done = decrypt(out);
    if (done != 0) co_return done;
    if (broken_) co_return *broken_;
    if (end_seen_ || peer_closed_) co_return std::size_t{0};
    auto received = co_await receive_records();
    if (!received) co_return received.error();
  }
}

// ---- Sending

/// Makes records of `bytes`. (GnuTLS would gather pieces itself, corked, but forgets then that the
/// peer has asked for new keys.)
Result<void> TlsSession::encrypt(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t n = gnutls_record_send(session_, bytes.data(), bytes.size());
    if (n < 0) {
      send_failed_ = true;
      return Error(ErrorCode::kIo, std::string("TLS: ") + gnutls_strerror(static_cast<int>(n)));
    }
    bytes = bytes.subspan(static_cast<std::size_t>(n));
  }
  return {};
}

Task<Result<std::size_t>> TlsSession::send_some(std::span<const iovec> parts) {
  std::size_t taken = 0;
  Result<void> encrypted;
  for (const iovec& part : parts) {
    std::span rest(static_cast<const std::byte*>(part.iov_base), part.iov_len);
    rest = rest.first(std::min(rest.size(), kTlsSendBytes - taken));
    taken += rest.size();
    // Small pieces share a record; a large one goes without a copy, but for its end.
    while (encrypted && !rest.empty()) {
      std::span<const std::byte> record = rest;
      if (gathered_.empty() && rest.size() >= kRecordBytes) {
        record = rest.first(kRecordBytes);
        encrypted = encrypt(record);
      } else {
        record = rest.first(std::min(rest.size(), kRecordBytes - gathered_.size()));
        gathered_.insert(gathered_.end(), record.begin(), record.end());
        if (gathered_.size() == kRecordBytes) encrypted = encrypt_gathered();
      }
      rest = rest.subspan(record.size());
    }
    if (!encrypted || taken == kTlsSendBytes) break;
  }
  if (encrypted) encrypted = encrypt_gathered();
  if (!encrypted) co_return encrypted.error();
  auto sent = co_await flush();
  if (!sent) co_return sent.error();
  co_return taken;
}

Result<void> TlsSession::encrypt_gathered() {
  auto encrypted = encrypt(gathered_);
  gathered_.clear();
  return encrypted;
}

/// What a receive leaves in out_ (an answer to new keys) goes with the next send.
Task<Result<void>> TlsSession::flush() {
  if (out_.empty()) co_return Result<void>();
  sending_.swap(out_);
  auto sent = co_await send_all(socket_, sending_);
  sending_.clear();
  if (!sent) {
    send_failed_ = true;
    co_return sent.error();
  }
  co_return Result<void>();
}

void TlsSession::flush_without_waiting() noexcept {
  if (!send_failed_ && !out_.empty())
    (void)::send(socket_.fd(), out_.data(), out_.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
  out_.clear();
  send_failed_ = true;
}

void TlsSession::close() noexcept {
  if (!established_ || send_failed_) return;
  (void)gnutls_bye(session_, GNUTLS_SHUT_WR);
  flush_without_waiting();
}

}  // namespace snap::nbd
