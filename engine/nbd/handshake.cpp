#include "engine/nbd/handshake.h"

#include <algorithm>
#include <array>
#include <utility>

#include "engine/base/codec.h"
#include "snap/limits.h"

namespace snap::nbd {

namespace {

// 1: requests may have any alignment. 4 KiB: what a volume writes without reading.
constexpr std::uint32_t kMinBlock = 1;
constexpr std::uint32_t kPreferredBlock = kBlockSize;
constexpr std::uint32_t kMaxBlock = kMaxNbdPayload;

constexpr std::size_t kLegacyZeroes = 124;

std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

/// A refusal with words for the client's user.
void refuse(std::vector<std::byte>& out, std::uint32_t option, OptionReply type,
            std::string_view why) {
  append_option_reply(out, option, type, bytes_of(why));
}

void append_info(std::vector<std::byte>& out, Option option, Info type,
                 const std::vector<std::byte>& body) {
  std::vector<std::byte> data;
  append_u16(data, static_cast<std::uint16_t>(type));
  data.insert(data.end(), body.begin(), body.end());
  append_option_reply(out, static_cast<std::uint32_t>(option), OptionReply::kInfo, data);
}

}  // namespace

std::uint16_t transmission_flags(const Export& device, Headers headers) {
  unsigned flags = kHasFlags | kSendFlush | kSendFua | kCanMultiConn | kSendCache;
  if (device.read_only()) {
    flags |= kReadOnly;
  } else {
    flags |= kSendTrim | kSendWriteZeroes | kSendFastZero;
  }
  if (headers != Headers::kSimple) flags |= kSendDf;
  if (headers == Headers::kExtended) flags |= kBlockStatusPayload;
  return static_cast<std::uint16_t>(flags);
}

std::string quoted(std::string_view text) {
  constexpr std::size_t kMost = 64;
  constexpr char kHex[] = "0123456789abcdef";
  std::string out = "\"";
  for (const char c : text.substr(0, kMost)) {
    if (c >= 0x20 && c < 0x7f && c != '"' && c != '\\') {
      out += c;
    } else {
      const auto byte = static_cast<unsigned char>(c);
      out += "\\x";
      out += kHex[byte >> 4];
      out += kHex[byte & 15];
    }
  }
  out += text.size() > kMost ? "...\"" : "\"";
  return out;
}

std::vector<std::byte> Negotiation::greeting() {
  std::vector<std::byte> out;
  append_u64(out, kGreetingMagic);
  append_u64(out, kOptionMagic);
  append_u16(out, kFlagFixedNewstyle | kFlagNoZeroes);
  return out;
}

Result<void> Negotiation::client_flags(std::uint32_t flags) {
  if ((flags & ~std::uint32_t{kFlagFixedNewstyle | kFlagNoZeroes}) != 0) {
    return Error(ErrorCode::kProtocol, "the client set handshake flags that do not exist (" +
                                           std::to_string(flags) + ")");
  }
  no_zeroes_ = (flags & kFlagNoZeroes) != 0;
  return {};
}

Lookup Negotiation::wanted(std::uint32_t option, std::span<const std::byte> data) const {
  // Who has not proved himself yet has nothing opened, nor learns what there is.
  if (tls_ == TlsPolicy::Mode::kRequired && !encrypted_) return {};
  std::optional<std::string_view> name;
  auto kind = Lookup::Kind::kUse;
  switch (static_cast<Option>(option)) {
    case Option::kList:
      return {Lookup::Kind::kList, std::string()};
    case Option::kExportName:
      name = std::string_view(reinterpret_cast<const char*>(data.data()), data.size());
      break;
    case Option::kInfo:
      kind = Lookup::Kind::kDescribe;
      [[fallthrough]];
    case Option::kGo:
      if (const auto request = decode_info_request(data)) name = request->name;
      break;
    case Option::kListMetaContext:
      kind = Lookup::Kind::kDescribe;
      [[fallthrough]];
    case Option::kSetMetaContext:  // GO follows, and has to find the same export
      if (const auto request = decode_meta_context_request(data)) name = request->name;
      break;
    default:
      break;
  }
  if (!name || name->size() > kMaxNbdName) return {};
  return {kind, std::string(*name)};
}

Result<Negotiation::Next> Negotiation::option(std::uint32_t option, std::span<const std::byte> data,
                                              std::vector<std::byte>& out) {
  if (tls_ == TlsPolicy::Mode::kRequired && !encrypted_ &&
      option != static_cast<std::uint32_t>(Option::kStartTls) &&
      option != static_cast<std::uint32_t>(Option::kAbort))
    return before_tls(option, out);
  switch (static_cast<Option>(option)) {
    case Option::kExportName:
      return export_name(data, out);
    case Option::kAbort:
      append_option_reply(out, option, OptionReply::kAck);
      return Next::kClose;
    case Option::kList:
      list(data, out);
      return Next::kOption;
    case Option::kInfo:
    case Option::kGo:
      return info_or_go(static_cast<Option>(option), data, out);
    case Option::kStructuredReply:
      structured_reply(data, out);
      return Next::kOption;
    case Option::kExtendedHeaders:
      extended_headers(data, out);
      return Next::kOption;
    case Option::kListMetaContext:
    case Option::kSetMetaContext:
      meta_context(static_cast<Option>(option), data, out);
      return Next::kOption;
    case Option::kStartTls:
      return start_tls(data, out);
  }
  refuse(out, option, OptionReply::kErrUnsupported, "unknown option");
  return Next::kOption;
}

Result<Negotiation::Next> Negotiation::before_tls(std::uint32_t option,
                                                  std::vector<std::byte>& out) {
  if (option == static_cast<std::uint32_t>(Option::kExportName)) {  // it has no error reply
    return Error(ErrorCode::kProtocol,
                 "the client asked for an export without TLS, which is required");
  }
  refuse(out, option, OptionReply::kErrTlsRequired, "this server requires TLS");
  return Next::kOption;
}

Negotiation::Next Negotiation::start_tls(std::span<const std::byte> data,
                                         std::vector<std::byte>& out) {
  constexpr auto kOption = static_cast<std::uint32_t>(Option::kStartTls);
  if (tls_ == TlsPolicy::Mode::kOff) {
    refuse(out, kOption, OptionReply::kErrPolicy, "this server is not set up for TLS");
  } else if (!data.empty()) {
    refuse(out, kOption, OptionReply::kErrInvalid, "STARTTLS takes no data");
  } else if (encrypted_) {
    refuse(out, kOption, OptionReply::kErrInvalid, "TLS has been started already");
  } else {
    append_option_reply(out, kOption, OptionReply::kAck);
    return Next::kStartTls;
  }
  return Next::kOption;
}

void Negotiation::tls_started() {
  encrypted_ = true;
  session_ = {};
  context_export_ = nullptr;
}

void Negotiation::enter(std::shared_ptr<Export> device) {
  if (context_export_ != device) session_.contexts = {};
  session_.device = std::move(device);
}

Result<Negotiation::Next> Negotiation::export_name(std::span<const std::byte> data,
                                                   std::vector<std::byte>& out) {
  if (session_.headers == Headers::kExtended) {
    return Error(ErrorCode::kProtocol,
                 "the client sent EXPORT_NAME after it negotiated extended headers");
  }
  const std::string_view name(reinterpret_cast<const char*>(data.data()), data.size());
  std::shared_ptr<Export> device;
  if (name.size() <= kMaxNbdName) device = exports_.find(name);
  // This option has no error reply: all that is left is to close.
  if (!device)
    return Error(ErrorCode::kProtocol,
                 "the client asked for export " + quoted(name) + ", which is not served");
  append_u64(out, device->size());
  append_u16(out, transmission_flags(*device, session_.headers));
  if (!no_zeroes_) out.resize(out.size() + kLegacyZeroes);
  enter(std::move(device));
  return Next::kTransmission;
}

void Negotiation::list(std::span<const std::byte> data, std::vector<std::byte>& out) {
  constexpr auto kOption = static_cast<std::uint32_t>(Option::kList);
  if (!data.empty()) {
    refuse(out, kOption, OptionReply::kErrInvalid, "LIST takes no data");
    return;
  }
  for (const auto& device : exports_.list()) {
    std::vector<std::byte> body;
    append_u32(body, static_cast<std::uint32_t>(device->name().size()));
    append_text(body, device->name());
    append_text(body, device->description());
    append_option_reply(out, kOption, OptionReply::kServer, body);
  }
  append_option_reply(out, kOption, OptionReply::kAck);
}

Negotiation::Next Negotiation::info_or_go(Option option, std::span<const std::byte> data,
                                          std::vector<std::byte>& out) {
  const auto number = static_cast<std::uint32_t>(option);
  const auto request = decode_info_request(data);
  if (!request) {
    refuse(out, number, OptionReply::kErrInvalid, "the lengths in the option do not add up");
    return Next::kOption;
  }
  if (request->name.size() > kMaxNbdName) {
    refuse(out, number, OptionReply::kErrTooBig, "the export name is longer than 4096 bytes");
    return Next::kOption;
  }
  std::shared_ptr<Export> device = exports_.find(request->name);
  if (!device) {
    refuse(out, number, OptionReply::kErrUnknown, exports_.refusal());
    return Next::kOption;
  }
  std::vector<std::byte> body;
  append_u64(body, device->size());
  append_u16(body, transmission_flags(*device, session_.headers));
  append_info(out, option, Info::kExport, body);

  const auto asked = [&](Info info) {
    return std::find(request->infos.begin(), request->infos.end(),
                     static_cast<std::uint16_t>(info)) != request->infos.end();
  };
  if (asked(Info::kName)) {
    body.clear();
    append_text(body, device->name());
    append_info(out, option, Info::kName, body);
  }
  if (asked(Info::kDescription) && !device->description().empty()) {
    body.clear();
    append_text(body, device->description());
    append_info(out, option, Info::kDescription, body);
  }
  if (asked(Info::kBlockSize)) {
    body.clear();
    append_u32(body, kMinBlock);
    append_u32(body, kPreferredBlock);
    append_u32(body, kMaxBlock);
    append_info(out, option, Info::kBlockSize, body);
  }
  append_option_reply(out, number, OptionReply::kAck);
  if (option == Option::kInfo) return Next::kOption;
  enter(std::move(device));
  return Next::kTransmission;
}

void Negotiation::structured_reply(std::span<const std::byte> data, std::vector<std::byte>& out) {
  constexpr auto kOption = static_cast<std::uint32_t>(Option::kStructuredReply);
  if (!data.empty()) {
    refuse(out, kOption, OptionReply::kErrInvalid, "STRUCTURED_REPLY takes no data");
    return;
  }
  if (session_.headers == Headers::kExtended) {
    refuse(out, kOption, OptionReply::kErrExtendedHeadersRequired,
           "extended headers are negotiated already");
    return;
  }
  session_.headers = Headers::kStructured;
  append_option_reply(out, kOption, OptionReply::kAck);
}

void Negotiation::extended_headers(std::span<const std::byte> data, std::vector<std::byte>& out) {
  constexpr auto kOption = static_cast<std::uint32_t>(Option::kExtendedHeaders);
  if (!data.empty()) {
    refuse(out, kOption, OptionReply::kErrInvalid, "EXTENDED_HEADERS takes no data");
    return;
  }
  if (session_.headers == Headers::kExtended) {
    refuse(out, kOption, OptionReply::kErrInvalid, "extended headers are negotiated already");
    return;
  }
  session_.headers = Headers::kExtended;
  append_option_reply(out, kOption, OptionReply::kAck);
}

void Negotiation::meta_context(Option option, std::span<const std::byte> data,
                               std::vector<std::byte>& out) {
  const auto number = static_cast<std::uint32_t>(option);
  const bool set = option == Option::kSetMetaContext;
  if (set) {  // the old set goes even if this one fails
    session_.contexts = {};
    context_export_ = nullptr;
  }
  if (session_.headers == Headers::kSimple) {
    refuse(out, number, OptionReply::kErrInvalid,
           "negotiate structured replies or extended headers first");
    return;
  }
  const auto request = decode_meta_context_request(data);
  if (!request) {
    refuse(out, number, OptionReply::kErrInvalid, "the lengths in the option do not add up");
    return;
  }
  if (request->name.size() > kMaxNbdName) {
    refuse(out, number, OptionReply::kErrTooBig, "the export name is longer than 4096 bytes");
    return;
  }
  std::shared_ptr<Export> device = exports_.find(request->name);
  if (!device) {
    refuse(out, number, OptionReply::kErrUnknown, exports_.refusal());
    return;
  }
  MetaContexts chosen;
  for (const MetaContextName& known : kMetaContexts) {
    bool asked = !set && request->queries.empty();  // LIST without queries asks for everything
    for (const std::string_view query : request->queries)
      asked = asked || contexts_of_query(query, !set).has(known.context);
    if (!asked) continue;
    chosen.add(known.context);
    std::vector<std::byte> body;
    append_u32(body, set ? wire_id(known.context) : 0);
    append_text(body, known.name);
    append_option_reply(out, number, OptionReply::kMetaContext, body);
  }
  append_option_reply(out, number, OptionReply::kAck);
  if (set) {
    session_.contexts = chosen;
    context_export_ = std::move(device);
  }
}

namespace {

Error cut_off(const char* where) {
  return Error(ErrorCode::kProtocol, std::string("the client hung up ") + where);
}

/// Receives one option into the buffer of `stream`. Nothing: the client hung up between options.
Task<Result<std::optional<OptionHeader>>> next_option(ByteStream& stream) {
  auto have = co_await stream.fill(kOptionHeaderBytes);
  if (!have) co_return have.error();
  if (!*have) {
    if (stream.buffered().empty()) co_return std::optional<OptionHeader>();
    co_return cut_off("in the middle of an option");
  }
  const OptionHeader header = decode_option_header(stream.buffered().first<kOptionHeaderBytes>());
  if (header.magic != kOptionMagic)
    co_return Error(ErrorCode::kProtocol, "an option does not begin with IHAVEOPT");
  if (header.length > kMaxNbdOption) {
    co_return Error(ErrorCode::kProtocol, "option " + std::to_string(header.option) +
                                              " announces " + std::to_string(header.length) +
                                              " bytes; at most " + std::to_string(kMaxNbdOption) +
                                              " are taken");
  }
  auto whole = co_await stream.fill(kOptionHeaderBytes + header.length);
  if (!whole) co_return whole.error();
  if (!*whole) co_return cut_off("in the middle of an option");
  co_return std::optional(header);
}

}  // namespace

Task<Result<std::optional<Session>>> negotiate(ByteStream& stream, ExportTable& exports,
                                               const TlsPolicy& tls) {
  const std::unique_ptr<ExportTable> own = exports.for_connection();
  ExportTable& table = own ? *own : exports;
  Negotiation negotiation(table, tls.mode);
  const std::vector<std::byte> greeting = Negotiation::greeting();
  auto greeted = co_await stream.send(greeting);
  // A port scan, or a check that the server is there, does not wait for it.
  if (!greeted) co_return std::optional<Session>();
  auto have = co_await stream.fill(kClientFlagsBytes);
  if (!have) co_return have.error();
  if (!*have) {
    if (stream.buffered().empty()) co_return std::optional<Session>();
    co_return cut_off("in its handshake flags");
  }
  auto flags = negotiation.client_flags(load_be<std::uint32_t>(stream.buffered().data()));
  if (!flags) co_return flags.error();
  stream.consume(kClientFlagsBytes);

  std::vector<std::byte> replies;
  for (;;) {
    auto header = co_await next_option(stream);
    if (!header) co_return header.error();
    if (!*header) co_return std::optional<Session>();
    replies.clear();
    const std::uint32_t option = (*header)->option;
    const std::size_t length = (*header)->length;
    const auto data = stream.buffered().subspan(kOptionHeaderBytes, length);
    Lookup wanted = negotiation.wanted(option, data);
    if (wanted.kind != Lookup::Kind::kNothing) co_await table.look_up(std::move(wanted));
    auto next = negotiation.option(option, data, replies);
    if (!next) co_return next.error();
    stream.consume(kOptionHeaderBytes + length);
    if (*next == Negotiation::Next::kStartTls && !stream.buffered().empty())
      co_return Error(ErrorCode::kProtocol, "the client sent plaintext behind STARTTLS");
    auto sent = co_await stream.send(replies);
    // A client that aborts need not wait for the acknowledgement.
    if (*next == Negotiation::Next::kClose) co_return std::optional<Session>();
    if (!sent) co_return sent.error();
    if (*next == Negotiation::Next::kTransmission) co_return std::optional(negotiation.session());
    if (*next == Negotiation::Next::kStartTls) {
      auto started = co_await stream.start_tls(tls.credentials);
      if (!started) co_return started.error();
      negotiation.tls_started();
    }
  }
}

}  // namespace snap::nbd
