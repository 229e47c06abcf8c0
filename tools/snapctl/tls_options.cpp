#include "tools/snapctl/tls_options.h"

#include "engine/server/log.h"
#include "snap/event_loop.h"

namespace snap::cli {

namespace {

using Mode = nbd::TlsPolicy::Mode;
using Credentials = Result<std::shared_ptr<const nbd::TlsCredentials>>;

Credentials read_credentials(const TlsOptions& options) {
  if (!options.psk.empty()) return nbd::TlsCredentials::from_psk(options.psk);
  const auto verify = options.verify_peer == "off" ? nbd::TlsCredentials::VerifyPeer::kNo
                                                   : nbd::TlsCredentials::VerifyPeer::kYes;
  return nbd::TlsCredentials::from_certificates(options.certificates, verify);
}

Mode mode_of(const TlsOptions& options, bool has_credentials) {
  if (options.mode == "off") return Mode::kOff;
  if (options.mode == "allowed") return Mode::kAllowed;
  return options.mode.empty() && !has_credentials ? Mode::kOff : Mode::kRequired;
}

}  // namespace

void add_tls_options(CLI::App& command, TlsOptions& options) {
  auto* certificates =
      command
          .add_option("--tls-certificates", options.certificates,
                      "TLS with server-cert.pem, server-key.pem, ca-cert.pem, ca-crl.pem of DIR")
          ->type_name("DIR");
  command
      .add_option("--tls-psk", options.psk, "TLS with the keys of this file, as psktool makes it")
      ->type_name("FILE")
      ->excludes(certificates);
  command
      .add_option("--tls", options.mode,
                  "Whether clients must use it; required when one of these is given")
      ->check(CLI::IsMember({"required", "allowed", "off"}))
      ->type_name("MODE");
  command
      .add_option("--tls-verify-peer", options.verify_peer,
                  "Whether clients need a certificate of the same CA; else on")
      ->check(CLI::IsMember({"on", "off"}))
      ->type_name("on|off");
}

Task<Result<nbd::TlsPolicy>> load_tls(TlsOptions options) {
  const bool has_credentials = !options.certificates.empty() || !options.psk.empty();
  nbd::TlsPolicy policy;
  policy.mode = mode_of(options, has_credentials);
  if (policy.mode == Mode::kOff) co_return policy;
  if (!has_credentials) {
    co_return Error(ErrorCode::kInvalidArgument,
                    "--tls " + options.mode +
                        " needs something to prove: give --tls-certificates DIR or --tls-psk FILE");
  }
  auto read = [&options] { return read_credentials(options); };
  Credentials credentials = co_await offload(read);
  if (!credentials) co_return credentials.error();
  for (const std::string& warning : (*credentials)->warnings())
    server::log_warning(warning);
  policy.credentials = std::move(*credentials);
  co_return policy;
}

}  // namespace snap::cli
