// Changes of the chain while requests run, and changes that fail.
#include "engine/volume/volume_model.h"

#include <catch2/catch.hpp>
#include <thread>

#include "engine/io/sync.h"

using namespace snap;
using namespace snap::volume_test;

namespace {

constexpr std::uint64_t kSize = 8u << 20;
constexpr std::size_t kWorkers = 6;  ///< a loop

Task<Result<void>> succeed() {
  co_return Result<void>();
}
Task<Result<void>> refuse() {
  co_return Error(ErrorCode::kNoSpace, "the test does not publish");
}

/// A volume of one layer full of blocks, and a delta.
Task<std::unique_ptr<Volume>> make_volume(Directory& root, Record& record, Bytes& content) {
  SeededRandom random(99);
  LayerSpec spec;
  spec.virtual_size = kSize;
  content = random_bytes(random, kSize);
  for (std::uint64_t b = 0; b < kSize / kBlockSize; ++b)
    spec.blocks[b] = Bytes(content.begin() + static_cast<std::ptrdiff_t>(b * kBlockSize),
                           content.begin() + static_cast<std::ptrdiff_t>((b + 1) * kBlockSize));
  co_await make_layer(root, "layer", spec);
  record.size = kSize;
  record.layers = {"layer"};
  record.deltas.push_back({"delta", kSize});
  auto delta = co_await create_delta(root, "delta", kSize, random);
  must(co_await delta->close());
  co_return co_await open_volume(root, record);
}

/// Writes and reads the 512-byte sectors that are its own: every `of`-th. So neighbours in each
/// block belong to others, and a lost update of a read-modify-write shows.
struct Worker {
  Volume* volume = nullptr;
  const std::atomic<bool>* stop = nullptr;
  std::size_t number = 0;
  std::size_t of = 1;
  Bytes* content = nullptr;  ///< each worker touches its own sectors alone
  std::atomic<std::uint64_t>* done = nullptr;
};

Task<void> work(Worker w) {
  SeededRandom random(1000 + w.number);
  const std::uint64_t sectors = kSize / kSectorSize / w.of;
  while (!w.stop->load()) {
    const std::uint64_t at = (random.below(sectors) * w.of + w.number) * kSectorSize;
    const auto mine = std::span(*w.content).subspan(at, kSectorSize);
    if (random.below(2) == 0) {
      Bytes bytes = random_bytes(random, kSectorSize);
      must(co_await w.volume->write(ByteOffset(at), bytes, {}));
      std::ranges::copy(bytes, mine.begin());
    } else if (random.below(8) == 0) {
      must(co_await w.volume->write_zeroes(ByteOffset(at), kSectorSize, {}));
      std::ranges::fill(mine, std::byte{0});
    } else if (random.below(50) == 0) {
      must(co_await w.volume->flush());
    } else {
      Bytes got(kSectorSize);
      must(co_await w.volume->read(ByteOffset(at), got));
      if (first_difference(got, mine))
        test_failed(Error(ErrorCode::kCorrupt, "sector at " + std::to_string(at) + " is wrong"));
    }
    w.done->fetch_add(1);
  }
}

Task<void> work_all(Worker first) {
  for (std::size_t i = 1; i < kWorkers; ++i) {
    Worker w = first;
    w.number += i;
    EventLoop::current()->spawn(work(w));
  }
  co_await work(first);
}

/// Waits until the workers have got on by `more` requests.
Task<void> let_work(const std::atomic<std::uint64_t>& done, std::uint64_t more) {
  const std::uint64_t until = done.load() + more;
  while (done.load() < until) {
    Sleep pause(std::chrono::milliseconds(1));
    co_await pause;
  }
}

Task<void> commit(Directory& root, Volume& volume, Record& record, std::string name) {
  PackSource source;
  source.chain = volume.parts();
  source.last = source.chain.sealed.size() - 1;
  source.size = kSize;
  co_await pack_to(root, name, std::move(source), {});
  record.layers.push_back(name);
  record.deltas.resize(1);
  auto layers = co_await open_layers(root, record.layers);
  must(co_await volume.replace_base(0, layers, succeed));
}

Task<void> swap_repeatedly(Directory& root, Volume& volume, Record& record,
                           const std::atomic<std::uint64_t>& done, std::atomic<bool>& stop) {
  SeededRandom random(7);
  for (int i = 0; i < 8; ++i) {
    co_await let_work(done, 150);
    const std::string name = "delta" + std::to_string(i);
    auto fresh = co_await create_delta(root, name, kSize, random);
    if (i % 4 == 3) {
      auto pushed = co_await volume.push_delta(fresh, refuse);
      CHECK_FALSE(pushed.has_value());
      must(co_await fresh->close());
    } else {
      must(co_await volume.push_delta(fresh, succeed));
      record.deltas.insert(record.deltas.begin(), {name, kSize});
    }
    if (i % 3 == 2) {
      co_await let_work(done, 100);
      co_await commit(root, volume, record, "packed" + std::to_string(i));
    }
  }
  co_await let_work(done, 150);
  stop.store(true);
}

Task<void> swap_and_work(Directory& root, Volume& volume, Record& record, Worker first,
                         std::atomic<bool>& stop) {
  EventLoop::current()->spawn(work_all(first));
  co_await swap_repeatedly(root, volume, record, *first.done, stop);
}

Task<void> check_all(Volume& volume, const Bytes& content) {
  Bytes all(kSize);
  must(co_await volume.read(ByteOffset(0), all));
  CHECK_FALSE(first_difference(all, content));
}

Task<void> check_reopened(Directory& root, std::unique_ptr<Volume>& volume, const Record& record,
                          const Bytes& content) {
  co_await check_all(*volume, content);
  must(co_await volume->close());
  volume = co_await open_volume(root, record);
  co_await check_all(*volume, content);
  must(co_await volume->close());
}

}  // namespace

