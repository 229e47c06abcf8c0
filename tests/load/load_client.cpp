#include "tests/load/load_client.h"

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <numeric>

#include "engine/base/codec.h"
#include "engine/nbd/protocol.h"

namespace snap::load {

namespace {

using namespace snap::nbd;

constexpr std::size_t kReceiveBytes = 1u << 20;
constexpr std::size_t kMaxPieces = 1024;  // IOV_MAX

Error gone(const char* what) {
  return Error(ErrorCode::kIo,
               std::string("the server closed the connection while it was to ") + what);
}

Result<UniqueFd> connect_unix(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path)
    return Error(ErrorCode::kInvalidArgument, path + " is too long for a socket");
  std::memcpy(address.sun_path, path.data(), path.size());
  UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!fd || ::connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0)
    return Error::from_errno(errno, "connect to " + path);
  return fd;
}

Result<UniqueFd> connect_tcp(const std::string& host, const std::string& port) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (::getaddrinfo(host.c_str(), port.c_str(), &hints, &found) != 0 || found == nullptr)
    return Error(ErrorCode::kNotFound, "no such host or port: " + host + ":" + port);
  UniqueFd fd(::socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const int connected = fd ? ::connect(fd.get(), found->ai_addr, found->ai_addrlen) : -1;
  const int err = errno;
  ::freeaddrinfo(found);
  if (connected != 0) return Error::from_errno(err, "connect to " + host + ":" + port);
  const int on = 1;
  ::setsockopt(fd.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  return fd;
}

}  // namespace

void Tally::add(const Tally& other) {
  reads += other.reads;
  writes += other.writes;
  flushes += other.flushes;
  compared += other.compared;
  requests.add(other.requests);
  flush_times.add(other.flush_times);
}

// ---- Connecting

Result<std::uint64_t> LoadClient::connect(const std::string& address,
                                          const std::string& export_name) {
  const std::size_t colon = address.rfind(':');
  auto fd = address.starts_with("unix:")
                ? connect_unix(address.substr(5))
                : connect_tcp(address.substr(0, colon), address.substr(colon + 1));
  if (!fd) return fd.error();
  fd_ = std::move(*fd);
  auto entered = enter(export_name);
  if (!entered) return entered.error();
  return size_;
}

Result<void> LoadClient::enter(const std::string& export_name) {
  std::vector<std::byte> greeting(kGreetingBytes);
  auto got = receive_exactly(greeting);
  if (!got) return got;
  std::vector<std::byte> out;
  append_u32(out, kFlagFixedNewstyle | kFlagNoZeroes);
  append_u64(out, kOptionMagic);
  append_u32(out, static_cast<std::uint32_t>(Option::kExportName));
  append_u32(out, static_cast<std::uint32_t>(export_name.size()));
  append_text(out, export_name);
  std::vector<iovec> pieces{{out.data(), out.size()}};
  auto sent = send_all(pieces);
  if (!sent) return sent;
  std::vector<std::byte> reply(10);
  got = receive_exactly(reply);
  if (!got) return Error(ErrorCode::kNotFound, "the server has no export '" + export_name + "'");
  size_ = load_be<std::uint64_t>(reply.data());
  return {};
}

