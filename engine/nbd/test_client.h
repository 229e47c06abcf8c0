// A blocking NBD client that can also say what no honest client says, and a Connection on a thread
// of its own at the other end of a socketpair. For tests only.
#pragma once

#include <sys/socket.h>
#include <sys/time.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <future>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "engine/base/codec.h"
#include "engine/io/unique_fd.h"
#include "engine/nbd/connection.h"
#include "engine/nbd/protocol.h"

namespace snap::nbd {

using Bytes = std::vector<std::byte>;

inline Bytes text_bytes(std::string_view text) {
  Bytes out;
  append_text(out, text);
  return out;
}

/// Serves one client. The destructor waits for its end. With SOCK_SEQPACKET every send of the
/// server is a record of its own to the client.
class ServedClient {
 public:
  explicit ServedClient(ExportTable& exports, ConnectionLimits limits = {},
                        LoopOptions::Kind kind = LoopOptions::Kind::kAuto,
                        int socket_type = SOCK_STREAM, TlsPolicy tls = {},
                        std::shared_ptr<Export> device = nullptr) {
    int fds[2];
    if (::socketpair(AF_UNIX, socket_type | SOCK_CLOEXEC, 0, fds) != 0)
      throw std::runtime_error("socketpair");
    client = UniqueFd(fds[0]);
    // A test that would wait for ever fails instead.
    const timeval patience{20, 0};
    ::setsockopt(client.get(), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    ::setsockopt(client.get(), SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    loop_ = std::move(*make_event_loop({.kind = kind}));
    thread_ = std::thread([this, &exports, limits, tls, device, fd = fds[1]] {
      Connection connection(Socket(UniqueFd(fd), "client"), exports, limits, tls);
      if (device) connection.begin_with(device);
      connection_ = &connection;
      outcome_.set_value(loop_->run(connection.run()));
    });
  }
  ~ServedClient() {
    client.reset();
    if (thread_.joinable()) thread_.join();
  }

  /// What Connection::run() returned; waits for it.
  Result<void> outcome() {
    if (thread_.joinable()) thread_.join();
    return future_.get();
  }
  /// Calls Connection::drain() on the server's loop.
  void drain() { on_loop(&ServedClient::drain_task); }
  /// The same for abort().
  void abort() { on_loop(&ServedClient::abort_task); }

  UniqueFd client;

 private:
  // A coroutine that owns itself, to run something on the server's loop.
  struct Fire {
    struct promise_type {
      Fire get_return_object() {
        return {std::coroutine_handle<promise_type>::from_promise(*this)};
      }
      std::suspend_always initial_suspend() noexcept { return {}; }
      std::suspend_never final_suspend() noexcept { return {}; }
      void return_void() noexcept {}
      void unhandled_exception() noexcept { std::terminate(); }
    };
    std::coroutine_handle<promise_type> handle;
  };
  static Fire abort_task(ServedClient* self) {
    self->connection_->abort();
    co_return;
  }
  static Fire drain_task(ServedClient* self) {
    self->connection_->drain();
    co_return;
  }
  void on_loop(Fire (*task)(ServedClient*)) { loop_->post(task(this).handle); }

  std::unique_ptr<EventLoop> loop_;
  Connection* connection_ = nullptr;
  std::promise<Result<void>> outcome_;
  std::future<Result<void>> future_ = outcome_.get_future();
  std::thread thread_;
};

/// The client's side of the wire. Everything throws when the server does not answer as asked.
class Wire {
 public:
  explicit Wire(int fd) : fd_(fd) {}
  virtual ~Wire() = default;

  void send(std::span<const std::byte> bytes) {
    while (!bytes.empty()) {
      const ssize_t n = put(bytes);
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) throw std::runtime_error("send: " + std::string(std::strerror(errno)));
      bytes = bytes.subspan(static_cast<std::size_t>(n));
    }
  }
  Bytes receive(std::size_t n) {
    Bytes out(n);
    for (std::size_t done = 0; done < n;) {
      const ssize_t got = take(std::span(out).subspan(done));
      // A socket with a time limit is interrupted where another would go on waiting.
      if (got < 0 && errno == EINTR) continue;
      if (got == 0) throw std::runtime_error("the server closed");
      if (got < 0) throw std::runtime_error("recv: " + std::string(std::strerror(errno)));
      done += static_cast<std::size_t>(got);
    }
    return out;
  }
  /// True if the server closes without another byte.
  bool closed() {
    std::byte b;
    ssize_t got;
    do {
      got = take(std::span(&b, 1));
    } while (got < 0 && errno == EINTR);
    return got == 0 || (got < 0 && errno != EAGAIN);
  }

  // ---- Handshake

  /// Takes the greeting and sends the client's flags.
  void greet(std::uint32_t flags = kFlagFixedNewstyle | kFlagNoZeroes) {
    receive(kGreetingBytes);
    Bytes out;
    append_u32(out, flags);
    send(out);
  }
  static Bytes option_bytes(std::uint32_t option, std::span<const std::byte> data) {
    Bytes out;
    append_u64(out, kOptionMagic);
    append_u32(out, option);
    append_u32(out, static_cast<std::uint32_t>(data.size()));
    out.insert(out.end(), data.begin(), data.end());
    return out;
  }
  void option(Option option, std::span<const std::byte> data = {}) {
    send(option_bytes(static_cast<std::uint32_t>(option), data));
  }
  struct Reply {
    OptionReply type{};
    Bytes data;
  };
  Reply option_reply(Option of) { return option_reply(static_cast<std::uint32_t>(of)); }
  Reply option_reply(std::uint32_t of) {
    const Bytes head = receive(20);
    Decoder in(head);
    if (in.be<std::uint64_t>() != kOptionReplyMagic) throw std::runtime_error("reply magic");
    if (in.be<std::uint32_t>() != of) throw std::runtime_error("reply to another option");
    Reply reply;
    reply.type = static_cast<OptionReply>(in.be<std::uint32_t>());
    reply.data = receive(in.be<std::uint32_t>());
    return reply;
  }
  /// The replies up to and with the one that ends the option.
  std::vector<Reply> option_replies(Option of) {
    std::vector<Reply> all;
    do {
      all.push_back(option_reply(of));
    } while (all.back().type != OptionReply::kAck &&
             (static_cast<std::uint32_t>(all.back().type) & 0x80000000u) == 0);
    return all;
  }
  static Bytes info_data(std::string_view name, std::vector<Info> infos = {}) {
    Bytes out;
    append_u32(out, static_cast<std::uint32_t>(name.size()));
    append_text(out, name);
    append_u16(out, static_cast<std::uint16_t>(infos.size()));
    for (const Info info : infos)
      append_u16(out, static_cast<std::uint16_t>(info));
    return out;
  }
  static Bytes context_data(std::string_view name, std::vector<std::string_view> queries) {
    Bytes out;
    append_u32(out, static_cast<std::uint32_t>(name.size()));
    append_text(out, name);
    append_u32(out, static_cast<std::uint32_t>(queries.size()));
    for (const std::string_view query : queries) {
      append_u32(out, static_cast<std::uint32_t>(query.size()));
      append_text(out, query);
    }
    return out;
  }
  /// A whole handshake. Throws unless every option is acknowledged.
  void enter(std::string_view name = "", bool structured = true) {
    enter(name, structured ? Headers::kStructured : Headers::kSimple);
  }
  void enter(std::string_view name, Headers headers,
             std::vector<std::string_view> contexts = {"base:allocation"}) {
    greet();
    if (headers != Headers::kSimple) {
      const Option wanted =
          headers == Headers::kExtended ? Option::kExtendedHeaders : Option::kStructuredReply;
      option(wanted);
      must_ack(wanted);
      option(Option::kSetMetaContext, context_data(name, std::move(contexts)));
      must_ack(Option::kSetMetaContext);
    }
    option(Option::kGo, info_data(name));
    must_ack(Option::kGo);
  }
  void must_ack(Option of) {
    if (option_replies(of).back().type != OptionReply::kAck)
      throw std::runtime_error("an option was refused");
  }

  // ---- Transmission

  static Bytes request_bytes(std::uint16_t type, std::uint16_t flags, std::uint64_t cookie,
                             std::uint64_t offset, std::uint32_t length,
                             std::uint32_t magic = kRequestMagic) {
    Bytes out;
    append_u32(out, magic);
    append_u16(out, flags);
    append_u16(out, type);
    append_u64(out, cookie);
    append_u64(out, offset);
    append_u32(out, length);
    return out;
  }
  void request(Command command, std::uint64_t cookie, std::uint64_t offset, std::uint32_t length,
               std::uint16_t flags = 0, std::span<const std::byte> payload = {}) {
    Bytes out = request_bytes(static_cast<std::uint16_t>(command), flags, cookie, offset, length);
    out.insert(out.end(), payload.begin(), payload.end());
    send(out);
  }
  static Bytes extended_bytes(Command command, std::uint16_t flags, std::uint64_t cookie,
                              std::uint64_t offset, std::uint64_t length,
                              std::span<const std::byte> payload = {}) {
    Bytes out;
    append_u32(out, kExtendedRequestMagic);
    append_u16(out, flags);
    append_u16(out, static_cast<std::uint16_t>(command));
    append_u64(out, cookie);
    append_u64(out, offset);
    append_u64(out, length);
    out.insert(out.end(), payload.begin(), payload.end());
    return out;
  }

  struct Chunk {
    std::uint64_t cookie = 0;
    bool structured = false;
    bool extended = false;
    std::uint64_t offset = 0;  ///< of an extended chunk: the request's
    bool done = true;
    ChunkType type{};
    WireError error = WireError::kNone;
    Bytes body;  ///< of a structured chunk
  };
  /// The head of a simple reply, or a whole chunk. Data of a simple READ reply is left to
  /// receive().
  Chunk chunk() {
    Bytes head = receive(kSimpleReplyBytes);
    Chunk c;
    const auto magic = load_be<std::uint32_t>(head.data());
    if (magic == kSimpleReplyMagic) {
      c.error = static_cast<WireError>(load_be<std::uint32_t>(head.data() + 4));
      c.cookie = load_be<std::uint64_t>(head.data() + 8);
      return c;
    }
    c.extended = magic == kExtendedReplyMagic;
    if (magic != kStructuredReplyMagic && !c.extended) throw std::runtime_error("reply magic");
    c.structured = true;
    c.done = (load_be<std::uint16_t>(head.data() + 4) & kChunkDone) != 0;
    c.type = static_cast<ChunkType>(load_be<std::uint16_t>(head.data() + 6));
    c.cookie = load_be<std::uint64_t>(head.data() + 8);
    if (c.extended) {
      c.offset = load_be<std::uint64_t>(receive(8).data());
      c.body = receive(load_be<std::uint64_t>(receive(8).data()));
    } else {
      c.body = receive(load_be<std::uint32_t>(receive(4).data()));
    }
    if (c.type == ChunkType::kError)
      c.error = static_cast<WireError>(load_be<std::uint32_t>(c.body.data()));
    return c;
  }

 protected:
  // As send(2) and recv(2).
  virtual ssize_t put(std::span<const std::byte> bytes) {
    return ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
  }
  virtual ssize_t take(std::span<std::byte> out) { return ::recv(fd_, out.data(), out.size(), 0); }

 private:
  int fd_;
};

/// Puts the chunks of structured READ replies together, and checks what the protocol demands of
/// them: in bounds, disjoint, covering.
class ReadAssembly {
 public:
  ReadAssembly(std::uint64_t offset, std::size_t length)
      : offset_(offset), data_(length), filled_(length, false) {}

