// Little- and big-endian integers in byte buffers. On-disk formats are little-endian
// (docs/format.md), NBD is big-endian. Nothing is ever cast over bytes.
#pragma once

#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>

namespace snap {

template <std::unsigned_integral T>
constexpr T byte_swapped(T v) {
  if constexpr (sizeof(T) == 1) return v;
  if constexpr (sizeof(T) == 2) return __builtin_bswap16(v);
  if constexpr (sizeof(T) == 4) return __builtin_bswap32(v);
  if constexpr (sizeof(T) == 8) return __builtin_bswap64(v);
}

template <std::unsigned_integral T>
T load_le(const std::byte* p) {
  T v;
  std::memcpy(&v, p, sizeof v);
  if constexpr (std::endian::native == std::endian::big) v = byte_swapped(v);
  return v;
}

template <std::unsigned_integral T>
void store_le(std::byte* p, T v) {
  if constexpr (std::endian::native == std::endian::big) v = byte_swapped(v);
  std::memcpy(p, &v, sizeof v);
}

template <std::unsigned_integral T>
T load_be(const std::byte* p) {
  T v;
  std::memcpy(&v, p, sizeof v);
  if constexpr (std::endian::native == std::endian::little) v = byte_swapped(v);
  return v;
}

template <std::unsigned_integral T>
void store_be(std::byte* p, T v) {
  if constexpr (std::endian::native == std::endian::little) v = byte_swapped(v);
  std::memcpy(p, &v, sizeof v);
}

/// Reads fields in sequence. Reading past the end yields zeros and makes `ok()` false for good, so
/// that a parser checks once at the end.
class Decoder {
 public:
  explicit Decoder(std::span<const std::byte> bytes) : bytes_(bytes) {}

  template <std::unsigned_integral T>
  T le() {
    const std::byte* p = take(sizeof(T));
    return p ? load_le<T>(p) : T{0};
  }
  template <std::unsigned_integral T>
  T be() {
    const std::byte* p = take(sizeof(T));
    return p ? load_be<T>(p) : T{0};
  }
  /// The next n bytes, or an empty span if there are fewer.
  std::span<const std::byte> bytes(std::size_t n) {
    const std::byte* p = take(n);
    return p ? std::span(p, n) : std::span<const std::byte>();
  }
  void skip(std::size_t n) { take(n); }
  std::size_t remaining() const { return bytes_.size() - pos_; }
  std::size_t position() const { return pos_; }
  bool ok() const { return ok_; }

 private:
  const std::byte* take(std::size_t n) {
    if (!ok_ || n > bytes_.size() - pos_) {
      ok_ = false;
      return nullptr;
    }
    const std::byte* p = bytes_.data() + pos_;
    pos_ += n;
    return p;
  }
  std::span<const std::byte> bytes_;
  std::size_t pos_ = 0;
  bool ok_ = true;
};

/// Writes fields in sequence into a buffer that is large enough (asserted).
class Encoder {
 public:
  explicit Encoder(std::span<std::byte> bytes) : bytes_(bytes) {}

  template <std::unsigned_integral T>
  void le(T v) {
    store_le(take(sizeof v), v);
  }
  template <std::unsigned_integral T>
  void be(T v) {
    store_be(take(sizeof v), v);
  }
  void bytes(std::span<const std::byte> b) {
    if (!b.empty()) std::memcpy(take(b.size()), b.data(), b.size());
  }
  void text(std::string_view s) { bytes(std::as_bytes(std::span(s.data(), s.size()))); }
  void zeros(std::size_t n) {
    if (n != 0) std::memset(take(n), 0, n);
  }
  std::size_t position() const { return pos_; }

 private:
  std::byte* take(std::size_t n) {
    if (n > bytes_.size() - pos_) __builtin_trap();
    std::byte* p = bytes_.data() + pos_;
    pos_ += n;
    return p;
  }
  std::span<std::byte> bytes_;
  std::size_t pos_ = 0;
};

}  // namespace snap
