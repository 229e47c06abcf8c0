// What the tests of import, commit, snapshot, save and load share: sources in memory, volumes as
// plain bytes, and a store that is checked for leftovers. For tests only.
#pragma once

#include <algorithm>
#include <catch2/catch.hpp>
#include <cstring>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "engine/base/uuid.h"
#include "engine/io/test_rig.h"
#include "engine/store/store_impl.h"
#include "snap/store.h"

namespace snap {

using Bytes = std::vector<std::byte>;

/// Five chunks, three blocks and a sector: nothing about it is round.
inline constexpr std::uint64_t kTestSize = 5 * kChunkSize + 3 * kBlockSize + kSectorSize;

inline Bytes random_bytes(std::size_t size, std::uint64_t seed) {
  Bytes bytes(size);
  SeededRandom random(seed);
  random.fill(bytes);
  return bytes;
}

/// Imports bytes from memory; chunks that are all zero are holes.
class MemorySource final : public ImportSource {
 public:
  explicit MemorySource(Bytes bytes) : bytes_(std::move(bytes)) {}
  /// After that many bytes next() fails.
  std::uint64_t fails_at = ~std::uint64_t{0};

  std::optional<std::uint64_t> size() const override { return bytes_.size(); }
  Task<Result<std::optional<Piece>>> next(std::span<std::byte> buffer) override {
    while (position_ < bytes_.size()) {
      const std::uint64_t at = position_;
      const std::uint64_t n = std::min<std::uint64_t>(kChunkSize, bytes_.size() - at);
      position_ += n;
      if (position_ > fails_at) co_return Error(ErrorCode::kIo, "the source broke");
      const auto piece = std::span(bytes_).subspan(at, n);
      if (std::all_of(piece.begin(), piece.end(), [](std::byte b) { return b == std::byte{0}; }))
        continue;
      std::copy(piece.begin(), piece.end(), buffer.begin());
      co_return std::optional<Piece>(Piece{at, n});
    }
    co_return std::optional<Piece>();
  }

 private:
  Bytes bytes_;
  std::uint64_t position_ = 0;
};

inline Reference reference(std::string_view text) {
  return must(Reference::parse(text));
}

inline Task<Result<Image>> import_bytes(Store& store, std::string name, Bytes bytes) {
  MemorySource source(std::move(bytes));
  Store::ImportOptions options;
  options.name = reference(name);
  options.created_by = "test";
  const Progress silent;
  auto image = co_await store.import(source, options, silent);
  co_return image;
}

inline Task<Result<Bytes>> read_volume(Volume& volume) {
  Bytes out(volume.size());
  auto read = co_await volume.read(ByteOffset(0), out);
  if (!read) co_return read.error();
  co_return out;
}

inline Task<Result<Bytes>> read_image(Store& store, Image image) {
  auto volume = co_await store.open_image(image);
  if (!volume) co_return volume.error();
  auto bytes = co_await read_volume(**volume);
  co_return bytes;
}

inline Task<Result<Bytes>> read_snapshot(Store& store, std::string volume, std::string snapshot) {
  auto view = co_await store.open_snapshot(volume, snapshot);
  if (!view) co_return view.error();
  auto bytes = co_await read_volume(**view);
  co_return bytes;
}

/// The content of a volume at rest.
inline Task<Result<Bytes>> read_at_rest(Store& store, std::string name) {
  const Holder nobody;
  auto open = co_await store.open_volume(name, nobody);
  if (!open) co_return open.error();
  auto bytes = co_await read_volume((*open)->volume());
  auto closed = co_await (*open)->close();
  if (bytes && !closed) co_return closed.error();
  co_return bytes;
}

/// A volume and what it ought to read as.
struct Model {
  Bytes bytes;

