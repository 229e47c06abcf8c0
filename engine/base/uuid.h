// Random identifiers (RFC 4122 version 4) for deltas and temporary folders, and the source of
// randomness that tests replace.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace snap {

/// Where random bytes come from.
class Random {
 public:
  virtual ~Random() = default;
  virtual void fill(std::span<std::byte> out) = 0;
};

/// The kernel's generator (getrandom). Thread-safe.
class SystemRandom final : public Random {
 public:
  void fill(std::span<std::byte> out) override;
};

/// Deterministic (splitmix64), for tests. Not thread-safe.
class SeededRandom final : public Random {
 public:
  explicit SeededRandom(std::uint64_t seed) : state_(seed) {}
  void fill(std::span<std::byte> out) override;
  std::uint64_t next();
  /// Uniform enough in [0, bound).
  std::uint64_t below(std::uint64_t bound) { return next() % bound; }

 private:
  std::uint64_t state_;
};

struct Uuid {
  std::array<std::uint8_t, 16> bytes{};

  static Uuid make(Random& random);
  static std::optional<Uuid> parse(std::string_view text);
  /// "xxxxxxxx-xxxx-4xxx-yxxx-xxxxxxxxxxxx"
  std::string str() const;
  friend auto operator<=>(const Uuid&, const Uuid&) = default;
};

}  // namespace snap
