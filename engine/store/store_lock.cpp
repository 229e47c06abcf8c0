#include "engine/store/store_lock.h"

#include <algorithm>

namespace snap {

Task<Result<FileLock>> lock_file(Directory& dir, std::string name, bool exclusive,
                                 std::string purpose, std::chrono::milliseconds patience) {
  OpenFlags flags;
  flags.write = flags.create = true;
  auto file = co_await dir.open(name, flags);
  if (!file) co_return file.error().with_context(purpose);
  EventLoop* loop = EventLoop::current();
  const auto deadline = loop->now() + patience;
  std::chrono::milliseconds wait{1};
  while (true) {
    auto got = co_await (*file)->try_lock(exclusive);
    if (!got) co_return got.error().with_context(purpose);
    if (*got) co_return FileLock(std::move(*file));
    if (loop->stopping()) co_return Error(ErrorCode::kCancelled, purpose + ": shut down");
    if (loop->now() >= deadline) {
      co_return Error(ErrorCode::kBusy, purpose + ": another snapctl has held " + (*file)->path() +
                                            " for " + std::to_string(patience.count()) +
                                            " ms; try again when it is done");
    }
    co_await Sleep(wait);
    wait = std::min(wait * 2, std::chrono::milliseconds(20));
  }
}

Task<Result<FileLock>> StoreLock::shared(std::string purpose) {
  if (denied_) co_return denied_->with_context(purpose);
  auto lock = co_await lock_file(*root_, kStoreLockName, false, std::move(purpose));
  co_return lock;
}

Task<Result<FileLock>> StoreLock::exclusive(std::string purpose) {
  if (denied_) co_return denied_->with_context(purpose);
  auto lock = co_await lock_file(*root_, kStoreLockName, true, std::move(purpose));
  co_return lock;
}

}  // namespace snap
