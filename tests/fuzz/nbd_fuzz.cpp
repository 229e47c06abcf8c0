// The NBD server's side of a whole dialogue: handshake, options and requests of a client, against
// exports in memory (doc/proto.md of the NBD project).
//
// Input: flags, how the bytes come and go, and the client's bytes. With kFixMagics the target
// writes the magic of each option and request where the server looks for it, and keeps lengths
// within what follows.
#include <algorithm>
#include <array>

#include "engine/base/codec.h"
#include "engine/nbd/connection.h"
#include "engine/nbd/memory_export.h"
#include "fuzz.h"
#include "scripted_loop.h"

namespace snap::fuzz {

namespace {

using namespace nbd;

enum Flag : unsigned {
  kFixMagics = 1,
  kSlow = 2,         ///< the export lets other requests overtake
  kFaulty = 4,       ///< every call of the export fails
  kFewReceived = 8,  ///< a receive gets 7 bytes at most
  kFewSent = 16,     ///< a send takes 5 bytes at most
  kHangsUp = 32,     ///< the client is gone after some replies
  kLittleMemory = 64,
};

constexpr std::uint64_t kExportSize = (1 << 20) + 512;
constexpr std::uint64_t kMostRead = 1 << 20;

struct Server {
  FixedExports exports;
  std::shared_ptr<MemoryExport> main;

  explicit Server(unsigned flags) {
    main = std::make_shared<MemoryExport>("disk", kExportSize, false, "what is written");
    main->set_slow((flags & kSlow) != 0);
    if ((flags & kFaulty) != 0) main->set_fault(Error(ErrorCode::kNoSpace, "full", ENOSPC));
    exports.add(main);
    exports.add(std::make_shared<MemoryExport>("ro", std::uint64_t{1} << 40, true));
  }
};

/// Goes through the bytes as a server does.
class Dialogue {
 public:
  Dialogue(Bytes& bytes, ExportTable& exports, bool fix)
      : bytes_(bytes), negotiation_(exports), fix_(fix) {}

  void run() {
    replies_ = Negotiation::greeting();
    if (bytes_.size() < kClientFlagsBytes) return;
    if (fix_) bytes_[0] = bytes_[1] = bytes_[2] = std::byte{0};
    if (!negotiation_.client_flags(load_be<std::uint32_t>(bytes_.data()))) return;
    at_ = kClientFlagsBytes;
    while (next_option()) {
    }
    if (fix_ && in_transmission_) fix_requests();
  }

  bool in_transmission() const { return in_transmission_; }
  std::size_t handshake_replies() const { return replies_.size(); }
  Headers headers() const { return negotiation_.session().headers; }

 private:
  std::size_t left() const { return bytes_.size() - at_; }

  bool next_option() {
    if (left() < kOptionHeaderBytes) return false;
    std::byte* header = bytes_.data() + at_;
    if (fix_) {
      store_be(header, kOptionMagic);
      const auto length = load_be<std::uint32_t>(header + 12);
      const std::size_t room = std::min(left() - kOptionHeaderBytes, kMaxNbdOption);
      if (length > room) store_be(header + 12, static_cast<std::uint32_t>(length % (room + 1)));
    }
    const OptionHeader option = decode_option_header(
        std::span<const std::byte, kOptionHeaderBytes>(header, kOptionHeaderBytes));
    if (option.magic != kOptionMagic || option.length > left() - kOptionHeaderBytes) return false;
    const auto data = std::span(bytes_).subspan(at_ + kOptionHeaderBytes, option.length);
    auto next = negotiation_.option(option.option, data, replies_);
    at_ += kOptionHeaderBytes + option.length;
    in_transmission_ = next && *next == Negotiation::Next::kTransmission;
    return next && *next == Negotiation::Next::kOption;
  }

  void fix_requests() {
    const bool extended = headers() == Headers::kExtended;
    const std::size_t size = extended ? kExtendedRequestBytes : kRequestBytes;
    while (left() >= size) {
      std::byte* header = bytes_.data() + at_;
      store_be(header, extended ? kExtendedRequestMagic : kRequestMagic);
      RequestHeader request = decode_request(std::span(bytes_).subspan(at_), headers());
      at_ += size;
      // Hundreds of reads of 32 MiB would be a good server's work for ten seconds.
      const bool reads = request.type == static_cast<std::uint16_t>(Command::kRead);
      if (reads && request.length <= kMaxNbdPayload) set_length(header, request.length % kMostRead);
      const bool has_payload = extended
                                   ? (request.flags & kCmdPayloadLen) != 0
                                   : request.type == static_cast<std::uint16_t>(Command::kWrite);
      if (!has_payload) continue;
      if (request.length > left()) {
        request.length %= left() + 1;
        set_length(header, request.length);
      }
      at_ += static_cast<std::size_t>(request.length);
    }
  }