// Two loops on two threads write and read sectors that are mixed inside of blocks, while the chain
// is swapped, packed, and swaps fail.
TEST_CASE("chains are swapped and packed under load and no write is lost") {
  const auto* kind = GENERATE("threads", "uring");
  CAPTURE(kind);
  TestRig rig(kind);
  TestRig other(kind);
  Record record;
  Bytes content;
  auto volume = rig.loop->run(make_volume(*rig.root, record, content));
  std::atomic<bool> stop{false};
  std::atomic<std::uint64_t> done{0};
  Worker first{volume.get(), &stop, 0, 2 * kWorkers, &content, &done};
  Worker second = first;
  second.number = kWorkers;
  std::thread thread([&] { other.loop->run(work_all(second)); });
  rig.loop->run(swap_and_work(*rig.root, *volume, record, first, stop));
  thread.join();
  CHECK(done.load() > 1000);
  rig.loop->run(check_reopened(*rig.root, volume, record, content));
}

namespace {

/// A publish that waits for the test.
Task<Result<void>> publish_when(AsyncEvent* begun, AsyncEvent* go) {
  begun->set();
  co_await go->wait();
  co_return Result<void>();
}

struct Write {
  bool answered = false;
};
Task<void> write_one(Volume& volume, Write& write) {
  const Bytes bytes(kBlockSize, std::byte{1});
  must(co_await volume.write(ByteOffset(0), bytes, {}));
  write.answered = true;
}
Task<void> push_into(Volume& volume, std::shared_ptr<Delta> fresh, AsyncEvent* begun,
                     AsyncEvent* go, AsyncEvent* pushed) {
  auto result = co_await volume.push_delta(fresh, [begun, go] { return publish_when(begun, go); });
  must(result);
  pushed->set();
}

Task<void> pause(Directory& root) {
  SeededRandom random(3);
  Record record;
  Bytes content;
  auto volume = co_await make_volume(root, record, content);
  auto fresh = co_await create_delta(root, "fresh", kSize, random);
  AsyncEvent begun;
  AsyncEvent go;
  AsyncEvent pushed;
  EventLoop::current()->spawn(push_into(*volume, fresh, &begun, &go, &pushed));
  co_await begun.wait();
  Write write;
  EventLoop::current()->spawn(write_one(*volume, write));
  Bytes got(kBlockSize);
  for (int i = 0; i < 20; ++i)  // reads go on; the write does not get through
    must(co_await volume->read(ByteOffset(0), got));
  CHECK_FALSE(write.answered);
  auto second = co_await volume->resize(kSize, succeed);
  REQUIRE_FALSE(second.has_value());
  CHECK(second.error().code() == ErrorCode::kBusy);
  auto third = co_await volume->replace_base(0, volume->parts().layers, succeed);
  CHECK_FALSE(third.has_value());
  go.set();
  co_await pushed.wait();
  while (!write.answered)
    co_await yield_now();
  // The write is in the fresh delta, not in the sealed one.
  CHECK(fresh->lookup(ChunkIndex(0)).data == 1);
  CHECK(volume->parts().sealed.at(0).delta->lookup(ChunkIndex(0)).data == 0);
  must(co_await volume->close());
}

Task<void> refused_pushes(Directory& root) {
  SeededRandom random(4);
  Record record;
  Bytes content;
  auto volume = co_await make_volume(root, record, content);
  auto small = co_await create_delta(root, "small", kSize - 512, random);
  auto pushed = co_await volume->push_delta(small, succeed);
  REQUIRE_FALSE(pushed.has_value());
  CHECK(pushed.error().code() == ErrorCode::kInvalidArgument);
  for (std::size_t i = 0; i < kMaxSealedDeltas; ++i) {
    auto fresh = co_await create_delta(root, "fresh" + std::to_string(i), kSize, random);
    const Bytes bytes(kBlockSize, static_cast<std::byte>(i));
    must(co_await volume->write(ByteOffset(i * 2048), bytes, {}));
    std::ranges::copy(bytes, content.begin() + static_cast<std::ptrdiff_t>(i * 2048));
    must(co_await volume->push_delta(fresh, succeed));
  }
  auto ninth = co_await create_delta(root, "ninth", kSize, random);
  pushed = co_await volume->push_delta(ninth, succeed);
  REQUIRE_FALSE(pushed.has_value());
  CHECK(pushed.error().code() == ErrorCode::kTooLarge);
  co_await check_all(*volume, content);
  must(co_await small->close());
  must(co_await ninth->close());
  must(co_await volume->close());
}

/// What is written before a failed publish, and after it, is there after a restart.
Task<void> failed_publish(Directory& root) {
  SeededRandom random(5);
  Record record;
  Bytes content;
  auto volume = co_await make_volume(root, record, content);
  for (std::size_t i = 0; i < 4; ++i) {
    const std::size_t at = 3000 + i * 100000;
    const Bytes bytes = random_bytes(random, 5000);
    must(co_await volume->write(ByteOffset(at), bytes, {}));
    std::ranges::copy(bytes, content.begin() + static_cast<std::ptrdiff_t>(at));
    auto fresh = co_await create_delta(root, "fresh" + std::to_string(i), kSize, random);
    auto pushed = co_await volume->push_delta(fresh, refuse);
    REQUIRE_FALSE(pushed.has_value());
    CHECK(pushed.error().message().find("the test does not publish") != std::string::npos);
    CHECK(fresh->stats().data_blocks == 0);
    must(co_await fresh->close());
  }
  co_await check_reopened(root, volume, record, content);
}

}  // namespace

