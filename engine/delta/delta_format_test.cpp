// The format of map and journal as docs/format.md states it: the example is read from the page
// itself, every byte of small files is damaged, and lengths that lie take no memory.
#include <catch2/catch.hpp>
#include <map>

#include "docs_example.h"
#include "engine/base/codec.h"
#include "engine/delta/delta_example.h"
#include "engine/delta/delta_test_util.h"

using namespace snap;
using namespace snap::delta_test;

namespace {

using Files = std::map<std::string, Bytes>;
/// What a delta holds, by chunk; and whether it could be opened.
struct Contents {
  std::optional<Error> refused;
  std::uint64_t size = 0;
  std::vector<Change> changes;
  Bytes block;  ///< of the example's record that carries one
  bool operator==(const Contents& o) const {
    return !refused && !o.refused && size == o.size && changes == o.changes;
  }
};

Task<void> put_file(Directory* dir, std::string name, const Bytes* bytes, std::uint64_t size) {
  auto file = must(co_await dir->open(name, for_write()));
  must(co_await write_all(*file, *bytes, ByteOffset(0)));
  if (size != 0) must(co_await file->truncate(size));
}

/// What a journal has with the zeros of its areas, which the tests leave away.
std::uint64_t whole_size(const Bytes& journal) {
  const auto header = decode_journal_header(
      std::span(journal).first(std::min(journal.size(), kDeltaHeaderBytes)), "");
  if (!header || journal.size() <= kDeltaHeaderBytes) return journal.size();
  return kDeltaHeaderBytes + 2 * header->area_length;
}

/// A disk with a delta of these files in its root. The data file has its size and no bytes.
std::unique_ptr<SimDisk> disk_with(const Files& files, std::uint64_t data_size) {
  auto disk = std::make_unique<SimDisk>();
  SimLoop loop(1);
  auto root = disk->root();
  const Bytes nothing;
  loop.run(put_file(root.get(), "data", &nothing, data_size));
  for (const auto& [name, bytes] : files)
    loop.run(put_file(root.get(), name, &bytes, name == "journal" ? whole_size(bytes) : 0));
  return disk;
}

Task<void> read_contents(SimDisk* disk, Delta::Mode mode, Contents* out) {
  auto delta = co_await Delta::open(disk->root(), mode);
  if (!delta) {
    out->refused = delta.error();
    co_return;
  }
  out->size = (*delta)->size();
  for (auto at = (*delta)->next_present(ChunkIndex(0)); at; at = (*delta)->next_present(*at + 1)) {
    const BlockState state = (*delta)->lookup(*at);
    out->changes.push_back({static_cast<std::uint32_t>(at->value), state.data, state.zero});
  }
  out->block.resize(kBlockSize);
  if ((*delta)->size() == kExampleSize)
    must(co_await (*delta)->read(offset_of(kExampleChunk) + 2 * kBlockSize, out->block));
}

Contents contents_of(const Files& files, std::uint64_t data_size,
                     Delta::Mode mode = Delta::Mode::kReadWrite) {
  auto disk = disk_with(files, data_size);
  SimLoop loop(1);
  Contents out;
  loop.run(read_contents(disk.get(), mode, &out));
  return out;
}

}  // namespace

TEST_CASE("the example in docs/format.md opens as the page says, and is what this code writes") {
  const Files files{{"map", docs_example(SNAP_FORMAT_MD, "map")},
                    {"journal", docs_example(SNAP_FORMAT_MD, "journal")}};
  CHECK((files.at("map") == example_map()));
  CHECK((files.at("journal") == example_journal()));
  const Contents found = contents_of(files, round_up(kExampleSize, kBlockSize));
  REQUIRE(!found.refused);
  CHECK(found.size == kExampleSize);
  const std::vector<Change> expected{
      {0, 0x0001, 0x0002}, {2, 0x8000, 0x00f0}, {4, 0x0004, 0}, {5, 0x0001, 0}};
  CHECK(found.changes == expected);
  CHECK(found.block == Bytes(kBlockSize, kExampleByte));
}

