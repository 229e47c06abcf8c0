// SparseBytes: the bytes of a simulated file. Pages that were never written read zero and take no
// memory; copies share pages until one of them writes. Not thread-safe.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>

namespace snap {

class SparseBytes {
 public:
  static constexpr std::uint64_t kPage = 4096;

  void read(std::uint64_t at, std::span<std::byte> out) const;
  void write(std::uint64_t at, std::span<const std::byte> in);
  /// Makes the range zero; whole pages become holes.
  void zero(std::uint64_t at, std::uint64_t length);
  /// Makes the range equal to the same range of `other`, holes included.
  void copy_range(const SparseBytes& other, std::uint64_t at, std::uint64_t length);

  /// Of the bytes, wherever they are; holes are zeros.
  std::uint64_t hash() const;

  std::size_t pages() const { return pages_.size(); }
  bool has_page(std::uint64_t page) const { return pages_.count(page) != 0; }
  /// The first page at or after `page` that is not a hole.
  std::optional<std::uint64_t> next_page(std::uint64_t page) const;

 private:
  struct Page {
    std::array<std::byte, kPage> bytes{};
    mutable std::uint64_t hash = 0;  ///< 0: not known
    mutable bool zero = false;       ///< with hash: all of it is
  };
  Page& own_page(std::uint64_t number);

  std::map<std::uint64_t, std::shared_ptr<Page>> pages_;
};

}  // namespace snap