  void add(const Wire::Chunk& chunk) {
    ++chunks_;
    Decoder in(chunk.body);
    if (chunk.type == ChunkType::kNone) return;
    const std::uint64_t at = in.be<std::uint64_t>();
    if (chunk.type == ChunkType::kOffsetData) {
      const auto bytes = in.bytes(in.remaining());
      claim(at, bytes.size());
      std::memcpy(data_.data() + (at - offset_), bytes.data(), bytes.size());
    } else if (chunk.type == ChunkType::kOffsetHole) {
      const std::size_t n = in.be<std::uint32_t>();
      if (!in.ok() || in.remaining() != 0) throw std::runtime_error("bad hole");
      claim(at, n);
      holes_ += n;
    } else {
      throw std::runtime_error("chunk type");
    }
  }
  const Bytes& data() const {
    for (const bool f : filled_)
      if (!f) throw std::runtime_error("the chunks do not cover the read");
    return data_;
  }
  std::size_t chunks() const { return chunks_; }
  std::size_t hole_bytes() const { return holes_; }

 private:
  void claim(std::uint64_t at, std::size_t n) {
    if (n == 0 || at < offset_ || at - offset_ + n > data_.size())
      throw std::runtime_error("a chunk lies outside the read");
    for (std::size_t i = 0; i < n; ++i) {
      if (filled_[at - offset_ + i]) throw std::runtime_error("chunks overlap");
      filled_[at - offset_ + i] = true;
    }
  }
  std::uint64_t offset_;
  Bytes data_;
  std::vector<bool> filled_;
  std::size_t chunks_ = 0;
  std::size_t holes_ = 0;
};

}  // namespace snap::nbd
