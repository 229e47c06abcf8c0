// Kills the program that it is preloaded into before its N-th change of a file or directory.
//
//   LD_PRELOAD=kill_at.so SNAP_KILL_AT=N program...
//
// Syncs are no changes: a killed process loses nothing that it has written. Counts over all
// threads, so that N = 1, 2, ... goes through every state that the changes leave behind: strace,
// which could inject a signal too, counts each thread's calls apart. The program must do its I/O by
// calls (SNAPCTL_IO=threads), not through a ring.
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <atomic>
#include <cstdarg>
#include <cstdlib>

namespace {

std::atomic<long> changes{0};

void count_change() {
  static const long kill_at = [] {
    const char* given = std::getenv("SNAP_KILL_AT");
    return given == nullptr ? 0L : std::strtol(given, nullptr, 10);
  }();
  if (++changes != kill_at) return;
  ::kill(::getpid(), SIGKILL);
  for (;;)
    ::pause();
}

template <class Function>
Function* real(Function*, const char* name) {
  return reinterpret_cast<Function*>(::dlsym(RTLD_NEXT, name));
}

}  // namespace

// A function of the C library by its own name, which is counted and then does what it does.
#define COUNTED(result, name, parameters, arguments)  \
  extern "C" result name parameters {                 \
    static auto* const original = real(&name, #name); \
    count_change();                                   \
    return original arguments;                        \
  }

COUNTED(int, mkdirat, (int dir, const char* path, mode_t mode) noexcept, (dir, path, mode))
COUNTED(int, mkdir, (const char* path, mode_t mode) noexcept, (path, mode))
COUNTED(int, rmdir, (const char* path) noexcept, (path))
COUNTED(int, unlink, (const char* path) noexcept, (path))
COUNTED(int, unlinkat, (int dir, const char* path, int flags) noexcept, (dir, path, flags))
COUNTED(int, rename, (const char* from, const char* to) noexcept, (from, to))
COUNTED(int, renameat, (int a, const char* from, int b, const char* to) noexcept, (a, from, b, to))
COUNTED(int, renameat2, (int a, const char* from, int b, const char* to, unsigned flags) noexcept,
        (a, from, b, to, flags))
COUNTED(int, linkat, (int a, const char* from, int b, const char* to, int flags) noexcept,
        (a, from, b, to, flags))
COUNTED(int, chmod, (const char* path, mode_t mode) noexcept, (path, mode))
COUNTED(int, fchmod, (int fd, mode_t mode) noexcept, (fd, mode))
COUNTED(int, fchmodat, (int dir, const char* path, mode_t mode, int flags) noexcept,
        (dir, path, mode, flags))
COUNTED(int, truncate64, (const char* path, off64_t size) noexcept, (path, size))
COUNTED(int, ftruncate64, (int fd, off64_t size) noexcept, (fd, size))
COUNTED(int, fallocate64, (int fd, int mode, off64_t at, off64_t length), (fd, mode, at, length))
COUNTED(ssize_t, pwrite64, (int fd, const void* data, size_t length, off64_t at),
        (fd, data, length, at))
COUNTED(ssize_t, pwritev64, (int fd, const iovec* parts, int count, off64_t at),
        (fd, parts, count, at))
COUNTED(ssize_t, pwritev64v2, (int fd, const iovec* parts, int count, off64_t at, int flags),
        (fd, parts, count, at, flags))

extern "C" int openat64(int dir, const char* path, int flags, ...) {
  static auto* const original = real(&openat64, "openat64");
  if ((flags & (O_CREAT | O_TRUNC)) == 0) return original(dir, path, flags);
  va_list more;
  va_start(more, flags);
  const mode_t mode = va_arg(more, mode_t);
  va_end(more);
  count_change();
  return original(dir, path, flags, mode);
}
