// Checksums against accident (not attack): XXH3-64, plain and keyed.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

namespace snap {

/// XXH3-64 of `bytes` with seed 0.
std::uint64_t xxh3(std::span<const std::byte> bytes) noexcept;

/// The random secret of a delta: keys the checksums of its journal, so that what a guest writes
/// cannot look like a record. docs/format.md, Journal.
using ChecksumSecret = std::array<std::byte, 192>;

/// XXH3-64 of `bytes` under `secret`.
std::uint64_t xxh3_keyed(std::span<const std::byte> bytes, const ChecksumSecret& secret) noexcept;

/// True if every byte is zero. Fast for block-sized spans.
bool is_zero(std::span<const std::byte> bytes) noexcept;

}  // namespace snap
