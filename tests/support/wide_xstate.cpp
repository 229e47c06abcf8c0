// Preloaded into User-mode Linux by run-in-guest.sh. Its kernel (6.1) sets its processes' extended
// registers in a buffer that ends with AVX-512; a processor with more (AMX) has a longer one, and
// Linux refuses to set a part of it (EFAULT): the guest's first process dies. So the part is put in
// front of what the processor has there now.
#include <dlfcn.h>
#include <elf.h>
#include <sys/ptrace.h>
#include <sys/uio.h>

#include <algorithm>
#include <cstdarg>
#include <cstdint>
#include <cstring>

extern "C" long ptrace(__ptrace_request request, ...) {
  using Ptrace = long (*)(__ptrace_request, ...);
  static const auto original = reinterpret_cast<Ptrace>(::dlsym(RTLD_NEXT, "ptrace"));
  va_list more;
  va_start(more, request);
  const pid_t pid = va_arg(more, pid_t);
  void* const address = va_arg(more, void*);
  void* const data = va_arg(more, void*);
  va_end(more);
  if (request != PTRACE_SETREGSET || reinterpret_cast<std::uintptr_t>(address) != NT_X86_XSTATE)
    return original(request, pid, address, data);
  alignas(64) static thread_local char bytes[64 << 10];
  iovec whole{bytes, sizeof bytes};
  const long got = original(PTRACE_GETREGSET, pid, address, &whole);
  if (got != 0) return got;
  const auto* part = static_cast<const iovec*>(data);
  std::memcpy(bytes, part->iov_base, std::min(part->iov_len, whole.iov_len));
  return original(PTRACE_SETREGSET, pid, address, &whole);
}
