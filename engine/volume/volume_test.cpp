// A volume against plain bytes: random requests and random changes of the chain.
#include "snap/volume.h"

#include <catch2/catch.hpp>

#include "engine/io/sim_loop.h"
#include "engine/volume/volume_model.h"

using namespace snap;
using namespace snap::volume_test;

namespace {

/// A volume, its record and its model, and the random hand that drives them.
class Driver {
 public:
  Driver(Directory& root, std::uint64_t seed) : root_(root), random_(seed) {}

  Task<void> run(std::size_t steps);
  /// Reads and writes that took no waiting.
  std::size_t read_at_once() const { return read_at_once_; }
  std::size_t written_at_once() const { return written_at_once_; }

 private:
  Task<void> create();
  Task<void> step();
  Task<void> write();
  Task<void> zero_or_trim();
  Task<void> check_read();
  Task<void> check_extents();
  void check_extent(const Extent& e);
  Task<void> snapshot();
  Task<void> failed_snapshot();
  Task<void> pack_some();
  Task<void> resize();
  Task<void> reopen();

  std::string new_name(const char* kind) { return kind + std::to_string(next_name_++); }
  const std::string& top() const { return record_.deltas.front().delta; }
  std::uint64_t size() const { return model_.content.size(); }
  /// A range within the volume; lengths are mostly small.
  std::pair<std::uint64_t, std::size_t> range();
  /// The name of the source at `depth` of the chain.
  std::string source_at(int depth) const;