TEST_CASE("frames decode to what was encoded") {
  SeededRandom random(test_seed("frames"));
  const Uuid id = example_id();
  const ChecksumSecret secret = example_secret();
  for (int i = 0; i < 200; ++i) {
    std::vector<Change> changes;
    std::uint32_t chunk = 0;
    for (std::uint64_t n = random.below(i < 100 ? 4 : 3000); n > 0; --n) {
      chunk += static_cast<std::uint32_t>(1 + random.below(100));
      const auto data = static_cast<BlockMask>(random.next());
      const auto zero = static_cast<BlockMask>(random.next() & ~data);
      if ((data | zero) != 0) changes.push_back({chunk, data, zero});
    }
    FrameHead head;
    head.kind = i % 2 == 0 ? FrameKind::kSegment : FrameKind::kChanges;
    head.flags = i % 4 == 0 ? kFrameSealed : 0;
    head.number = random.below(kMaxFrameNumber + 1);
    head.through = random.below(kMaxFrameNumber + 1);
    head.volume_size = i % 2 == 0 ? std::uint64_t{1} << 40 : 0;
    head.previous = random.next();
    const FrameContext context{id, secret, random.below(1000) * kFrameAlign};
    Bytes bytes;
    if (i % 4 == 3 &&
        frame_length(changes.size()) + kBlockSize * count_blocks(changes) <= kMaxFrameBytes) {
      head.kind = FrameKind::kBlocks;
      bytes =
          random_bytes(random, frame_length(changes.size()) + kBlockSize * count_blocks(changes));
      encode_frame_into(bytes, head, changes, context);
    } else {
      bytes = encode_frame(head, changes, context);
      REQUIRE(bytes.size() == frame_length(changes.size()));
    }
    const auto again = decode_frame_head(bytes, context);
    REQUIRE(again);
    CHECK(again->kind == head.kind);
    CHECK(again->flags == head.flags);
    CHECK(again->number == head.number);
    CHECK(again->through == head.through);
    CHECK(again->volume_size == head.volume_size);
    CHECK(again->previous == head.previous);
    const auto body = decode_frame_body(*again, bytes, context, std::uint64_t{1} << 40);
    REQUIRE(body);
    REQUIRE(body->has_value());
    CHECK(**body == changes);
    // Not at another place, nor for another delta.
    CHECK(!decode_frame_head(bytes, {id, secret, context.offset + kFrameAlign}));
    const Uuid other = test_uuid(5);
    CHECK(!decode_frame_head(bytes, {other, secret, context.offset}));
  }
}

