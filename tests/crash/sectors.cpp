#include <cstring>

#include "engine/base/checksum.h"
#include "tests/crash/workload.h"

namespace snap::crash {

namespace {

constexpr std::uint64_t kMark = 0x5ec70a11;

void fill_sector(WriteId id, std::uint64_t sector, std::byte* out) {
  std::uint64_t word = (std::uint64_t{id} << 32 | sector) ^ kMark << 16;
  for (std::size_t i = 0; i < kSectorSize; i += 8) {
    std::memcpy(out + i, &word, 8);
    word = word * 6364136223846793005u + 1442695040888963407u;
  }
}

WriteId identify(std::uint64_t sector, std::span<const std::byte> bytes) {
  if (is_zero(bytes)) return kZeros;
  std::uint64_t word = 0;
  std::memcpy(&word, bytes.data(), 8);
  const auto id = static_cast<WriteId>((word ^ kMark << 16) >> 32);
  std::byte expected[kSectorSize];
  fill_sector(id, sector, expected);
  return std::memcmp(expected, bytes.data(), kSectorSize) == 0 ? id : kGarbage;
}

}  // namespace

void fill_sectors(WriteId id, ByteOffset at, std::span<std::byte> out) {
  for (std::size_t i = 0; i < out.size(); i += kSectorSize)
    fill_sector(id, (at.value + i) / kSectorSize, out.data() + i);
}

std::vector<WriteId> identify_sectors(ByteOffset at, std::span<const std::byte> bytes) {
  std::vector<WriteId> out;
  out.reserve(bytes.size() / kSectorSize);
  for (std::size_t i = 0; i + kSectorSize <= bytes.size(); i += kSectorSize)
    out.push_back(identify((at.value + i) / kSectorSize, bytes.subspan(i, kSectorSize)));
  return out;
}

const char* verb_name(Verb verb) {
  constexpr const char* kNames[] = {
      "write", "write-fua", "trim",     "trim-fua",    "zero",       "zero-keep",
      "flush", "resize",    "snapshot", "rm-snapshot", "clone",      "commit",
      "rm",    "prune",     "reopen",   "kill",        "fill-space", "free-space"};
  return kNames[static_cast<std::size_t>(verb)];
}

}  // namespace snap::crash