TEST_CASE("writes wait for a snapshot, reads do not, and a second change is Busy") {
  const auto* kind = GENERATE("threads", "uring", "simulated");
  TestRig rig(kind);
  rig.loop->run(pause(*rig.root));
}

TEST_CASE("a snapshot is refused when the delta is too small or the chain too long") {
  TestRig rig("threads");
  rig.loop->run(refused_pushes(*rig.root));
}

TEST_CASE("after a publish that failed the old delta goes on") {
  TestRig rig("uring");
  rig.loop->run(failed_publish(*rig.root));
}

namespace {

constexpr std::byte kWritten{0x11};

/// Reads the second half of a volume again and again, until it is gone. Counts what is wrong.
Task<void> read_until_gone(Volume* volume, std::atomic<bool>* begun, std::atomic<int>* wrong) {
  Bytes out(kSize / 2);
  while (true) {
    begun->store(true);
    auto read = co_await volume->read(ByteOffset(kSize / 2), out);
    if (!read && read.error().code() == ErrorCode::kInvalidArgument) co_return;  // beyond the end
    if (!read || std::ranges::any_of(out, [](std::byte b) { return b != kWritten; })) {
      wrong->fetch_add(1);
      co_return;
    }
  }
}

}  // namespace

TEST_CASE("a shrink takes nothing away beneath a reader, on whatever thread") {
  TestRig rig("threads");
  TestRig other("threads");
  Record record;
  Bytes content;
  auto volume = rig.loop->run(make_volume(*rig.root, record, content));
  const Bytes half(kSize / 2, kWritten);
  std::atomic<int> wrong{0};
  for (int round = 0; round < 20 && wrong == 0; ++round) {
    must(rig.loop->run(volume->write(ByteOffset(kSize / 2), half, {})));
    std::atomic<bool> begun{false};
    std::thread reader([&] { other.loop->run(read_until_gone(volume.get(), &begun, &wrong)); });
    while (!begun)
      std::this_thread::yield();
    must(rig.loop->run(volume->resize(kSize / 2, succeed)));
    reader.join();
    must(rig.loop->run(volume->resize(kSize, succeed)));
  }
  CHECK(wrong == 0);
  must(rig.loop->run(volume->close()));
}

