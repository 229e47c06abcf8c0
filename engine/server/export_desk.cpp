#include "engine/server/export_desk.h"

#include <utility>

#include "engine/nbd/volume_export.h"

namespace snap::server {

namespace {

/// What is told of an export that no one has asked to use yet.
class DescribedExport final : public nbd::Export {
 public:
  DescribedExport(ServedItem item, bool read_only)
      : item_(std::move(item)), read_only_(read_only) {}

  const std::string& name() const noexcept override { return item_.name; }
  const std::string& description() const noexcept override { return item_.description; }
  std::uint64_t size() const noexcept override { return item_.size; }
  bool read_only() const noexcept override { return read_only_; }

  Task<Result<void>> read(ByteOffset, std::span<std::byte>) override { return refuse(); }
  Task<Result<void>> write(ByteOffset, std::span<const std::byte>, Volume::WriteOptions) override {
    return refuse();
  }
  Task<Result<void>> write_zeroes(ByteOffset, std::uint64_t, Volume::ZeroOptions) override {
    return refuse();
  }
  Task<Result<void>> trim(ByteOffset, std::uint64_t, Volume::WriteOptions) override {
    return refuse();
  }
  Task<Result<void>> flush() override { return refuse(); }
  Task<Result<std::vector<Extent>>> extents(ByteOffset, std::uint64_t, std::size_t) override {
    co_return not_open();
  }
  Task<Result<void>> prefetch(ByteOffset, std::uint64_t) override { return refuse(); }

 private:
  static Error not_open() { return Error(ErrorCode::kIo, "the export is not open"); }
  static Task<Result<void>> refuse() { co_return not_open(); }

  const ServedItem item_;
  const bool read_only_;
};

bool always_read_only(const ServedItem& item) {
  return item.item.kind != ServeItem::Kind::kVolume;
}

/// Words for the other side of a network: no paths.
std::string refusal_of(const Error& error) {
  switch (error.code()) {
    case ErrorCode::kNotFound:
      return "no such export";
    case ErrorCode::kBusy:
      return "the volume is in use by another process";
    case ErrorCode::kCancelled:
      return "the server is shutting down";
    default:
      return "the export cannot be opened; the server's log says why";
  }
}

}  // namespace

Task<Result<std::shared_ptr<nbd::Export>>> open_export(OpenItems& open, ServedItem item,
                                                       bool read_only) {
  read_only = read_only || always_read_only(item);
  const std::string name = item.name;
  const std::string description = item.description;
  auto lease = co_await open.open(std::move(item), OpenItems::For::kClient);
  if (!lease) co_return lease.error();
  std::shared_ptr<Volume> volume(*lease, (*lease)->volume.get());
  std::shared_ptr<nbd::Export> out =
      std::make_shared<nbd::VolumeExport>(std::move(volume), name, description, read_only);
  co_return out;
}

/// What was looked up for one connection. Keeps one export in use, so that GO finds the very one
/// that SET_META_CONTEXT named, and a client that asks for one after the other holds no more.
class ExportDesk::View final : public nbd::ExportTable {
 public:
  explicit View(ExportDesk& desk) : desk_(desk) {}

  Task<void> look_up(nbd::Lookup wanted) override {
    using Kind = nbd::Lookup::Kind;
    listed_.clear();
    if (used_ && wanted.kind != Kind::kList && wanted.name == name_) co_return;
    const Kind kind = wanted.kind;
    std::string name = wanted.name;
    if (kind == Kind::kUse) used_ = nullptr;  // before the next one is opened
    found_ = nullptr;
    Question question{.wanted = std::move(wanted)};
    desk_.ask(&question);
    co_await question.answered.wait();
    refusal_ = std::move(question.refusal);
    if (kind == Kind::kList) {
      listed_ = std::move(question.found);
      co_return;
    }
    if (!question.found.empty()) found_ = std::move(question.found.front());
    if (kind == Kind::kUse) {
      used_ = found_;
      name_ = std::move(name);
    }
  }

  std::shared_ptr<nbd::Export> find(std::string_view name) override {
    if (used_ && name == name_) return used_;
    return found_;
  }
  std::vector<std::shared_ptr<nbd::Export>> list() override { return std::move(listed_); }
  std::string refusal() const override { return refusal_; }

 private:
  ExportDesk& desk_;
  std::string name_;  ///< as it was asked for; used_ may be the default export
  std::shared_ptr<nbd::Export> used_;
  std::shared_ptr<nbd::Export> found_;  ///< by the last lookup
  std::vector<std::shared_ptr<nbd::Export>> listed_;
  std::string refusal_;
};

std::unique_ptr<nbd::ExportTable> ExportDesk::for_connection() {
  return std::make_unique<View>(*this);
}

void ExportDesk::ask(Question* question) {
  {
    std::lock_guard guard(lock_);
    if (!stopped_) {
      asked_.push_back(question);
      arrived_.set();
      return;
    }
  }
  question->refusal = "the server is shutting down";
  question->answered.set();
}

Task<void> ExportDesk::run() {
  for (;;) {
    co_await arrived_.wait();
    arrived_.reset();  // before the questions are looked at: what comes later sets it again
    std::vector<Question*> asked;
    bool stopped;
    {
      std::lock_guard guard(lock_);
      asked.swap(asked_);
      stopped = stopped_;
    }
    for (Question* question : asked) {
      answering_.add();
      EventLoop::current()->spawn(answer(question));
    }
    if (stopped) break;
  }
  co_await answering_.wait();
}

void ExportDesk::stop() {
  {
    std::lock_guard guard(lock_);
    stopped_ = true;
  }
  arrived_.set();
}

Task<void> ExportDesk::answer(Question* question) {
  const bool list = question->wanted.kind == nbd::Lookup::Kind::kList;
  auto finding = list ? list_all(question) : find_one(question);
  auto done = co_await std::move(finding);
  if (!done) {
    question->refusal = refusal_of(done.error());
    if (done.error().code() != ErrorCode::kNotFound)
      log_limited(complaints_, "a client got no export: " + done.error().message());
  }
  question->answered.set();  // it is gone then
  answering_.done();
}

Task<Result<void>> ExportDesk::list_all(Question* question) {
  const AsyncMutex::Guard guard = co_await listing_.lock();
  auto items = co_await catalogue_.list();
  if (!items) co_return items.error();
  for (ServedItem& item : *items) {
    const bool read_only = read_only_ || always_read_only(item);
    question->found.push_back(std::make_shared<DescribedExport>(std::move(item), read_only));
  }
  co_return Result<void>();
}

Task<Result<void>> ExportDesk::find_one(Question* question) {
  auto item = co_await catalogue_.find(question->wanted.name);
  if (!item) co_return item.error();
  const bool read_only = read_only_ || always_read_only(*item);
  if (question->wanted.kind == nbd::Lookup::Kind::kDescribe) {
    if (const auto open = open_.peek(item->identity)) item->size = open->volume->size();
    question->found.push_back(std::make_shared<DescribedExport>(std::move(*item), read_only));
    co_return Result<void>();
  }
  auto opened = co_await open_export(open_, std::move(*item), read_only);
  if (!opened) co_return opened.error();
  question->found.push_back(std::move(*opened));
  co_return Result<void>();
}

}  // namespace snap::server
