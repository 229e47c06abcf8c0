// For the tests of layers: a file in memory that counts its reads, chunks made from a seed, and the
// model of what a layer must give back.
#pragma once

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/base/checksum.h"
#include "engine/base/uuid.h"
#include "engine/io/test_rig.h"
#include "engine/layer/layer.h"
#include "snap/file.h"

namespace snap::layer_test {

using Bytes = std::vector<std::byte>;

/// A file whose bytes are a vector of the test. Every operation completes at once.
class MemoryFile final : public File {
 public:
  explicit MemoryFile(Bytes& bytes, std::string path = "memory")
      : File(std::move(path)), bytes_(bytes) {}
  ~MemoryFile() override {
    if (on_destroy) on_destroy();
  }

  bool start(IoOp& op) override {
    switch (op.opcode) {
      case IoOpcode::kRead:
        op.result = read(op);
        ++reads;
        break;
      case IoOpcode::kWrite:
        op.result = write(op);
        break;
      case IoOpcode::kSync:
      case IoOpcode::kDataSync:
        ++syncs;
        op.result = syncs == fail_sync ? -EIO : 0;
        break;
      default:
        op.result = -EINVAL;
    }
    return false;
  }
  Task<Result<FileStat>> stat() override {
    FileStat s;
    s.type = FileStat::Type::kFile;
    s.size = claimed_size != 0 ? claimed_size : bytes_.size();
    co_return s;
  }
  Task<Result<void>> truncate(std::uint64_t size) override {
    bytes_.resize(size);
    co_return Result<void>();
  }
  Task<Result<void>> set_mode(unsigned) override { co_return Result<void>(); }
  Task<Result<std::optional<Extent>>> next_data(std::uint64_t) override {
    co_return std::optional<Extent>();
  }
  Task<Result<bool>> try_lock(bool) override { co_return true; }
  Task<Result<void>> unlock() override { co_return Result<void>(); }
  Task<Result<void>> drop_cache() override { co_return Result<void>(); }
  void advise_random() override {}

  std::function<void()> on_destroy;
  std::size_t reads = 0;
  std::size_t read_bytes = 0;
  std::size_t largest_write = 0;
  std::size_t ragged_writes = 0;  ///< that begin or end elsewhere than a piece of the file does
  std::size_t syncs = 0;
  std::size_t fail_sync = 0;                        ///< EIO for this sync, counted from 1
  std::uint64_t fail_write_at = ~std::uint64_t{0};  ///< ENOSPC from this offset on
  /// Pretends a file of this size that ends as the bytes do and is a hole before them.
  std::uint64_t claimed_size = 0;

 private:
  std::int64_t read(const IoOp& op) {
    const std::uint64_t size = claimed_size != 0 ? claimed_size : bytes_.size();
    const std::uint64_t hole = size - bytes_.size();
    const std::uint64_t begin = std::min<std::uint64_t>(op.offset, size);
    const std::size_t n = std::min<std::uint64_t>(op.length, size - begin);
    auto* out = static_cast<std::byte*>(op.buffer);
    for (std::size_t i = 0; i < n; i += 1) {
      if (begin + i >= hole) {
        std::memcpy(out + i, bytes_.data() + (begin + i - hole), n - i);
        break;
      }
      out[i] = std::byte{0};
    }
    read_bytes += n;
    return static_cast<std::int64_t>(n);
  }
  std::int64_t write(const IoOp& op) {
    if (op.offset + op.length > fail_write_at) return -ENOSPC;
    if (bytes_.size() < op.offset + op.length) bytes_.resize(op.offset + op.length);
    std::memcpy(bytes_.data() + op.offset, op.buffer, op.length);
    largest_write = std::max(largest_write, op.length);
    if (op.offset % kLayerPieceBytes != 0 || (op.offset + op.length) % kLayerPieceBytes != 0)
      ++ragged_writes;
    return static_cast<std::int64_t>(op.length);
  }

