#include "engine/base/lazy_memory.h"

#include <errno.h>
#include <sys/mman.h>

#include <string>

namespace snap {

LazyMemory::~LazyMemory() {
  if (address_ != nullptr) ::munmap(address_, length_);
}

Result<LazyMemory> LazyMemory::map(std::size_t length) {
  void* address = ::mmap(nullptr, length, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (address == MAP_FAILED) {
    return Error::from_errno(errno,
                             "reserve " + std::to_string(length) + " bytes of address space");
  }
  LazyMemory memory;
  memory.address_ = address;
  memory.length_ = length;
  return memory;
}

}  // namespace snap
