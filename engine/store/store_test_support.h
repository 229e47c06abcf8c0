// What the tests of the store share: images made of patterns, and runs on a loop. For tests only.
#pragma once

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "engine/io/test_rig.h"
#include "engine/layer/layer.h"
#include "engine/store/store_impl.h"

namespace snap {

/// A chunk of blocks that say who wrote them.
inline std::vector<std::byte> pattern_chunk(std::uint8_t fill) {
  return std::vector<std::byte>(kChunkSize, static_cast<std::byte>(fill));
}

/// Writes a layer with one chunk of `fill` at chunk `at`, adopts and publishes it on top of `base`.
inline Task<Result<Image>> add_image(Store& store, std::string name, std::uint8_t fill,
                                     ChunkIndex at = ChunkIndex(0),
                                     std::optional<Image> base = std::nullopt) {
  Store::Impl& impl = store.impl();
  auto scratch = co_await impl.scratch();
  if (!scratch) co_return scratch.error();
  auto file = co_await scratch->dir().open("layer", kNewBlob);
  if (!file) co_return file.error();
  LayerWriter::Options options;
  options.virtual_size = 1u << 20;
  options.bottom = !base.has_value();
  LayerWriter writer(std::move(*file), options);
  const auto bytes = pattern_chunk(fill);
  auto added = co_await writer.add(at, kAllBlocks, 0, bytes);
  if (!added) co_return added.error();
  auto written = co_await writer.finish();
  if (!written) co_return written.error();
  auto lock = co_await impl.lock.shared("add an image");
  if (!lock) co_return lock.error();
  auto put = co_await impl.blobs.adopt(scratch->dir(), "layer", written->blob);
  if (!put) co_return put.error();
  Image image;
  if (base) image = *base;
  image.size = options.virtual_size;
  image.layers.push_back({written->blob, written->info.content, written->info.file_size});
  image.created = "2024-05-01T12:00:00Z";
  image.author = "pakho";
  image.history.push_back({image.created, "import " + name, "pakho", "a comment", false});
  auto reference = Reference::parse(name);
  if (!reference) co_return reference.error();
  auto published = co_await impl.images.publish(image, *reference);
  lock->release();
  auto removed = co_await scratch->remove();
  if (!removed) co_return removed.error();
  co_return published;
}

/// A store on the real disk.
struct StoreRig {
  TempDir temp;
  std::unique_ptr<EventLoop> loop = must(make_event_loop());
  std::string path = temp.path() + "/store";
  std::unique_ptr<Store> store;

  explicit StoreRig(bool open_it = true) {
    if (open_it) store = must(open());
  }
  Result<std::unique_ptr<Store>> open(Store::OpenOptions options = {}) {
    return loop->run(Store::open(path, options));
  }
  template <class T>
  T run(Task<T> task) {
    return loop->run(std::move(task));
  }
  Image image(const std::string& name, std::uint8_t fill) {
    return must(run(add_image(*store, name, fill)));
  }
  VolumeRecord volume(const std::string& name, std::optional<Image> from = std::nullopt) {
    Store::CreateOptions options;
    options.name = name;
    options.image = std::move(from);
    options.size = options.image ? 0 : 1u << 20;
    return must(run(store->create_volume(options)));
  }
};

inline std::vector<std::string> names_of(const std::vector<VolumeSummary>& volumes) {
  std::vector<std::string> out;
  for (const VolumeSummary& volume : volumes)
    out.push_back(volume.record.name);
  return out;
}

/// Files, as they are on the real disk.
inline std::string slurp(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(in), {});
}
inline void spill(const std::string& path, const std::string& text) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << text;
}

template <class T>
std::string message_of(const Result<T>& result) {
  return result ? std::string() : result.error().message();
}
template <class T>
ErrorCode code_of(const Result<T>& result) {
  if (result) return ErrorCode{-1};  // no failure: equal to no code
  return result.error().code();
}
inline bool holds(const std::string& text, std::string_view part) {
  return text.find(part) != std::string::npos;
}

inline std::size_t entries_of(const std::string& path) {
  return static_cast<std::size_t>(std::distance(std::filesystem::directory_iterator(path),
                                                std::filesystem::directory_iterator()));
}

inline std::vector<std::byte> read_volume(StoreRig& rig, Volume& volume, std::uint64_t at) {
  std::vector<std::byte> out(kBlockSize);
  must(rig.run(volume.read(ByteOffset(at), out)));
  return out;
}
inline std::vector<std::byte> block(std::uint8_t fill) {
  return std::vector<std::byte>(kBlockSize, static_cast<std::byte>(fill));
}

}  // namespace snap