  Bytes& bytes_;
};

/// One call of LayerWriter::add.
struct TestChunk {
  std::uint64_t chunk = 0;
  BlockMask data = 0;
  BlockMask zero = 0;
  Bytes blocks;
};

inline void fill_block(std::span<std::byte> block, SeededRandom& random) {
  switch (random.below(4)) {
    case 0:
      random.fill(block);
      break;
    case 1:
      std::memset(block.data(), static_cast<int>(random.below(3)), block.size());
      break;
    default:  // compressible, and rarely the same twice
      std::memset(block.data(), static_cast<int>(random.below(256)), block.size());
      random.fill(block.subspan(random.below(4000), 16));
  }
}

/// Chunks in ascending order: random masks, blocks that are zero, random or compressible, and some
/// chunks with the bytes of the one before.
inline std::vector<TestChunk> random_chunks(SeededRandom& random, std::uint64_t virtual_size,
                                            std::size_t at_most) {
  std::vector<TestChunk> out;
  const std::uint64_t chunks = chunk_count(virtual_size);
  std::uint64_t next = 0;
  while (out.size() < at_most) {
    next += random.below(4) == 0 ? random.below(1 + chunks / (at_most + 1)) : 0;
    if (next >= chunks) break;
    TestChunk c;
    c.chunk = next++;
    c.data = static_cast<BlockMask>(random.next());
    c.zero = static_cast<BlockMask>(random.next() & random.next() & ~c.data);
    if (random.below(8) == 0) c.data = 0;
    if (random.below(8) == 0) c.data = static_cast<BlockMask>(kAllBlocks & ~c.zero);
    c.blocks.resize(static_cast<std::size_t>(__builtin_popcount(c.data)) * kBlockSize);
    if (!out.empty() && out.back().blocks.size() >= c.blocks.size() && random.below(4) == 0) {
      c.blocks.assign(out.back().blocks.begin(),
                      out.back().blocks.begin() + static_cast<std::ptrdiff_t>(c.blocks.size()));
    } else {
      for (std::size_t at = 0; at < c.blocks.size(); at += kBlockSize)
        fill_block(std::span(c.blocks).subspan(at, kBlockSize), random);
    }
    out.push_back(std::move(c));
  }
  return out;
}

/// What a layer must say of one chunk, after canonical form.
struct Expected {
  BlockMask data = 0;
  BlockMask zero = 0;
  std::map<unsigned, Bytes> blocks;  ///< of data
};

inline std::map<std::uint64_t, Expected> model_of(const std::vector<TestChunk>& chunks,
                                                  std::uint64_t virtual_size, bool bottom) {
  std::map<std::uint64_t, Expected> model;
  for (const TestChunk& c : chunks) {
    Expected e;
    std::size_t at = 0;
    for (unsigned b = 0; b < kBlocksPerChunk; ++b) {
      const auto bit = static_cast<BlockMask>(1u << b);
      const std::uint64_t begin = c.chunk * kChunkSize + b * kBlockSize;
      const bool inside = begin < virtual_size;
      if ((c.zero & bit) != 0 && inside) e.zero |= bit;
      if ((c.data & bit) == 0) continue;
      Bytes block(c.blocks.begin() + static_cast<std::ptrdiff_t>(at),
                  c.blocks.begin() + static_cast<std::ptrdiff_t>(at + kBlockSize));
      at += kBlockSize;
      if (!inside) continue;
      for (std::uint64_t i = virtual_size - begin; i < kBlockSize; ++i)
        block[i] = std::byte{0};
      if (std::all_of(block.begin(), block.end(), [](std::byte x) { return x == std::byte{0}; })) {
        e.zero |= bit;
      } else {
        e.data |= bit;
        e.blocks.emplace(b, std::move(block));
      }
    }
    if (bottom) e.zero = 0;
    if ((e.data | e.zero) != 0) model.emplace(c.chunk, std::move(e));
  }
  return model;
}

/// A file of the caller's, for a writer that is done with it when its calls are.
inline std::shared_ptr<File> borrowed(File& file) {
  return {std::shared_ptr<void>(), &file};
}

inline Task<Result<LayerWriter::Written>> write_layer(File& file, LayerWriter::Options options,
                                                      const std::vector<TestChunk>& chunks) {
  LayerWriter writer(borrowed(file), options);
  for (const TestChunk& c : chunks) {
    auto added = co_await writer.add(ChunkIndex(c.chunk), c.data, c.zero, c.blocks);
    if (!added) co_return added.error();
  }
  auto written = co_await writer.finish();
  co_return written;
}

/// The bytes of a layer of these chunks.
inline Task<Bytes> layer_bytes(LayerWriter::Options options, const std::vector<TestChunk>& chunks) {
  Bytes bytes;
  MemoryFile file(bytes);
  must(co_await write_layer(file, options, chunks));
  co_return bytes;
}

inline Task<Result<std::shared_ptr<Layer>>> open_bytes(
    Bytes& bytes, std::optional<ContentDigest> expected = std::nullopt) {
  auto opened = co_await Layer::open(std::make_unique<MemoryFile>(bytes), expected);
  co_return opened;
}

inline std::unique_ptr<EventLoop> thread_loop() {
  LoopOptions options;
  options.kind = LoopOptions::Kind::kThreads;
  return must(make_event_loop(options));
}
/// For what is done many thousand times: nothing of it ever waits for another thread.
inline std::unique_ptr<EventLoop> quick_loop() {
  return std::make_unique<SimLoop>(1);
}

}  // namespace snap::layer_test
