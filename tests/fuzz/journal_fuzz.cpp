// The journal of a delta: recovery, with the blocks that records carry (docs/format.md, Delta,
// Journal). The map is sound: records from number 2 on count.
//
// Input: flags, and the pages of the file (unpack_pages).
#include <algorithm>

#include "delta_files.h"
#include "engine/base/codec.h"

namespace snap::fuzz {

namespace {

enum Flag : unsigned {
  kOurHeader = 1,     ///< id and checksum of the header are right
  kFixChecksums = 2,  ///< of records
  kFixChain = 4,
  kWholeAreas = 8,    ///< the file reaches to the end of the second area
  kShortData = 16,    ///< the data file has 64 KiB; else the volume's size
  kLargeVolume = 32,  ///< 1 TiB instead of 1 MiB
  kUse = 64,          ///< the delta is written to and opened again
};

constexpr std::size_t kMaxPages = 64;
// Longer areas are not made whole, nor written to: the simulated disk is memory, and slow to scan.
constexpr std::uint64_t kMostArea = 128 << 10;
constexpr std::uint64_t kSmallSize = 1 << 20;
constexpr std::uint64_t kLargeSize = std::uint64_t{1} << 40;
constexpr std::uint64_t kAreaAt = 72;
constexpr std::uint64_t kClosedAt = 80;
constexpr unsigned kAllRight = kOurHeader | kFixChecksums | kFixChain | kWholeAreas;

Bytes sound_map(std::uint64_t volume_size) {
  Bytes map = encode_map_header({delta_id(), delta_secret(), 8192});
  FrameHead base;
  base.kind = FrameKind::kSegment;
  base.number = 1;
  base.volume_size = volume_size;
  append_frame(map, base, {{0, 0x0001, 0x0006}});
  FrameHead second = base;
  second.number = 2;
  second.through = 1;
  second.previous = base.checksum;
  append_frame(map, second, {{0, 0x0002, 0}, {2, 0, 0x00f0}});
  return map;
}

}  // namespace

void run(std::span<const std::byte> input) {
  const unsigned flags = take_byte(input);
  DeltaFiles files;
  files.journal = unpack_pages(input, kMaxPages);
  files.journal_size = files.journal.size();
  files.used = (flags & kUse) != 0;
  if (!files.journal.empty()) {
    const auto area = load_le<std::uint64_t>(files.journal.data() + kAreaAt);
    if ((flags & kOurHeader) != 0) {
      const auto closed = load_le<std::uint64_t>(files.journal.data() + kClosedAt);
      const Bytes header = encode_journal_header({delta_id(), area, closed});
      std::copy(header.begin(), header.end(), files.journal.begin());
    }
    if ((flags & kWholeAreas) != 0 && area <= kMostArea)
      files.journal_size =
          std::max<std::uint64_t>(kDeltaHeaderBytes + 2 * area, files.journal_size);
    files.used = files.used && area <= kMostArea;
  }
  fix_frames(files.journal, {(flags & kFixChecksums) != 0, (flags & kFixChain) != 0});
  const std::uint64_t volume_size = (flags & kLargeVolume) != 0 ? kLargeSize : kSmallSize;
  files.map = sound_map(volume_size);
  files.data_size = (flags & kShortData) != 0 ? kChunkSize : volume_size;
  open_delta(files);
}

namespace {

/// A header without its page's end, which the flags put in.
Bytes begin_file(std::uint64_t area, std::uint64_t closed = 0) {
  Bytes file(kDeltaHeaderBytes);
  store_le(file.data() + kAreaAt, area);
  store_le(file.data() + kClosedAt, closed);
  return file;
}

/// Appends a record that follows one with the head checksum `previous`; gives its own.
std::uint64_t append_changes(Bytes& file, std::uint64_t number, const std::vector<Change>& changes,
                             std::uint64_t previous = 0) {
  FrameHead head;
  head.kind = FrameKind::kChanges;
  head.number = number;
  head.through = number - 1;
  head.previous = previous;
  append_frame(file, head, changes);
  return head.checksum;
}

/// The same with blocks.
std::uint64_t append_blocks(Bytes& file, std::uint64_t number, const std::vector<Change>& changes,
                            std::uint64_t previous = 0) {
  FrameHead head;
  head.kind = FrameKind::kBlocks;
  head.number = number;
  head.previous = previous;
  append_frame(file, head, changes, static_cast<std::byte>(number));
  return head.checksum;
}

}  // namespace

std::vector<Seed> seeds() {
  std::vector<Seed> out;
  constexpr std::uint64_t kArea = 32768;
  out.push_back({"none", Bytes{}});
  out.push_back({"closed", pack_pages(kAllRight, begin_file(kArea, 2))});
  Bytes file = begin_file(kArea);
  append_changes(file, 2, {{0, 0, 0x0002}, {5, 0x0001, 0}});
  out.push_back({"changes", pack_pages(kAllRight, file)});
  append_blocks(file, 3, {{4, 0x0004, 0}, {6, 0x8001, 0x00f0}});
  append_blocks(file, 4, {{4, 0x0004, 0x0001}});
  out.push_back({"blocks", pack_pages(kAllRight, file)});
  append_changes(file, 5, {{7, 0x0001, 0x0002}, {8, 0, 0xffff}});
  // The journal went round: the older records are in the second area.
  Bytes round(kDeltaHeaderBytes + kArea);
  std::uint64_t last = append_blocks(round, 2, {{1, 0x0001, 0}, {3, 0x0003, 0}});
  last = append_blocks(round, 3, {{3, 0, 0x0001}}, last);
  Bytes begin = begin_file(kArea);
  last = append_blocks(begin, 4, {{1, 0x0001, 0}}, last);
  append_changes(begin, 5, {{2, 0, 0x000f}}, last);
  std::copy(begin.begin(), begin.end(), round.begin());
  out.push_back({"round", pack_pages(kAllRight & ~unsigned{kFixChain}, round)});
  out.push_back({"used", pack_pages(kAllRight | kUse, file)});
  out.push_back({"large", pack_pages(kAllRight | kLargeVolume, file)});
  Bytes torn = file;
  torn.resize(torn.size() - 4096);
  out.push_back({"torn", pack_pages(kOurHeader | kWholeAreas, torn)});
  Bytes raw = encode_journal_header({delta_id(), kArea, 0});
  append_changes(raw, 2, {{0, 0, 0x0002}});
  out.push_back({"untouched", pack_pages(kWholeAreas, raw)});
  return out;
}

}  // namespace snap::fuzz
