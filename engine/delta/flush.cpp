// The flush protocol (docs/durability.md, Flush): group commit. One commit runs at a time; flushes
// that arrive meanwhile share the next.
//
//   1. raise the epoch, fix S = the last sequence, and take the dirty bits
//   2. fdatasync(data), if data was written
//   3. a record of what was taken, through S, and fdatasync(journal), if anything was taken
//
// A commit that finds nothing written and nothing dirty makes no system call.
#include <algorithm>

#include "engine/delta/delta_impl.h"

namespace snap {

void DeltaImpl::mark(std::atomic<std::uint64_t>& epoch_of_last) {
  std::uint64_t epoch = epoch_.load();
  while (true) {
    std::uint64_t marked = epoch_of_last.load();
    while (marked < epoch && !epoch_of_last.compare_exchange_weak(marked, epoch)) {
    }
    // A commit that raised the epoch in between may have looked before the mark was there: then
    // this belongs to the next one.
    const std::uint64_t now = epoch_.load();
    if (now == epoch) return;
    epoch = now;
  }
}

Error DeltaImpl::fail(const Error& error) {
  std::lock_guard guard(failure_lock_);
  if (!failure_) failure_ = error;
  failed_.store(true, std::memory_order_release);
  return *failure_;
}

std::optional<Error> DeltaImpl::failure() const {
  if (!failed_.load(std::memory_order_acquire)) return std::nullopt;
  std::lock_guard guard(failure_lock_);
  return failure_;
}

Task<Result<void>> DeltaImpl::flush() {
  if (journal_ == nullptr) co_return Result<void>();  // sealed: all of it is durable
  // Rule Fault: after a failed sync no flush succeeds, not even one that has nothing to do.
  if (auto failed = failure()) co_return *failed;
  flushes_.fetch_add(1, std::memory_order_relaxed);
  if (synced_.load() >= std::max(written_.load(), zeroed_.load())) co_return Result<void>();
  std::shared_ptr<Round> round;
  {
    std::lock_guard guard(round_lock_);
    if (next_round_ == nullptr) next_round_ = std::make_shared<Round>();
    round = next_round_;
  }
  auto held = co_await commit_lock_.lock();
  if (!round->done) {
    {
      // Rule Group: from here on flushes join a later round; this one's capture is still ahead,
      // so it covers everything that completed before any of its flushes arrived.
      std::lock_guard guard(round_lock_);
      next_round_ = nullptr;
    }
    auto committed = co_await commit();
    round->result = std::move(committed);
    round->done = true;
  }
  co_return round->result;
}

Task<Result<void>> DeltaImpl::commit() {
  if (auto failed = failure()) co_return *failed;
  // Rule Through: S and the changes are fixed before the sync is submitted.
  const std::uint64_t through = journal_->last_sequence();
  const std::uint64_t epoch = epoch_.fetch_add(1);
  std::vector<Change> changes;
  std::uint64_t cursor = 0;
  while (blocks_->capture_some(&cursor, changes))
    co_await yield_now();
  // A write sets its bits before it marks the epoch: what was taken may hold bits of a write that
  // has no mark yet.
  const auto names_data = [](const Change& change) { return change.data != 0; };
  if (written_.load() > data_synced_ || std::ranges::any_of(changes, names_data)) {
    // Rule Data: the bytes are durable before the bits that name them.
    auto synced = co_await data_sync(*data_);
    syncs_.fetch_add(1, std::memory_order_relaxed);
    if (!synced) co_return fail(synced.error());
    data_synced_ = epoch;
  }
  if (!changes.empty()) {
    auto recorded = co_await record(std::move(changes), through);
    if (!recorded) co_return fail(recorded.error());
  }
  synced_.store(epoch);
  co_return Result<void>();
}

Task<Result<void>> DeltaImpl::record(std::vector<Change> changes, std::uint64_t through) {
  const std::uint64_t length = frame_length(changes.size());
  if (length > std::min(journal_->area_length(), kMaxFrameBytes)) {
    auto done = co_await checkpoint_all(changes, false, size());
    SNAP_CO_RETURN_IF_ERROR(done);
    co_return Result<void>();
  }
  if (!journal_->fits(length)) {
    if (journal_->frozen()) {
      // Rule Reuse: an area is filled again only when a durable segment covers it.
      auto held = co_await checkpoint_lock_.lock();
      auto freed = co_await checkpoint_frozen();
      SNAP_CO_RETURN_IF_ERROR(freed);
    }
    journal_->switch_area();
    start_background_checkpoint();
  }
  auto appended = co_await journal_->append(changes, through);
  SNAP_CO_RETURN_IF_ERROR(appended);
  records_.fetch_add(1, std::memory_order_relaxed);
  co_return Result<void>();
}

}  // namespace snap
