// TlsCredentials: what a server proves itself with under TLS, and what it wants of its clients:
// certificates (x509), or keys that both sides know (PSK). Read once, when the server starts.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "snap/result.h"

struct gnutls_session_int;

namespace snap::nbd {

/// Thread-safe: sessions on all loops share one.
class TlsCredentials {
 public:
  /// Whether a client must have a certificate that the CA of the directory has signed.
  enum class VerifyPeer { kNo, kYes };

  // Both read files: not for a loop's thread. Errors name the file and what to do about it.

  /// A directory as qemu and nbdkit have it: server-cert.pem, server-key.pem, ca-cert.pem (needed
  /// for kYes) and, if there is one, ca-crl.pem.
  static Result<std::shared_ptr<const TlsCredentials>> from_certificates(const std::string& dir,
                                                                         VerifyPeer verify);
  /// A file of lines NAME:KEY in hexadecimal, as psktool writes it.
  static Result<std::shared_ptr<const TlsCredentials>> from_psk(const std::string& path);

  virtual ~TlsCredentials() = default;

  /// What is not as it should be and yet works, such as a key that others can read.
  const std::vector<std::string>& warnings() const noexcept { return warnings_; }

  /// Sets a new server session up. The credentials must outlive it. A GnuTLS error code, or 0.
  virtual int apply(gnutls_session_int* session) const = 0;

 protected:
  TlsCredentials() = default;
  std::vector<std::string> warnings_;
};

/// What a server does about TLS.
struct TlsPolicy {
  enum class Mode {
    kOff,       ///< STARTTLS is refused
    kAllowed,   ///< as the client likes
    kRequired,  ///< nothing but STARTTLS and ABORT before it
  };
  Mode mode = Mode::kOff;
  std::shared_ptr<const TlsCredentials> credentials;  ///< null only when off
};

}  // namespace snap::nbd
