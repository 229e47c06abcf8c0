// For the tests of volumes: layers made of random blocks, and the models
// that say what a stack or a volume must read as. The models know nothing of masks, leaves or
// floors: they are plain bytes that are cut, extended with zeros and written over.
#pragma once

#include <algorithm>
#include <atomic>
#include <catch2/catch.hpp>
#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/base/uuid.h"
#include "engine/io/test_rig.h"
#include "engine/layer/layer.h"
#include "engine/volume/layer_stack.h"
#include "snap/event_loop.h"
#include "snap/file.h"
#include "snap/limits.h"

namespace snap::volume_test {

using Bytes = std::vector<std::byte>;

/// Another file, whose reads are counted and whose syncs do nothing: layers of tests need not
/// outlive the machine, and there are thousands of them.
class TestFile final : public File {
 public:
  TestFile(std::unique_ptr<File> inner, std::shared_ptr<std::atomic<std::size_t>> reads)
      : File(inner->path()), inner_(std::move(inner)), reads_(std::move(reads)) {}
  bool start(IoOp& op) override {
    if (op.opcode == IoOpcode::kSync || op.opcode == IoOpcode::kDataSync) {
      op.result = 0;
      return false;
    }
    if (op.opcode == IoOpcode::kRead && reads_ != nullptr) reads_->fetch_add(1);
    op.file = inner_.get();
    return inner_->start(op);
  }
  bool read_now(std::span<std::byte> out, ByteOffset at) noexcept override {
    if (reads_ != nullptr) reads_->fetch_add(1);
    return inner_->read_now(out, at);
  }
  std::optional<Result<std::size_t>> write_now(std::span<const std::byte> in,
                                               ByteOffset at) override {
    return inner_->write_now(in, at);
  }
  Task<Result<FileStat>> stat() override { return inner_->stat(); }
  Task<Result<void>> truncate(std::uint64_t size) override { return inner_->truncate(size); }
  Task<Result<void>> set_mode(unsigned mode) override { return inner_->set_mode(mode); }
  Task<Result<std::optional<Extent>>> next_data(std::uint64_t from) override {
    return inner_->next_data(from);
  }
  Task<Result<bool>> try_lock(bool exclusive) override { return inner_->try_lock(exclusive); }
  Task<Result<void>> unlock() override { return inner_->unlock(); }
  Task<Result<void>> drop_cache() override { return inner_->drop_cache(); }
  void advise_random() override { inner_->advise_random(); }

 private:
  std::unique_ptr<File> inner_;
  std::shared_ptr<std::atomic<std::size_t>> reads_;
};

inline Bytes random_bytes(SeededRandom& random, std::size_t size) {
  Bytes bytes(size);
  random.fill(bytes);
  return bytes;
}

/// A block that compresses and is no other's.
inline Bytes random_block(SeededRandom& random) {
  Bytes block(kBlockSize, static_cast<std::byte>(random.below(256)));
  random.fill(std::span(block).subspan(random.below(4000), 16));
  return block;
}

/// What is written into a layer: for a block its bytes, or nothing for a zero mark.
struct LayerSpec {
  std::uint64_t virtual_size = 0;
  Encoding encoding = Encoding::kRaw;
  std::map<std::uint64_t, std::optional<Bytes>> blocks;
};

/// Writes the layer to `name` in `root` and opens it; with `reads`, its reads are counted.
inline Task<std::shared_ptr<Layer>> make_layer(
    Directory& root, std::string name, const LayerSpec& spec,
    std::shared_ptr<std::atomic<std::size_t>> reads = nullptr) {
  {
    auto out = std::make_unique<TestFile>(must(co_await root.open(name, for_write())), nullptr);
    LayerWriter::Options options;
    options.virtual_size = spec.virtual_size;
    options.encoding = spec.encoding;
    LayerWriter writer(std::move(out), options);
    for (auto it = spec.blocks.begin(); it != spec.blocks.end();) {
      const std::uint64_t chunk = it->first / kBlocksPerChunk;
      BlockMask data = 0;
      BlockMask zero = 0;
      Bytes stored;
      for (; it != spec.blocks.end() && it->first / kBlocksPerChunk == chunk; ++it) {
        const BlockMask bit = block_range(static_cast<unsigned>(it->first % kBlocksPerChunk), 1);
        if (it->second) {
          data = static_cast<BlockMask>(data | bit);
          stored.insert(stored.end(), it->second->begin(), it->second->end());
        } else {
          zero = static_cast<BlockMask>(zero | bit);
        }
      }
      must(co_await writer.add(ChunkIndex(chunk), data, zero, stored));
    }
    must(co_await writer.finish());
  }
  auto file = must(co_await root.open(name, OpenFlags{}));
  if (reads != nullptr) file = std::make_unique<TestFile>(std::move(file), reads);
  auto layer = must(co_await Layer::open(std::move(file), std::nullopt));
  co_return layer;
}

/// What a stack of layers reads as, and which layer decides each block (-1: none).
struct StackModel {
  Bytes content;
  std::vector<int> owner;
  int layers = 0;

  void apply(const LayerSpec& spec) {
    content.resize(spec.virtual_size);
    owner.resize(round_up(spec.virtual_size, kBlockSize) / kBlockSize, -1);
    for (const auto& [block, bytes] : spec.blocks) {
      const std::uint64_t begin = block * kBlockSize;
      if (begin >= content.size()) continue;
      const std::size_t length = std::min<std::uint64_t>(kBlockSize, content.size() - begin);
      if (bytes) {
        std::memcpy(content.data() + begin, bytes->data(), length);
      } else {
        std::memset(content.data() + begin, 0, length);
      }
      owner[block] = layers;
    }
    ++layers;
  }
  /// `length` bytes from `at`, zero past the end.
  Bytes bytes(std::uint64_t at, std::size_t length) const {
    Bytes out(length);
    if (at < content.size())
      std::memcpy(out.data(), content.data() + at,
                  std::min<std::uint64_t>(length, content.size() - at));
    return out;
  }
  int owner_of(std::uint64_t block) const { return block < owner.size() ? owner[block] : -1; }
};

/// Says where two equally long spans differ first; nothing if they do not.
inline std::optional<std::size_t> first_difference(std::span<const std::byte> a,
                                                   std::span<const std::byte> b) {
  const auto [x, y] = std::ranges::mismatch(a, b);
  if (x == a.end() && y == b.end()) return std::nullopt;
  return static_cast<std::size_t>(x - a.begin());
}

}  // namespace snap::volume_test