  Directory& root_;
  SeededRandom random_;
  std::unique_ptr<Volume> volume_;
  Record record_;
  VolumeModel model_;
  int next_name_ = 0;
  std::size_t read_at_once_ = 0, written_at_once_ = 0;
};

Task<Result<void>> succeed() {
  co_return Result<void>();
}
Task<Result<void>> refuse() {
  co_return Error(ErrorCode::kNoSpace, "the test does not publish");
}
Task<Result<void>> record_size(Record* record, std::uint64_t size) {
  record->size = size;
  record->deltas.front().floor = std::min(record->deltas.front().floor, size);
  co_return Result<void>();
}

std::pair<std::uint64_t, std::size_t> Driver::range() {
  std::uint64_t at = random_.below(size());
  std::uint64_t length = 1 + random_.below(random_.below(6) == 0 ? 400000 : 20000);
  if (random_.below(2) == 0) {
    at = round_down(at, kBlockSize);
    length = round_up(length, kBlockSize);
  }
  return {at, std::min(length, size() - at)};
}

std::string Driver::source_at(int depth) const {
  if (depth < 0) return "";
  const auto i = static_cast<std::size_t>(depth);
  if (i < record_.deltas.size()) return record_.deltas[i].delta;
  return record_.layers[record_.layers.size() - 1 - (i - record_.deltas.size())];
}

/// An image of up to five layers, of different sizes, and an empty delta on top.
Task<void> Driver::create() {
  const std::size_t layers = random_.below(6);
  for (std::size_t i = 0; i < layers; ++i) {
    LayerSpec spec;
    spec.virtual_size = kSectorSize * (1 + random_.below(4096));
    spec.encoding = random_.below(2) == 0 ? Encoding::kRaw : Encoding::kZstd;
    for (std::size_t n = random_.below(150); n != 0; --n) {
      const std::uint64_t block = random_.below(round_up(spec.virtual_size, kBlockSize) / 4096);
      spec.blocks[block] =
          random_.below(4) == 0 ? std::nullopt : std::optional(random_block(random_));
    }
    record_.layers.push_back(new_name("layer"));
    co_await make_layer(root_, record_.layers.back(), spec);
    model_.resize(spec.virtual_size);
    for (const auto& [block, bytes] : spec.blocks) {
      const std::uint64_t at = block * kBlockSize;
      const std::size_t length = std::min<std::uint64_t>(kBlockSize, size() - at);
      model_.write(at, std::span(bytes ? *bytes : Bytes(kBlockSize)).first(length),
                   record_.layers.back());
    }
  }
  if (layers == 0) model_.resize(kSectorSize * (1 + random_.below(4096)));
  record_.size = size();
  record_.deltas.push_back({new_name("delta"), size()});
  auto delta = co_await create_delta(root_, top(), size(), random_);
  must(co_await delta->close());
  volume_ = co_await open_volume(root_, record_);
}

Task<void> Driver::write() {
  const auto [at, length] = range();
  const Bytes bytes = random_bytes(random_, length);
  Volume::WriteOptions options;
  options.fua = random_.below(10) == 0;
  std::optional<Result<void>> now;
  if (!options.fua && random_.below(2) == 0) now = volume_->write_now(ByteOffset(at), bytes);
  if (now) {
    must(*now);
    ++written_at_once_;
  } else {
    must(co_await volume_->write(ByteOffset(at), bytes, options));
  }
  model_.write(at, bytes, top());
}

Task<void> Driver::zero_or_trim() {
  const auto [at, length] = range();
  const std::uint64_t end = at + length;
  if (random_.below(2) == 0) {
    Volume::ZeroOptions options;
    options.no_hole = random_.below(3) == 0;
    options.fua = random_.below(10) == 0;
    options.fast_only = random_.below(4) == 0;
    const bool whole = at % kBlockSize == 0 && (end % kBlockSize == 0 || end == size());
    auto done = co_await volume_->write_zeroes(ByteOffset(at), length, options);
    if (options.fast_only && (options.no_hole || !whole)) {
      REQUIRE_FALSE(done.has_value());
      CHECK(done.error().code() == ErrorCode::kUnsupported);
      co_return;
    }
    must(done);
    model_.write(at, Bytes(length), top());
  } else {
    must(co_await volume_->trim(ByteOffset(at), length, {}));
    const std::uint64_t first = round_up(at, kBlockSize);
    const std::uint64_t last = end == size() ? end : round_down(end, kBlockSize);
    if (first < last) model_.write(first, Bytes(last - first), top());
  }
}

Task<void> Driver::check_read() {
  const auto [at, length] = range();
  Bytes got = random_bytes(random_, length);
  if (random_.below(2) == 0 && volume_->read_now(ByteOffset(at), got)) {
    ++read_at_once_;
  } else {
    must(co_await volume_->read(ByteOffset(at), got));
  }
  const auto differs = first_difference(got, std::span(model_.content).subspan(at, length));
  CAPTURE(at, length, differs.value_or(0));
  CHECK_FALSE(differs);
}

void Driver::check_extent(const Extent& e) {
  CAPTURE(e.offset.value, e.length, e.data, e.allocated, e.depth);
  for (std::uint64_t at = e.offset.value; at < e.offset.value + e.length;
       at = round_down(at, kBlockSize) + kBlockSize) {
    CHECK(source_at(e.depth) == model_.owner[at / kBlockSize]);
    CHECK(e.allocated == !model_.owner[at / kBlockSize].empty());
  }
  const auto bytes = std::span(model_.content).subspan(e.offset.value, e.length);
  if (!e.data) CHECK(is_zero(bytes));
}

Task<void> Driver::check_extents() {
  const auto [at, length] = range();
  const std::size_t max = random_.below(3) == 0 ? 1 + random_.below(4) : 100000;
  const auto extents = must(co_await volume_->extents(ByteOffset(at), length, max));
  REQUIRE_FALSE(extents.empty());
  CHECK(extents.size() <= max);
  std::uint64_t pos = at;
  const Extent* last = nullptr;
  for (const Extent& e : extents) {
    REQUIRE(e.offset.value == pos);
    REQUIRE(e.length > 0);
    check_extent(e);
    if (last != nullptr)
      CHECK((last->data != e.data || last->allocated != e.allocated || last->depth != e.depth));
    last = &e;
    pos += e.length;
  }
  CHECK(pos <= at + length);
  if (extents.size() < max) CHECK(pos == at + length);
}

Task<void> Driver::snapshot() {
  const std::string name = new_name("delta");
  auto fresh = co_await create_delta(root_, name, size(), random_);
  const Volume::Pause pause = must(co_await volume_->push_delta(fresh, succeed));
  CHECK(pause.writes.count() >= 0);
  record_.deltas.insert(record_.deltas.begin(), {name, size()});
}

Task<void> Driver::failed_snapshot() {
  auto fresh = co_await create_delta(root_, new_name("delta"), size(), random_);
  auto pushed = co_await volume_->push_delta(fresh, refuse);
  REQUIRE_FALSE(pushed.has_value());
  CHECK(pushed.error().code() == ErrorCode::kNoSpace);
  CHECK(volume_->parts().sealed.size() + 1 == record_.deltas.size());
  must(co_await fresh->close());
}

/// Commits the sealed deltas from some index on into one layer.
Task<void> Driver::pack_some() {
  PackSource source;
  source.chain = volume_->parts();
  if (source.chain.sealed.empty()) co_return;
  source.first = random_.below(source.chain.sealed.size());
  source.last = source.chain.sealed.size() - 1;
  source.size = source.chain.sealed[source.first].delta->size();
  PackOptions options;
  options.encoding = random_.below(2) == 0 ? Encoding::kRaw : Encoding::kZstd;
  const std::string name = new_name("layer");
  const std::size_t first = source.first;
  co_await pack_to(root_, name, std::move(source), options);
  if (random_.below(4) == 0) {
    auto stack = co_await open_layers(root_, record_.layers);
    auto replaced = co_await volume_->replace_base(first, stack, refuse);
    REQUIRE_FALSE(replaced.has_value());
    co_return;
  }
  record_.layers.push_back(name);
  record_.deltas.resize(first + 1);
  must(co_await volume_->replace_base(first, co_await open_layers(root_, record_.layers), succeed));
  // Who owns a block below may have changed: what equals the block below was dropped.
  const auto extents = must(co_await volume_->extents(ByteOffset(0), size(), 1u << 20));
  for (const Extent& e : extents) {
    const std::uint64_t end = round_up(e.offset.value + e.length, kBlockSize) / kBlockSize;
    for (std::uint64_t b = e.offset.value / kBlockSize; b < end; ++b)
      if (static_cast<std::size_t>(e.depth + 1) > record_.deltas.size() || e.depth < 0)
        model_.owner[b] = source_at(e.depth);
  }
}

Task<void> Driver::resize() {
  const std::uint64_t wanted = random_.below(3) == 0 ? size() + kSectorSize * random_.below(12)
                                                     : kSectorSize * (1 + random_.below(4096));
  if (random_.below(5) == 0) {
    auto resized = co_await volume_->resize(wanted, refuse);
    CHECK_FALSE(resized.has_value());
    CHECK(volume_->size() == size());
    co_return;
  }
  Record* record = &record_;
  must(co_await volume_->resize(wanted, [record, wanted] { return record_size(record, wanted); }));
  model_.resize(wanted);
  CHECK(volume_->size() == wanted);
}

Task<void> Driver::reopen() {
  if (random_.below(2) == 0) must(co_await volume_->flush());
  must(co_await volume_->close());
  volume_.reset();
  volume_ = co_await open_volume(root_, record_);
}

Task<void> Driver::step() {
  switch (random_.below(40)) {
    case 0:
    case 1:
      if (record_.deltas.size() < 4) co_await snapshot();
      break;
    case 2:
      if (record_.deltas.size() < 4) co_await failed_snapshot();
      break;
    case 3:
      co_await pack_some();
      break;
    case 4:
      co_await resize();
      break;
    case 5:
      co_await reopen();
      break;
    case 6:
      must(co_await volume_->flush());
      break;
    case 7:
    case 8:
    case 9:
    case 10:
    case 11:
    case 12:
      co_await zero_or_trim();
      break;
    case 13:
    case 14:
    case 15:
    case 16:
      co_await check_extents();
      break;
    default:
      if (random_.below(2) == 0) {
        co_await write();
      } else {
        co_await check_read();
      }
  }
}

Task<void> Driver::run(std::size_t steps) {
  co_await create();
  for (std::size_t i = 0; i < steps; ++i)
    co_await step();
  Bytes all(size());
  must(co_await volume_->read(ByteOffset(0), all));
  CHECK_FALSE(first_difference(all, model_.content));
  must(co_await volume_->close());
}

void drive(const std::string& kind, std::uint64_t seed) {
  TestRig rig(kind);
  if (kind == "simulated") rig.loop = std::make_unique<SimLoop>(seed);
  Driver driver(*rig.root, seed);
  rig.loop->run(driver.run(400));
  CHECK(driver.read_at_once() > 0);
  CHECK(driver.written_at_once() > 0);
}

}  // namespace

