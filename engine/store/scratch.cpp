#include "engine/store/scratch.h"

#include <cerrno>

namespace snap {

namespace {

/// Takes the lock of tmp/<name>/, if it is free and the folder is still there.
Task<Result<std::unique_ptr<File>>> hold(Directory& dir) {
  OpenFlags flags;
  flags.write = flags.create = true;
  auto file = co_await dir.open(kScratchLock, flags);
  if (!file) co_return file.error();
  auto got = co_await (*file)->try_lock(true);
  if (!got) co_return got.error();
  if (!*got) co_return Error(ErrorCode::kBusy, (*file)->path() + " is held by another process");
  // A sweep that held it before us has removed the name: then this lock guards nothing.
  auto there = co_await dir.stat(kScratchLock);
  if (!there) co_return there.error();
  co_return std::move(*file);
}

bool lost_to_a_sweep(const Error& error) {
  return error.code() == ErrorCode::kNotFound || error.code() == ErrorCode::kBusy;
}

}  // namespace

Task<Result<Scratch>> Scratch::make(Directory& tmp, Random& random) {
  // A sweep that runs at this moment may take the folder between its making and its locking.
  constexpr int kTries = 16;
  bool tmp_is_there = false;  // else it is not a sweep that takes what is made
  for (int i = 0; i < kTries; ++i) {
    const std::string name = Uuid::make(random).str();
    auto made = co_await tmp.make_dir(name);
    if (!made) {
      if (lost_to_a_sweep(made.error()) && (tmp_is_there || i + 1 < kTries)) continue;
      co_return made.error();
    }
    tmp_is_there = true;
    auto dir = co_await tmp.open_dir(name);
    if (!dir) {
      if (lost_to_a_sweep(dir.error())) continue;
      co_return dir.error();
    }
    auto lock = co_await hold(**dir);
    if (!lock) {
      if (lost_to_a_sweep(lock.error())) continue;
      co_return lock.error();
    }
    co_return Scratch(&tmp, name, std::move(*dir), std::move(*lock));
  }
  co_return Error(ErrorCode::kBusy,
                  "make a folder in " + tmp.path() + ": something keeps removing it");
}

Task<Result<void>> Scratch::remove() {
  auto removed = co_await remove_tree(*tmp_, name_);
  dir_.reset();
  lock_.reset();
  // A sweep that looks when our lock's name has gone already makes one of its own there, and
  // removes what is left.
  const int err = removed ? 0 : removed.error().sys_errno();
  if (err == ENOTEMPTY || err == EEXIST || err == ENOENT) co_return Result<void>();
  co_return removed;
}

Task<Result<std::vector<std::string>>> find_abandoned(Directory& tmp) {
  auto entries = co_await tmp.list();
  if (!entries) co_return entries.error();
  std::vector<std::string> out;
  for (const DirEntry& entry : *entries) {
    if (entry.type != FileStat::Type::kDirectory || !Uuid::parse(entry.name)) continue;
    auto dir = co_await tmp.open_dir(entry.name);
    if (!dir) continue;
    auto file = co_await (*dir)->open(kScratchLock, OpenFlags{});
    if (file) {
      auto free = co_await (*file)->try_lock(false);
      if (!free || !*free) continue;
    }
    out.push_back(entry.name);
  }
  co_return out;
}

Task<Result<std::size_t>> sweep_scratch(Directory& tmp) {
  auto entries = co_await tmp.list();
  if (!entries) co_return entries.error();
  std::size_t swept = 0;
  for (const DirEntry& entry : *entries) {
    if (entry.type != FileStat::Type::kDirectory || !Uuid::parse(entry.name)) continue;
    auto dir = co_await tmp.open_dir(entry.name);
    if (!dir) continue;
    auto lock = co_await hold(**dir);
    if (!lock) continue;
    auto removed = co_await remove_tree(tmp, entry.name);
    if (removed) ++swept;
  }
  co_return swept;
}

}  // namespace snap
