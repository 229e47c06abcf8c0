#include "engine/base/checksum.h"

#include <xxhash.h>

#include <cstring>

namespace snap {

std::uint64_t xxh3(std::span<const std::byte> bytes) noexcept {
  return XXH3_64bits(bytes.data(), bytes.size());
}

std::uint64_t xxh3_keyed(std::span<const std::byte> bytes, const ChecksumSecret& secret) noexcept {
  static_assert(sizeof(ChecksumSecret) >= XXH3_SECRET_SIZE_MIN);
  return XXH3_64bits_withSecret(bytes.data(), bytes.size(), secret.data(), secret.size());
}

bool is_zero(std::span<const std::byte> bytes) noexcept {
  // memcmp against the span itself, one byte on: equal neighbours all along, and the first is zero.
  if (bytes.empty()) return true;
  return bytes[0] == std::byte{0} &&
         std::memcmp(bytes.data(), bytes.data() + 1, bytes.size() - 1) == 0;
}

}  // namespace snap