  void set_length(std::byte* header, std::uint64_t length) {
    if (headers() == Headers::kExtended) {
      store_be(header + 24, length);
    } else {
      store_be(header + 24, static_cast<std::uint32_t>(length));
    }
  }

  Bytes& bytes_;
  Negotiation negotiation_;
  const bool fix_;
  std::size_t at_ = 0;
  Bytes replies_;
  bool in_transmission_ = false;
};

/// Replies follow one another without gaps, to the end.
void check_chunks(std::span<const std::byte> replies, Headers headers) {
  const bool extended = headers == Headers::kExtended;
  const std::size_t size = extended ? kExtendedChunkHeaderBytes : kChunkHeaderBytes;
  while (!replies.empty()) {
    if (replies.size() < kSimpleReplyBytes) broken("a reply has a whole header");
    const auto magic = load_be<std::uint32_t>(replies.data());
    if (!extended && magic == kSimpleReplyMagic) {  // to what is no READ
      replies = replies.subspan(kSimpleReplyBytes);
      continue;
    }
    if (replies.size() < size) broken("a reply has a whole header");
    if (magic != (extended ? kExtendedReplyMagic : kStructuredReplyMagic))
      broken("a reply begins with its magic");
    const std::uint64_t length = extended ? load_be<std::uint64_t>(replies.data() + 24)
                                          : load_be<std::uint32_t>(replies.data() + 16);
    if (length > replies.size() - size) broken("a reply is as long as it says");
    replies = replies.subspan(size + static_cast<std::size_t>(length));
  }
}

Task<void> serve(ExportTable* exports, ConnectionLimits limits) {
  Connection connection(Socket(UniqueFd(ScriptedLoop::kDescriptor), "client"), *exports, limits);
  auto ended = co_await connection.run();
  (void)ended;  // whatever the client did
}

}  // namespace

void run(std::span<const std::byte> input) {
  const unsigned flags = take_byte(input);
  const std::size_t patience = take_byte(input);
  Bytes bytes(input.begin(), input.end());
  Server server(flags);
  Dialogue dialogue(bytes, server.exports, (flags & kFixMagics) != 0);
  dialogue.run();

  MemoryBudget budget((flags & kLittleMemory) != 0 ? 64u << 10 : kMaxServerBytes);
  ConnectionLimits limits;
  limits.budget = &budget;
  if ((flags & kLittleMemory) != 0) {
    limits.requests = 4;
    limits.bytes = 256u << 10;
    limits.memory_patience = std::chrono::milliseconds(10);
  }
  Script script{bytes};
  if ((flags & kFewReceived) != 0) script.most_received = 7;
  if ((flags & kFewSent) != 0) script.most_sent = 5;
  if ((flags & kHangsUp) != 0) script.hangs_up_after = 16 * patience;
  ScriptedLoop loop(script);
  loop.run(serve(&server.exports, limits));

  const std::span<const std::byte> sent = loop.sent();
  if (loop.hung_up()) return;
  if (sent.size() < dialogue.handshake_replies()) broken("every option is answered");
  if (!dialogue.in_transmission() || dialogue.headers() == Headers::kSimple) return;
  check_chunks(sent.subspan(dialogue.handshake_replies()), dialogue.headers());
}

namespace {

/// A client's bytes.
struct Client {
  Bytes bytes{std::byte{kFixMagics}, std::byte{20}};
  std::uint64_t cookie = 0;

  Client() { append_u32(bytes, kFlagFixedNewstyle | kFlagNoZeroes); }

