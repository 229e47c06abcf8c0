#include "engine/nbd/tls_credentials.h"

#include <gnutls/crypto.h>
#include <gnutls/gnutls.h>
#include <gnutls/x509.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <map>
#include <optional>
#include <span>
#include <sstream>
#include <string_view>
#include <utility>

#include "snap/limits.h"

namespace snap::nbd {

namespace {

// Key exchanges are those with forward secrecy.
constexpr char kCertificatePriority[] =
    "NORMAL:-VERS-ALL:+VERS-TLS1.3:+VERS-TLS1.2:-RSA:%SERVER_PRECEDENCE";
constexpr char kPskPriority[] =
    "NORMAL:-VERS-ALL:+VERS-TLS1.3:+VERS-TLS1.2:-KX-ALL:+ECDHE-PSK:+DHE-PSK:%SERVER_PRECEDENCE";

Error tls_error(ErrorCode code, const std::string& path, const std::string& what) {
  return Error(code, "TLS: " + path + ": " + what);
}

/// An error if `path` is no file that can be read; nothing if it is missing and that is allowed.
Result<bool> look_at(const std::string& path, bool optional, const char* why) {
  struct stat s {};
  if (::stat(path.c_str(), &s) != 0) {
    if (errno == ENOENT && optional) return false;
    if (errno == ENOENT)
      return tls_error(ErrorCode::kNotFound, path, std::string("there is no such file; ") + why);
    return Error::from_errno(errno, "TLS: look at " + path);
  }
  if (!S_ISREG(s.st_mode))
    return tls_error(ErrorCode::kInvalidArgument, path, "this is not a regular file");
  if (s.st_size > static_cast<off_t>(kMaxTlsFile)) {
    return tls_error(ErrorCode::kTooLarge, path,
                     "it has more than " + std::to_string(kMaxTlsFile) + " bytes");
  }
  return true;
}

Result<std::string> read_text(const std::string& path) {
  errno = 0;
  std::ifstream in(path, std::ios::binary);
  std::ostringstream text;
  if (in) text << in.rdbuf();
  if (!in) return Error::from_errno(errno != 0 ? errno : EIO, "TLS: read " + path);
  return std::move(text).str();
}

void warn_if_open(const std::string& path, std::vector<std::string>& warnings) {
  struct stat s {};
  if (::stat(path.c_str(), &s) != 0 || (s.st_mode & (S_IRWXG | S_IRWXO)) == 0) return;
  warnings.push_back("TLS: others than its owner may use the secret key in " + path +
                     "; take that away: chmod 600 " + path);
}

// ---- Certificates

class Certificates final : public TlsCredentials {
 public:
  ~Certificates() override {
    if (credentials_ != nullptr) gnutls_certificate_free_credentials(credentials_);
    if (priority_ != nullptr) gnutls_priority_deinit(priority_);
  }

  Result<void> load(const std::string& dir, VerifyPeer verify);

  int apply(gnutls_session_int* session) const override {
    int code = gnutls_priority_set(session, priority_);
    if (code == 0) code = gnutls_credentials_set(session, GNUTLS_CRD_CERTIFICATE, credentials_);
    if (code != 0 || verify_ == VerifyPeer::kNo) return code;
    gnutls_certificate_server_set_request(session, GNUTLS_CERT_REQUIRE);
    // Not any certificate of the CA will do, but one for clients. (It is not written to.)
    static gnutls_typed_vdata_st purpose{
        GNUTLS_DT_KEY_PURPOSE_OID,
        reinterpret_cast<unsigned char*>(const_cast<char*>(GNUTLS_KP_TLS_WWW_CLIENT)), 0};
    gnutls_session_set_verify_cert2(session, &purpose, 1, 0);
    return 0;
  }

 private:
  Result<void> load_pair(const std::string& certificate, const std::string& key);
  Result<void> load_ca(const std::string& ca, const std::string& crl);
  void warn_if_expired(const std::string& certificate);

