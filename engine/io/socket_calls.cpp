#include "engine/io/socket_calls.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstring>

#include "engine/io/real_calls.h"

namespace snap::net {

namespace {

/// The address of a unix socket. A path that is too long for one goes through its directory's
/// descriptor, which must live as long as the address is used.
struct UnixAddress {
  sockaddr_un addr{};
  UniqueFd directory;
  int err = 0;

  explicit UnixAddress(const std::string& path) {
    addr.sun_family = AF_UNIX;
    std::string name = path;
    if (name.size() >= sizeof addr.sun_path) {
      const std::size_t slash = path.rfind('/');
      const std::string parent = slash == std::string::npos ? "." : path.substr(0, slash + 1);
      directory = UniqueFd(::open(parent.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
      if (!directory) {
        err = -errno;
        return;
      }
      const std::string base = slash == std::string::npos ? path : path.substr(slash + 1);
      name = "/proc/self/fd/" + std::to_string(directory.get()) + "/" + base;
    }
    if (name.empty() || name.size() >= sizeof addr.sun_path || name.find('\0') != name.npos) {
      err = name.empty() ? -EINVAL : -ENAMETOOLONG;
      return;
    }
    std::memcpy(addr.sun_path, name.c_str(), name.size() + 1);
  }
  const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&addr); }
};

enum class Occupant { kNone, kListening, kStale, kNoSocket };

Occupant who_is_at(const std::string& path) {
  struct stat s {};
  if (::lstat(path.c_str(), &s) != 0) return Occupant::kNone;
  if (!S_ISSOCK(s.st_mode)) return Occupant::kNoSocket;
  const UnixAddress address(path);
  UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  // In doubt someone listens: a socket that is in use must not be taken away.
  if (!fd || address.err != 0) return Occupant::kListening;
  if (::connect(fd.get(), address.get(), sizeof address.addr) == 0) return Occupant::kListening;
  return errno == ECONNREFUSED ? Occupant::kStale : Occupant::kListening;
}

/// Moves a stale socket file out of the way. Between the look and the move a new listener may have
/// put its own there: then that one goes back. 0 or -errno.
int remove_stale(const std::string& path, const std::string& aside) {
  if (::rename(path.c_str(), aside.c_str()) != 0) return errno == ENOENT ? 0 : -errno;
  if (who_is_at(aside) == Occupant::kStale) return ::unlink(aside.c_str()) == 0 ? 0 : -errno;
  const int back = real::rename_at(AT_FDCWD, aside, AT_FDCWD, path, true);
  return back == 0 ? -EADDRINUSE : back;
}

int bind_and_listen(int fd, const std::string& path, unsigned mode) {
  const UnixAddress address(path);
  if (address.err != 0) return address.err;
  if (::bind(fd, address.get(), sizeof address.addr) != 0) return -errno;
  if (::chmod(path.c_str(), mode) != 0 || ::listen(fd, SOMAXCONN) != 0) {
    const int err = -errno;
    ::unlink(path.c_str());
    return err;
  }
  return 0;
}

/// Gives the listening socket `temporary` its name.
Failure publish(const std::string& temporary, const std::string& path) {
  constexpr int kAttempts = 5;
  for (int i = 0; i < kAttempts; ++i) {
    const int err = real::rename_at(AT_FDCWD, temporary, AT_FDCWD, path, true);
    if (err != -EEXIST) return {err, ""};
    switch (who_is_at(path)) {
      case Occupant::kListening:
        return {-EADDRINUSE, "another process listens there"};
      case Occupant::kNoSocket:
        return {-EEXIST, "there is something else that is no socket"};
      case Occupant::kStale:
        if (const int stale = remove_stale(path, temporary + ".old"); stale != 0)
          return {stale, "another process listens there"};
        break;
      case Occupant::kNone:
        break;
    }
  }
  return {-EADDRINUSE, "other processes keep taking the name"};
}

void set_timeout(int fd, int seconds) {
  const timeval limit{seconds, 0};
  // Without it a connect waits for as long as the kernel does.
  (void)::setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
}

using AddressList = std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)>;

AddressList resolve(const std::string& host, const std::string& port, int flags, Failure& failure) {
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = flags;
  addrinfo* list = nullptr;
  const int err = ::getaddrinfo(host.empty() ? nullptr : host.c_str(), port.c_str(), &hints, &list);
  if (err != 0) {
    failure.err = err == EAI_SYSTEM ? -errno : -EADDRNOTAVAIL;
    failure.reason = ::gai_strerror(err);
  }
  return AddressList(list, &::freeaddrinfo);
}

int listen_at(const addrinfo& at) {
  UniqueFd fd(::socket(at.ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd) return -errno;
  const int on = 1;
  const int off = 0;
  if (::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) != 0) return -errno;
  // The wildcard of IPv6 takes IPv4 too.
  if (at.ai_family == AF_INET6)
    (void)::setsockopt(fd.get(), IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);
  if (::bind(fd.get(), at.ai_addr, at.ai_addrlen) != 0) return -errno;
  if (::listen(fd.get(), SOMAXCONN) != 0) return -errno;
  return fd.release();
}

int connect_to(const addrinfo& at, int seconds) {
  UniqueFd fd(::socket(at.ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!fd) return -errno;
  set_timeout(fd.get(), seconds);
  if (::connect(fd.get(), at.ai_addr, at.ai_addrlen) != 0)
    return errno == EINPROGRESS ? -ETIMEDOUT : -errno;
  set_timeout(fd.get(), 0);
  const int on = 1;
  (void)::setsockopt(fd.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  return fd.release();
}

}  // namespace

UnixListener listen_unix(const std::string& path, unsigned mode) {
  UnixListener out;
  UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd) {
    out.failure.err = -errno;
    return out;
  }
  // It listens before it gets its name: a name that refuses connections is a stale one.
  static std::atomic<unsigned> count{0};
  const std::string temporary =
      path + "." + std::to_string(::getpid()) + "." + std::to_string(++count) + ".tmp";
  ::unlink(temporary.c_str());  // of an earlier process with this number
  out.failure.err = bind_and_listen(fd.get(), temporary, mode);
  if (out.failure.err != 0) return out;
  out.failure = publish(temporary, path);
  if (out.failure.err != 0) {
    ::unlink(temporary.c_str());
    return out;
  }
  struct stat s {};
  if (::lstat(path.c_str(), &s) == 0) {
    out.device = s.st_dev;
    out.inode = s.st_ino;
  }
  out.fd = std::move(fd);
  return out;
}

int connect_unix(const std::string& path, int seconds) {
  const UnixAddress address(path);
  if (address.err != 0) return address.err;
  UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!fd) return -errno;
  set_timeout(fd.get(), seconds);
  if (::connect(fd.get(), address.get(), sizeof address.addr) != 0) return -errno;
  set_timeout(fd.get(), 0);
  return fd.release();
}

