// For the tests of volumes: a volume on a directory, opened and reopened as the store would, beside
// the plain bytes that it must read as.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "engine/base/checksum.h"
#include "engine/delta/delta.h"
#include "engine/volume/pack.h"
#include "engine/volume/volume_test_support.h"
#include "snap/volume.h"

namespace snap::volume_test {

/// What a store records of a volume, to open it again.
struct Record {
  struct Level {
    std::string delta;  ///< name of its directory
    std::uint64_t floor = 0;
  };
  std::uint64_t size = 0;
  std::vector<Level> deltas;        ///< top first; the first takes writes
  std::vector<std::string> layers;  ///< bottom first
};

/// The content, and for each block the source that decides it: a name, or nothing.
struct VolumeModel {
  Bytes content;
  std::vector<std::string> owner;

  void resize(std::uint64_t size) {
    content.resize(size);
    owner.resize(round_up(size, kBlockSize) / kBlockSize);
  }
  void write(std::uint64_t at, std::span<const std::byte> bytes, const std::string& who) {
    if (bytes.empty()) return;
    std::memcpy(content.data() + at, bytes.data(), bytes.size());
    for (std::uint64_t b = at / kBlockSize; b <= (at + bytes.size() - 1) / kBlockSize; ++b)
      owner[b] = who;
  }
};

inline Task<std::shared_ptr<Delta>> create_delta(Directory& root, std::string name,
                                                 std::uint64_t size, SeededRandom& random) {
  must(co_await root.make_dir(name));
  Delta::CreateOptions options;
  options.id = Uuid::make(random);
  options.size = size;
  auto dir = must(co_await root.open_dir(name));
  std::shared_ptr<Delta> delta = must(co_await Delta::create(std::move(dir), options));
  co_return delta;
}

inline Task<std::shared_ptr<Delta>> open_delta(Directory& root, std::string name,
                                               Delta::Mode mode) {
  auto dir = must(co_await root.open_dir(name));
  std::shared_ptr<Delta> delta = must(co_await Delta::open(std::move(dir), mode));
  co_return delta;
}

inline Task<std::shared_ptr<LayerStack>> open_layers(Directory& root,
                                                     std::vector<std::string> names,
                                                     std::size_t leaf_memory = 64u << 20) {
  std::vector<std::shared_ptr<Layer>> layers;
  for (const std::string& name : names) {
    auto file = must(co_await root.open(name, OpenFlags{}));
    layers.push_back(must(co_await Layer::open(std::move(file), std::nullopt)));
  }
  LayerStack::Options options;
  options.leaf_memory = leaf_memory;
  co_return LayerStack::make(std::move(layers), options);
}

/// Opens what `record` names.
inline Task<std::unique_ptr<Volume>> open_volume(Directory& root, const Record& record) {
  Volume::Parts parts;
  parts.size = record.size;
  for (std::size_t i = 0; i < record.deltas.size(); ++i) {
    const bool top = i == 0;
    auto delta = co_await open_delta(root, record.deltas[i].delta,
                                     top ? Delta::Mode::kReadWrite : Delta::Mode::kSealed);
    if (top) {
      parts.delta = std::move(delta);
      parts.floor = record.deltas[i].floor;
    } else {
      parts.sealed.push_back({std::move(delta), record.deltas[i].floor});
    }
  }
  parts.layers = co_await open_layers(root, record.layers);
  co_return std::make_unique<Volume>(std::move(parts));
}

/// Packs the sealed deltas from `first` on into a layer file `name`.
inline Task<LayerWriter::Written> pack_to(Directory& root, std::string name, PackSource source,
                                          PackOptions options) {
  auto out = must(co_await root.open(name, for_write()));
  auto packing = pack(std::move(source), std::move(out), std::move(options));
  auto written = must(co_await std::move(packing));
  co_return written;
}

}  // namespace snap::volume_test