  void option(Option option, const Bytes& data = {}) {
    append_u64(bytes, kOptionMagic);
    append_u32(bytes, static_cast<std::uint32_t>(option));
    append_u32(bytes, static_cast<std::uint32_t>(data.size()));
    bytes.insert(bytes.end(), data.begin(), data.end());
  }
  void go(Option which, std::string_view name) {
    Bytes data;
    append_u32(data, static_cast<std::uint32_t>(name.size()));
    append_text(data, name);
    append_u16(data, 3);
    for (const Info info : {Info::kName, Info::kDescription, Info::kBlockSize})
      append_u16(data, static_cast<std::uint16_t>(info));
    option(which, data);
  }
  void contexts(Option which, std::initializer_list<std::string_view> queries) {
    Bytes data;
    append_u32(data, 4);
    append_text(data, "disk");
    append_u32(data, static_cast<std::uint32_t>(queries.size()));
    for (const std::string_view query : queries) {
      append_u32(data, static_cast<std::uint32_t>(query.size()));
      append_text(data, query);
    }
    option(which, data);
  }
  void request(Command command, unsigned flags, std::uint64_t offset, std::uint64_t length,
               bool extended, std::size_t payload = 0) {
    append_u32(bytes, extended ? kExtendedRequestMagic : kRequestMagic);
    append_u16(bytes, static_cast<std::uint16_t>(flags));
    append_u16(bytes, static_cast<std::uint16_t>(command));
    append_u64(bytes, ++cookie);
    append_u64(bytes, offset);
    if (extended) {
      append_u64(bytes, length);
    } else {
      append_u32(bytes, static_cast<std::uint32_t>(length));
    }
    bytes.resize(bytes.size() + payload, std::byte{0x5a});
  }
  void requests(bool extended) {
    const unsigned payload = extended ? unsigned{kCmdPayloadLen} : 0u;
    request(Command::kWrite, payload | kCmdFua, 4000, 600, extended, 600);
    request(Command::kRead, 0, 0, 8192, extended);
    request(Command::kTrim, 0, 8192, 4096, extended);
    request(Command::kWriteZeroes, kCmdNoHole, 0, 4096, extended);
    request(Command::kWriteZeroes, kCmdFastZero, 100, 4096, extended);
    request(Command::kCache, 0, 0, kExportSize, extended);
    request(Command::kFlush, 0, 0, 0, extended);
    request(Command::kBlockStatus, 0, 0, kExportSize, extended);
    request(Command::kBlockStatus, kCmdReqOne, 4096, 4096, extended);
    request(Command::kRead, kCmdDf, kExportSize - 10, 10, extended);
    request(Command::kRead, 0, kExportSize, 10, extended);
    if (extended) {
      request(Command::kBlockStatus, kCmdPayloadLen, 0, 12, true);
      append_u64(bytes, 65536);
      append_u32(bytes, 1);
    }
    request(Command::kDisconnect, 0, 0, 0, extended);
  }
};

}  // namespace

std::vector<Seed> seeds() {
  Client simple;
  simple.option(Option::kList);
  simple.option(Option::kStartTls);
  simple.go(Option::kInfo, "ro");
  simple.go(Option::kGo, "disk");
  simple.requests(false);

  Client legacy;
  legacy.option(Option::kExportName, bytes_of_text("disk"));
  legacy.request(Command::kRead, 0, 0, 512, false);
  legacy.request(Command::kWrite, 0, 0, 512, false, 512);

  Client structured;
  structured.option(Option::kStructuredReply);
  structured.contexts(Option::kListMetaContext, {});
  structured.contexts(Option::kSetMetaContext, {"base:allocation", "qemu:allocation-depth"});
  structured.go(Option::kGo, "disk");
  structured.requests(false);

  Client extended;
  extended.option(Option::kExtendedHeaders);
  extended.contexts(Option::kListMetaContext, {"base:", "qemu:"});
  extended.contexts(Option::kSetMetaContext, {"base:allocation"});
  extended.go(Option::kGo, "");
  extended.requests(true);

  Client read_only;
  read_only.option(Option::kStructuredReply);
  read_only.go(Option::kGo, "ro");
  read_only.requests(false);

  Client aborted;
  aborted.option(Option::kAbort);

  std::vector<Seed> out{{"simple", simple.bytes},         {"legacy", legacy.bytes},
                        {"structured", structured.bytes}, {"extended", extended.bytes},
                        {"read_only", read_only.bytes},   {"aborted", aborted.bytes}};
  // The same dialogues on bad days.
  for (const unsigned flags : {unsigned{kSlow} | kFewReceived, unsigned{kFaulty} | kFewSent,
                               unsigned{kHangsUp} | kSlow, unsigned{kLittleMemory}}) {
    Bytes bytes = structured.bytes;
    bytes[0] |= static_cast<std::byte>(flags);
    out.push_back({"structured_" + std::to_string(flags), bytes});
  }
  return out;
}

}  // namespace snap::fuzz
