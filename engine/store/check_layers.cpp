// Blobs: the tables of layers, and with CheckOptions::data every byte against the digest that names
// the file, read past the page cache so that it is the disk that is asked.
#include <algorithm>
#include <bit>

#include "engine/base/lazy_memory.h"
#include "engine/store/check_impl.h"
#include "engine/store/names.h"

namespace snap {

namespace {

constexpr std::size_t kPieceBytes = 1u << 20;
constexpr std::uint64_t kAllChunks = kMaxVolumeSize / kChunkSize;

Error missing(const Error& error, BlobDigest digest) {
  if (error.code() != ErrorCode::kNotFound) return error;
  return Error(ErrorCode::kCorrupt, "blob " + digest.str() + " is missing: restore blobs/sha256/" +
                                        digest.hex() + " from a copy");
}

/// Which blocks cannot be had: those of slices and, with `data`, of chunks that do not verify.
Task<std::vector<LostBlocks>> find_lost(Layer& layer, bool data) {
  std::vector<LostBlocks> lost;
  const std::uint64_t chunks = chunk_count(layer.info().virtual_size);
  for (std::size_t i = 0; i < layer.slice_count(); ++i) {
    auto slice = co_await layer.read_slice(i);
    if (!slice) {
      const ChunkIndex first = layer.slice_first(i);
      const std::uint64_t end =
          i + 1 < layer.slice_count() ? layer.slice_first(i + 1).value : chunks;
      lost.push_back({first, end - first.value, kAllBlocks});
      continue;
    }
    if (!data) continue;
    for (std::size_t at = 0; at < (*slice)->size(); ++at) {
      const ChunkEntry& entry = (**slice)[at];
      if (entry.data == 0) continue;
      auto verified = co_await layer.verify_entry(i, at);
      if (!verified) lost.push_back({entry.chunk, 1, entry.data});
    }
  }
  co_return lost;
}

}  // namespace

Task<void> StoreCheck::check_blobs() {
  for (const auto& [manifest, image] : roots_.images) {
    if (image.image) ++report_.images;
  }
  for (const auto& [digest, named] : roots_.blobs) {
    auto stat = co_await store_.blobs.stat(digest);
    if (stat && options_.data) total_ += stat->size;
  }
  for (const auto& [digest, named] : roots_.blobs) {
    if (cancelled()) co_return;
    if (named.layer) {
      ++report_.layers;
      co_await check_layer(digest, named);
    } else if (named.size != 0) {
      co_await check_other_blob(digest, named.size);
    }
  }
}

Result<void> StoreCheck::check_claims(const Layer& layer, const Named& named) {
  const ContentDigest content = layer.info().content;
  if (!named.claims.contains(content)) {
    return Error(ErrorCode::kCorrupt, layer.path() + " has the content digest " + content.str() +
                                          ", not " + named.claims.begin()->first.str() +
                                          "; restore it from a copy");
  }
  for (const auto& [claimed, image] : named.claims) {
    if (claimed == content) continue;
    Finding finding;
    finding.object = "config " + image.str();
    finding.what = "it says that layer " + named.layer->blob.str() + " has the content digest " +
                   claimed.str() + ", which has " + content.str();
    Subject subject;
    subject.blob = BlobDigest{image.bytes};
    subject.opener = true;
    add(std::move(finding), subject);
  }
  return {};
}

Task<void> StoreCheck::check_layer(BlobDigest digest, const Named& named) {
  const LayerRef& ref = *named.layer;
  Result<void> wrong;
  std::vector<LostBlocks> lost;
  auto file = co_await store_.blobs.open(digest);
  std::shared_ptr<Layer> layer;
  if (!file) {
    wrong = missing(file.error(), digest);
  } else {
    auto opened = co_await Layer::open(std::move(*file), std::nullopt);
    if (opened) {
      layer = std::move(*opened);
    } else {
      wrong = opened.error();
    }
  }
  if (layer) {
    layer_sizes_[digest] = layer->info().virtual_size;
    if (layer->info().file_size != ref.file_size) {
      wrong = Error(ErrorCode::kCorrupt,
                    layer->path() + " has " + std::to_string(layer->info().file_size) +
                        " bytes, its manifest says " + std::to_string(ref.file_size));
    }
    if (wrong) wrong = check_claims(*layer, named);
    if (!wrong) layer.reset();  // nothing opens with it
    if (wrong) wrong = co_await layer->verify_table();
    if (wrong && options_.data) wrong = co_await hash_blob(digest);
  }
  if (wrong || wrong.error().code() == ErrorCode::kCancelled) co_return;
  if (layer) {
    lost = co_await find_lost(*layer, options_.data);
  } else {
    lost.push_back({ChunkIndex(0), kAllChunks, kAllBlocks});
  }
  Finding finding;
  finding.object = "layer " + digest.str();
  finding.what = wrong.error().message();
  finding.kind = kind_of(wrong.error().code());
  if (finding.kind == Finding::Kind::kDamage)
    finding.lost = co_await lost_of_layer(digest, std::move(lost));
  Subject subject;
  subject.blob = digest;
  add(std::move(finding), subject);
}

/// A layer of an image of another tool: nothing but its digest is known.
Task<void> StoreCheck::check_other_blob(BlobDigest digest, std::uint64_t size) {
  Result<void> wrong;
  auto stat = co_await store_.blobs.stat(digest);
  if (!stat) {
    wrong = missing(stat.error(), digest);
  } else if (stat->size != size) {
    wrong =
        Error(ErrorCode::kCorrupt, "blob " + digest.str() + " has " + std::to_string(stat->size) +
                                       " bytes, its manifest says " + std::to_string(size));
  } else if (options_.data) {
    wrong = co_await hash_blob(digest);
  }
  if (wrong || wrong.error().code() == ErrorCode::kCancelled) co_return;
  Subject subject;
  subject.blob = digest;
  add_error("blob " + digest.str(), wrong.error(), subject);
}

Task<Result<void>> StoreCheck::hash_blob(BlobDigest digest) {
  OpenFlags direct;
  direct.direct = true;
  auto file = co_await store_.blobs.dir().open(digest.hex(), direct);
  if (!file) file = co_await store_.blobs.dir().open(digest.hex(), OpenFlags{});
  if (!file) co_return missing(file.error(), digest);
  auto stat = co_await (*file)->stat();
  if (!stat) co_return stat.error();
  Sha256Stream hash;
  const Take take = [&hash](std::span<const std::byte> bytes) { hash.update(bytes); };
  auto read = co_await read_paced(**file, 0, stat->size, take);
  if (!read) co_return read.error();
  if (hash.finish() == digest.bytes) co_return Result<void>();
  co_return Error(ErrorCode::kCorrupt, (*file)->path() + ": its " + std::to_string(stat->size) +
                                           " bytes have another digest; restore it from a copy");
}

Task<Result<void>> StoreCheck::read_paced(File& file, std::uint64_t begin, std::uint64_t end,
                                          const Take& take) {
  auto memory = LazyMemory::map(kPieceBytes);
  if (!memory) co_return memory.error();
  const std::span<std::byte> buffer(static_cast<std::byte*>(memory->address()), kPieceBytes);
  for (std::uint64_t at = begin; at < end;) {
    if (cancelled()) co_return Error(ErrorCode::kCancelled, "cancelled");
    const std::uint64_t want = std::min<std::uint64_t>(kPieceBytes, round_up(end - at, kBlockSize));
    // Once only: after a short read the rest would not be aligned as direct I/O wants it.
    auto got = co_await read_some(file, buffer.first(want), ByteOffset(at));
    if (!got) co_return got.error();
    std::uint64_t useful = std::min<std::uint64_t>(*got, end - at);
    if (useful < end - at && useful < want) useful = round_down(useful, kBlockSize);
    if (useful == 0) {
      co_return Error(ErrorCode::kCorrupt,
                      file.path() + " ends at " + std::to_string(at) + " while it is read");
    }
    if (take) {
      const auto bytes = buffer.first(useful);
      auto work = [&take, bytes] { take(bytes); };
      co_await offload(work);
    }
    at += useful;
    co_await pace_.took(useful);
    progress_.tell("scrub", pace_.done(), std::max(total_, pace_.done()));
  }
  co_return Result<void>();
}

/// The size of an image is that of its top layer.
void StoreCheck::check_image_sizes() {
  for (const auto& [manifest, named] : roots_.images) {
    const std::optional<Image>& image = named.image;
    if (!image || image->layers.empty()) continue;
    const auto top = layer_sizes_.find(image->layers.back().blob);
    if (top == layer_sizes_.end() || top->second == image->size) continue;
    Finding finding;
    finding.object = "config " + image->id.str();
    finding.what = "it says that the image has " + std::to_string(image->size) +
                   " bytes, its top layer is one of " + std::to_string(top->second);
    Subject subject;
    subject.blob = BlobDigest{image->id.bytes};
    add(std::move(finding), subject);
  }
}

}  // namespace snap
