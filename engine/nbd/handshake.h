// The handshake (fixed newstyle, doc/proto.md "Option haggling"): what the client may ask before it
// has an export.
//
// Negotiation is the state machine, without I/O; negotiate() runs it over a stream. Limits: an
// option carries at most kMaxNbdOption bytes, a name kMaxNbdName; time is limited by the caller.
//
// TLS (doc/proto.md "TLS"): STARTTLS throws away what was negotiated before it. A client that sends
// on before it has the answer to it is cut off: what it sent might be someone else's, put in front
// of what the client says under TLS (CVE-2021-3716).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/nbd/contexts.h"
#include "engine/nbd/export.h"
#include "engine/nbd/protocol.h"
#include "engine/nbd/stream.h"

namespace snap::nbd {

/// What a finished handshake has agreed on.
struct Session {
  std::shared_ptr<Export> device;
  Headers headers = Headers::kSimple;
  MetaContexts contexts;  ///< that BLOCK_STATUS tells of
};

class Negotiation {
 public:
  enum class Next {
    kOption,        ///< another option
    kStartTls,      ///< the TLS handshake, after sending; then tls_started()
    kTransmission,  ///< session() holds
    kClose,         ///< the client is done; close after sending
  };

  explicit Negotiation(ExportTable& exports, TlsPolicy::Mode tls = TlsPolicy::Mode::kOff)
      : exports_(exports), tls_(tls) {}

  /// The server's first bytes.
  static std::vector<std::byte> greeting();
  /// The client's flags. Protocol if one is unknown.
  Result<void> client_flags(std::uint32_t flags);
  /// What option() will ask the table for. Nothing where it will refuse without looking.
  Lookup wanted(std::uint32_t option, std::span<const std::byte> data) const;
  /// One option with all of its data; appends the replies to `out`. Protocol: the connection must
  /// end (the error names why, with the client's text escaped).
  Result<Next> option(std::uint32_t option, std::span<const std::byte> data,
                      std::vector<std::byte>& out);

  /// The TLS handshake has succeeded: the negotiation begins anew.
  void tls_started();

  /// Valid after kTransmission.
  const Session& session() const noexcept { return session_; }

 private:
  Result<Next> before_tls(std::uint32_t option, std::vector<std::byte>& out);
  Next start_tls(std::span<const std::byte> data, std::vector<std::byte>& out);
  Result<Next> export_name(std::span<const std::byte> data, std::vector<std::byte>& out);
  void list(std::span<const std::byte> data, std::vector<std::byte>& out);
  Next info_or_go(Option option, std::span<const std::byte> data, std::vector<std::byte>& out);
  void structured_reply(std::span<const std::byte> data, std::vector<std::byte>& out);
  void extended_headers(std::span<const std::byte> data, std::vector<std::byte>& out);
  void meta_context(Option option, std::span<const std::byte> data, std::vector<std::byte>& out);
  void enter(std::shared_ptr<Export> device);

  ExportTable& exports_;
  const TlsPolicy::Mode tls_;
  bool encrypted_ = false;
  bool no_zeroes_ = false;
  Session session_;
  /// The export that SET_META_CONTEXT named; its contexts hold for no other.
  std::shared_ptr<Export> context_export_;
};

/// Transmission flags of `device`.
std::uint16_t transmission_flags(const Export& device, Headers headers);

/// `text` in quotes for a log line: what is not printable ASCII is escaped, what is long is cut.
std::string quoted(std::string_view text);

/// The whole handshake. Nothing: the client left without an export, politely. Protocol or Io
/// otherwise.
Task<Result<std::optional<Session>>> negotiate(ByteStream& stream, ExportTable& exports,
                                               const TlsPolicy& tls);

}  // namespace snap::nbd
