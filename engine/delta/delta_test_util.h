// What the tests of the delta share: a source below, reading through a delta, and a model of what a
// volume holds. For tests only.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "engine/base/uuid.h"
#include "engine/delta/delta.h"
#include "engine/io/sync.h"
#include "engine/io/test_rig.h"

namespace snap {

/// A source whose every sector tells its number, so that a mix-up shows.
class PatternSource final : public BlockSource {
 public:
  Task<Result<void>> read_blocks(ByteOffset at, std::span<std::byte> out) override {
    ++reads;
    fill(at, out);
    co_return Result<void>();
  }
  static void fill(ByteOffset at, std::span<std::byte> out) {
    for (std::size_t i = 0; i < out.size(); i += 8) {
      const std::uint64_t sector = (at.value + i) / kSectorSize;
      const std::uint64_t value = sector * 0x9e3779b97f4a7c15u ^ 0xb1a5edu;
      std::memcpy(out.data() + i, &value, std::min<std::size_t>(8, out.size() - i));
    }
  }
  std::size_t reads = 0;
};

/// What a volume of this delta over a PatternSource reads.
inline Task<Result<void>> read_through(Delta& delta, ByteOffset at, std::span<std::byte> out) {
  while (!out.empty()) {
    const std::size_t room = kBlockSize - at.value % kBlockSize;
    const auto piece = out.first(std::min(out.size(), room));
    const BlockState state = delta.lookup(chunk_of(at));
    const BlockMask bit = block_range(block_in_chunk(at), 1);
    if ((state.data & bit) != 0) {
      auto done = co_await delta.read(at, piece);
      SNAP_CO_RETURN_IF_ERROR(done);
    } else if ((state.zero & bit) != 0) {
      std::memset(piece.data(), 0, piece.size());
    } else {
      std::vector<std::byte> block(kBlockSize);
      PatternSource::fill(ByteOffset(round_down(at.value, kBlockSize)), block);
      std::memcpy(piece.data(), block.data() + at.value % kBlockSize, piece.size());
    }
    at = at + piece.size();
    out = out.subspan(piece.size());
  }
  co_return Result<void>();
}

inline std::vector<std::byte> pattern_volume(std::uint64_t size) {
  std::vector<std::byte> bytes(size);
  PatternSource::fill(ByteOffset(0), bytes);
  return bytes;
}

inline std::vector<std::byte> random_bytes(SeededRandom& random, std::size_t length) {
  std::vector<std::byte> bytes(length);
  random.fill(bytes);
  return bytes;
}

/// The first byte in which a volume of the delta differs from `model`, or -1.
inline Task<std::int64_t> first_difference(Delta* delta, const std::vector<std::byte>* model) {
  std::vector<std::byte> bytes(model->size());
  auto read = co_await read_through(*delta, ByteOffset(0), bytes);
  must(read);
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    if (bytes[i] != (*model)[i]) co_return static_cast<std::int64_t>(i);
  }
  co_return -1;
}

inline Uuid test_uuid(std::uint64_t seed) {
  SeededRandom random(seed);
  return Uuid::make(random);
}

/// The seed of SNAP_TEST_SEED, or one of the clock; printed, with how to repeat it.
inline std::uint64_t test_seed(const char* test) {
  const char* given = std::getenv("SNAP_TEST_SEED");
  std::uint64_t seed = given != nullptr ? std::strtoull(given, nullptr, 10) : 0;
  if (given == nullptr) {
    seed = static_cast<std::uint64_t>(std::chrono::system_clock::now().time_since_epoch().count());
  }
  std::printf("%s: again with SNAP_TEST_SEED=%llu\n", test, static_cast<unsigned long long>(seed));
  return seed;
}

}  // namespace snap
