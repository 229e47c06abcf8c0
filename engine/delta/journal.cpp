#include "engine/delta/journal.h"

#include <algorithm>
#include <bit>
#include <string>

#include "engine/io/durable_write.h"

namespace snap {

namespace {
constexpr std::size_t kScanBytes = 256u << 10;
constexpr std::size_t kZeroBytes = 256u << 10;  ///< of zeros written at a time
constexpr std::uint64_t kGrowth = 4;            ///< an area grows by this factor

/// Where the last block that the changes name as data ends in the data file.
std::uint64_t end_of_data(std::span<const Change> changes) {
  for (auto change = changes.rbegin(); change != changes.rend(); ++change) {
    if (change->data == 0) continue;
    const auto blocks = static_cast<unsigned>(std::bit_width(change->data));
    return offset_of(ChunkIndex(change->chunk)).value + blocks * kBlockSize;
  }
  return 0;
}
}  // namespace

Task<Result<Journal::Files>> Journal::open(Directory& dir, std::string name, OpenFlags flags) {
  Files files;
  auto buffered = co_await dir.open(name, flags);
  SNAP_CO_RETURN_IF_ERROR(buffered);
  files.buffered = std::move(*buffered);
  OpenFlags past_cache;
  past_cache.write = true;
  past_cache.direct = true;
  auto direct = co_await dir.open(name, past_cache);
  if (direct) files.direct = std::move(*direct);
  auto look = [&file = *files.buffered] { return takes_durable_writes(file); };
  files.syncs_writes = co_await offload(look);
  co_return std::move(files);
}

Journal::Journal(Files files, Uuid id, const ChecksumSecret& secret, std::uint64_t last_sequence)
    : file_(std::move(files.buffered)),
      direct_(std::move(files.direct)),
      syncs_writes_(files.syncs_writes),
      id_(id),
      secret_(secret),
      last_sequence_(last_sequence) {}

Error Journal::corrupt(std::uint64_t offset, const std::string& what) const {
  return Error(ErrorCode::kCorrupt, file_->path() + ", record at " + std::to_string(offset) + ": " +
                                        what + "; restore the volume from a backup");
}

// ---- Writing

Result<std::span<std::byte>> Journal::frame_memory(std::uint64_t length) {
  if (frame_.address() == nullptr) {
    auto memory = LazyMemory::map(kMaxFrameBytes);
    SNAP_RETURN_IF_ERROR(memory);
    frame_ = std::move(*memory);
  }
  return std::span(static_cast<std::byte*>(frame_.address()), length);
}

Task<Result<void>> Journal::write_stable(std::span<const std::byte> bytes, std::uint64_t offset) {
  File& file = direct_ != nullptr ? *direct_ : *file_;
  auto wrote = co_await write_durably(file, bytes, ByteOffset(offset), syncs_writes_);
  SNAP_CO_RETURN_IF_ERROR(wrote);
  if (*wrote == bytes.size()) co_return Result<void>();
  // What a short write left may not be aligned any more.
  auto rest = co_await write_all(*file_, bytes.subspan(*wrote), ByteOffset(offset + *wrote));
  SNAP_CO_RETURN_IF_ERROR(rest);
  auto synced = co_await data_sync(*file_);
  SNAP_CO_RETURN_IF_ERROR(synced);
  co_return Result<void>();
}

Task<Result<void>> Journal::write_header() {
  const std::vector<std::byte> header = encode_journal_header({id_, area_length_, closed_});
  auto written = co_await write_all(*file_, header, ByteOffset(0));
  SNAP_CO_RETURN_IF_ERROR(written);
  // Rule Journal: a record is never durable in a journal whose header is not.
  auto synced = co_await data_sync(*file_);
  SNAP_CO_RETURN_IF_ERROR(synced);
  has_header_ = true;
  co_return Result<void>();
}

Task<Result<void>> Journal::append(std::span<const Change> changes, std::uint64_t through) {
  auto frame = frame_memory(frame_length(changes.size()));
  SNAP_CO_RETURN_IF_ERROR(frame);
  FrameHead head;
  head.kind = FrameKind::kChanges;
  head.through = through;
  auto written = co_await write_frame(head, *frame, changes);
  SNAP_CO_RETURN_IF_ERROR(written);
  co_return Result<void>();
}

Result<std::span<std::byte>> Journal::place_for_blocks(std::size_t changes, std::size_t blocks) {
  const std::uint64_t begin = frame_length(changes);
  auto frame = frame_memory(begin + kBlockSize * blocks);
  SNAP_RETURN_IF_ERROR(frame);
  return frame->subspan(begin);
}

Task<Result<void>> Journal::append_with_blocks(std::span<const Change> changes,
                                               std::uint64_t data_sync) {
  const std::size_t blocks = count_blocks(changes);
  auto frame = frame_memory(frame_length(changes.size()) + kBlockSize * blocks);
  SNAP_CO_RETURN_IF_ERROR(frame);
  FrameHead head;
  head.kind = FrameKind::kBlocks;
  if (blocks != 0) active_sync_ = data_sync;
  auto written = co_await write_frame(head, *frame, changes);
  SNAP_CO_RETURN_IF_ERROR(written);
  co_return Result<void>();
}

Task<Result<void>> Journal::write_frame(FrameHead head, std::span<std::byte> frame,
                                        std::span<const Change> changes) {
  if (!has_areas_) {
    auto zeroed = co_await write_zeros(*file_, kDeltaHeaderBytes, area_begin(2));
    SNAP_CO_RETURN_IF_ERROR(zeroed);
    auto synced = co_await data_sync(*file_);
    SNAP_CO_RETURN_IF_ERROR(synced);
    has_areas_ = true;
  }
  if (!has_header_) {
    auto written = co_await write_header();
    SNAP_CO_RETURN_IF_ERROR(written);
  }
  head.number = last_sequence_ + 1;
  head.previous = last_checksum_;
  const std::uint64_t offset = area_begin(active_) + used_;
  encode_frame_into(frame, head, changes, context(offset));
  // Rule Journal: the record is durable before the flush is answered and the next one is begun.
  auto written = co_await write_stable(frame, offset);
  SNAP_CO_RETURN_IF_ERROR(written);
  used_ += frame.size();
  last_sequence_ = head.number;
  last_checksum_ = head.checksum;
  changes_.insert(changes_.end(), changes.begin(), changes.end());
  co_return Result<void>();
}

// ---- Areas

void Journal::switch_area() {
  frozen_changes_ = std::move(changes_);
  changes_.clear();
  frozen_through_ = last_sequence_;
  frozen_sync_ = active_sync_;
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

std::uint64_t Journal::larger_area_length(std::uint64_t record) const {
  std::uint64_t length = area_length_;
  do
    length *= kGrowth;
  while (length < record);
  return std::max(area_length_, std::min(length, kJournalAreaMax));
}

Task<Result<void>> Journal::write_zeros(File& file, std::uint64_t begin, std::uint64_t end) {
  static const std::vector<std::byte> zeros(kZeroBytes);
  while (begin < end) {
    const auto piece = std::span(zeros).first(std::min<std::uint64_t>(kZeroBytes, end - begin));
    auto written = co_await write_all(file, piece, ByteOffset(begin));
    SNAP_CO_RETURN_IF_ERROR(written);
    begin += piece.size();
  }
  co_return Result<void>();
}

Task<Result<void>> Journal::extend(File& file, std::uint64_t area_length) {
  const std::uint64_t begin = area_begin(2);
  const std::uint64_t end = kDeltaHeaderBytes + 2 * area_length;
  auto taken = co_await allocate(file, ByteOffset(begin), end - begin, true);
  SNAP_CO_RETURN_IF_ERROR(taken);
  auto zeroed = co_await write_zeros(file, begin, end);
  SNAP_CO_RETURN_IF_ERROR(zeroed);
  auto synced = co_await data_sync(file);
  SNAP_CO_RETURN_IF_ERROR(synced);
  co_return Result<void>();
}

Task<Result<void>> Journal::grow(std::uint64_t area_length) {
  area_length_ = area_length;
  active_ = 0;
  used_ = 0;
  auto written = co_await write_header();
  SNAP_CO_RETURN_IF_ERROR(written);
  co_return Result<void>();
}

Task<Result<void>> Journal::release_space(std::uint64_t last_segment) {
  const bool said = has_header_ && closed_ == last_segment && area_length_ == kJournalAreaInitial;
  auto cut = co_await file_->truncate(last_segment == 0 ? 0 : kDeltaHeaderBytes);
  SNAP_CO_RETURN_IF_ERROR(cut);
  has_header_ = said && last_segment != 0;
  has_areas_ = false;
  area_length_ = kJournalAreaInitial;
  active_ = 0;
  used_ = 0;
  closed_ = last_segment;
  if (last_segment == 0 || said) co_return Result<void>();
  auto written = co_await write_header();
  SNAP_CO_RETURN_IF_ERROR(written);
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
  has_areas_ = file_size >= area_begin(2);
  closed_ = header->closed;
  co_return Result<void>();
}

Task<Result<std::vector<Journal::Found>>> Journal::find_heads(std::uint64_t through,
                                                              std::uint64_t file_size) {
  std::vector<Found> found;
  std::vector<std::byte> bytes(kScanBytes);
  // Without a valid header the areas may lie anywhere.
  const std::uint64_t area = has_header_ ? area_length_ : kJournalMax / 2;
  const std::uint64_t end = std::min(file_size, kDeltaHeaderBytes + 2 * area);
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
  if (found->empty()) {
    // Nothing says that areas are stable which look as if they were there: who wrote their zeros
    // may have failed at the sync. They are written anew, as short as at first.
    has_areas_ = false;
    has_header_ = has_header_ && area_length_ == kJournalAreaInitial;
    area_length_ = kJournalAreaInitial;
  }
  // The areas are stable, zeros in their whole length, before the first record is written.
  if (!found->empty() && stat->size < area_begin(2)) {
    co_return Error(ErrorCode::kCorrupt,
                    file_->path() + " ends at " + std::to_string(stat->size) + " of " +
                        std::to_string(area_begin(2)) +
                        ": it was cut short; restore the volume from a backup");
  }
  auto tail = co_await check_records(*found, through, volume_size);
  SNAP_CO_RETURN_IF_ERROR(tail);
  co_return std::move(*tail);
}

Task<Result<JournalTail>> Journal::check_records(std::span<const Found> found,
                                                 std::uint64_t through, std::uint64_t volume_size) {
  JournalTail tail;
  tail.last_sequence = through;
  for (const Found& f : found) {
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
    const bool blocks = f.head.kind == FrameKind::kBlocks;
    if (f.head.kind == FrameKind::kSegment || f.head.through != (blocks ? 0 : f.head.number - 1)) {
      co_return corrupt(f.offset, "what it supersedes makes no sense");
    }
    if (tail.records != 0 && f.head.previous != last_checksum_) {
      co_return corrupt(f.offset, "does not continue the record before it");
    }
    if (blocks) {
      tail.blocks.push_back({f.head, f.offset});
    } else {
      // Rule Through: the data was synced after these; their blocks may be older than the file's.
      tail.blocks.clear();
      tail.synced_end = std::max(tail.synced_end, end_of_data(**changes));
    }
    tail.changes.insert(tail.changes.end(), (*changes)->begin(), (*changes)->end());
    tail.last_sequence = f.head.number;
    last_checksum_ = f.head.checksum;
    ++tail.records;
  }
  co_return std::move(tail);
}

Task<Result<void>> Journal::replay(const JournalTail& tail, File& data, std::uint64_t volume_size) {
  for (const JournalTail::Blocks& record : tail.blocks) {
    std::vector<std::byte> frame(record.head.length);
    auto read = co_await read_exact(*file_, frame, ByteOffset(record.offset));
    SNAP_CO_RETURN_IF_ERROR(read);
    auto changes = decode_frame_body(record.head, frame, context(record.offset), volume_size);
    SNAP_CO_RETURN_IF_ERROR(changes);
    if (!changes->has_value()) co_return corrupt(record.offset, "changed while it was read");
    std::span<const std::byte> blocks = std::span(frame).subspan(frame_length(record.head.count));
    for (const Change& change : **changes) {
      for (BlockRun run = next_run(change.data, 0); run.count != 0;
           run = next_run(change.data, run.first + run.count)) {
        const std::size_t bytes = run.count * kBlockSize;
        const ByteOffset at = offset_of(ChunkIndex(change.chunk)) + run.first * kBlockSize;
        auto written = co_await write_all(data, blocks.first(bytes), at);
        SNAP_CO_RETURN_IF_ERROR(written);
        blocks = blocks.subspan(bytes);
      }
    }
  }
  co_return Result<void>();
}

}  // namespace snap