namespace {

constexpr std::uint64_t kSmallSize = 1 << 20;

/// A few writes and trims with flushes between them, and a map of base, segment and guard.
Task<void> make_small_delta(SimDisk* disk, bool close, std::vector<Contents>* steps) {
  PatternSource below;
  Delta::CreateOptions options{test_uuid(1), kSmallSize};
  auto delta = must(co_await Delta::create(disk->root(), options));
  const Bytes block(kBlockSize, std::byte{7});
  const auto durable = Delta::Durability::kDurable;
  must(co_await delta->write(ByteOffset(0), block, below, durable));
  must(co_await delta->trim(ByteOffset(3 * kChunkSize), kChunkSize, durable));
  must(co_await delta->seal());  // a segment
  must(co_await delta->write(ByteOffset(kChunkSize), block, below, durable));
  for (std::uint64_t i = 0; i < 3; ++i) {
    Contents now;
    now.size = kSmallSize;
    for (auto at = delta->next_present(ChunkIndex(0)); at; at = delta->next_present(*at + 1)) {
      const BlockState state = delta->lookup(*at);
      now.changes.push_back({static_cast<std::uint32_t>(at->value), state.data, state.zero});
    }
    steps->push_back(std::move(now));
    if (i == 2) break;
    must(co_await delta->trim(ByteOffset((5 + i) * kChunkSize), kChunkSize, durable));
  }
  if (close) {
    must(co_await delta->close());
  } else {
    delta->stop(Error(ErrorCode::kIo, "the process died"));
    auto drained = co_await delta->close();  // what runs in the background ends; nothing else
    CHECK(!drained);
  }
}

struct Flips {
  std::size_t harmless = 0, refused = 0, step_back = 0, wrong = 0;
};

/// Changes each byte of `name` in turn and opens the delta.
Flips flip_every_byte(const Files& files, const std::string& name,
                      const std::vector<Contents>& steps) {
  Flips count;
  for (std::size_t i = 0; i < files.at(name).size(); ++i) {
    Files damaged = files;
    damaged[name][i] ^= static_cast<std::byte>(1u << i % 8);
    const Contents found = contents_of(damaged, kSmallSize);
    if (found.refused) {
      const ErrorCode code = found.refused->code();
      count.refused += code == ErrorCode::kCorrupt;
      count.wrong += code != ErrorCode::kCorrupt;
    } else if (found == steps.back()) {
      ++count.harmless;
    } else if (steps.size() > 1 && found == steps[steps.size() - 2]) {
      ++count.step_back;
    } else {
      ++count.wrong;
    }
  }
  return count;
}

/// The map and journal of a small delta, as they are on the disk.
Files small_files(bool close, std::vector<Contents>* steps) {
  SimDisk disk;
  SimLoop loop(1);
  loop.run(make_small_delta(&disk, close, steps));
  auto all = disk.visible_files();
  // Of the zeros that the journal's areas were made of, one page is like all the others.
  Bytes& journal = all.at("journal");
  const std::size_t size = journal.size();
  while (!journal.empty() && journal.back() == std::byte{0})
    journal.pop_back();
  journal.resize(std::min(size, round_up(journal.size(), kFrameAlign) + kFrameAlign));
  return {{"map", all.at("map")}, {"journal", std::move(journal)}};
}

}  // namespace

TEST_CASE("every flipped byte of a delta at rest is detected or harmless") {
  std::vector<Contents> steps;
  const Files files = small_files(true, &steps);
  REQUIRE(contents_of(files, kSmallSize) == steps.back());
  CHECK(files.at("journal").size() == kDeltaHeaderBytes);
  const Flips map = flip_every_byte(files, "map", steps);
  CHECK(map.wrong == 0);
  CHECK(map.step_back == 0);
  // Header, base, and the segments before the guard. Only the guard says nothing new.
  CHECK(map.refused == files.at("map").size() - kFrameAlign);
  CHECK(map.harmless == kFrameAlign);
}

TEST_CASE("a map of a delta at rest that is cut off before its guard is refused") {
  std::vector<Contents> steps;
  const Files files = small_files(true, &steps);
  for (std::size_t size = 0; size < files.at("map").size(); size += 512) {
    CAPTURE(size);
    Files cut = files;
    cut.at("map").resize(size);
    const Contents found = contents_of(cut, kSmallSize);
    // The guard says nothing.
    if (size >= files.at("map").size() - kFrameAlign)
      CHECK(found == steps.back());
    else
      CHECK(found.refused);
  }
}

TEST_CASE("after a crash only damage of the last record looks like a torn write") {
  std::vector<Contents> steps;
  const Files files = small_files(false, &steps);
  REQUIRE(contents_of(files, kSmallSize) == steps.back());
  const Flips map = flip_every_byte(files, "map", steps);
  CHECK(map.wrong == 0);
  CHECK(map.step_back == 0);
  CHECK(map.refused + map.harmless == files.at("map").size());
  // The file may end with the last record, or with what an earlier one left behind it.
  const Flips journal = flip_every_byte(files, "journal", steps);
  CHECK(journal.wrong == 0);
  CHECK(journal.step_back == kFrameAlign);
  CHECK(journal.refused + journal.harmless == files.at("journal").size() - kFrameAlign);
}

TEST_CASE("a journal with a record that ends before its areas do was cut short") {
  std::vector<Contents> steps;
  const Files files = small_files(false, &steps);
  auto disk = disk_with(files, kSmallSize);
  SimLoop loop(1);
  auto root = disk->root();
  loop.run(put_file(root.get(), "journal", &files.at("journal"), files.at("journal").size()));
  Contents out;
  loop.run(read_contents(disk.get(), Delta::Mode::kReadWrite, &out));
  REQUIRE(out.refused);
  CHECK(out.refused->message().find("it was cut short") != std::string::npos);
}

