#include "engine/delta/delta_format.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <string>

#include "engine/base/codec.h"

namespace snap {

namespace {

constexpr std::uint32_t kFrameMagic = 0x4d524653;  // "SFRM"
constexpr std::size_t kFrameChecksumAt = kFrameHeadBytes - 8;

std::uint64_t head_checksum(std::span<const std::byte> head, const FrameContext& context) {
  std::array<std::byte, 16 + 8 + kFrameChecksumAt> input;
  Encoder e(input);
  e.bytes(std::as_bytes(std::span(context.id.bytes)));
  e.le(context.offset);
  e.bytes(head.first(kFrameChecksumAt));
  return xxh3_keyed(input, context.secret);
}

/// Blocks of `chunk` that begin below `volume_size`.
BlockMask blocks_within(std::uint32_t chunk, std::uint64_t volume_size) {
  const std::uint64_t begin = chunk * kChunkSize;
  if (begin >= volume_size) return 0;
  const std::uint64_t blocks = round_up(volume_size - begin, kBlockSize) / kBlockSize;
  return block_range(0, static_cast<unsigned>(std::min<std::uint64_t>(blocks, kBlocksPerChunk)));
}

/// What holds for every frame whose checksums are right, but for its changes.
Result<void> check_frame(const FrameHead& head, std::span<const std::byte> body,
                         const FrameContext& context) {
  const bool segment = head.kind == FrameKind::kSegment;
  const auto nonsense = [&context](const char* what) {
    return Error(ErrorCode::kCorrupt, "frame at " + std::to_string(context.offset) + ": " + what);
  };
  const bool blocks = head.kind == FrameKind::kBlocks;
  if (!segment && !blocks && head.kind != FrameKind::kChanges) return nonsense("of no known kind");
  if ((head.flags & ~(segment ? kFrameSealed : 0)) != 0) return nonsense("unknown flags");
  if (head.number > kMaxFrameNumber || head.through > kMaxFrameNumber)
    return nonsense("a number that no delta comes to");
  const std::uint64_t plain = frame_length(head.count);
  if (blocks ? head.length < plain : head.length != plain)
    return nonsense("its length makes no sense");
  if (segment ? head.volume_size > kMaxVolumeSize : head.volume_size != 0) {
    return nonsense("its volume size makes no sense");
  }
  const std::size_t changes = kChangeBytes * head.count;
  if (!is_zero(body.subspan(changes, plain - kFrameHeadBytes - changes)))
    return nonsense("padding is not zero");
  return {};
}

}  // namespace

std::uint64_t segments_length(std::size_t count) {
  const std::size_t full = count / kMaxSegmentChanges;
  const std::size_t rest = count % kMaxSegmentChanges;
  const bool last = rest != 0 || full == 0;
  return full * frame_length(kMaxSegmentChanges) + (last ? frame_length(rest) : 0);
}

std::size_t count_blocks(std::span<const Change> changes) {
  std::size_t blocks = 0;
  for (const Change& change : changes)
    blocks += static_cast<unsigned>(std::popcount(change.data));
  return blocks;
}

std::vector<std::byte> encode_frame(FrameHead& head, std::span<const Change> changes,
                                    const FrameContext& context) {
  std::vector<std::byte> bytes(frame_length(changes.size()));
  encode_frame_into(bytes, head, changes, context);
  return bytes;
}

void encode_frame_into(std::span<std::byte> frame, FrameHead& head, std::span<const Change> changes,
                       const FrameContext& context) {
  head.count = static_cast<std::uint32_t>(changes.size());
  head.length = frame.size();
  Encoder body(frame.subspan(kFrameHeadBytes));
  for (const Change& change : changes) {
    body.le(change.chunk);
    body.le(change.data);
    body.le(change.zero);
  }
  const std::size_t end = kFrameHeadBytes + kChangeBytes * changes.size();
  std::memset(&frame[end], 0, frame_length(changes.size()) - end);
  head.body_checksum = xxh3_keyed(frame.subspan(kFrameHeadBytes), context.secret);
  Encoder e(frame);
  e.le(kFrameMagic);
  e.le(static_cast<std::uint16_t>(head.kind));
  e.le(head.flags);
  e.le(head.number);
  e.le(head.through);
  e.le(head.volume_size);
  e.le(head.count);
  e.le(static_cast<std::uint32_t>(head.length));
  e.le(head.previous);
  e.le(head.body_checksum);
  head.checksum = head_checksum(frame, context);
  e.le(head.checksum);
}

std::optional<FrameHead> decode_frame_head(std::span<const std::byte> bytes,
                                           const FrameContext& context) {
  if (bytes.size() < kFrameHeadBytes) return std::nullopt;
  Decoder d(bytes);
  if (d.le<std::uint32_t>() != kFrameMagic) return std::nullopt;
  FrameHead head;
  head.kind = static_cast<FrameKind>(d.le<std::uint16_t>());
  head.flags = d.le<std::uint16_t>();
  head.number = d.le<std::uint64_t>();
  head.through = d.le<std::uint64_t>();
  head.volume_size = d.le<std::uint64_t>();
  head.count = d.le<std::uint32_t>();
  head.length = d.le<std::uint32_t>();
  head.previous = d.le<std::uint64_t>();
  head.body_checksum = d.le<std::uint64_t>();
  head.checksum = d.le<std::uint64_t>();
  if (head.checksum != head_checksum(bytes, context)) return std::nullopt;
  if (head.length > kMaxFrameBytes || head.length % kFrameAlign != 0) return std::nullopt;
  if (head.length < frame_length(head.count)) return std::nullopt;
  return head;
}

Result<std::optional<std::vector<Change>>> decode_frame_body(const FrameHead& head,
                                                             std::span<const std::byte> bytes,
                                                             const FrameContext& context,
                                                             std::uint64_t volume_size) {
  std::optional<std::vector<Change>> none;
  if (bytes.size() != head.length) return none;
  const std::span<const std::byte> body = bytes.subspan(kFrameHeadBytes);
  if (xxh3_keyed(body, context.secret) != head.body_checksum) return none;
  auto checked = check_frame(head, body, context);
  SNAP_RETURN_IF_ERROR(checked);
  std::vector<Change> changes(head.count);
  Decoder d(body);
  std::optional<std::uint32_t> last;
  for (Change& change : changes) {
    change.chunk = d.le<std::uint32_t>();
    change.data = d.le<std::uint16_t>();
    change.zero = d.le<std::uint16_t>();
    const BlockMask named = change.data | change.zero;
    const bool ascends = !last || change.chunk > *last;
    if (!ascends || named == 0 || (change.data & change.zero) != 0 ||
        (named & ~blocks_within(change.chunk, volume_size)) != 0) {
      return Error(ErrorCode::kCorrupt, "frame at " + std::to_string(context.offset) +
                                            ": the change of chunk " +
                                            std::to_string(change.chunk) + " makes no sense");
    }
    last = change.chunk;
  }
  if (head.kind == FrameKind::kBlocks &&
      head.length != frame_length(head.count) + kBlockSize * count_blocks(changes)) {
    return Error(ErrorCode::kCorrupt,
                 "frame at " + std::to_string(context.offset) + ": its length makes no sense");
  }
  return std::optional(std::move(changes));
}

std::vector<Change> merge_changes(std::vector<Change> changes) {
  std::stable_sort(changes.begin(), changes.end(),
                   [](const Change& a, const Change& b) { return a.chunk < b.chunk; });
  std::size_t out = 0;
  for (std::size_t i = 0; i < changes.size(); ++i) {
    const Change change = changes[i];
    if (out == 0 || changes[out - 1].chunk != change.chunk) {
      changes[out++] = change;
      continue;
    }
    Change& merged = changes[out - 1];
    merged.data = static_cast<BlockMask>((merged.data & ~change.zero) | change.data);
    merged.zero = static_cast<BlockMask>((merged.zero & ~change.data) | change.zero);
  }
  changes.resize(out);
  return changes;
}

void clip_changes(std::vector<Change>& changes, std::uint64_t volume_size) {
  std::size_t out = 0;
  for (Change change : changes) {
    const BlockMask inside = blocks_within(change.chunk, volume_size);
    change.data &= inside;
    change.zero &= inside;
    if ((change.data | change.zero) != 0) changes[out++] = change;
  }
  changes.resize(out);
}

}  // namespace snap
