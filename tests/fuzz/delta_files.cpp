#include "delta_files.h"

#include <algorithm>
#include <array>

#include "engine/base/codec.h"

namespace snap::fuzz {

namespace {

constexpr std::size_t kHeadChecksumAt = kFrameHeadBytes - 8;
constexpr std::size_t kMostBlocksRead = 64;

bool has_frame(std::span<const std::byte> file, std::uint64_t at) {
  return text_of(file.subspan(at, 4)) == "SFRM";
}

void sum_frame(std::span<std::byte> file, std::uint64_t at, std::size_t length) {
  const ChecksumSecret secret = delta_secret();
  std::byte* head = file.data() + at;
  const auto body = file.subspan(at + kFrameHeadBytes, length - kFrameHeadBytes);
  store_le(head + kHeadChecksumAt - 8, xxh3_keyed(body, secret));
  std::array<std::byte, 16 + 8 + kHeadChecksumAt> input;
  Encoder e(input);
  const Uuid id = delta_id();
  e.bytes(std::as_bytes(std::span(id.bytes)));
  e.le(at);
  e.bytes(file.subspan(at, kHeadChecksumAt));
  store_le(head + kHeadChecksumAt, xxh3_keyed(input, secret));
}

Task<void> put_file(Directory* dir, std::string name, const Bytes* bytes, std::uint64_t size) {
  OpenFlags flags;
  flags.write = flags.create = true;
  auto file = co_await dir->open(name, flags);
  if (!file) broken("a file is made on the simulated disk");
  auto written = co_await write_all(**file, *bytes, ByteOffset(0));
  if (!written) broken("a file is written on the simulated disk");
  auto sized = co_await (*file)->truncate(size);
  if (!sized) broken("a file gets its size on the simulated disk");
}

/// Below every delta there are zeros.
class Zeros final : public BlockSource {
 public:
  Task<Result<void>> read_blocks(ByteOffset, std::span<std::byte> out) override {
    std::fill(out.begin(), out.end(), std::byte{0});
    co_return Result<void>();
  }
};

struct Contents {
  std::uint64_t size = 0;
  std::vector<Change> changes;
  std::uint64_t sum = 0;  ///< of the blocks that were read
  bool operator==(const Contents&) const = default;
};

/// What the delta holds. Its map must make sense, and its data be readable.
Task<Contents> contents_of(Delta* delta) {
  Contents out;
  out.size = delta->size();
  if (out.size > kMaxVolumeSize) broken("a delta addresses no more than a volume may have");
  Bytes block(kBlockSize);
  std::size_t blocks_read = 0;
  for (auto at = delta->next_present(ChunkIndex(0)); at; at = delta->next_present(*at + 1)) {
    const BlockState state = delta->lookup(*at);
    if ((state.data & state.zero) != 0) broken("a block is not both data and zero");
    out.changes.push_back({static_cast<std::uint32_t>(at->value), state.data, state.zero});
    for (unsigned bit = 0; bit < kBlocksPerChunk; ++bit) {
      if (((state.data | state.zero) >> bit & 1) == 0) continue;
      const ByteOffset place = offset_of(*at) + bit * kBlockSize;
      if (place.value >= out.size) broken("a delta holds no block beyond its size");
      if ((state.data >> bit & 1) == 0 || ++blocks_read > kMostBlocksRead) continue;
      auto read = co_await delta->read(place, block);
      if (!read) broken("data of an opened delta is readable: " + read.error().message());
      out.sum = out.sum * 31 + xxh3(block);
    }
  }
  co_return out;
}

/// A write, a trim and a flush: on a sound disk they succeed in whatever delta was opened.
Task<void> change(Delta* delta) {
  Zeros below;
  const Bytes bytes(1000, std::byte{0x77});
  const auto kept = Delta::Durability::kCached;
  const std::uint64_t length = std::min<std::uint64_t>(bytes.size(), delta->size());
  if (length == 0) co_return;
  const ByteOffset last(delta->size() - length);
  auto written =
      co_await delta->write(last, std::span<const std::byte>(bytes).first(length), below, kept);
  if (!written) broken("an opened delta takes a write: " + written.error().message());
  auto trimmed = co_await delta->trim(ByteOffset(0),
                                      std::min<std::uint64_t>(delta->size(), 3 * kBlockSize), kept);
  if (!trimmed) broken("an opened delta takes a trim: " + trimmed.error().message());
  auto flushed = co_await delta->flush();
  if (!flushed) broken("an opened delta takes a flush: " + flushed.error().message());
}

/// Nothing: the delta was refused, `why`.
Task<std::optional<Contents>> visit(SimDisk* disk, Delta::Mode mode, bool use, std::string* why) {
  auto delta = co_await Delta::open(disk->root(), mode);
  if (!delta) {
    *why = delta.error().message();
    co_return std::nullopt;
  }
  Contents out = co_await contents_of(delta->get());
  if (mode == Delta::Mode::kSealed) co_return out;
  if (use) {
    co_await change(delta->get());
    out = co_await contents_of(delta->get());
  }
  auto closed = co_await (*delta)->close();
  if (!closed) broken("an opened delta can be closed: " + closed.error().message());
  co_return out;
}

}  // namespace

Uuid delta_id() {
  static const Uuid id = *Uuid::parse("6f1d2c3b-4a59-4687-9796-a5b4c3d2e1f0");
  return id;
}

ChecksumSecret delta_secret() {
  ChecksumSecret secret;
  for (std::size_t i = 0; i < secret.size(); ++i)
    secret[i] = static_cast<std::byte>(i);
  return secret;
}

void fix_frames(Bytes& file, FrameFixes fixes) {
  bool first = true;
  std::uint64_t number = 0;
  std::uint64_t previous = 0;
  for (std::uint64_t at = kDeltaHeaderBytes; at + kFrameHeadBytes <= file.size();) {
    if (!has_frame(file, at)) {
      at += kFrameAlign;
      continue;
    }
    std::byte* head = file.data() + at;
    const auto kind = static_cast<FrameKind>(load_le<std::uint16_t>(head + 4));
    if (fixes.chain) {
      if (first) {
        number = load_le<std::uint64_t>(head + 8);
        if (kind == FrameKind::kSegment) store_le(head + 40, std::uint64_t{0});
      } else {
        store_le(head + 8, ++number);
        store_le(head + 40, previous);
      }
      if (kind == FrameKind::kChanges) store_le(head + 16, number - 1);
    }
    const std::uint64_t claimed = load_le<std::uint32_t>(head + 36);
    const std::uint64_t room = file.size() - at;
    const bool fits = claimed >= kFrameAlign && claimed % kFrameAlign == 0 && claimed <= room;
    if (fixes.checksums) sum_frame(file, at, fits ? claimed : room);
    previous = load_le<std::uint64_t>(head + kHeadChecksumAt);
    first = false;
    at += fits ? claimed : kFrameAlign;
  }
}

void append_frame(Bytes& file, FrameHead& head, const std::vector<Change>& changes,
                  std::byte fill) {
  const std::uint64_t at = file.size();
  std::uint64_t length = frame_length(changes.size());
  if (head.kind == FrameKind::kBlocks) length += kBlockSize * count_blocks(changes);
  file.resize(at + length);
  // Only the first byte of a block: a packed file stays small.
  for (std::uint64_t block = at + frame_length(changes.size()); block < at + length;
       block += kBlockSize)
    file[block] = fill;
  const Uuid id = delta_id();
  const ChecksumSecret secret = delta_secret();
  encode_frame_into(std::span(file).subspan(at), head, changes, {id, secret, at});
}

void open_delta(const DeltaFiles& files) {
  SimDisk disk;
  SimLoop loop(1);
  const Bytes nothing;
  auto root = disk.root();
  loop.run(put_file(root.get(), "data", &nothing, files.data_size));
  loop.run(put_file(root.get(), "map", &files.map, files.map.size()));
  loop.run(put_file(root.get(), "journal", &files.journal, files.journal_size));
  root.reset();
  std::string why;
  const auto found = loop.run(visit(&disk, files.mode, files.used, &why));
  if (!found || !files.used) return;
  const auto again = loop.run(visit(&disk, files.mode, false, &why));
  // One that begins with the last number of all has used them up.
  if (!again && why.find("number that no delta comes to") != std::string::npos) return;
  if (again != found) broken("a delta that was closed opens again and holds the same");
}

}  // namespace snap::fuzz
