#include "engine/server/signals.h"

#include <poll.h>
#include <signal.h>
#include <sys/signalfd.h>

#include <cerrno>

namespace snap::server {

namespace {

sigset_t stop_set() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  sigaddset(&set, SIGHUP);
  return set;
}

}  // namespace

Result<void> block_stop_signals() {
  sigset_t set = stop_set();
  sigaddset(&set, SIGPIPE);
  const int err = ::pthread_sigmask(SIG_BLOCK, &set, nullptr);
  if (err != 0) return Error::from_errno(err, "block signals");
  return {};
}

Result<StopSignals> StopSignals::open() {
  const sigset_t set = stop_set();
  UniqueFd fd(::signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
  if (!fd) return Error::from_errno(errno, "make a signalfd");
  return StopSignals(std::move(fd));
}

Task<Result<int>> StopSignals::next(PendingOps& waits) {
  for (;;) {
    auto ready = co_await waits.poll(fd_.get(), POLLIN);
    if (!ready) co_return ready.error();
    signalfd_siginfo info{};
    const ssize_t n = ::read(fd_.get(), &info, sizeof info);
    if (n == static_cast<ssize_t>(sizeof info)) co_return static_cast<int>(info.ssi_signo);
    if (n < 0 && errno != EAGAIN && errno != EINTR)
      co_return Error::from_errno(errno, "read a signalfd");
  }
}

}  // namespace snap::server
