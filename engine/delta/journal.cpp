#include "engine/delta/journal.h"

#include <algorithm>
#include <string>

namespace snap {

namespace {
constexpr std::size_t kScanBytes = 256u << 10;
}  // namespace

Journal::Journal(std::unique_ptr<File> file, Uuid id, const ChecksumSecret& secret,
                 std::uint64_t last_sequence)
    : file_(std::move(file)), id_(id), secret_(secret), last_sequence_(last_sequence) {}

Error Journal::corrupt(std::uint64_t offset, const std::string& what) const {
  return Error(ErrorCode::kCorrupt, file_->path() + ", record at " + std::to_string(offset) + ": " +
                                        what + "; restore the volume from a backup");
}

// ---- Writing

Task<Result<void>> Journal::write_header() {
  const std::vector<std::byte> header = encode_journal_header({id_, area_length_});
  auto written = co_await write_all(*file_, header, ByteOffset(0));
  SNAP_CO_RETURN_IF_ERROR(written);
  // Rule Journal: a record is never durable in a journal whose header is not.
  auto synced = co_await data_sync(*file_);
  SNAP_CO_RETURN_IF_ERROR(synced);
  has_header_ = true;
  co_return Result<void>();
}

Task<Result<void>> Journal::append(std::span<const Change> changes, std::uint64_t through) {
  if (!has_header_) {
    auto written = co_await write_header();
    SNAP_CO_RETURN_IF_ERROR(written);
  }
  FrameHead head;
  head.kind = FrameKind::kChanges;
  head.number = last_sequence_ + 1;
  head.through = through;
  head.previous = last_checksum_;
  const std::uint64_t offset = area_begin(active_) + used_;
  const std::vector<std::byte> bytes = encode_frame(head, changes, context(offset));
  auto written = co_await write_all(*file_, bytes, ByteOffset(offset));
  SNAP_CO_RETURN_IF_ERROR(written);
  // Rule Journal: the record is durable before the flush is answered and the next one is begun.
  auto synced = co_await data_sync(*file_);
  SNAP_CO_RETURN_IF_ERROR(synced);
  used_ += bytes.size();
  last_sequence_ = head.number;
  last_checksum_ = head.checksum;
  changes_.insert(changes_.end(), changes.begin(), changes.end());
  co_return Result<void>();
}

void Journal::switch_area() {
  frozen_changes_ = std::move(changes_);
  changes_.clear();
  frozen_through_ = last_sequence_;
  active_ = 1 - active_;
  used_ = 0;
  frozen_.store(true, std::memory_order_release);
}

void Journal::free_active() {
  changes_.clear();
  used_ = 0;
}

void Journal::free_frozen() {
  frozen_changes_ = {};
  frozen_.store(false, std::memory_order_release);
}

Task<Result<void>> Journal::reserve() {
  auto taken = co_await allocate(*file_, ByteOffset(0), kDeltaHeaderBytes + 2 * area_length_, true);
  SNAP_CO_RETURN_IF_ERROR(taken);
  co_return Result<void>();
}

Task<Result<void>> Journal::release_space() {
  auto cut = co_await file_->truncate(0);
  SNAP_CO_RETURN_IF_ERROR(cut);
  has_header_ = false;
  used_ = 0;
  co_return Result<void>();
}

// ---- Reading

Task<Result<void>> Journal::read_header(std::uint64_t file_size) {
  if (file_size == 0) co_return Result<void>();
  std::vector<std::byte> bytes(kDeltaHeaderBytes);
  auto read = co_await read_up_to(*file_, bytes, ByteOffset(0));
  SNAP_CO_RETURN_IF_ERROR(read);
  bytes.resize(*read);
  auto header = decode_journal_header(bytes, file_->path());
  if (!header) {
    // A header that was being written when the power failed: no record can be durable. Whether
    // there is one all the same is for scan() to see, with the geometry this release writes.
    if (header.error().code() == ErrorCode::kCorrupt) co_return Result<void>();
    co_return header.error();
  }
  if (header->id != id_) {
    co_return Error(ErrorCode::kCorrupt,
                    file_->path() + " belongs to delta " + header->id.str() + ", not " + id_.str());
  }
  has_header_ = true;
  area_length_ = header->area_length;
  co_return Result<void>();
}

Task<Result<std::vector<Journal::Found>>> Journal::find_heads(std::uint64_t through,
                                                              std::uint64_t file_size) {
  std::vector<Found> found;
  std::vector<std::byte> bytes(kScanBytes);
  const std::uint64_t end = std::min(file_size, kDeltaHeaderBytes + 2 * area_length_);
  for (std::uint64_t at = kDeltaHeaderBytes; at < end; at += bytes.size()) {
    auto read = co_await read_up_to(*file_, bytes, ByteOffset(at));
    SNAP_CO_RETURN_IF_ERROR(read);
    for (std::size_t i = 0; i + kFrameHeadBytes <= *read; i += kFrameAlign) {
      const auto bytes_of_head = std::span(bytes).subspan(i, kFrameHeadBytes);
      const auto head = decode_frame_head(bytes_of_head, context(at + i));
      if (head && head->number > through) found.push_back({*head, at + i});
    }
  }
  std::sort(found.begin(), found.end(),
            [](const Found& a, const Found& b) { return a.head.number < b.head.number; });
  co_return std::move(found);
}

Task<Result<JournalTail>> Journal::scan(std::uint64_t through, std::uint64_t volume_size) {
  JournalTail tail;
  tail.last_sequence = through;
  auto stat = co_await file_->stat();
  SNAP_CO_RETURN_IF_ERROR(stat);
  auto header = co_await read_header(stat->size);
  SNAP_CO_RETURN_IF_ERROR(header);
  auto found = co_await find_heads(through, stat->size);
  SNAP_CO_RETURN_IF_ERROR(found);
  if (!has_header_ && !found->empty()) {
    co_return Error(ErrorCode::kCorrupt, file_->path() +
                                             ", header at 0: damaged, and records follow; "
                                             "restore the volume from a backup");
  }
  for (const Found& f : *found) {
    if (tail.torn || f.head.number != tail.last_sequence + 1) {
      co_return corrupt(f.offset, "number " + std::to_string(f.head.number) + " where " +
                                      std::to_string(tail.last_sequence + 1) +
                                      " was expected: a record is missing or damaged");
    }
    std::vector<std::byte> bytes(f.head.length);
    auto read = co_await read_up_to(*file_, bytes, ByteOffset(f.offset));
    SNAP_CO_RETURN_IF_ERROR(read);
    bytes.resize(*read);
    auto changes = decode_frame_body(f.head, bytes, context(f.offset), volume_size);
    if (!changes) co_return changes.error().with_context(file_->path());
    if (!changes->has_value()) {
      tail.torn = true;  // the normal end after a power cut, if nothing follows
      continue;
    }
    // Only records with payload, which the header would announce, may come between the two.
    if (f.head.kind != FrameKind::kChanges || f.head.through + 1 != f.head.number) {
      co_return corrupt(f.offset, "of a kind that its header does not announce");
    }
    if (tail.records != 0 && f.head.previous != last_checksum_) {
      co_return corrupt(f.offset, "does not continue the record before it");
    }
    tail.changes.insert(tail.changes.end(), (*changes)->begin(), (*changes)->end());
    tail.last_sequence = f.head.number;
    last_checksum_ = f.head.checksum;
    ++tail.records;
  }
  co_return std::move(tail);
}

}  // namespace snap