// `volume_test --rng-seed time` tries other seeds; a failure prints the one that it had.
TEST_CASE("a volume reads as plain bytes whatever happens to its chain") {
  const auto* kind = GENERATE("threads", "uring");
  const std::uint64_t seed = GENERATE(take(3, random(1u, 1u << 30)));
  CAPTURE(kind, seed);
  drive(kind, seed);
}

TEST_CASE("a volume reads as plain bytes on a disk that completes in any order") {
  const std::uint64_t seed = GENERATE(take(20, random(1u, 1u << 30)));
  CAPTURE(seed);
  drive("simulated", seed);
}

namespace {

Task<void> bad_requests(Directory& root) {
  SeededRandom random(1);
  Record record;
  record.size = 3 * kChunkSize + 512;
  record.deltas.push_back({"delta", record.size});
  auto delta = co_await create_delta(root, "delta", record.size, random);
  must(co_await delta->close());
  auto volume = co_await open_volume(root, record);
  Bytes bytes(4096);
  auto beyond = co_await volume->read(ByteOffset(record.size - 4095), bytes);
  REQUIRE_FALSE(beyond.has_value());
  CHECK(beyond.error().code() == ErrorCode::kInvalidArgument);
  CHECK_FALSE(volume->read_now(ByteOffset(record.size - 4095), bytes));
  CHECK_FALSE(volume->read_now(ByteOffset(~std::uint64_t{0}), bytes));
  CHECK_FALSE(volume->write_now(ByteOffset(record.size - 4095), bytes));
  CHECK_FALSE(volume->write_now(ByteOffset(~std::uint64_t{0} - 4095), bytes));
  auto wraps = co_await volume->trim(ByteOffset(4096), ~std::uint64_t{0}, {});
  REQUIRE_FALSE(wraps.has_value());
  CHECK(wraps.error().code() == ErrorCode::kInvalidArgument);
  auto far = co_await volume->write(ByteOffset(~std::uint64_t{0}), bytes, {});
  CHECK_FALSE(far.has_value());
  auto odd = co_await volume->resize(1000, succeed);
  CHECK_FALSE(odd.has_value());
  must(co_await volume->write(ByteOffset(record.size), std::span(bytes).first(0), {}));
  must(co_await volume->write(ByteOffset(100), bytes, {}));
  must(co_await volume->read(ByteOffset(100), bytes));
  must(co_await volume->flush());
  const Volume::Stats stats = volume->stats();
  using Kind = Volume::RequestKind;
  CHECK(stats.of(Kind::kRead).requests() == 2);
  CHECK(stats.of(Kind::kRead).errors == 1);
  CHECK(stats.of(Kind::kRead).bytes == 4096);
  CHECK(stats.of(Kind::kWrite).requests() == 3);
  CHECK(stats.of(Kind::kWrite).errors == 1);
  CHECK(stats.of(Kind::kWrite).bytes == 4096);
  CHECK(stats.of(Kind::kTrim).errors == 1);
  CHECK(stats.of(Kind::kFlush).requests() == 1);
  CHECK(stats.of(Kind::kZero).requests() == 0);
  CHECK(stats.in_flight == 0);
  must(co_await volume->prefetch(ByteOffset(0), record.size));
  must(co_await volume->close());
}

/// A volume of an image alone.
Task<void> read_only(Directory& root) {
  SeededRandom random(2);
  LayerSpec lower;
  lower.virtual_size = 2 * kChunkSize;
  lower.blocks[0] = random_block(random);
  lower.blocks[1] = random_block(random);
  LayerSpec upper = lower;
  upper.blocks.erase(0);
  upper.blocks[1] = std::nullopt;
  co_await make_layer(root, "lower", lower);
  co_await make_layer(root, "upper", upper);
  Record record;
  record.size = 3 * kChunkSize;
  record.layers = {"lower", "upper"};
  auto volume = co_await open_volume(root, record);
  CHECK(volume->read_only());
  Bytes bytes(kBlockSize);
  must(co_await volume->flush());
  must(co_await volume->close());
  auto written = co_await volume->write(ByteOffset(0), bytes, {});
  REQUIRE_FALSE(written.has_value());
  CHECK(written.error().code() == ErrorCode::kReadOnly);
  CHECK_FALSE(volume->write_now(ByteOffset(0), bytes));
  auto trimmed = co_await volume->trim(ByteOffset(0), kBlockSize, {});
  CHECK_FALSE(trimmed.has_value());
  auto zeroed = co_await volume->write_zeroes(ByteOffset(0), kBlockSize, {});
  CHECK_FALSE(zeroed.has_value());
  const auto extents = must(co_await volume->extents(ByteOffset(0), record.size, 10));
  REQUIRE(extents.size() == 3);
  CHECK((extents[0].data && extents[0].depth == 1 && extents[0].length == kBlockSize));
  CHECK((!extents[1].data && extents[1].allocated && extents[1].depth == 0));
  CHECK((!extents[2].allocated && extents[2].depth == -1));
  CHECK(extents[2].length == record.size - 2 * kBlockSize);
}

}  // namespace

TEST_CASE("requests that make no sense are refused and counted") {
  TestRig rig("threads");
  rig.loop->run(bad_requests(*rig.root));
}

TEST_CASE("a volume without a delta is read-only and tells its extents") {
  TestRig rig("uring");
  rig.loop->run(read_only(*rig.root));
}
