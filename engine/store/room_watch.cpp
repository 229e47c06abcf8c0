#include "engine/store/room_watch.h"

#include <algorithm>

#include "engine/store/image_store.h"
#include "engine/store/space.h"
#include "engine/store/store_impl.h"

namespace snap {

namespace {

/// What is written between two looks at the clock.
constexpr std::uint64_t kLookEvery = 16u << 20;
/// Measuring a store looks at all of its files: it may take no more than this share of the time,
/// unless what this command itself has written since may have passed the limit.
constexpr int kShare = 50;

constexpr const char* kPurpose = "add to the store";

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
  auto lock = co_await lock_file(*store_->impl().root, kIndexLockName, true, kPurpose);
  if (!lock) co_return lock.error();
  auto allowed = co_await look_again("more than ");
  co_return allowed;
}

Task<Result<void>> RoomWatch::look_again(std::string_view at_least) {
  auto room = co_await store_->room();
  if (!room) co_return room.error();
  if (fits(*room)) co_return Result<void>();
  auto own = co_await allocated_below(scratch_->dir(), 0);
  if (!own) co_return own.error();
  auto removed = co_await scratch_->remove();
  static_cast<void>(removed);  // swept when the store is opened next
  co_await note_room(*store_);
  room->used -= std::min(room->used, *own);
  co_return no_room(std::string(at_least) + in_units(*own), *room, store_->path());
}

Task<Result<std::vector<BlobStore::Put>>> RoomWatch::adopt(std::vector<Offer> offers) {
  if (offers.empty()) co_return std::vector<BlobStore::Put>();
  Store::Impl& store = store_->impl();
  auto lock = co_await lock_file(*store.root, kIndexLockName, true, kPurpose);
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
    auto allowed = co_await look_again("");
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
