#include "engine/store/backup_copy.h"

#include <algorithm>
#include <array>

#include "engine/base/lazy_memory.h"
#include "engine/delta/delta_verify.h"
#include "engine/store/scratch.h"

namespace snap {

namespace {

constexpr std::size_t kPieceBytes = 1u << 20;

/// What went wrong on which side.
struct Outcome {
  std::optional<Error> source;
  std::optional<Error> target;
  bool ok() const { return !source && !target; }
};

/// Copies the data of `from`; holes stay holes. `hash` is told every byte.
Task<Outcome> copy_bytes(File* from, File* to, Sha256Stream* hash, const CopyStep* step) {
  auto memory = LazyMemory::map(kPieceBytes);
  if (!memory) co_return Outcome{std::nullopt, memory.error()};
  const std::span<std::byte> buffer(static_cast<std::byte*>(memory->address()), kPieceBytes);
  auto stat = co_await from->stat();
  if (!stat) co_return Outcome{stat.error(), std::nullopt};
  auto sized = co_await to->truncate(stat->size);
  if (!sized) co_return Outcome{std::nullopt, sized.error()};
  std::uint64_t at = 0;
  while (at < stat->size) {
    std::uint64_t end = stat->size;
    if (hash == nullptr) {
      auto extent = co_await from->next_data(at);
      if (!extent) co_return Outcome{extent.error(), std::nullopt};
      if (!*extent || (*extent)->begin >= stat->size) break;
      at = std::max(at, (*extent)->begin);
      end = std::min(end, (*extent)->end);
    }
    const auto piece = buffer.first(std::min<std::uint64_t>(kPieceBytes, end - at));
    auto read = co_await read_exact(*from, piece, ByteOffset(at));
    if (!read) co_return Outcome{read.error(), std::nullopt};
    if (hash != nullptr) {
      auto work = [hash, piece] { hash->update(piece); };
      co_await offload(work);
    }
    auto written = co_await write_all(*to, piece, ByteOffset(at));
    if (!written) co_return Outcome{std::nullopt, written.error()};
    at += piece.size();
    const bool go_on = (*step)(piece.size());
    if (!go_on) co_return Outcome{std::nullopt, Error(ErrorCode::kCancelled, "cancelled")};
  }
  auto synced = co_await full_sync(*to);
  if (!synced) co_return Outcome{std::nullopt, synced.error()};
  co_return Outcome{};
}

Copied vanished() {
  return {Copied::Outcome::kVanished, 0, std::nullopt};
}
Copied damaged(Error why) {
  return {Copied::Outcome::kDamaged, 0, std::move(why)};
}
/// What cannot be read of the source.
Copied unread(const Error& error) {
  return error.code() == ErrorCode::kNotFound ? vanished() : damaged(error);
}

/// What the target has of an object.
enum class There { kNothing, kWhole, kDamaged };

/// Whether the bytes of the blob are those that its name says.
Task<bool> is_as_named(BlobStore* blobs, BlobDigest digest) {
  auto memory = LazyMemory::map(kPieceBytes);
  auto file = co_await blobs->open(digest);
  if (!memory || !file) co_return false;
  const std::span<std::byte> buffer(static_cast<std::byte*>(memory->address()), kPieceBytes);
  auto stat = co_await (*file)->stat();
  if (!stat) co_return false;
  Sha256Stream hash;
  for (std::uint64_t at = 0; at < stat->size; at += kPieceBytes) {
    const auto piece = buffer.first(std::min<std::uint64_t>(kPieceBytes, stat->size - at));
    auto read = co_await read_exact(**file, piece, ByteOffset(at));
    if (!read) co_return false;
    auto work = [&hash, piece] { hash.update(piece); };
    co_await offload(work);
  }
  co_return hash.finish() == digest.bytes;
}

Task<Result<There>> look_at_blob(Store::Impl* source, Store::Impl* target, BlobDigest digest) {
  auto copy = co_await target->blobs.stat(digest);
  if (!copy && copy.error().code() == ErrorCode::kNotFound) co_return There::kNothing;
  if (!copy) co_return copy.error();
  auto original = co_await source->blobs.stat(digest);
  if (!original || original->size == copy->size) co_return There::kWhole;
  const bool whole = co_await is_as_named(&target->blobs, digest);  // or the source's is cut short
  co_return whole ? There::kWhole : There::kDamaged;
}

Error foreign_files(const std::string& uuid, const VerifiedDelta& found) {
  return Error(ErrorCode::kCorrupt, "delta " + uuid + ": its files are of delta " + found.id.str());
}

Task<Result<There>> look_at_delta(Store::Impl* target, std::string uuid) {
  auto dir = co_await target->volumes.deltas_dir().open_dir(uuid);
  if (!dir && dir.error().code() == ErrorCode::kNotFound) co_return There::kNothing;
  if (!dir) co_return dir.error();
  auto verified = co_await verify_delta(std::move(*dir), DeltaUse::kSealed);
  if (verified) co_return verified->id.str() == uuid ? There::kWhole : There::kDamaged;
  const ErrorCode code = verified.error().code();
  if (code == ErrorCode::kCorrupt || code == ErrorCode::kIo) co_return There::kDamaged;
  co_return verified.error();
}

Task<Result<Copied>> copy_blob_through(Store::Impl* source, Store::Impl* target, Scratch* scratch,
                                       BlobDigest digest, There there, CopyStep step) {
  auto from = co_await source->blobs.open(digest);
  if (!from) co_return unread(from.error());
  auto to = co_await scratch->dir().open("blob", kNewBlob);
  if (!to) co_return to.error();
  Sha256Stream hash;
  std::uint64_t bytes = 0;
  const CopyStep counted = [&bytes, &step](std::uint64_t n) {
    bytes += n;
    return step(n);
  };
  auto done = co_await copy_bytes(from->get(), to->get(), &hash, &counted);
  if (done.target) co_return *done.target;
  if (done.source) co_return unread(*done.source);
  if (hash.finish() != digest.bytes) {
    co_return damaged(Error(ErrorCode::kCorrupt, "blob " + digest.str() + " is damaged: its " +
                                                     std::to_string(bytes) +
                                                     " bytes have another digest"));
  }
  to->reset();
  Result<void> named;
  if (there == There::kDamaged) {
    named = co_await target->blobs.mend(scratch->dir(), "blob", digest);
  } else {
    auto put = co_await target->blobs.adopt(scratch->dir(), "blob", digest);
    if (!put) named = put.error();
  }
  if (!named) co_return named.error();
  co_return Copied{Copied::Outcome::kCopied, bytes, std::nullopt};
}

/// The files of a sealed delta; it needs no others.
constexpr std::array<const char*, 2> kDeltaFiles = {"data", "map"};

/// Puts the files of a new copy, each by itself, in the place of those of a damaged one: whatever
/// is there of both is no worse than before.
Task<Result<void>> mend_delta(Directory* scratch, Directory* deltas, std::string uuid) {
  auto from = co_await scratch->open_dir(uuid);
  if (!from) co_return from.error();
  auto to = co_await deltas->open_dir(uuid);
  if (!to) co_return to.error();
  for (const std::string name : kDeltaFiles) {
    auto renamed = co_await (*from)->rename(name, **to, name);
    if (!renamed) co_return renamed;
  }
  auto synced = co_await (*to)->sync();
  co_return synced;
}

Task<Result<Copied>> copy_delta_through(Store::Impl* source, Store::Impl* target, Scratch* scratch,
                                        std::string uuid, There there, CopyStep step) {
  auto from_dir = co_await source->volumes.deltas_dir().open_dir(uuid);
  if (!from_dir) co_return unread(from_dir.error());
  auto made = co_await scratch->dir().make_dir(uuid);
  if (!made) co_return made.error();
  auto to_dir = co_await scratch->dir().open_dir(uuid);
  if (!to_dir) co_return to_dir.error();
  std::uint64_t bytes = 0;
  const CopyStep counted = [&bytes, &step](std::uint64_t n) {
    bytes += n;
    return step(n);
  };
  for (const std::string name : kDeltaFiles) {
    auto from = co_await (*from_dir)->open(name, OpenFlags{});
    if (!from) co_return unread(from.error());
    OpenFlags flags;
    flags.write = flags.create = flags.exclusive = true;
    auto to = co_await (*to_dir)->open(name, flags);
    if (!to) co_return to.error();
    auto done = co_await copy_bytes(from->get(), to->get(), nullptr, &counted);
    if (done.target) co_return *done.target;
    if (done.source) co_return unread(*done.source);
  }
  auto synced = co_await (*to_dir)->sync();
  if (!synced) co_return synced.error();
  // As it was read, so it is: what the source has under this name is a whole sealed delta.
  auto verified = co_await verify_delta(std::move(*to_dir), DeltaUse::kSealed);
  if (!verified) co_return damaged(verified.error().with_context("delta " + uuid));
  if (verified->id.str() != uuid) co_return damaged(foreign_files(uuid, *verified));
  // docs/durability.md, Publish: the bytes are stable, now the name. (The folder is synced before a
  // record is published, once for all.)
  Directory& deltas = target->volumes.deltas_dir();
  Result<void> named;
  if (there == There::kDamaged) {
    named = co_await mend_delta(&scratch->dir(), &deltas, uuid);
  } else {
    named = co_await scratch->dir().rename(uuid, deltas, uuid, true);
  }
  if (!named) co_return named.error();
  co_return Copied{Copied::Outcome::kCopied, bytes, std::nullopt};
}

}  // namespace

Task<Result<Copied>> copy_blob(Store::Impl& source, Store::Impl& target, BlobDigest digest,
                               CopyStep step) {
  auto there = co_await look_at_blob(&source, &target, digest);
  if (!there) co_return there.error();
  if (*there == There::kWhole) co_return Copied{Copied::Outcome::kThere, 0, std::nullopt};
  auto scratch = co_await target.scratch();
  if (!scratch) co_return scratch.error();
  auto copied =
      co_await copy_blob_through(&source, &target, &*scratch, digest, *there, std::move(step));
  auto removed = co_await scratch->remove();
  static_cast<void>(removed);  // swept when the store is opened next
  co_return copied;
}

Task<Result<Copied>> copy_delta(Store::Impl& source, Store::Impl& target, std::string uuid,
                                CopyStep step) {
  auto there = co_await look_at_delta(&target, uuid);
  if (!there) co_return there.error();
  if (*there == There::kWhole) co_return Copied{Copied::Outcome::kThere, 0, std::nullopt};
  auto scratch = co_await target.scratch();
  if (!scratch) co_return scratch.error();
  auto copied = co_await copy_delta_through(&source, &target, &*scratch, std::move(uuid), *there,
                                            std::move(step));
  auto removed = co_await scratch->remove();
  static_cast<void>(removed);  // swept when the store is opened next
  co_return copied;
}

}  // namespace snap
