#include "engine/delta/map_file.h"

#include <algorithm>
#include <vector>

namespace snap {

namespace {
constexpr std::size_t kTailScanBytes = 256u << 10;
}  // namespace

Error MapFile::corrupt(std::uint64_t offset, const std::string& what) const {
  return Error(ErrorCode::kCorrupt, file_->path() + ", segment at " + std::to_string(offset) +
                                        ": " + what + "; restore the volume from a backup");
}

Task<Result<void>> MapFile::write_segment(std::span<const Change> changes, Point point) {
  FrameHead head;
  head.kind = FrameKind::kSegment;
  head.flags = point.sealed ? kFrameSealed : 0;
  head.number = next_number_;
  head.through = point.through;
  head.volume_size = point.volume_size;
  head.previous = last_checksum_;
  const std::vector<std::byte> bytes = encode_frame(head, changes, context(tail_));
  auto written = co_await write_all(*file_, bytes, ByteOffset(tail_));
  SNAP_CO_RETURN_IF_ERROR(written);
  tail_ += bytes.size();
  last_is_guard_ = changes.empty() && point == point_;
  ++next_number_;
  last_checksum_ = head.checksum;
  point_ = point;
  co_return Result<void>();
}

Task<Result<MapFile>> MapFile::write_new(Directory& dir, std::string name, const Uuid& id,
                                         const ChecksumSecret& secret, std::uint64_t first_number,
                                         std::span<const Change> changes, Point point) {
  OpenFlags flags;
  flags.write = true;
  flags.create = true;
  auto file = co_await dir.open(name, flags);
  SNAP_CO_RETURN_IF_ERROR(file);
  MapFile map(std::move(*file));
  map.header_.id = id;
  map.header_.secret = secret;
  map.header_.base_end = kDeltaHeaderBytes + segments_length(changes.size());
  map.next_number_ = first_number;
  const std::vector<std::byte> header = encode_map_header(map.header_);
  auto written = co_await write_all(*map.file_, header, ByteOffset(0));
  SNAP_CO_RETURN_IF_ERROR(written);
  do {
    const auto part = changes.first(std::min(changes.size(), kMaxSegmentChanges));
    changes = changes.subspan(part.size());
    written = co_await map.write_segment(part, point);
    SNAP_CO_RETURN_IF_ERROR(written);
  } while (!changes.empty());
  // Rule Publish: the whole base is durable before the file gets its name.
  auto synced = co_await data_sync(*map.file_);
  SNAP_CO_RETURN_IF_ERROR(synced);
  co_return std::move(map);
}

Task<Result<void>> MapFile::append(std::span<const Change> changes, Point point) {
  Point before = point_;
  before.sealed = false;
  do {
    const auto part = changes.first(std::min(changes.size(), kMaxSegmentChanges));
    changes = changes.subspan(part.size());
    // Only the last part supersedes the journal, changes the size and seals: until it is durable
    // the records still count, and may name blocks that a smaller size would not have.
    const Point& at = changes.empty() ? point : before;
    auto written = co_await write_segment(part, at);
    SNAP_CO_RETURN_IF_ERROR(written);
    // Rule Checkpoint: durable before the next part is begun and before an area is used again.
    auto synced = co_await data_sync(*file_);
    SNAP_CO_RETURN_IF_ERROR(synced);
  } while (!changes.empty());
  co_return Result<void>();
}

Task<Result<void>> MapFile::append_guard() {
  if (last_is_guard_ || tail_ == header_.base_end || point_.sealed) co_return Result<void>();
  auto written = co_await write_segment({}, point_);
  SNAP_CO_RETURN_IF_ERROR(written);
  auto synced = co_await data_sync(*file_);
  SNAP_CO_RETURN_IF_ERROR(synced);
  co_return Result<void>();
}

Task<Result<void>> MapFile::cut_tail() {
  auto cut = co_await file_->truncate(tail_);
  SNAP_CO_RETURN_IF_ERROR(cut);
  torn_ = false;
  co_return Result<void>();
}

Task<Result<void>> MapFile::reserve(std::uint64_t bytes) {
  auto taken = co_await allocate(*file_, ByteOffset(tail_), bytes, true);
  SNAP_CO_RETURN_IF_ERROR(taken);
  co_return Result<void>();
}

Task<Result<bool>> MapFile::load_segment(BlockMap& blocks, std::uint64_t file_size) {
  std::vector<std::byte> bytes(kFrameHeadBytes);
  auto read = co_await read_up_to(*file_, bytes, ByteOffset(tail_));
  SNAP_CO_RETURN_IF_ERROR(read);
  bytes.resize(*read);
  const auto head = decode_frame_head(bytes, context(tail_));
  if (!head || head->length > file_size - tail_) co_return false;
  bytes.resize(head->length);
  auto whole = co_await read_exact(*file_, bytes, ByteOffset(tail_));
  SNAP_CO_RETURN_IF_ERROR(whole);
  if (head->kind != FrameKind::kSegment) {
    co_return corrupt(tail_, "not a map segment");
  }
  auto changes = decode_frame_body(*head, bytes, context(tail_), head->volume_size);
  if (!changes) co_return changes.error().with_context(file_->path());
  if (!changes->has_value()) co_return false;
  const bool first = tail_ == kDeltaHeaderBytes;
  if (head->previous != last_checksum_ ||
      (!first && (head->number != next_number_ || head->through < point_.through))) {
    co_return corrupt(tail_, "number " + std::to_string(head->number) + " where " +
                                 std::to_string(next_number_) + " was expected");
  }
  if (!first && head->volume_size < point_.volume_size) blocks.drop_beyond(head->volume_size);
  for (const Change& change : **changes) {
    auto restored = blocks.restore(change);
    SNAP_CO_RETURN_IF_ERROR(restored);
  }
  const Point point{head->through, head->volume_size, (head->flags & kFrameSealed) != 0};
  last_is_guard_ = head->count == 0 && point == point_;
  point_ = point;
  next_number_ = head->number + 1;
  last_checksum_ = head->checksum;
  tail_ += head->length;
  co_return true;
}

Task<Result<void>> MapFile::check_tail(std::uint64_t file_size) {
  std::vector<std::byte> bytes(kTailScanBytes);
  for (std::uint64_t at = tail_ + kFrameAlign; at < file_size; at += bytes.size()) {
    auto read = co_await read_up_to(*file_, bytes, ByteOffset(at));
    SNAP_CO_RETURN_IF_ERROR(read);
    for (std::size_t i = 0; i + kFrameHeadBytes <= *read; i += kFrameAlign) {
      if (decode_frame_head(std::span(bytes).subspan(i, kFrameHeadBytes), context(at + i))) {
        co_return corrupt(tail_, "damaged, and a valid one follows at " + std::to_string(at + i));
      }
    }
  }
  co_return Result<void>();
}

Task<Result<MapFile>> MapFile::load(std::unique_ptr<File> file, BlockMap& blocks, bool writable) {
  MapFile map(std::move(file));
  auto stat = co_await map.file_->stat();
  SNAP_CO_RETURN_IF_ERROR(stat);
  std::vector<std::byte> bytes(kDeltaHeaderBytes);
  auto read = co_await read_up_to(*map.file_, bytes, ByteOffset(0));
  SNAP_CO_RETURN_IF_ERROR(read);
  bytes.resize(*read);
  auto header = decode_map_header(bytes, map.file_->path(), writable);
  SNAP_CO_RETURN_IF_ERROR(header);
  map.header_ = *header;
  while (map.tail_ < stat->size) {
    auto loaded = co_await map.load_segment(blocks, stat->size);
    SNAP_CO_RETURN_IF_ERROR(loaded);
    if (!*loaded) break;
  }
  // A torn segment can only be one that was appended; the base was durable before it had a name.
  if (map.tail_ < map.header_.base_end) {
    co_return map.corrupt(map.tail_, "damaged or cut off");
  }
  if (map.tail_ < stat->size) {
    auto checked = co_await map.check_tail(stat->size);
    SNAP_CO_RETURN_IF_ERROR(checked);
    map.torn_ = true;
  }
  co_return std::move(map);
}

}  // namespace snap
