// FaultDirectory: passes everything on to another Directory, and asks a plan before each operation
// that changes something: let it happen, hold it back for a while, leave it out and say it was
// done, or fail it. For tests only.
#pragma once

#include <cerrno>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "snap/file.h"

namespace snap {

struct FaultEvent {
  enum class Kind {
    kWrite,
    kSync,
    kPunch,
    kAllocate,
    kTruncate,
    kDirSync,
    kRename,
    kUnlink,
    kDropCache
  };
  Kind kind;
  std::string name;  ///< of the file as it was opened; of the directory: "."
  std::uint64_t offset = 0;
  std::uint64_t length = 0;
};

/// What is to become of an operation.
struct FaultAction {
  enum class What { kPass, kHold, kLeaveOut, kFail, kShort };
  What what = What::kPass;
  int error = EIO;
  static FaultAction pass() { return {}; }
  /// Until FaultPlan::release(). Of operations of files only.
  static FaultAction hold() { return {What::kHold, 0}; }
  static FaultAction leave_out() { return {What::kLeaveOut, 0}; }
  static FaultAction fail(int error = EIO) { return {What::kFail, error}; }
  /// Writes half of it, rounded up.
  static FaultAction half() { return {What::kShort, 0}; }
};

/// Shared by the directories and files of a test. Not thread-safe.
struct FaultPlan {
  std::function<FaultAction(const FaultEvent&)> decide;
  std::vector<FaultEvent> seen;
  std::vector<std::pair<File*, IoOp*>> held;

  /// Begins what was held back. On the loop of those who wait for it.
  void release() {
    for (const auto& [file, op] : std::exchange(held, {}))
      if (!file->start(*op)) EventLoop::current()->schedule(op->waiter);
  }
  FaultAction ask(FaultEvent event) {
    const FaultAction action = decide ? decide(event) : FaultAction::pass();
    seen.push_back(std::move(event));
    return action;
  }
  std::size_t count(FaultEvent::Kind kind, const std::string& name) const {
    std::size_t n = 0;
    for (const FaultEvent& e : seen)
      n += e.kind == kind && e.name == name;
    return n;
  }
  std::uint64_t written() const {
    std::uint64_t n = 0;
    for (const FaultEvent& e : seen)
      n += e.kind == FaultEvent::Kind::kWrite ? e.length : 0;
    return n;
  }
};

class FaultFile final : public File {
 public:
  FaultFile(std::unique_ptr<File> inner, std::string name, std::shared_ptr<FaultPlan> plan)
      : File(inner->path()),
        inner_(std::move(inner)),
        name_(std::move(name)),
        plan_(std::move(plan)) {}

  bool start(IoOp& op) override {
    FaultEvent event{FaultEvent::Kind::kWrite, name_, op.offset, op.length};
    op.file = inner_.get();
    switch (op.opcode) {
      case IoOpcode::kWrite:
        break;
      case IoOpcode::kDataSync:
      case IoOpcode::kSync:
        event.kind = FaultEvent::Kind::kSync;
        break;
      case IoOpcode::kPunch:
        event.kind = FaultEvent::Kind::kPunch;
        break;
      case IoOpcode::kAllocate:
        event.kind = FaultEvent::Kind::kAllocate;
        break;
      default:
        return inner_->start(op);
    }
    const FaultAction action = plan_->ask(event);
    switch (action.what) {
      case FaultAction::What::kPass:
        return inner_->start(op);
      case FaultAction::What::kHold:
        plan_->held.emplace_back(inner_.get(), &op);
        return true;
      case FaultAction::What::kShort:
        op.length = (op.length + 1) / 2;
        return inner_->start(op);
      case FaultAction::What::kLeaveOut:
        op.result = static_cast<std::int64_t>(op.length);
        return false;
      case FaultAction::What::kFail:
        op.result = -action.error;
        return false;
    }
    return inner_->start(op);
  }
  bool read_now(std::span<std::byte> out, ByteOffset at) noexcept override {
    return inner_->read_now(out, at);
  }
  std::optional<Result<std::size_t>> write_now(std::span<const std::byte> in,
                                               ByteOffset at) override {
    const FaultAction action = plan_->ask({FaultEvent::Kind::kWrite, name_, at.value, in.size()});
    switch (action.what) {
      case FaultAction::What::kPass:
        return inner_->write_now(in, at);
      case FaultAction::What::kHold:
        return std::nullopt;
      case FaultAction::What::kShort:
        return inner_->write_now(in.first((in.size() + 1) / 2), at);
      case FaultAction::What::kLeaveOut:
        return in.size();
      case FaultAction::What::kFail:
        return Error::from_errno(action.error, "write");
    }
    return std::nullopt;
  }
  Task<Result<FileStat>> stat() override { return inner_->stat(); }
  Task<Result<void>> truncate(std::uint64_t size) override {
    const FaultAction action = plan_->ask({FaultEvent::Kind::kTruncate, name_, size, 0});
    if (action.what == FaultAction::What::kFail)
      co_return Error::from_errno(action.error, "truncate");
    if (action.what == FaultAction::What::kLeaveOut) co_return Result<void>();
    auto done = co_await inner_->truncate(size);
    co_return done;
  }
  Task<Result<void>> set_mode(unsigned mode) override { return inner_->set_mode(mode); }
  Task<Result<std::optional<Extent>>> next_data(std::uint64_t from) override {
    return inner_->next_data(from);
  }
  Task<Result<bool>> try_lock(bool exclusive) override { return inner_->try_lock(exclusive); }
  Task<Result<void>> unlock() override { return inner_->unlock(); }
  Task<Result<void>> drop_cache() override {
    const FaultAction action = plan_->ask({FaultEvent::Kind::kDropCache, name_, 0, 0});
    if (action.what == FaultAction::What::kFail)
      co_return Error::from_errno(action.error, "drop the cached pages");
    auto done = co_await inner_->drop_cache();
    co_return done;
  }
  Result<void> check_writeback() override { return inner_->check_writeback(); }
  void advise_random() override { inner_->advise_random(); }