TEST_CASE("a frame whose number no delta comes to is refused, for it would wrap around") {
  const Uuid id = example_id();
  const ChecksumSecret secret = example_secret();
  const FrameContext context{id, secret, 4096};
  const auto taken = [&](std::uint64_t number, std::uint64_t through) {
    FrameHead head;
    head.kind = FrameKind::kSegment;
    head.number = number;
    head.through = through;
    const Bytes bytes = encode_frame(head, {}, context);
    return decode_frame_body(*decode_frame_head(bytes, context), bytes, context, 0).has_value();
  };
  CHECK(taken(kMaxFrameNumber, kMaxFrameNumber));
  for (const std::uint64_t beyond : {kMaxFrameNumber + 1, ~std::uint64_t{0}}) {
    CHECK_FALSE(taken(beyond, 0));
    CHECK_FALSE(taken(0, beyond));
  }
}

TEST_CASE("heads and headers that lie about lengths are refused before anything is allocated") {
  const Uuid id = example_id();
  const ChecksumSecret secret = example_secret();
  const FrameContext context{id, secret, 4096};
  FrameHead head;
  head.kind = FrameKind::kSegment;
  Bytes bytes = encode_frame(head, {}, context);
  // A right checksum on a head with another count or length.
  const auto forge = [&](std::size_t at, std::uint32_t value) {
    Bytes forged = bytes;
    store_le(forged.data() + at, value);
    Bytes input(24);
    Encoder e(input);
    e.bytes(std::as_bytes(std::span(id.bytes)));
    e.le(context.offset);
    input.insert(input.end(), forged.begin(), forged.begin() + 56);
    store_le(forged.data() + 56, xxh3_keyed(input, secret));
    return decode_frame_head(forged, context);
  };
  CHECK(forge(32, 0));            // as it was
  CHECK(!forge(32, 0xffffffff));  // changes
  CHECK(!forge(32, 505));         // one more than fits
  CHECK(!forge(36, 0xfffff000));  // bytes
  CHECK(!forge(36, 0));
  CHECK(!forge(36, 4097));
  CHECK(!forge(36, (2u << 20) + 4096));
  Bytes header = encode_journal_header({id, kJournalMax / 2});
  CHECK(decode_journal_header(header, "journal"));
  for (const std::uint64_t area : {std::uint64_t{0}, std::uint64_t{4095}, kJournalMax / 2 + 4096,
                                   ~std::uint64_t{0}, std::uint64_t{1} << 63}) {
    header = encode_journal_header({id, area});
    CHECK(!decode_journal_header(header, "journal"));
  }
  for (const std::uint64_t end : {std::uint64_t{0}, std::uint64_t{4096}, std::uint64_t{8193}}) {
    const Bytes map = encode_map_header({id, secret, end});
    CHECK(!decode_map_header(map, "map", true));
  }
}

TEST_CASE("a feature of a later release is refused with the release that is needed") {
  Bytes bytes = encode_map_header({example_id(), example_secret(), 8192});
  const auto with = [&](std::size_t at, std::uint64_t value) {
    Bytes changed = bytes;
    store_le(changed.data() + at, value);
    std::memcpy(changed.data() + 40, "1.2.3", 5);
    store_le(changed.data() + 4088, xxh3(std::span(changed).first(4088)));
    return changed;
  };
  CHECK(decode_map_header(with(16, 1), "map", true));  // compatible
  CHECK(decode_map_header(with(24, 1), "map", false));
  for (const std::size_t at : {std::size_t{24}, std::size_t{32}}) {
    auto refused = decode_map_header(with(at, 1), "map", true);
    REQUIRE(!refused);
    CHECK(refused.error().code() == ErrorCode::kUnsupported);
    CHECK(refused.error().message().find("1.2.3 or newer") != std::string::npos);
  }
}
