#include "engine/store/blob_store.h"

#include "engine/store/scratch.h"
#include "snap/limits.h"

namespace snap {

namespace {

Error missing(const Error& error, BlobDigest digest) {
  if (error.code() != ErrorCode::kNotFound) return error;
  return Error(ErrorCode::kNotFound, "blob " + digest.str() + " is not in the store");
}

std::span<const std::byte> bytes_of(const std::string& text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

Error damaged(BlobDigest digest, const std::string& what) {
  return Error(ErrorCode::kCorrupt, "blob " + digest.str() + " is damaged: " + what +
                                        "; restore blobs/sha256/" + digest.hex() +
                                        " from a copy, or remove what uses it");
}

}  // namespace

Task<Result<FileStat>> BlobStore::stat(BlobDigest digest) {
  auto stat = co_await dir_->stat(digest.hex());
  if (!stat) co_return missing(stat.error(), digest);
  co_return *stat;
}

Task<Result<bool>> BlobStore::exists(BlobDigest digest) {
  auto stat = co_await dir_->stat(digest.hex());
  if (stat) co_return true;
  if (stat.error().code() == ErrorCode::kNotFound) co_return false;
  co_return stat.error();
}

Task<Result<std::unique_ptr<File>>> BlobStore::open(BlobDigest digest) {
  auto file = co_await dir_->open(digest.hex(), OpenFlags{});
  if (!file) co_return missing(file.error(), digest);
  co_return std::move(*file);
}

Task<Result<std::string>> BlobStore::read_json(BlobDigest digest) {
  auto bytes = co_await read_whole(*dir_, digest.hex(), kMaxJsonBytes);
  if (!bytes) co_return missing(bytes.error(), digest);
  if (sha256(*bytes) != digest.bytes) {
    co_return damaged(digest,
                      "its " + std::to_string(bytes->size()) + " bytes have another digest");
  }
  co_return std::string(reinterpret_cast<const char*>(bytes->data()), bytes->size());
}

Task<Result<BlobStore::Put>> BlobStore::put(std::string bytes) {
  if (bytes.size() > kMaxJsonBytes) {
    co_return Error(ErrorCode::kTooLarge, "store a blob of " + std::to_string(bytes.size()) +
                                              " bytes: at most " + std::to_string(kMaxJsonBytes) +
                                              " are allowed for a config or manifest");
  }
  const BlobDigest digest{sha256(bytes_of(bytes))};
  auto there = co_await exists(digest);
  if (!there) co_return there.error();
  if (*there) {
    auto same = co_await read_json(digest);
    if (!same) co_return same.error();
    // Whoever put it may not have come to its sync of the directory.
    auto synced = co_await dir_->sync();
    if (!synced) co_return synced.error();
    co_return Put{digest, true};
  }
  auto scratch = co_await Scratch::make(*tmp_, *random_);
  if (!scratch) co_return scratch.error();
  auto put = co_await put_in(scratch->dir(), std::move(bytes), digest);
  auto removed = co_await scratch->remove();
  // The blob is in its place or its error is the one to tell; leftovers are swept at the next open.
  (void)removed;
  co_return put;
}

Task<Result<BlobStore::Put>> BlobStore::put_in(Directory& scratch, std::string bytes,
                                               BlobDigest digest) {
  auto file = co_await scratch.open("blob", kNewBlob);
  if (!file) co_return file.error();
  auto written = co_await write_all(**file, bytes_of(bytes), ByteOffset(0));
  if (!written) co_return written.error();
  auto synced = co_await full_sync(**file);
  if (!synced) co_return synced.error();
  file->reset();
  auto put = co_await adopt(scratch, "blob", digest);
  co_return put;
}

Task<Result<BlobStore::Put>> BlobStore::adopt(Directory& from, std::string name,
                                              BlobDigest digest) {
  auto file = co_await from.open(name, OpenFlags{});
  if (!file) co_return file.error();
  auto stat = co_await (*file)->stat();
  if (!stat) co_return stat.error();
  file->reset();
  // docs/durability.md, Publish: the bytes are durable before they get the name.
  auto renamed = co_await from.rename(name, *dir_, digest.hex(), true);
  Put put{digest, false};
  if (!renamed) {
    if (renamed.error().code() != ErrorCode::kExists) co_return renamed.error();
    put.existed = true;
    auto old = co_await dir_->stat(digest.hex());
    if (!old) co_return old.error();
    if (old->size != stat->size) {
      co_return damaged(digest, "it has " + std::to_string(old->size) + " bytes, not " +
                                    std::to_string(stat->size));
    }
    auto unlinked = co_await from.unlink(name);
    if (!unlinked) co_return unlinked.error();
  }
  auto synced = co_await dir_->sync();
  if (!synced) co_return synced.error();
  co_return put;
}

Task<Result<void>> BlobStore::mend(Directory& from, std::string name, BlobDigest digest) {
  // docs/durability.md, Backup: what is there goes when the whole one takes its name, not before.
  auto renamed = co_await from.rename(name, *dir_, digest.hex());
  co_return renamed;
}

Task<Result<void>> BlobStore::remove(BlobDigest digest) {
  auto removed = co_await dir_->unlink(digest.hex());
  if (!removed) co_return missing(removed.error(), digest);
  co_return removed;
}

Task<Result<std::vector<BlobStore::Entry>>> BlobStore::list() {
  auto names = co_await dir_->list();
  if (!names) co_return names.error();
  std::vector<Entry> out;
  for (const DirEntry& name : *names) {
    auto bytes = parse_sha256_hex(name.name);
    if (!bytes) continue;
    auto stat = co_await dir_->stat(name.name);
    if (!stat) {
      if (stat.error().code() == ErrorCode::kNotFound) continue;  // removed since it was listed
      co_return stat.error();
    }
    out.push_back({BlobDigest{*bytes}, stat->size, stat->allocated});
  }
  co_return out;
}

}  // namespace snap
