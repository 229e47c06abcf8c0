#include "engine/io/socket.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <charconv>
#include <cstdlib>
#include <cstring>
#include <optional>

#include "engine/io/socket_calls.h"

namespace snap {

namespace {

constexpr int kConnectSeconds = 10;
constexpr int kFirstInherited = 3;  // SD_LISTEN_FDS_START
constexpr int kMaxInherited = 64;

Error failed(const net::Failure& failure, const std::string& what) {
  Error error = Error::from_errno(-failure.err, what);
  if (!failure.reason.empty())
    error = Error(error.code(), what + ": " + failure.reason, -failure.err);
  return failure.err == -EADDRINUSE ? error.with_code(ErrorCode::kBusy) : error;
}

/// accept(2): errors of the connection that was waiting, not of the listener.
bool concerns_one_connection(int err) {
  switch (err) {
    case ECONNABORTED:
    case EPROTO:
    case ENETDOWN:
    case ENOPROTOOPT:
    case EHOSTDOWN:
    case ENONET:
    case EHOSTUNREACH:
    case ENETUNREACH:
    case EAGAIN:
      return true;
    default:
      return false;
  }
}

std::optional<int> number_in_environment(const char* name) {
  const char* text = std::getenv(name);
  if (text == nullptr) return std::nullopt;
  int value = 0;
  const char* end = text + std::strlen(text);
  const auto parsed = std::from_chars(text, end, value);
  if (parsed.ec != std::errc() || parsed.ptr != end) return std::nullopt;
  return value;
}

}  // namespace

void Socket::shutdown(int how) noexcept {
  // ENOTCONN: the peer was faster.
  if (valid()) (void)::shutdown(fd_.get(), how);
}

std::span<iovec> skip_bytes(std::span<iovec> parts, std::size_t n) noexcept {
  while (!parts.empty() && n >= parts.front().iov_len) {
    n -= parts.front().iov_len;
    parts = parts.subspan(1);
  }
  if (n != 0 && !parts.empty()) {
    iovec& first = parts.front();
    first.iov_base = static_cast<std::byte*>(first.iov_base) + n;
    first.iov_len -= n;
  }
  return parts;
}

Task<Result<void>> recv_exact(const Socket& s, std::span<std::byte> out) {
  std::size_t done = 0;
  while (done < out.size()) {
    auto n = co_await recv_some(s, out.subspan(done));
    if (!n) co_return n.error().with_context(s.name());
    if (*n == 0) {
      co_return Error(ErrorCode::kProtocol, s.name() + ": closed after " + std::to_string(done) +
                                                " of " + std::to_string(out.size()) + " bytes");
    }
    done += *n;
  }
  co_return Result<void>();
}

Task<Result<void>> send_all(const Socket& s, std::span<iovec> parts) {
  parts = skip_bytes(parts, 0);
  while (!parts.empty()) {
    auto n = co_await send_some(s, parts);
    if (!n) co_return n.error().with_context(s.name());
    parts = skip_bytes(parts, *n);
  }
  co_return Result<void>();
}

Task<Result<void>> send_all(const Socket& s, std::span<const std::byte> bytes) {
  iovec part{const_cast<std::byte*>(bytes.data()), bytes.size()};
  const std::span<iovec> parts(&part, 1);
  auto sent = co_await send_all(s, parts);
  co_return sent;
}

// ---- Listener

Listener& Listener::operator=(Listener&& other) noexcept {
  if (this != &other) {
    close();
    fd_ = std::move(other.fd_);
    address_ = std::move(other.address_);
    path_ = std::move(other.path_);
    file_ = other.file_;
    port_ = other.port_;
    tcp_ = other.tcp_;
  }
  return *this;
}

void Listener::close() noexcept {
  if (!valid()) return;
  fd_.reset();
  if (path_.empty()) return;
  // Only its own: a successor may have the name by now.
  struct stat s {};
  if (::lstat(path_.c_str(), &s) == 0 && s.st_dev == file_.device && s.st_ino == file_.inode)
    ::unlink(path_.c_str());
}

Task<Result<Listener>> Listener::listen_unix(std::string path, unsigned mode) {
  auto work = [&path, mode] { return net::listen_unix(path, mode); };
  net::UnixListener made = co_await offload(work);
  if (!made.fd) co_return failed(made.failure, "listen on " + path);
  Listener out;
  out.fd_ = std::move(made.fd);
  out.address_ = out.path_ = path;
  out.file_ = {made.device, made.inode};
  co_return out;
}

Task<Result<Listener>> Listener::listen_tcp(std::string host, std::string port) {
  auto work = [&host, &port] { return net::listen_tcp(host, port); };
  net::TcpSocket made = co_await offload(work);
  if (!made.fd) co_return failed(made.failure, "listen on " + host + ":" + port);
  Listener out;
  out.fd_ = std::move(made.fd);
  out.address_ = std::move(made.address);
  out.port_ = made.port;
  out.tcp_ = true;
  co_return out;
}

Result<Listener> Listener::adopt(int fd) {
  int listening = 0;
  socklen_t length = sizeof listening;
  if (::getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &length) != 0 || listening == 0) {
    return Error(ErrorCode::kInvalidArgument,
                 "descriptor " + std::to_string(fd) + " is no listening socket");
  }
  const int flags = ::fcntl(fd, F_GETFL);
  if (flags < 0 || ::fcntl(fd, F_SETFL, flags | O_NONBLOCK) != 0 ||
      ::fcntl(fd, F_SETFD, FD_CLOEXEC) != 0)
    return Error::from_errno(errno, "set up inherited descriptor " + std::to_string(fd));
  sockaddr_un bound{};
  socklen_t size = sizeof bound - 1;  // the path may fill its field without an end
  if (::getsockname(fd, reinterpret_cast<sockaddr*>(&bound), &size) != 0)
    return Error::from_errno(errno, "ask for the address of descriptor " + std::to_string(fd));
  Listener out;
  out.fd_ = UniqueFd(fd);
  if (bound.sun_family == AF_UNIX) {
    out.address_ = bound.sun_path;
  } else {
    out.tcp_ = true;
    net::describe_bound(fd, out.address_, out.port_);
  }
  return out;
}