namespace {

/// What its writes were answered with: the last value of each of its blocks that was taken.
struct Writer {
  std::size_t first = 0;  ///< block
  std::vector<std::uint8_t> taken = std::vector<std::uint8_t>(8);
  bool ended = false;
};

Task<void> write_until_refused(Volume* volume, Writer* writer) {
  for (std::uint8_t value = 1;; ++value) {
    for (std::size_t i = 0; i < writer->taken.size(); ++i) {
      const Bytes block(kBlockSize, std::byte{value});
      const ByteOffset at((writer->first + i) * kBlockSize);
      auto written = co_await volume->write(at, block, {});
      if (!written) {
        CHECK(written.error().code() == ErrorCode::kReadOnly);
        writer->ended = true;
        co_return;
      }
      writer->taken[i] = value;
    }
  }
}

Task<void> close_beside_writes(Directory& root, std::size_t turns) {
  Record record;
  Bytes content;
  auto volume = co_await make_volume(root, record, content);
  std::vector<Writer> writers(4);
  for (std::size_t i = 0; i < writers.size(); ++i) {
    writers[i].first = 16 * i;
    EventLoop::current()->spawn(write_until_refused(volume.get(), &writers[i]));
  }
  for (std::size_t i = 0; i < turns; ++i)
    co_await yield_now();
  must(co_await volume->close());
  for (const Writer& writer : writers)
    while (!writer.ended)
      co_await yield_now();
  volume = co_await open_volume(root, record);
  for (const Writer& writer : writers) {
    for (std::size_t i = 0; i < writer.taken.size(); ++i) {
      if (writer.taken[i] == 0) continue;
      Bytes block(kBlockSize);
      must(co_await volume->read(ByteOffset((writer.first + i) * kBlockSize), block));
      CHECK(std::to_integer<int>(block[0]) == writer.taken[i]);
    }
  }
  must(co_await volume->close());
}

}  // namespace

TEST_CASE("a write that is answered while a volume is closed is there when it is opened again") {
  const std::size_t turns = GENERATE(1, 20, 100, 300);
  CAPTURE(turns);
  TestRig rig("simulated");
  rig.loop->run(close_beside_writes(*rig.root, turns));
}