 private:
  std::unique_ptr<File> inner_;
  std::string name_;
  std::shared_ptr<FaultPlan> plan_;
};

class FaultDirectory final : public Directory {
 public:
  FaultDirectory(std::unique_ptr<Directory> inner, std::shared_ptr<FaultPlan> plan)
      : Directory(inner->path()), inner_(std::move(inner)), plan_(std::move(plan)) {}

  Task<Result<std::unique_ptr<File>>> open(std::string name, OpenFlags flags) override {
    auto file = co_await inner_->open(name, flags);
    if (!file) co_return file.error();
    std::unique_ptr<File> wrapped = std::make_unique<FaultFile>(std::move(*file), name, plan_);
    co_return std::move(wrapped);
  }
  Task<Result<std::unique_ptr<Directory>>> open_dir(std::string name) override {
    return inner_->open_dir(std::move(name));
  }
  Task<Result<void>> make_dir(std::string name, unsigned mode) override {
    return inner_->make_dir(std::move(name), mode);
  }
  Task<Result<FileStat>> stat(std::string name) override { return inner_->stat(std::move(name)); }
  Task<Result<std::vector<DirEntry>>> list() override { return inner_->list(); }
  Task<Result<void>> rename(std::string from, Directory&, std::string to,
                            bool no_replace) override {
    // Within this directory is all a delta does.
    const FaultAction action = plan_->ask({FaultEvent::Kind::kRename, to, 0, 0});
    if (action.what == FaultAction::What::kFail)
      co_return Error::from_errno(action.error, "rename");
    auto done = co_await inner_->rename(std::move(from), *inner_, std::move(to), no_replace);
    co_return done;
  }
  Task<Result<void>> unlink(std::string name) override {
    const FaultAction action = plan_->ask({FaultEvent::Kind::kUnlink, name, 0, 0});
    if (action.what == FaultAction::What::kFail)
      co_return Error::from_errno(action.error, "unlink");
    auto done = co_await inner_->unlink(std::move(name));
    co_return done;
  }
  Task<Result<void>> remove_dir(std::string name) override {
    return inner_->remove_dir(std::move(name));
  }
  Task<Result<void>> sync() override {
    const FaultAction action = plan_->ask({FaultEvent::Kind::kDirSync, ".", 0, 0});
    if (action.what == FaultAction::What::kFail) co_return Error::from_errno(action.error, "sync");
    if (action.what == FaultAction::What::kLeaveOut) co_return Result<void>();
    auto done = co_await inner_->sync();
    co_return done;
  }
  Task<Result<Space>> space() override { return inner_->space(); }

 private:
  std::unique_ptr<Directory> inner_;
  std::shared_ptr<FaultPlan> plan_;
};

}  // namespace snap
