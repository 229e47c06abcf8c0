// What a server reads its TLS keys from: which files are taken, and what is said of the others.
// Certificates are made with GnuTLS itself.
#include "engine/nbd/tls_credentials.h"

#include <gnutls/gnutls.h>
#include <gnutls/x509.h>
#include <sys/stat.h>

#include <catch2/catch.hpp>
#include <filesystem>
#include <fstream>

#include "engine/io/test_rig.h"
#include "snap/limits.h"

namespace snap::nbd {
namespace {

using Loaded = Result<std::shared_ptr<const TlsCredentials>>;
using Verify = TlsCredentials::VerifyPeer;

void write(const std::string& path, const std::string& text, unsigned mode = 0600) {
  std::ofstream(path) << text;
  ::chmod(path.c_str(), mode);
}

std::string message(const Loaded& loaded) {
  return loaded ? "it was taken" : loaded.error().message();
}

/// A key and a certificate for it that it signed itself, in PEM.
struct Pair {
  std::string key;
  std::string certificate;

  explicit Pair(std::time_t expires) {
    gnutls_x509_privkey_t secret;
    gnutls_x509_privkey_init(&secret);
    gnutls_x509_privkey_generate(secret, GNUTLS_PK_ECDSA,
                                 GNUTLS_CURVE_TO_BITS(GNUTLS_ECC_CURVE_SECP256R1), 0);
    gnutls_x509_crt_t crt;
    gnutls_x509_crt_init(&crt);
    gnutls_x509_crt_set_version(crt, 3);
    gnutls_x509_crt_set_serial(crt, "1", 1);
    gnutls_x509_crt_set_dn(crt, "CN=localhost", nullptr);
    gnutls_x509_crt_set_activation_time(crt, 1);
    gnutls_x509_crt_set_expiration_time(crt, expires);
    gnutls_x509_crt_set_key(crt, secret);
    gnutls_x509_crt_sign2(crt, crt, secret, GNUTLS_DIG_SHA256, 0);
    gnutls_datum_t out;
    gnutls_x509_privkey_export2(secret, GNUTLS_X509_FMT_PEM, &out);
    key.assign(reinterpret_cast<char*>(out.data), out.size);
    gnutls_free(out.data);
    gnutls_x509_crt_export2(crt, GNUTLS_X509_FMT_PEM, &out);
    certificate.assign(reinterpret_cast<char*>(out.data), out.size);
    gnutls_free(out.data);
    gnutls_x509_crt_deinit(crt);
    gnutls_x509_privkey_deinit(secret);
  }
};

constexpr std::time_t kIn2100 = 4102444800;

struct Directory {
  TempDir dir;
  Pair pair{kIn2100};
  Directory() {
    write(path("server-cert.pem"), pair.certificate);
    write(path("server-key.pem"), pair.key);
    write(path("ca-cert.pem"), pair.certificate);
  }
  std::string path(const std::string& name) const { return dir.path() + "/" + name; }
  Loaded load(Verify verify = Verify::kYes) const {
    return TlsCredentials::from_certificates(dir.path(), verify);
  }
};

TEST_CASE_METHOD(Directory, "certificates: a whole directory is taken without a warning") {
  auto loaded = load();
  REQUIRE(message(loaded) == "it was taken");
  CHECK((*loaded)->warnings().empty());
}

TEST_CASE_METHOD(Directory, "certificates: a file that is missing is named") {
  for (const char* name : {"server-cert.pem", "server-key.pem", "ca-cert.pem"}) {
    const std::string path = this->path(name);
    std::filesystem::rename(path, path + ".away");
    auto loaded = load();
    CHECK(message(loaded).find(path + ": there is no such file") != std::string::npos);
    CHECK(loaded.error().code() == ErrorCode::kNotFound);
    std::filesystem::rename(path + ".away", path);
  }
}

TEST_CASE_METHOD(Directory, "certificates: without verification no CA is needed") {
  std::filesystem::remove(path("ca-cert.pem"));
  CHECK(message(load()).find("--tls-verify-peer off") != std::string::npos);
  CHECK(load(Verify::kNo));
}

TEST_CASE_METHOD(Directory, "certificates: the key of another certificate is told") {
  write(path("server-key.pem"), Pair(kIn2100).key);
  CHECK(message(load()) == "TLS: " + path("server-key.pem") +
                               ": this is not the key of the certificate " +
                               path("server-cert.pem"));
}

TEST_CASE_METHOD(Directory, "certificates: what is no PEM file is named, whichever it is") {
  for (const char* name : {"server-cert.pem", "server-key.pem", "ca-cert.pem", "ca-crl.pem"}) {
    const Directory other;
    for (const std::string& text :
         {std::string(), std::string("no PEM"), std::string(5000, '\0')}) {
      write(other.path(name), text);
      CHECK(message(other.load()).find(other.path(name)) != std::string::npos);
    }
  }
}

TEST_CASE_METHOD(Directory,
                 "certificates: a key that others can read, and an old one, are warned of") {
  ::chmod(path("server-key.pem").c_str(), 0640);
  auto loaded = load();
  REQUIRE(loaded);
  REQUIRE((*loaded)->warnings().size() == 1);
  CHECK((*loaded)->warnings()[0].find("chmod 600 " + path("server-key.pem")) != std::string::npos);

  const Pair old(1000000);
  write(path("server-cert.pem"), old.certificate);
  write(path("server-key.pem"), old.key);
  loaded = load();
  REQUIRE(loaded);
  REQUIRE((*loaded)->warnings().size() == 1);
  CHECK((*loaded)->warnings()[0].find("has expired") != std::string::npos);
}

// ---- Keys that both sides know

struct PskFile {
  TempDir dir;
  std::string path = dir.path() + "/keys.psk";
  Loaded load(const std::string& text, unsigned mode = 0600) const {
    write(path, text, mode);
    return TlsCredentials::from_psk(path);
  }
};

const std::string kKey(32, 'a');

TEST_CASE_METHOD(PskFile, "psk: lines of names and keys are taken, others named by number") {
  CHECK(load("alice:" + kKey + "\n\nbob:" + kKey));
  CHECK(message(load("alice:" + kKey + "\nbob\n")).find(path + " line 2: ") != std::string::npos);
  CHECK(message(load(":" + kKey)).find("line 1: expected NAME:KEY") != std::string::npos);
  CHECK(message(load("alice:" + kKey + "x")).find("not hexadecimal") != std::string::npos);
  CHECK(message(load("alice:" + kKey + "zz")).find("not hexadecimal") != std::string::npos);
  CHECK(message(load("a:" + kKey + "\na:" + kKey)).find("has a key already") != std::string::npos);
  CHECK(message(load("")).find("no key in it") != std::string::npos);
  std::filesystem::remove(path);
  CHECK(message(TlsCredentials::from_psk(path)).find("there is no such file") != std::string::npos);
  CHECK(message(TlsCredentials::from_psk(dir.path())).find("not a regular file") !=
        std::string::npos);
}

TEST_CASE_METHOD(PskFile, "psk: a file that others can read is warned of") {
  CHECK((*load("alice:" + kKey))->warnings().empty());
  auto loaded = load("alice:" + kKey, 0604);
  REQUIRE(loaded);
  REQUIRE((*loaded)->warnings().size() == 1);
  CHECK((*loaded)->warnings()[0].find("chmod 600 " + path) != std::string::npos);
}

TEST_CASE_METHOD(PskFile, "limits: names and keys of TLS at their limits, and one beyond") {
  const auto key = [](std::size_t bytes) { return std::string(2 * bytes, 'a'); };
  CHECK(load(std::string(kMaxPskName, 'n') + ":" + kKey));
  CHECK_FALSE(load(std::string(kMaxPskName + 1, 'n') + ":" + kKey));
  CHECK(load("alice:" + key(kMinPskKey)));
  CHECK_FALSE(load("alice:" + key(kMinPskKey - 1)));
  CHECK(load("alice:" + key(kMaxPskKey)));
  CHECK_FALSE(load("alice:" + key(kMaxPskKey + 1)));
  const std::string line = "alice:" + kKey + "\n";
  CHECK(load(line + std::string(kMaxTlsFile - line.size(), '\n')));
  CHECK(message(load(line + std::string(kMaxTlsFile - line.size() + 1, '\n'))).find("more than") !=
        std::string::npos);
}

}  // namespace
}  // namespace snap::nbd