TcpSocket listen_tcp(const std::string& host, const std::string& port) {
  TcpSocket out;
  const AddressList list = resolve(host, port, AI_PASSIVE, out.failure);
  // "localhost" means 127.0.0.1 to most clients; the wildcard is the one of IPv6, which takes both.
  const std::array<int, 2> order =
      host.empty() ? std::array<int, 2>{AF_INET6, AF_INET} : std::array<int, 2>{AF_INET, AF_INET6};
  for (const int family : order) {
    for (const addrinfo* at = list.get(); at != nullptr; at = at->ai_next) {
      if (at->ai_family != family) continue;
      const int fd = listen_at(*at);
      if (fd < 0) {
        out.failure.err = fd;
        continue;
      }
      out.failure = {};
      out.fd = UniqueFd(fd);
      describe_bound(fd, out.address, out.port);
      return out;
    }
  }
  return out;
}

TcpSocket connect_tcp(const std::string& host, const std::string& port, int seconds) {
  TcpSocket out;
  const AddressList list = resolve(host, port, 0, out.failure);
  for (const addrinfo* at = list.get(); at != nullptr; at = at->ai_next) {
    const int fd = connect_to(*at, seconds);
    out.failure.err = fd < 0 ? fd : 0;
    if (fd < 0) continue;
    out.fd = UniqueFd(fd);
    break;
  }
  return out;
}

void describe_bound(int fd, std::string& address, unsigned& port) {
  sockaddr_storage bound{};
  socklen_t length = sizeof bound;
  char host[NI_MAXHOST];
  char service[NI_MAXSERV];
  if (::getsockname(fd, reinterpret_cast<sockaddr*>(&bound), &length) != 0) return;
  if (::getnameinfo(reinterpret_cast<sockaddr*>(&bound), length, host, sizeof host, service,
                    sizeof service, NI_NUMERICHOST | NI_NUMERICSERV) != 0)
    return;
  const bool v6 = bound.ss_family == AF_INET6;
  address = (v6 ? "[" + std::string(host) + "]" : std::string(host)) + ":" + service;
  port = bound.ss_family == AF_INET || v6 ? static_cast<unsigned>(std::stoul(service)) : 0;
}

}  // namespace snap::net