  gnutls_certificate_credentials_t credentials_ = nullptr;
  gnutls_priority_t priority_ = nullptr;
  VerifyPeer verify_ = VerifyPeer::kYes;
};

Result<void> Certificates::load(const std::string& dir, VerifyPeer verify) {
  verify_ = verify;
  int code = gnutls_certificate_allocate_credentials(&credentials_);
  if (code == 0) code = gnutls_priority_init(&priority_, kCertificatePriority, nullptr);
  if (code != 0) return tls_error(ErrorCode::kIo, dir, gnutls_strerror(code));
  auto pair = load_pair(dir + "/server-cert.pem", dir + "/server-key.pem");
  SNAP_RETURN_IF_ERROR(pair);
  if (verify == VerifyPeer::kNo) return {};
  return load_ca(dir + "/ca-cert.pem", dir + "/ca-crl.pem");
}

Result<void> Certificates::load_pair(const std::string& certificate, const std::string& key) {
  for (const std::string& path : {certificate, key}) {
    auto there = look_at(path, false,
                         "a server needs its certificate and the key to it (certtool makes them)");
    SNAP_RETURN_IF_ERROR(there);
  }
  const int code = gnutls_certificate_set_x509_key_file2(
      credentials_, certificate.c_str(), key.c_str(), GNUTLS_X509_FMT_PEM, nullptr, 0);
  if (code == GNUTLS_E_CERTIFICATE_KEY_MISMATCH) {
    return tls_error(ErrorCode::kInvalidArgument, key,
                     "this is not the key of the certificate " + certificate);
  }
  if (code == GNUTLS_E_DECRYPTION_FAILED)
    return tls_error(ErrorCode::kInvalidArgument, key, "the key has a password; save it without");
  if (code < 0) {
    // It does not say which of the two it means.
    for (const std::string& path : {certificate, key}) {
      auto text = read_text(path);
      SNAP_RETURN_IF_ERROR(text);
      if (text->find("-----BEGIN ") == std::string::npos)
        return tls_error(ErrorCode::kInvalidArgument, path, "this is not a PEM file");
    }
    return tls_error(ErrorCode::kInvalidArgument, certificate,
                     std::string("no use with ") + key + ": " + gnutls_strerror(code));
  }
  warn_if_open(key, warnings_);
  warn_if_expired(certificate);
  return {};
}

Result<void> Certificates::load_ca(const std::string& ca, const std::string& crl) {
  auto there = look_at(ca, false,
                       "it is what client certificates are verified with; without them anyone may "
                       "connect, which --tls-verify-peer off allows");
  SNAP_RETURN_IF_ERROR(there);
  const int found =
      gnutls_certificate_set_x509_trust_file(credentials_, ca.c_str(), GNUTLS_X509_FMT_PEM);
  if (found <= 0) {
    return tls_error(
        ErrorCode::kInvalidArgument, ca,
        std::string("no certificate in it: ") + (found < 0 ? gnutls_strerror(found) : "empty"));
  }
  auto revokes = look_at(crl, true, "");
  SNAP_RETURN_IF_ERROR(revokes);
  if (!*revokes) return {};
  const int lists =
      gnutls_certificate_set_x509_crl_file(credentials_, crl.c_str(), GNUTLS_X509_FMT_PEM);
  if (lists <= 0) {
    return tls_error(
        ErrorCode::kInvalidArgument, crl,
        std::string("no revocation list in it: ") + (lists < 0 ? gnutls_strerror(lists) : "empty"));
  }
  return {};
}

void Certificates::warn_if_expired(const std::string& certificate) {
  gnutls_x509_crt_t* list = nullptr;
  unsigned count = 0;
  if (gnutls_certificate_get_x509_crt(credentials_, 0, &list, &count) != 0) return;
  if (count != 0 && gnutls_x509_crt_get_expiration_time(list[0]) < ::time(nullptr))
    warnings_.push_back("TLS: the certificate " + certificate +
                        " has expired; clients will refuse it");
  for (unsigned i = 0; i < count; ++i)
    gnutls_x509_crt_deinit(list[i]);
  gnutls_free(list);
}

// ---- Keys that both sides know

using Secret = std::vector<unsigned char>;

/// Copies into memory that GnuTLS frees.
int give(gnutls_datum_t* out, std::span<const unsigned char> bytes) {
  out->data = static_cast<unsigned char*>(gnutls_malloc(bytes.size()));
  if (out->data == nullptr) return -1;
  std::memcpy(out->data, bytes.data(), bytes.size());
  out->size = static_cast<unsigned>(bytes.size());
  return 0;
}

class PreSharedKeys final : public TlsCredentials {
 public:
  ~PreSharedKeys() override {
    if (credentials_ != nullptr) gnutls_psk_free_server_credentials(credentials_);
    if (priority_ != nullptr) gnutls_priority_deinit(priority_);
    for (auto& [name, key] : keys_)
      gnutls_memset(key.data(), 0, key.size());
  }

  Result<void> load(const std::string& path);

  int apply(gnutls_session_int* session) const override {
    const int code = gnutls_priority_set(session, priority_);
    if (code != 0) return code;
    gnutls_session_set_ptr(session, const_cast<PreSharedKeys*>(this));
    return gnutls_credentials_set(session, GNUTLS_CRD_PSK, credentials_);
  }

