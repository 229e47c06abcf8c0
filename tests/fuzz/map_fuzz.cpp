// The map file of a delta: opening it, and replaying its segments (docs/format.md, Delta, Map).
//
// Input: flags, and the pages of the file (unpack_pages).
#include <algorithm>

#include "delta_files.h"
#include "engine/base/codec.h"

namespace snap::fuzz {

namespace {

enum Flag : unsigned {
  kOurHeader = 1,     ///< id, secret and checksum of the header are right
  kFixChecksums = 2,  ///< of segments
  kFixChain = 4,
  kOpenSealed = 8,
  kShortData = 16,  ///< the data file has 64 KiB; else it is as large as any
  kCutEnd = 32,     ///< the file ends inside its last page
  kUse = 64,        ///< the delta is written to and opened again
};

constexpr std::size_t kMaxPages = 64;
constexpr std::uint64_t kBaseEndAt = 72;
constexpr unsigned kAllRight = kOurHeader | kFixChecksums | kFixChain;

}  // namespace

void run(std::span<const std::byte> input) {
  const unsigned flags = take_byte(input);
  DeltaFiles files;
  files.map = unpack_pages(input, kMaxPages);
  if ((flags & kOurHeader) != 0 && !files.map.empty()) {
    const auto base_end = load_le<std::uint64_t>(files.map.data() + kBaseEndAt);
    const Bytes header = encode_map_header({delta_id(), delta_secret(), base_end});
    std::copy(header.begin(), header.end(), files.map.begin());
  }
  fix_frames(files.map, {(flags & kFixChecksums) != 0, (flags & kFixChain) != 0});
  if ((flags & kCutEnd) != 0 && !files.map.empty()) files.map.resize(files.map.size() - 1000);
  files.data_size = (flags & kShortData) != 0 ? kChunkSize : kMaxVolumeSize;
  if ((flags & kOpenSealed) != 0) files.mode = Delta::Mode::kSealed;
  files.used = (flags & kUse) != 0;
  open_delta(files);
}

namespace {

FrameHead segment(std::uint64_t number, std::uint64_t volume_size) {
  FrameHead head;
  head.kind = FrameKind::kSegment;
  head.number = number;
  head.volume_size = volume_size;
  return head;
}

/// A header without its page's end and secret, which the flags put in.
Bytes begin_file(std::uint64_t base_end) {
  Bytes file(kDeltaHeaderBytes);
  store_le(file.data() + kBaseEndAt, base_end);
  return file;
}

}  // namespace

std::vector<Seed> seeds() {
  std::vector<Seed> out;
  constexpr std::uint64_t kSize = 1 << 20;
  FrameHead base = segment(1, kSize);
  Bytes file = begin_file(8192);
  append_frame(file, base, {});
  out.push_back({"empty", pack_pages(kAllRight, file)});
  FrameHead second = segment(2, kSize);
  second.through = 1;
  append_frame(file, second, {{0, 0x0003, 0}, {2, 0x8000, 0x00f0}, {15, 0, 0xffff}});
  out.push_back({"segment", pack_pages(kAllRight, file)});
  FrameHead shrunk = segment(3, 100000);
  shrunk.through = 1;
  append_frame(file, shrunk, {{1, 0x0001, 0x00f0}});
  FrameHead grown = segment(4, kSize);
  grown.through = 5;
  append_frame(file, grown, {{9, 0x0100, 0x0200}});
  out.push_back({"resized", pack_pages(kAllRight, file)});
  out.push_back({"used", pack_pages(kAllRight | kUse, file)});
  Bytes last = file;
  FrameHead beyond = segment(5, kSize);
  beyond.through = ~std::uint64_t{0};
  append_frame(last, beyond, {});
  out.push_back({"last-number", pack_pages(kAllRight | kUse, last)});
  Bytes torn = file;
  torn.insert(torn.end(), file.end() - 4096, file.end());
  out.push_back({"torn", pack_pages(kOurHeader, torn)});
  FrameHead sealed = segment(5, kSize);
  sealed.through = 5;
  sealed.flags = kFrameSealed;
  append_frame(file, sealed, {{9, 0x0200, 0}});
  out.push_back({"sealed", pack_pages(kAllRight | kOpenSealed, file)});
  std::vector<Change> many;
  for (std::uint32_t chunk = 0; chunk < 600; ++chunk)
    many.push_back({chunk * 7, static_cast<BlockMask>(chunk + 1), 0});
  for (Change& change : many)
    change.zero = static_cast<BlockMask>(~change.data);
  FrameHead large = segment(7, std::uint64_t{1} << 40);
  Bytes two_pages = begin_file(16384);
  append_frame(two_pages, large, many);
  append_frame(two_pages, large, {});
  out.push_back({"many", pack_pages(kAllRight, two_pages)});
  Bytes raw = encode_map_header({delta_id(), delta_secret(), 8192});
  FrameHead only = segment(1, kSize);
  append_frame(raw, only, {{3, 0x0001, 0x0002}});
  out.push_back({"untouched", pack_pages(0, raw)});
  return out;
}

}  // namespace snap::fuzz
