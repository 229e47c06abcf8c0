#include "engine/server/listener.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <grp.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <cerrno>
#include <charconv>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <utility>

namespace snap::server {

namespace {

constexpr int kBacklog = 128;
constexpr int kFirstInherited = 3;  // SD_LISTEN_FDS_START
constexpr int kMostInherited = 64;

Error failed(std::string_view what, const std::string& on) {
  return Error::from_errno(errno, std::string(what) + " " + on);
}

/// Looks whether someone accepts connections at the path.
bool someone_listens(const sockaddr_un& address) {
  UniqueFd probe(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!probe) return true;
  if (::connect(probe.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0)
    return true;
  return errno != ECONNREFUSED && errno != ENOENT;
}

Result<void> set_owner(const UnixAddress& address) {
  // bind() applied the umask to the mode; widen it only now that the socket exists.
  if (::chmod(address.path.c_str(), address.mode) != 0)
    return failed("set the mode of", address.path);
  if (address.group.empty()) return {};
  errno = 0;
  const group* found = ::getgrnam(address.group.c_str());
  if (found == nullptr)
    return Error(ErrorCode::kNotFound,
                 "there is no group " + address.group + " for the socket " + address.path);
  if (::chown(address.path.c_str(), static_cast<uid_t>(-1), found->gr_gid) != 0)
    return failed("set the group of", address.path);
  return {};
}

bool is_loopback(const sockaddr* address) {
  if (address->sa_family == AF_INET) {
    sockaddr_in in;
    std::memcpy(&in, address, sizeof in);
    return (ntohl(in.sin_addr.s_addr) >> 24) == 127;
  }
  if (address->sa_family == AF_INET6) {
    sockaddr_in6 in;
    std::memcpy(&in, address, sizeof in);
    return IN6_IS_ADDR_LOOPBACK(&in.sin6_addr);
  }
  return false;
}

/// "host:port" of a bound TCP socket.
Result<std::string> bound_address(int fd) {
  sockaddr_storage storage{};
  socklen_t length = sizeof storage;
  auto* address = reinterpret_cast<sockaddr*>(&storage);
  if (::getsockname(fd, address, &length) != 0)
    return Error::from_errno(errno, "read the address of a TCP socket");
  char host[NI_MAXHOST];
  char port[NI_MAXSERV];
  if (::getnameinfo(address, length, host, sizeof host, port, sizeof port,
                    NI_NUMERICHOST | NI_NUMERICSERV) != 0)
    return Error(ErrorCode::kIo, "read the address of a TCP socket");
  if (storage.ss_family == AF_INET6) return "[" + std::string(host) + "]:" + port;
  return std::string(host) + ":" + port;
}

std::optional<int> take_environment_number(const char* name) {
  const char* text = ::getenv(name);
  if (text == nullptr) return std::nullopt;
  int value = 0;
  const char* end = text + std::strlen(text);
  const auto parsed = std::from_chars(text, end, value);
  const bool ok = parsed.ec == std::errc() && parsed.ptr == end;
  ::unsetenv(name);
  if (!ok) return std::nullopt;
  return value;
}

}  // namespace

std::string percent_encoded(std::string_view text) {
  constexpr char kHex[] = "0123456789ABCDEF";
  std::string out;
  for (const char c : text) {
    const bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                       std::string_view("-._~/").find(c) != std::string_view::npos;
    if (plain) {
      out += c;
    } else {
      const auto byte = static_cast<unsigned char>(c);
      out += '%';
      out += kHex[byte >> 4];
      out += kHex[byte & 15];
    }
  }
  return out;
}

Result<TcpAddress> parse_tcp_address(std::string_view text) {
  TcpAddress address;
  std::string_view host = text;
  if (text.starts_with('[')) {
    const std::size_t end = text.find(']');
    if (end == std::string_view::npos)
      return Error(ErrorCode::kInvalidArgument, "TCP address " + std::string(text) + " lacks a ]");
    host = text.substr(1, end - 1);
    text.remove_prefix(end + 1);
    if (!text.empty() && !text.starts_with(':'))
      return Error(ErrorCode::kInvalidArgument, "expected :PORT after the ] of a TCP address");
  } else {
    host = text.substr(0, text.rfind(':'));
    text.remove_prefix(host.size());
  }
  if (!host.empty()) address.host = host;
  if (text.size() > 1) address.port = text.substr(1);
  return address;
}

Listener::Listener(Listener&& other) noexcept
    : fd_(std::move(other.fd_)),
      is_tcp_(other.is_tcp_),
      address_(std::move(other.address_)),
      made_(std::exchange(other.made_, std::nullopt)) {}

Listener::~Listener() {
  if (!made_) return;
  struct stat now {};
  if (::lstat(address_.c_str(), &now) == 0 && std::pair(now.st_dev, now.st_ino) == *made_)
    ::unlink(address_.c_str());
}

Result<Listener> Listener::on_unix(UnixAddress address) {
  sockaddr_un target{};
  target.sun_family = AF_UNIX;
  if (address.path.empty() || address.path.size() >= sizeof target.sun_path) {
    return Error(ErrorCode::kInvalidArgument,
                 "socket path " + address.path + " has " + std::to_string(address.path.size()) +
                     " bytes; a socket path holds 1 to 107: choose a shorter one");
  }
  std::memcpy(target.sun_path, address.path.data(), address.path.size());
  UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!fd) return failed("make a socket for", address.path);
  // The file is born with this mode (less the umask): no moment in which others could connect.
  if (::fchmod(fd.get(), address.mode) != 0) return failed("set the mode of", address.path);
  const auto* where = reinterpret_cast<const sockaddr*>(&target);
  int bound = ::bind(fd.get(), where, sizeof target);
  if (bound != 0 && errno == EADDRINUSE) {
    struct stat old {};
    if (::lstat(address.path.c_str(), &old) == 0 && !S_ISSOCK(old.st_mode))
      return Error(ErrorCode::kExists, address.path + " exists and is no socket: it is left alone");
    if (someone_listens(target))
      return Error(ErrorCode::kBusy, "another process serves on socket " + address.path);
    ::unlink(address.path.c_str());
    bound = ::bind(fd.get(), where, sizeof target);
  }
  if (bound != 0) return failed("bind socket", address.path);
  Listener listener(std::move(fd), false, address.path);
  struct stat made {};
  if (::lstat(address.path.c_str(), &made) != 0) return failed("look at socket", address.path);
  listener.made_ = std::pair(made.st_dev, made.st_ino);
  auto owned = set_owner(address);
  if (!owned) return owned.error();
  if (::listen(listener.fd(), kBacklog) != 0) return failed("listen on socket", address.path);
  return listener;
}

Result<Listener> Listener::on_tcp(TcpAddress address) {
  const std::string shown = address.host + ":" + address.port;
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE;
  addrinfo* list = nullptr;
  const int err = ::getaddrinfo(address.host.c_str(), address.port.c_str(), &hints, &list);
  if (err != 0)
    return Error(ErrorCode::kInvalidArgument,
                 "TCP address " + shown + ": " + std::string(::gai_strerror(err)));
  const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> owner(list, &::freeaddrinfo);
  if (!address.insecure && !is_loopback(list->ai_addr)) {
    return Error(ErrorCode::kPermission,
                 "TCP address " + shown +
                     " can be reached from other machines and the connection has no TLS; "
                     "use a loopback address, or allow it explicitly");
  }
  UniqueFd fd(::socket(list->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!fd) return failed("make a TCP socket for", shown);
  const int on = 1;
  if (::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) != 0)
    return failed("set SO_REUSEADDR for", shown);
  if (::bind(fd.get(), list->ai_addr, list->ai_addrlen) != 0) return failed("bind", shown);
  if (::listen(fd.get(), kBacklog) != 0) return failed("listen on", shown);
  auto bound = bound_address(fd.get());
  if (!bound) return bound.error();
  return Listener(std::move(fd), true, *bound);
}

Result<Listener> Listener::adopt(UniqueFd fd) {
  int accepts = 0;
  socklen_t length = sizeof accepts;
  if (::getsockopt(fd.get(), SOL_SOCKET, SO_ACCEPTCONN, &accepts, &length) != 0 || accepts == 0)
    return Error(ErrorCode::kInvalidArgument,
                 "inherited descriptor " + std::to_string(fd.get()) + " is not a listening socket");
  if (::fcntl(fd.get(), F_SETFD, FD_CLOEXEC) != 0)
    return Error::from_errno(errno, "set close-on-exec on an inherited socket");
  sockaddr_storage storage{};
  length = sizeof storage;
  if (::getsockname(fd.get(), reinterpret_cast<sockaddr*>(&storage), &length) != 0)
    return Error::from_errno(errno, "read the address of an inherited socket");
  if (storage.ss_family == AF_UNIX) {
    sockaddr_un address{};
    std::memcpy(&address, &storage, sizeof address);
    return Listener(
        std::move(fd), false,
        std::string(address.sun_path, ::strnlen(address.sun_path, sizeof address.sun_path)));
  }
  auto bound = bound_address(fd.get());
  if (!bound) return bound.error();
  return Listener(std::move(fd), true, *bound);
}

Result<std::vector<Listener>> Listener::inherited() {
  std::vector<Listener> listeners;
  const std::optional<int> pid = take_environment_number("LISTEN_PID");
  const std::optional<int> count = take_environment_number("LISTEN_FDS");
  ::unsetenv("LISTEN_FDNAMES");
  if (!pid || !count || *pid != ::getpid()) return listeners;
  if (*count < 0 || *count > kMostInherited)
    return Error(ErrorCode::kInvalidArgument,
                 "LISTEN_FDS is " + std::to_string(*count) + "; 0 to 64 make sense");
  for (int i = 0; i < *count; ++i) {
    auto listener = adopt(UniqueFd(kFirstInherited + i));
    if (!listener) return listener.error();
    listeners.push_back(std::move(*listener));
  }
  return listeners;
}

std::string Listener::uri(std::string_view name) const {
  if (is_tcp_) return "nbd://" + address_ + "/" + percent_encoded(name);
  return "nbd+unix:///" + percent_encoded(name) + "?socket=" + percent_encoded(address_);
}

}  // namespace snap::server
