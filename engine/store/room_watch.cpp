#include "engine/store/room_watch.h"

#include <algorithm>

#include "engine/store/image_store.h"
#include "engine/store/space.h"
#include "engine/store/store_impl.h"
#include "engine/store/sweep.h"

namespace snap {

namespace {

/// What is written between two looks at the clock.
constexpr std::uint64_t kLookEvery = 16u << 20;
/// Measuring a store looks at all of its files: it may take no more than this share of the time,
/// unless what this command itself has written since may have passed the limit.
constexpr int kShare = 50;

constexpr const char* kPurpose = "add to the store";
/// Who holds the lock measures the store, and so may several before it is our turn: what is whole
/// by now is worth waiting for.
constexpr std::chrono::minutes kPatience{5};

Task<Result<void>> move_to_swept(Directory* scratch) {
  auto swept = co_await make_swept_folder(*scratch);
  if (!swept) co_return swept.error();
  auto entries = co_await scratch->list();
  if (!entries) co_return entries.error();
  for (const DirEntry& entry : *entries) {
    if (entry.type != FileStat::Type::kFile || entry.name == kScratchLock) continue;
    auto moved = co_await scratch->rename(entry.name, **swept, entry.name);
    if (!moved) co_return moved;
  }
  co_return Result<void>();
}

bool fits(const Store::Room& room) {
  return !room.limits.limit || room.used <= *room.limits.limit;
}

}  // namespace

Task<Result<void>> RoomWatch::wrote(std::uint64_t bytes) {
  unseen_ += bytes;
  since_ += bytes;
  if (unseen_ < kLookEvery) co_return Result<void>();
  unseen_ = 0;
  const auto begin = EventLoop::current()->now();
  if (begin < next_ && left_ && since_ <= *left_) co_return Result<void>();
  auto room = co_await store_->room();
  if (!room) co_return room.error();
  next_ = begin + (EventLoop::current()->now() - begin) * kShare;
  left_ = room->left_of_limit();
  since_ = 0;
  if (fits(*room)) co_return Result<void>();
  auto lock = co_await lock_file(*store_->impl().root, kIndexLockName, true, kPurpose, kPatience);
  if (!lock) co_return lock.error();
  auto allowed = co_await look_again(*lock, "more than ");
  co_return allowed;
}

Task<Result<void>> RoomWatch::look_again(FileLock& lock, std::string_view at_least) {
  auto room = co_await store_->room();
  if (!room) co_return room.error();
  if (fits(*room)) co_return Result<void>();
  auto own = co_await allocated_below(scratch_->dir(), 0);
  if (!own) co_return own.error();
  co_await give_way(lock);
  co_await note_room(*store_);
  room->used -= std::min(room->used, *own);
  co_return no_room(std::string(at_least) + in_units(*own), *room, store_->path());
}

/// To delete large files takes time, so before the lock is given back they only move to where they
/// do not count any more.
Task<void> RoomWatch::give_way(FileLock& lock) {
  auto moved = co_await move_to_swept(&scratch_->dir());
  if (moved) lock.release();
  auto removed = co_await scratch_->remove();
  static_cast<void>(removed);  // swept when the store is opened next
  lock.release();
}

Task<Result<std::vector<BlobStore::Put>>> RoomWatch::adopt(std::vector<Offer> offers) {
  if (offers.empty()) co_return std::vector<BlobStore::Put>();
  Store::Impl& store = store_->impl();
  auto lock = co_await lock_file(*store.root, kIndexLockName, true, kPurpose, kPatience);
  if (!lock) co_return lock.error();
  std::vector<std::optional<BlobStore::Put>> puts(offers.size());
  // Those that the store has go first: what they take in scratch is not needed.
  std::size_t fresh = 0;
  for (std::size_t i = 0; i < offers.size(); ++i) {
    auto there = co_await store.blobs.exists(offers[i].digest);
    if (!there) co_return there.error();
    if (!*there) {
      ++fresh;
      continue;
    }
    auto put = co_await store.blobs.adopt(scratch_->dir(), offers[i].name, offers[i].digest);
    if (!put) co_return put.error();
    puts[i] = *put;
  }
  if (fresh != 0) {
    auto allowed = co_await look_again(*lock, "");
    if (!allowed) co_return allowed.error();
  }
  std::vector<BlobStore::Put> out;
  for (std::size_t i = 0; i < offers.size(); ++i) {
    if (!puts[i]) {
      auto put = co_await store.blobs.adopt(scratch_->dir(), offers[i].name, offers[i].digest);
      if (!put) co_return put.error();
      puts[i] = *put;
    }
    out.push_back(*puts[i]);
  }
  co_return out;
}

}  // namespace snap
