// SHA-256 digests, and the types that keep a file's digest apart from a content digest.
#pragma once

#include <array>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace snap {

using Sha256 = std::array<std::uint8_t, 32>;

/// SHA-256 of `bytes` (FIPS 180-4).
Sha256 sha256(std::span<const std::byte> bytes);

/// SHA-256 of a stream of pieces. Not thread-safe; may move between threads.
class Sha256Stream {
 public:
  Sha256Stream();
  ~Sha256Stream();
  Sha256Stream(Sha256Stream&&) noexcept;
  Sha256Stream& operator=(Sha256Stream&&) noexcept;

  void update(std::span<const std::byte> bytes);
  void update(std::string_view text);
  /// Ends the stream; nothing may be added afterwards.
  Sha256 finish();

 private:
  struct Context;
  std::unique_ptr<Context> context_;
};

std::string to_hex(std::span<const std::uint8_t> bytes);

/// A SHA-256 with a meaning, printed as OCI does: "sha256:<64 hex digits>".
template <class Tag>
struct Digest {
  Sha256 bytes{};

  friend auto operator<=>(const Digest&, const Digest&) = default;
  std::string hex() const { return to_hex(bytes); }
  std::string str() const { return "sha256:" + hex(); }
};

/// Of a blob's bytes as stored: names the file under blobs/sha256/.
using BlobDigest = Digest<struct BlobDigestTag>;
/// Of a layer's logical content (diff id), whatever its encoding; docs/format.md says how it is
/// made.
using ContentDigest = Digest<struct ContentDigestTag>;

/// Parses 64 lower-case hex digits.
std::optional<Sha256> parse_sha256_hex(std::string_view hex);

/// Parses "sha256:<64 hex digits>".
template <class D>
std::optional<D> parse_digest(std::string_view text) {
  if (!text.starts_with("sha256:")) return std::nullopt;
  auto bytes = parse_sha256_hex(text.substr(7));
  if (!bytes) return std::nullopt;
  return D{*bytes};
}

}  // namespace snap

template <class Tag>
struct std::hash<snap::Digest<Tag>> {
  std::size_t operator()(const snap::Digest<Tag>& d) const noexcept {
    std::size_t h = 0;
    for (std::size_t i = 0; i < sizeof h; ++i)
      h = h << 8 | d.bytes[i];
    return h;
  }
};
