#include "engine/server/endpoint.h"

#include <arpa/inet.h>
#include <grp.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "engine/base/private_directory.h"
#include "snap/event_loop.h"

namespace snap::server {

namespace {

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

/// Whether every address of the host is loopback. Asks the resolver: not for a loop's thread.
Result<bool> only_loopback(const TcpEndpoint& endpoint) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE;
  addrinfo* list = nullptr;
  const char* host = endpoint.host.empty() ? nullptr : endpoint.host.c_str();
  const int err = ::getaddrinfo(host, endpoint.port.c_str(), &hints, &list);
  if (err != 0) {
    return Error(ErrorCode::kInvalidArgument,
                 "TCP address " + endpoint.host + ":" + endpoint.port + ": " + ::gai_strerror(err));
  }
  const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> owner(list, &::freeaddrinfo);
  for (const addrinfo* a = list; a != nullptr; a = a->ai_next) {
    if (!is_loopback(a->ai_addr)) return false;
  }
  return true;
}

Result<void> give_to_group(const std::string& path, const std::string& name) {
  std::vector<char> buffer(64u << 10);
  group storage{};
  group* found = nullptr;
  const int err = ::getgrnam_r(name.c_str(), &storage, buffer.data(), buffer.size(), &found);
  if (err != 0) return Error::from_errno(err, "look up group " + name);
  if (found == nullptr)
    return Error(ErrorCode::kNotFound, "there is no group " + name + " for socket " + path);
  if (::chown(path.c_str(), static_cast<uid_t>(-1), found->gr_gid) != 0)
    return Error::from_errno(errno, "give socket " + path + " to group " + name);
  return {};
}

Result<std::string> make_runtime_dir() {
  std::string path = "/run/snapctl";
  const char* chosen = ::getenv("SNAPCTL_RUNTIME_DIR");
  if (chosen != nullptr && chosen[0] == '/') {
    path = chosen;
  } else if (::geteuid() != 0) {
    const char* base = ::getenv("XDG_RUNTIME_DIR");
    path = base != nullptr && base[0] == '/' ? std::string(base) + "/snapctl"
                                             : "/tmp/snapctl-" + std::to_string(::geteuid());
  }
  auto made = make_private_directory(path);
  if (!made && made.error().code() == ErrorCode::kPermission) {
    return Error(ErrorCode::kPermission,
                 made.error().message() + "; remove it, or set SNAPCTL_RUNTIME_DIR");
  }
  SNAP_RETURN_IF_ERROR(made);
  return path;
}

}  // namespace

Result<TcpEndpoint> parse_tcp_endpoint(std::string_view text) {
  TcpEndpoint endpoint;
  const std::string whole(text);
  std::string_view host;
  if (text.starts_with('[')) {
    const std::size_t end = text.find(']');
    if (end == std::string_view::npos)
      return Error(ErrorCode::kInvalidArgument, "TCP address " + whole + " lacks a ]");
    host = text.substr(1, end - 1);
    text.remove_prefix(end + 1);
  } else {
    host = text.substr(0, text.rfind(':'));
    text.remove_prefix(host.size());
  }
  if (!text.empty() && !text.starts_with(':'))
    return Error(ErrorCode::kInvalidArgument, "TCP address " + whole + ": expected HOST:PORT");
  if (!host.empty()) endpoint.host = host;
  if (text.size() > 1) endpoint.port = text.substr(1);
  return endpoint;
}

bool is_local(const Listener& listener) {
  sockaddr_storage address{};
  socklen_t length = sizeof address;
  auto* const bound = reinterpret_cast<sockaddr*>(&address);
  if (::getsockname(listener.fd(), bound, &length) != 0) return false;
  return bound->sa_family == AF_UNIX || is_loopback(bound);
}

Error not_safe(const std::string& address) {
  return Error(ErrorCode::kPermission,
               "TCP address " + address +
                   " can be reached from other machines, and without TLS anyone there could read "
                   "and write; require TLS (--tls-certificates, --tls-psk), use a loopback "
                   "address, or allow it with --insecure");
}

Task<Result<Listener>> listen_on(UnixEndpoint endpoint) {
  auto listener = co_await Listener::listen_unix(endpoint.path, endpoint.mode);
  if (!listener || endpoint.group.empty()) co_return listener;
  auto given = co_await offload([&] { return give_to_group(endpoint.path, endpoint.group); });
  if (!given) co_return given.error();
  co_return listener;
}

Task<Result<Listener>> listen_on(TcpEndpoint endpoint) {
  auto safe = co_await offload([&] { return only_loopback(endpoint); });
  if (!safe) co_return safe.error();
  if (!*safe && !endpoint.tls && !endpoint.insecure)
    co_return not_safe(endpoint.host + ":" + endpoint.port);
  co_return co_await Listener::listen_tcp(endpoint.host, endpoint.port);
}

std::string nbd_uri(const Listener& listener, std::string_view name, bool tls) {
  const std::string scheme = tls ? "nbds" : "nbd";
  const std::string path = "/" + percent_encoded(name);
  if (listener.port() != 0) return scheme + "://" + listener.address() + path;
  return scheme + "+unix://" + path + "?socket=" + percent_encoded(listener.address());
}

Task<Result<std::string>> runtime_dir() {
  co_return co_await offload([] { return make_runtime_dir(); });
}

}  // namespace snap::server