Result<void> LoadClient::send_all(std::vector<iovec>& pieces) {
  std::size_t first = 0;
  while (first < pieces.size()) {
    msghdr message{};
    message.msg_iov = pieces.data() + first;
    message.msg_iovlen = std::min(pieces.size() - first, kMaxPieces);
    ssize_t n = ::sendmsg(fd_.get(), &message, MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return Error::from_errno(errno, "send");
    while (n > 0 || (first < pieces.size() && pieces[first].iov_len == 0)) {
      const std::size_t done = std::min(static_cast<std::size_t>(n), pieces[first].iov_len);
      pieces[first].iov_base = static_cast<std::byte*>(pieces[first].iov_base) + done;
      pieces[first].iov_len -= done;
      n -= static_cast<ssize_t>(done);
      if (pieces[first].iov_len == 0) ++first;
    }
  }
  return {};
}

Result<void> LoadClient::receive_exactly(std::span<std::byte> out) {
  while (!out.empty()) {
    const ssize_t n = ::recv(fd_.get(), out.data(), out.size(), 0);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return Error::from_errno(errno, "receive");
    if (n == 0) return gone("take part in the handshake");
    out = out.subspan(static_cast<std::size_t>(n));
  }
  return {};
}

// ---- Requests

Result<void> LoadClient::run(const Workload& workload, Clock::time_point deadline) {
  work_ = workload;
  random_.seed(workload.seed);
  slots_.assign(work_.depth, Slot{});
  headers_.resize(work_.depth * kRequestBytes);
  received_.resize(kReceiveBytes);
  payload_.assign(work_.block, std::byte{0x5a});
  for (std::size_t i = 0; i < payload_.size(); i += 8)
    store_le(payload_.data() + i, random_());
  if (work_.verify) {
    versions_.assign(blocks(), 0);
    busy_.assign(blocks(), false);
    for (Slot& slot : slots_)
      slot.data.resize(work_.block);
  }
  if (work_.once && !work_.sequential) {
    order_.resize(blocks());
    std::iota(order_.begin(), order_.end(), 0);
    std::shuffle(order_.begin(), order_.end(), random_);
  }
  for (std::size_t i = work_.depth; i-- > 0;)
    free_.push_back(i);
  for (;;) {
    if (Clock::now() < deadline && !all_had_their_turn()) {
      auto sent = send_requests();
      if (!sent) return sent;
    }
    if (free_.size() == work_.depth) break;
    auto received = receive_replies();
    if (!received) return received;
  }
  return {};
}

std::uint64_t LoadClient::choose_block() {
  if (!order_.empty()) return order_[next_block_++];
  for (;;) {
    const std::uint64_t block = work_.sequential ? next_block_++ % blocks() : random_() % blocks();
    if (!work_.verify || !busy_[block]) return block;
  }
}

void LoadClient::prepare(Slot& slot, std::size_t index) {
  std::byte* header = headers_.data() + index * kRequestBytes;
  const bool flush = work_.flush_every != 0 && since_flush_ == work_.flush_every;
  Command command = Command::kFlush;
  if (flush) {
    slot.kind = Kind::kFlush;
    since_flush_ = 0;
  } else {
    ++since_flush_;
    const bool read = random_() % 100 < work_.read_percent;
    slot.kind = read ? Kind::kRead : Kind::kWrite;
    command = read ? Command::kRead : Command::kWrite;
    slot.block = choose_block();
    if (work_.verify) {
      busy_[slot.block] = true;
      if (!read) fill(slot.data, slot.block, ++versions_[slot.block]);
    }
  }
  store_be(header, kRequestMagic);
  store_be(header + 4, std::uint16_t{0});
  store_be(header + 6, static_cast<std::uint16_t>(command));
  store_be(header + 8, static_cast<std::uint64_t>(index));
  store_be(header + 16, flush ? std::uint64_t{0} : work_.begin + slot.block * work_.block);
  store_be(header + 24, flush ? std::uint32_t{0} : work_.block);
}

Result<void> LoadClient::send_requests() {
  std::vector<iovec> pieces;
  const auto now = Clock::now();
  while (!free_.empty() && !all_had_their_turn()) {
    // A flush waits for all before it, and all after it wait for the flush.
    const bool flush_is_due = work_.flush_every != 0 && since_flush_ == work_.flush_every;
    if (flush_is_due && free_.size() != work_.depth) break;
    const std::size_t index = free_.back();
    free_.pop_back();
    Slot& slot = slots_[index];
    prepare(slot, index);
    slot.sent = now;
    pieces.push_back({headers_.data() + index * kRequestBytes, kRequestBytes});
    if (slot.kind == Kind::kWrite) {
      std::vector<std::byte>& data = work_.verify ? slot.data : payload_;
      pieces.push_back({data.data(), data.size()});
    }
    if (slot.kind == Kind::kFlush) break;
  }
  if (pieces.empty()) return {};
  return send_all(pieces);
}

// ---- Replies

Result<void> LoadClient::receive_replies() {
  if (at_ != 0) {
    std::memmove(received_.data(), received_.data() + at_, end_ - at_);
    end_ -= at_;
    at_ = 0;
  }
  ssize_t n;
  do {
    n = ::recv(fd_.get(), received_.data() + end_, received_.size() - end_, 0);
  } while (n < 0 && errno == EINTR);
  if (n < 0) return Error::from_errno(errno, "receive");
  if (n == 0) return gone("answer");
  end_ += static_cast<std::size_t>(n);
  const auto now = Clock::now();
  for (;;) {
    if (data_missing_ != 0) {
      Slot& slot = slots_[reading_];
      const std::size_t part = std::min(data_missing_, end_ - at_);
      if (work_.verify)
        std::memcpy(slot.data.data() + (work_.block - data_missing_), received_.data() + at_, part);
      at_ += part;
      data_missing_ -= part;
      if (data_missing_ != 0) return {};
      auto finished = finish(slot, now);
      if (!finished) return finished;
    }
    if (end_ - at_ < kSimpleReplyBytes) return {};
    const std::byte* head = received_.data() + at_;
    const auto error = load_be<std::uint32_t>(head + 4);
    const auto index = load_be<std::uint64_t>(head + 8);
    if (load_be<std::uint32_t>(head) != kSimpleReplyMagic || index >= slots_.size() ||
        slots_[index].kind == Kind::kNone)
      return Error(ErrorCode::kProtocol, "what the server sent is no reply to a request");
    if (error != 0)
      return Error(ErrorCode::kIo, "the server answered with error " + std::to_string(error));
    at_ += kSimpleReplyBytes;
    Slot& slot = slots_[index];
    if (slot.kind == Kind::kRead) {
      reading_ = index;
      data_missing_ = work_.block;
      continue;
    }
    auto finished = finish(slot, now);
    if (!finished) return finished;
  }
}

Result<void> LoadClient::finish(Slot& slot, Clock::time_point now) {
  const auto took = now - slot.sent;
  if (slot.kind == Kind::kFlush) {
    ++tally_.flushes;
    tally_.flush_times.add(took);
  } else {
    ++(slot.kind == Kind::kRead ? tally_.reads : tally_.writes);
    tally_.requests.add(took);
    if (work_.verify) {
      busy_[slot.block] = false;
      const std::uint32_t version = versions_[slot.block];
      if (slot.kind == Kind::kRead && version != 0) {
        std::vector<std::byte> expected(work_.block);
        fill(expected, slot.block, version);
        ++tally_.compared;
        if (expected != slot.data)
          return Error(ErrorCode::kCorrupt,
                       "a read of " + std::to_string(work_.block) + " bytes at " +
                           std::to_string(work_.begin + slot.block * work_.block) +
                           " does not give what was written");
      }
    }
  }
  slot.kind = Kind::kNone;
  free_.push_back(static_cast<std::size_t>(&slot - slots_.data()));
  return {};
}

void LoadClient::fill(std::span<std::byte> out, std::uint64_t block, std::uint32_t version) const {
  std::uint64_t x = block << 32 | version;
  for (std::size_t i = 0; i + 8 <= out.size(); i += 8) {
    x = x * 6364136223846793005u + 1442695040888963407u;
    store_le(out.data() + i, x);
  }
}

}  // namespace snap::load
