#include "engine/store/check_impl.h"

#include <algorithm>

#include "engine/store/names.h"
#include "engine/store/sweep.h"

namespace snap {

std::size_t CheckReport::count(Finding::Kind kind) const {
  return static_cast<std::size_t>(std::count_if(
      findings.begin(), findings.end(), [kind](const Finding& f) { return f.kind == kind; }));
}

std::size_t CheckReport::leaks_left() const {
  return static_cast<std::size_t>(std::count_if(
      findings.begin(), findings.end(),
      [](const Finding& f) { return f.kind == Finding::Kind::kLeak && !f.reclaimed; }));
}

Finding::Kind kind_of(ErrorCode code) {
  switch (code) {
    case ErrorCode::kCorrupt:
    case ErrorCode::kIo:
    case ErrorCode::kNotFound:
    case ErrorCode::kTooLarge:
    case ErrorCode::kInvalidArgument:
      return Finding::Kind::kDamage;
    default:
      return Finding::Kind::kUnchecked;
  }
}

namespace {
constexpr int kGathers = 5;  // of roots that change meanwhile
}

void StoreCheck::add(Finding finding, Subject subject) {
  if (!seen_.insert(finding.object).second) return;
  report_.findings.push_back(std::move(finding));
  subjects_.push_back(std::move(subject));
}

void StoreCheck::add_error(std::string object, const Error& error, Subject subject) {
  Finding finding;
  finding.kind = kind_of(error.code());
  finding.object = std::move(object);
  finding.what = error.message();
  add(std::move(finding), std::move(subject));
}

/// Objects that were removed while the check ran look missing: the roots say which.
Task<void> StoreCheck::drop_what_is_gone() {
  if (report_.findings.empty()) co_return;
  Roots now;
  std::size_t known = 0;
  // What it met before has a finding: one more is of what was removed while it gathered, or new.
  for (int i = 0; i < kGathers && known != report_.findings.size(); ++i) {
    known = report_.findings.size();
    now = Roots();
    co_await gather(now);
  }
  for (std::size_t i = report_.findings.size(); i-- > 0;) {
    const Subject& subject = subjects_[i];
    const bool blob_gone = subject.blob && !now.blobs.contains(*subject.blob) && now.complete;
    const bool delta_gone = !subject.delta.empty() && !now.deltas.contains(subject.delta);
    const bool volume_gone = !subject.volume.empty() && !now.volumes.contains(subject.volume);
    if (!blob_gone && !((delta_gone || volume_gone) && now.records_complete)) continue;
    report_.findings.erase(report_.findings.begin() + static_cast<std::ptrdiff_t>(i));
    subjects_.erase(subjects_.begin() + static_cast<std::ptrdiff_t>(i));
  }
}

namespace {

Finding leak(std::string object, std::string what, std::uint64_t bytes) {
  Finding finding;
  finding.kind = Finding::Kind::kLeak;
  finding.object = std::move(object);
  finding.what = std::move(what);
  finding.bytes = bytes;
  return finding;
}

}  // namespace

/// Blobs and deltas that nothing names. Under the exclusive store lock, as for a sweep.
Task<void> StoreCheck::find_leaks() {
  if (store_.denied) co_return;
  auto held = co_await store_.lock.exclusive("look for leaks");
  if (!held) {
    add_error("leaks", held.error(), {});
    co_return;
  }
  auto entries = co_await store_.images.read_index();
  if (!entries) co_return;  // has a finding
  auto marks = co_await mark_used(store_, std::move(*entries));
  if (!marks) co_return;
  report_.leaks_known = true;
  const Candidates everything;
  auto garbage = co_await find_garbage(store_, *marks, everything);
  if (!garbage) {
    add_error("leaks", garbage.error(), {});
    co_return;
  }
  // What does not belong where it is has a finding, and is not ours to remove.
  std::erase_if(garbage->blobs, [this](const BlobStore::Entry& blob) {
    return foreign_.contains("blobs/sha256/" + blob.digest.hex());
  });
  const std::size_t first = report_.findings.size();
  for (const BlobStore::Entry& blob : garbage->blobs)
    add(leak("blob " + blob.digest.str(), "nothing names it", blob.allocated), {});
  for (const Garbage::DeltaEntry& delta : garbage->deltas)
    add(leak("delta " + delta.uuid, "no volume names it", delta.allocated), {});
  if (!options_.repair || first == report_.findings.size()) co_return;
  auto removed = co_await dispose(store_, std::move(*garbage), std::move(*held));
  if (!removed) {
    add_error("repair", removed.error(), {});
    co_return;
  }
  for (std::size_t i = first; i < report_.findings.size(); ++i)
    report_.findings[i].reclaimed = true;
}

Task<Result<CheckReport>> StoreCheck::run() {
  co_await check_folders();
  co_await gather(roots_);
  report_.volumes = roots_.volumes.size();
  co_await check_blobs();
  check_image_sizes();
  co_await check_deltas();
  if (cancelled()) co_return Error(ErrorCode::kCancelled, "cancelled");
  co_await drop_what_is_gone();
  for (std::size_t i = 0; i < report_.findings.size(); ++i)
    name_users(report_.findings[i], subjects_[i]);
  co_await find_lost_records();
  if (options_.leaks) {
    co_await find_leaks();
    co_await find_leftovers();
  }
  report_.bytes_read = pace_.done();
  co_return std::move(report_);
}

Task<Result<CheckReport>> check_store(Store& store, CheckOptions options, Progress progress) {
  StoreCheck check(store.impl(), options, progress);
  auto report = co_await check.run();
  co_return report;
}

}  // namespace snap
