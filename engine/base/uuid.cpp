#include "engine/base/uuid.h"

#include <sys/random.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "snap/digest.h"

namespace snap {

void SystemRandom::fill(std::span<std::byte> out) {
  while (!out.empty()) {
    ssize_t n = getrandom(out.data(), out.size(), 0);
    if (n < 0) {
      if (errno == EINTR) continue;
      std::abort();  // no randomness: nothing that depends on it may go on
    }
    out = out.subspan(static_cast<std::size_t>(n));
  }
}

std::uint64_t SeededRandom::next() {
  state_ += 0x9e3779b97f4a7c15u;
  std::uint64_t z = state_;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

void SeededRandom::fill(std::span<std::byte> out) {
  while (!out.empty()) {
    std::uint64_t v = next();
    std::size_t n = out.size() < sizeof v ? out.size() : sizeof v;
    std::memcpy(out.data(), &v, n);
    out = out.subspan(n);
  }
}

Uuid Uuid::make(Random& random) {
  Uuid id;
  random.fill(std::as_writable_bytes(std::span(id.bytes)));
  id.bytes[6] = static_cast<std::uint8_t>((id.bytes[6] & 0x0f) | 0x40);
  id.bytes[8] = static_cast<std::uint8_t>((id.bytes[8] & 0x3f) | 0x80);
  return id;
}

std::string Uuid::str() const {
  std::string hex = to_hex(bytes);
  return hex.substr(0, 8) + "-" + hex.substr(8, 4) + "-" + hex.substr(12, 4) + "-" +
         hex.substr(16, 4) + "-" + hex.substr(20);
}

std::optional<Uuid> Uuid::parse(std::string_view text) {
  if (text.size() != 36 || text[8] != '-' || text[13] != '-' || text[18] != '-' || text[23] != '-')
    return std::nullopt;
  std::string hex;
  for (char c : text) {
    if (c != '-') hex += c;
  }
  if (hex.size() != 32) return std::nullopt;
  hex.append(32, '0');  // the parser below takes the length of a SHA-256
  auto wide = parse_sha256_hex(hex);
  if (!wide) return std::nullopt;
  Uuid id;
  std::memcpy(id.bytes.data(), wide->data(), id.bytes.size());
  return id;
}

}  // namespace snap
