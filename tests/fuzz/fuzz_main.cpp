// The entry points that libFuzzer calls, the helpers of fuzz.h, and memory for large buffers.
#include <sanitizer/allocator_interface.h>
#include <sanitizer/asan_interface.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <new>

#include "engine/base/codec.h"
#include "fuzz.h"

namespace snap::fuzz {

namespace {
constexpr std::size_t kPage = 4096;
}

void broken(const std::string& promise) {
  std::fprintf(stderr, "broken promise: %s\n", promise.c_str());
  std::abort();
}

std::uint8_t take_byte(std::span<const std::byte>& input) {
  if (input.empty()) return 0;
  const auto first = std::to_integer<std::uint8_t>(input.front());
  input = input.subspan(1);
  return first;
}

Bytes unpack_pages(std::span<const std::byte> packed, std::size_t max_pages) {
  Bytes file;
  for (std::size_t pages = 0; packed.size() >= 2 && pages < max_pages; ++pages) {
    const std::size_t claimed = load_le<std::uint16_t>(packed.data()) % (kPage + 1);
    packed = packed.subspan(2);
    const auto begin = packed.first(std::min(claimed, packed.size()));
    file.insert(file.end(), begin.begin(), begin.end());
    file.resize((pages + 1) * kPage);
    packed = packed.subspan(begin.size());
  }
  return file;
}

Bytes pack_pages(std::uint8_t flags, std::span<const std::byte> file) {
  Bytes packed{std::byte{flags}};
  while (!file.empty()) {
    const auto page = file.first(std::min(kPage, file.size()));
    std::size_t used = page.size();
    while (used != 0 && page[used - 1] == std::byte{0})
      --used;
    packed.push_back(static_cast<std::byte>(used));
    packed.push_back(static_cast<std::byte>(used >> 8));
    packed.insert(packed.end(), page.begin(), page.begin() + static_cast<std::ptrdiff_t>(used));
    file = file.subspan(page.size());
  }
  return packed;
}

Bytes bytes_of_text(std::string_view text) {
  const auto bytes = std::as_bytes(std::span(text.data(), text.size()));
  return {bytes.begin(), bytes.end()};
}

std::string_view text_of(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

namespace {

/// SNAP_FUZZ_SEEDS=FOLDER in the environment: writes the seeds there and ends.
void write_seeds(const std::string& folder) {
  for (const Seed& seed : seeds()) {
    std::ofstream file(folder + "/" + seed.name, std::ios::binary);
    file.write(reinterpret_cast<const char*>(seed.bytes.data()),
               static_cast<std::streamsize>(seed.bytes.size()));
    file.close();
    if (!file) {
      std::fprintf(stderr, "cannot write %s/%s\n", folder.c_str(), seed.name.c_str());
      std::_Exit(1);
    }
  }
  std::_Exit(0);
}

}  // namespace

}  // namespace snap::fuzz

// ASan maps and unmaps what is larger than 128 KiB each time, which would be half of a target's
// time. So such memory is kept and given out again; meanwhile it is poisoned, and at its ends is
// ASan's red zone.
namespace {

constexpr std::size_t kLarge = 128u << 10;
constexpr std::size_t kMostKept = 16u << 20;

struct Kept {
  std::size_t size;
  void* memory;
};
std::vector<Kept>& kept() {
  static auto* const all = new std::vector<Kept>();
  return *all;
}
std::size_t kept_bytes = 0;

void* take_kept(std::size_t size) {
  for (auto one = kept().begin(); one != kept().end(); ++one) {
    if (one->size != size) continue;
    void* const memory = one->memory;
    kept().erase(one);
    kept_bytes -= size;
    ASAN_UNPOISON_MEMORY_REGION(memory, size);
    return memory;
  }
  return nullptr;
}

void* allocate(std::size_t size) {
  void* memory = size >= kLarge ? take_kept(size) : nullptr;
  if (memory == nullptr) memory = std::malloc(size);
  if (memory == nullptr) std::abort();
  return memory;
}

void release(void* memory) {
  const std::size_t size = memory == nullptr ? 0 : __sanitizer_get_allocated_size(memory);
  if (size < kLarge || kept_bytes + size > kMostKept) return std::free(memory);
  if (__asan_address_is_poisoned(memory) != 0) snap::fuzz::broken("nothing is freed twice");
  ASAN_POISON_MEMORY_REGION(memory, size);
  kept_bytes += size;
  kept().push_back({size, memory});
}

}  // namespace

void* operator new(std::size_t size) {
  return allocate(size);
}
void* operator new[](std::size_t size) {
  return allocate(size);
}
void* operator new(std::size_t size, const std::nothrow_t&) noexcept {
  return allocate(size);
}
void* operator new[](std::size_t size, const std::nothrow_t&) noexcept {
  return allocate(size);
}
void operator delete(void* memory) noexcept {
  release(memory);
}
void operator delete[](void* memory) noexcept {
  release(memory);
}
void operator delete(void* memory, std::size_t) noexcept {
  release(memory);
}
void operator delete[](void* memory, std::size_t) noexcept {
  release(memory);
}

extern "C" int LLVMFuzzerInitialize(int*, char***) {
  const char* folder = std::getenv("SNAP_FUZZ_SEEDS");
  if (folder != nullptr) snap::fuzz::write_seeds(folder);
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  snap::fuzz::run(std::as_bytes(std::span(data, size)));
  return 0;
}