Result<std::vector<Listener>> inherited_listeners() {
  const std::optional<int> pid = number_in_environment("LISTEN_PID");
  const std::optional<int> count = number_in_environment("LISTEN_FDS");
  // Meant for this process and no child of it.
  ::unsetenv("LISTEN_PID");
  ::unsetenv("LISTEN_FDS");
  ::unsetenv("LISTEN_FDNAMES");
  std::vector<Listener> out;
  if (!pid || !count || *pid != ::getpid()) return out;
  if (*count < 0 || *count > kMaxInherited) {
    return Error(ErrorCode::kInvalidArgument, "LISTEN_FDS=" + std::to_string(*count) +
                                                  ": at most " + std::to_string(kMaxInherited) +
                                                  " sockets can be passed on");
  }
  for (int i = 0; i < *count; ++i) {
    auto one = Listener::adopt(kFirstInherited + i);
    if (!one) return one.error();
    out.push_back(std::move(*one));
  }
  return out;
}

Task<Result<Socket>> Listener::accept() {
  for (;;) {
    IoOp op;
    op.opcode = IoOpcode::kAccept;
    op.fd = fd_.get();
    auto accepted = co_await op;
    if (!accepted) {
      if (concerns_one_connection(accepted.error().sys_errno())) continue;
      co_return accepted.error().with_context(address_);
    }
    UniqueFd fd(static_cast<int>(*accepted));
    const int on = 1;
    if (tcp_) (void)::setsockopt(fd.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    co_return Socket(std::move(fd), "client of " + address_);
  }
}

Task<Result<Socket>> connect_unix(std::string path) {
  auto work = [&path] { return net::connect_unix(path, kConnectSeconds); };
  const int fd = co_await offload(work);
  if (fd < 0) co_return Error::from_errno(-fd, "connect to " + path);
  co_return Socket(UniqueFd(fd), "server at " + path);
}

Task<Result<Socket>> connect_tcp(std::string host, std::string port) {
  auto work = [&host, &port] { return net::connect_tcp(host, port, kConnectSeconds); };
  net::TcpSocket made = co_await offload(work);
  const std::string address = host + ":" + port;
  if (!made.fd) co_return failed(made.failure, "connect to " + address);
  co_return Socket(std::move(made.fd), "server at " + address);
}

}  // namespace snap