  void fill(std::uint64_t at, std::uint64_t length, std::byte value) {
    std::fill_n(bytes.begin() + static_cast<std::ptrdiff_t>(at), length, value);
  }
  void write(std::uint64_t at, const Bytes& data) {
    std::copy(data.begin(), data.end(), bytes.begin() + static_cast<std::ptrdiff_t>(at));
  }
  /// As Volume::trim: whole blocks only. The last block of a volume may be short.
  void trim(std::uint64_t at, std::uint64_t length) {
    const std::uint64_t begin = round_up(at, kBlockSize);
    const std::uint64_t stop = at + length;
    const std::uint64_t end = stop == bytes.size() ? stop : round_down(stop, kBlockSize);
    if (begin < end) fill(begin, end - begin, std::byte{0});
  }
};

/// One random write, trim or zeroing, done to both.
inline Task<Result<void>> mutate(Volume& volume, Model& model, SeededRandom& random) {
  const std::uint64_t size = model.bytes.size();
  std::uint64_t at = random.below(size);
  std::uint64_t length = 1 + random.below(std::min<std::uint64_t>(size - at, 3 * kChunkSize / 2));
  if (random.below(2) == 0) {
    at = round_down(at, kBlockSize);
    length = std::min(round_up(length, kBlockSize), size - at);
  }
  Result<void> done;
  switch (random.below(5)) {
    case 0:
      model.fill(at, length, std::byte{0});
      done = co_await volume.write_zeroes(ByteOffset(at), length, {});
      break;
    case 1:
      model.trim(at, length);
      done = co_await volume.trim(ByteOffset(at), length, {});
      break;
    case 2: {  // zeros as data: commit has to find them
      model.fill(at, length, std::byte{0});
      const Bytes zeros(length);
      done = co_await volume.write(ByteOffset(at), zeros, {});
      break;
    }
    default: {
      const Bytes data = random_bytes(length, random.next());
      model.write(at, data);
      done = co_await volume.write(ByteOffset(at), data, {});
    }
  }
  co_return done;
}

inline Task<Result<void>> mutate_often(Volume& volume, Model& model, SeededRandom& random,
                                       int times) {
  for (int i = 0; i < times; ++i) {
    auto done = co_await mutate(volume, model, random);
    if (!done) co_return done.error();
  }
  co_return Result<void>();
}

/// A loop, a directory, and a store in it.
struct StoreRig : TestRig {
  explicit StoreRig(const std::string& kind) : TestRig(kind) { reopen(); }

  template <class T>
  auto run(Task<T> task) {
    return loop->run(std::move(task));
  }
  void reopen() {
    store.reset();
    store = must(run(Store::open(fresh_root(), Store::OpenOptions{})));
  }
  std::unique_ptr<Directory> fresh_root() {
    if (std::string_view(loop->name()) == "simulated") return disk.root();
    return must(run(open_directory(temp.path())));
  }

  Image import(const std::string& name, Bytes bytes) {
    return must(run(import_bytes(*store, name, std::move(bytes))));
  }
  VolumeRecord create(const std::string& name, std::optional<Image> image, std::uint64_t size = 0) {
    Store::CreateOptions options;
    options.name = name;
    options.image = std::move(image);
    options.size = size;
    return must(run(store->create_volume(options)));
  }
  std::unique_ptr<OpenVolume> open(const std::string& name) {
    return must(run(store->open_volume(name, Holder{})));
  }
  Bytes content(OpenVolume& volume) { return must(run(read_volume(volume.volume()))); }
  Bytes content(const Image& image) { return must(run(read_image(*store, image))); }
  Bytes at_rest(const std::string& name) { return must(run(read_at_rest(*store, name))); }
  Store::Committed commit(OpenVolume& volume, const std::string& name) {
    Store::CommitOptions options;
    options.name = reference(name);
    options.created_by = "test";
    return must(run(store->commit(volume, options, Progress{})));
  }
  void close(std::unique_ptr<OpenVolume> volume) { must(run(volume->close())); }
  /// Names of all that is in a folder of the store.
  std::vector<std::string> entries(std::vector<std::string> folders) {
    auto dir = fresh_root();
    for (const auto& name : folders)
      dir = must(run(dir->open_dir(name)));
    std::vector<std::string> out;
    for (const auto& entry : must(run(dir->list())))
      out.push_back(entry.name);
    return out;
  }

  std::unique_ptr<Store> store;
};

inline Image image_of(StoreRig& rig, const std::string& name) {
  return must(rig.run(rig.store->image(name)));
}

/// Every blob and delta that something names, and nothing else, is there; tmp/ is empty.
inline void check_no_leftovers(StoreRig& rig) {
  CHECK(rig.entries({"tmp"}).empty());
  std::set<std::string> blobs, deltas;
  const auto add_image = [&blobs](const Image& image) {
    blobs.insert(image.manifest.hex());
    blobs.insert(image.id.hex());
    for (const LayerRef& layer : image.layers)
      blobs.insert(layer.blob.hex());
  };
  for (const Image& image : must(rig.run(rig.store->images())))
    add_image(image);
  for (const VolumeSummary& volume : must(rig.run(rig.store->volumes()))) {
    for (const BlobDigest& manifest : manifests_of(volume.record))
      add_image(must(rig.run(rig.store->image_of_manifest(manifest))));
    for (const std::string& delta : deltas_of(volume.record))
      deltas.insert(delta);
  }
  const auto there = rig.entries({"blobs", "sha256"});
  CHECK(std::set<std::string>(there.begin(), there.end()) == blobs);
  const auto delta_dirs = rig.entries({"deltas"});
  CHECK(std::set<std::string>(delta_dirs.begin(), delta_dirs.end()) == deltas);
}

}  // namespace snap