 private:
  static int find_key(gnutls_session_t session, const char* name, gnutls_datum_t* key) {
    const auto* self = static_cast<const PreSharedKeys*>(gnutls_session_get_ptr(session));
    const auto found = self->keys_.find(name);
    if (found != self->keys_.end()) return give(key, found->second);
    // A key that no one knows: a client cannot tell a wrong name from a wrong key.
    unsigned char nobody[kMinPskKey];
    if (gnutls_rnd(GNUTLS_RND_KEY, nobody, sizeof nobody) != 0) return -1;
    return give(key, nobody);
  }
  Result<void> add_line(const std::string& path, std::size_t number, std::string_view line);

  gnutls_psk_server_credentials_t credentials_ = nullptr;
  gnutls_priority_t priority_ = nullptr;
  std::map<std::string, Secret, std::less<>> keys_;
};

std::optional<Secret> from_hex(std::string_view text) {
  const auto digit = [](char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
  };
  if (text.size() % 2 != 0) return std::nullopt;
  Secret out;
  for (std::size_t i = 0; i < text.size(); i += 2) {
    const int high = digit(text[i]);
    const int low = digit(text[i + 1]);
    if (high < 0 || low < 0) return std::nullopt;
    out.push_back(static_cast<unsigned char>(high << 4 | low));
  }
  return out;
}

Result<void> PreSharedKeys::add_line(const std::string& path, std::size_t number,
                                     std::string_view line) {
  const std::string where = path + " line " + std::to_string(number);
  const std::size_t colon = line.find(':');
  const auto name = line.substr(0, colon);
  if (colon == std::string_view::npos || name.empty() || name.size() > kMaxPskName) {
    return tls_error(ErrorCode::kInvalidArgument, where,
                     "expected NAME:KEY, as psktool -u NAME -p FILE writes it");
  }
  auto key = from_hex(line.substr(colon + 1));
  if (!key)
    return tls_error(ErrorCode::kInvalidArgument, where, "the key is not hexadecimal digits");
  if (key->size() < kMinPskKey || key->size() > kMaxPskKey) {
    return tls_error(ErrorCode::kInvalidArgument, where,
                     "a key has " + std::to_string(kMinPskKey) + " to " +
                         std::to_string(kMaxPskKey) + " bytes, this one " +
                         std::to_string(key->size()));
  }
  if (!keys_.emplace(name, std::move(*key)).second)
    return tls_error(ErrorCode::kInvalidArgument, where, "this name has a key already");
  return {};
}

Result<void> PreSharedKeys::load(const std::string& path) {
  auto there = look_at(path, false, "psktool -u NAME -p FILE makes one");
  SNAP_RETURN_IF_ERROR(there);
  auto text = read_text(path);
  SNAP_RETURN_IF_ERROR(text);
  std::string_view rest = *text;
  for (std::size_t number = 1; !rest.empty(); ++number) {
    const std::size_t end = std::min(rest.find('\n'), rest.size());
    const std::string_view line = rest.substr(0, end);
    rest.remove_prefix(std::min(end + 1, rest.size()));
    if (line.empty()) continue;
    auto added = add_line(path, number, line);
    SNAP_RETURN_IF_ERROR(added);
  }
  gnutls_memset(text->data(), 0, text->size());
  if (keys_.empty()) return tls_error(ErrorCode::kInvalidArgument, path, "there is no key in it");
  warn_if_open(path, warnings_);
  int code = gnutls_psk_allocate_server_credentials(&credentials_);
  if (code == 0) code = gnutls_priority_init(&priority_, kPskPriority, nullptr);
  if (code != 0) return tls_error(ErrorCode::kIo, path, gnutls_strerror(code));
  gnutls_psk_set_server_credentials_function(credentials_, &PreSharedKeys::find_key);
  return {};
}

}  // namespace

Result<std::shared_ptr<const TlsCredentials>> TlsCredentials::from_certificates(
    const std::string& dir, VerifyPeer verify) {
  auto credentials = std::make_shared<Certificates>();
  auto loaded = credentials->load(dir, verify);
  SNAP_RETURN_IF_ERROR(loaded);
  return std::shared_ptr<const TlsCredentials>(std::move(credentials));
}

Result<std::shared_ptr<const TlsCredentials>> TlsCredentials::from_psk(const std::string& path) {
  auto credentials = std::make_shared<PreSharedKeys>();
  auto loaded = credentials->load(path);
  SNAP_RETURN_IF_ERROR(loaded);
  return std::shared_ptr<const TlsCredentials>(std::move(credentials));
}

}  // namespace snap::nbd
