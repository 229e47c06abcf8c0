// bare_server: the least that an NBD server can do, to know what socket, client and page cache
// allow: pread or pwrite for every request that is in the receive buffer, and one sendmsg for all
// of their replies. No layers, no map, no journal, no safety.
//
//   bare_server FILE SOCKET     serves FILE, one thread a connection, until killed
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <thread>
#include <vector>

#include "engine/base/codec.h"
#include "engine/nbd/protocol.h"

namespace {

using namespace snap;
using namespace snap::nbd;

constexpr std::size_t kBufferBytes = 48u << 20;

class Client {
 public:
  Client(int fd, int file, std::uint64_t size) : fd_(fd), file_(file), size_(size) {}
  void serve() {
    if (!handshake()) return;
    while (turn()) {
    }
  }

 private:
  bool receive() {
    const ssize_t n = ::recv(fd_, in_.data() + end_, in_.size() - end_, 0);
    if (n > 0) end_ += static_cast<std::size_t>(n);
    return n > 0;
  }
  bool have(std::size_t bytes) {
    while (end_ - at_ < bytes)
      if (!receive()) return false;
    return true;
  }
  bool send(std::span<const std::byte> bytes) {
    return ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL) ==
           static_cast<ssize_t>(bytes.size());
  }

  bool handshake() {
    std::vector<std::byte> out;
    append_u64(out, kGreetingMagic);
    append_u64(out, kOptionMagic);
    append_u16(out, kFlagFixedNewstyle | kFlagNoZeroes);
    if (!send(out) || !have(4)) return false;
    at_ += 4;
    const std::uint16_t flags = kHasFlags | kSendFlush | kCanMultiConn;
    for (;;) {
      if (!have(16)) return false;
      const auto option = load_be<std::uint32_t>(in_.data() + at_ + 8);
      const auto length = load_be<std::uint32_t>(in_.data() + at_ + 12);
      if (length > 4096 || !have(16 + length)) return false;
      at_ += 16 + length;
      out.clear();
      if (option == static_cast<std::uint32_t>(Option::kExportName)) {
        append_u64(out, size_);
        append_u16(out, flags);
        return send(out);
      }
      const bool go = option == static_cast<std::uint32_t>(Option::kGo);
      if (go || option == static_cast<std::uint32_t>(Option::kInfo)) {
        std::vector<std::byte> info;
        append_u16(info, static_cast<std::uint16_t>(Info::kExport));
        append_u64(info, size_);
        append_u16(info, flags);
        append_option_reply(out, option, OptionReply::kInfo, info);
        append_option_reply(out, option, OptionReply::kAck);
      } else {
        append_option_reply(out, option, OptionReply::kErrUnsupported);
      }
      if (!send(out)) return false;
      if (go) return true;
    }
  }

  /// One receive, all requests that are whole, one send.
  bool turn() {
    if (at_ == end_) at_ = end_ = 0;
    if (in_.size() - end_ < (1u << 20)) {
      std::memmove(in_.data(), in_.data() + at_, end_ - at_);
      end_ -= at_;
      at_ = 0;
    }
    if (!receive()) return false;
    replies_.clear();
    pieces_.clear();
    used_ = 0;
    while (end_ - at_ >= kRequestBytes) {
      const RequestHeader h =
          decode_request(std::span(in_).subspan(at_, end_ - at_), Headers::kSimple);
      const auto command = static_cast<Command>(h.type);
      if (h.magic != kRequestMagic || command == Command::kDisconnect) return false;
      const std::size_t payload = command == Command::kWrite ? h.length : 0;
      if (end_ - at_ < kRequestBytes + payload) break;
      bool well = true;
      const auto offset = static_cast<off_t>(h.offset.value);
      if (command == Command::kWrite) {
        well = ::pwrite(file_, in_.data() + at_ + kRequestBytes, payload, offset) ==
               static_cast<ssize_t>(payload);
      } else if (command == Command::kFlush) {
        well = ::fdatasync(file_) == 0;
      }
      const bool read = command == Command::kRead;
      if (read && used_ + h.length > data_.size()) break;
      replies_.push_back(encode_simple_reply(well ? WireError::kNone : WireError::kIo, h.cookie));
      pieces_.push_back({nullptr, kSimpleReplyBytes});  // replies_ may still move
      if (read) {
        if (::pread(file_, data_.data() + used_, h.length, offset) !=
            static_cast<ssize_t>(h.length))
          return false;
        pieces_.push_back({data_.data() + used_, h.length});
        used_ += h.length;
      }
      at_ += kRequestBytes + payload;
    }
    return send_replies();
  }

  bool send_replies() {
    std::size_t next = 0;
    for (iovec& piece : pieces_)
      if (piece.iov_base == nullptr) piece.iov_base = replies_[next++].data();
    for (std::size_t first = 0; first < pieces_.size();) {
      msghdr message{};
      message.msg_iov = pieces_.data() + first;
      message.msg_iovlen = std::min<std::size_t>(pieces_.size() - first, 1024);
      ssize_t n = ::sendmsg(fd_, &message, MSG_NOSIGNAL);
      if (n < 0) return false;
      while (n > 0) {
        iovec& piece = pieces_[first];
        const std::size_t done = std::min(static_cast<std::size_t>(n), piece.iov_len);
        piece.iov_base = static_cast<std::byte*>(piece.iov_base) + done;
        piece.iov_len -= done;
        n -= static_cast<ssize_t>(done);
        if (piece.iov_len == 0) ++first;
      }
    }
    return true;
  }

  const int fd_, file_;
  const std::uint64_t size_;
  std::vector<std::byte> in_ = std::vector<std::byte>(kBufferBytes);
  std::size_t at_ = 0, end_ = 0;
  std::vector<std::byte> data_ = std::vector<std::byte>(kBufferBytes);
  std::size_t used_ = 0;
  std::vector<std::array<std::byte, kSimpleReplyBytes>> replies_;
  std::vector<iovec> pieces_;
};

}  // namespace

int main(int argc, char** argv) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (argc != 3 || std::strlen(argv[2]) >= sizeof address.sun_path) {
    std::fprintf(stderr, "bare_server FILE SOCKET\n");
    return 64;
  }
  std::strcpy(address.sun_path, argv[2]);
  const int file = ::open(argv[1], O_RDWR | O_CLOEXEC);
  const int listener = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  struct ::stat st {};
  if (file < 0 || ::fstat(file, &st) != 0 ||
      ::bind(listener, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0 ||
      ::listen(listener, 64) != 0) {
    std::perror("bare_server");
    return 1;
  }
  for (;;) {
    const int fd = ::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
    if (fd < 0) continue;
    std::thread([fd, file, size = static_cast<std::uint64_t>(st.st_size)] {
      Client(fd, file, size).serve();
      ::close(fd);
    }).detach();
  }
}
