// Shows that a read costs the same through 1, 64 and 1,000 layers, and what an open and a first
// touch cost. Prints figures; asserts nothing about time.
//
//   chain_bench [directory]     the directory takes about 400 MiB and is left as it was
//
// Method: three volumes of 64 MiB whose blocks are spread over 1, 64 and 1,000 raw layers; all
// of it is read once, so that pages are cached, leaves filled and chunks verified. Then rounds of
// random 4 KiB reads, 32 in flight on one loop, the volumes in turns; the figures are medians over
// the rounds, the ratios medians of the ratios within a round. "Bare" reads the same places of the
// same files without a volume, from a table made in advance: what the files themselves cost.
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <string>
#include <vector>

#include "engine/base/uuid.h"
#include "engine/io/sync.h"
#include "engine/layer/layer.h"
#include "engine/volume/layer_stack.h"
#include "snap/event_loop.h"
#include "snap/file.h"
#include "snap/volume.h"

using namespace snap;

namespace {

using Clock = std::chrono::steady_clock;

constexpr std::uint64_t kSize = 64u << 20;
constexpr std::uint64_t kBlocks = kSize / kBlockSize;
constexpr int kDepth = 32;
constexpr int kRounds = 9;
constexpr int kReads = 100000;  ///< a round and volume

[[noreturn]] void fail(const Error& error) {
  std::fprintf(stderr, "chain_bench: %s\n", error.message().c_str());
  std::exit(1);
}
template <class T>
T must(Result<T> r) {
  if (!r) fail(r.error());
  return std::move(*r);
}
void must(const Result<void>& r) {
  if (!r) fail(r.error());
}
double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}
double median(std::vector<double> v) {
  std::ranges::sort(v);
  return v[v.size() / 2];
}

/// Where a block is.
struct Place {
  std::shared_ptr<Layer> layer;
  ByteOffset offset;
};

struct Case {
  std::size_t layers = 0;
  std::vector<std::string> names;
  std::unique_ptr<Volume> volume;
  std::vector<Place> places;        ///< of all blocks
  std::vector<double> nanoseconds;  ///< a read, by round
  std::vector<double> bare;         ///< the same without the volume
};

/// The bottom layer holds everything; layer i > 0 every block whose hash falls to it.
Task<void> write_layer(Directory& dir, std::string name, std::size_t layer, std::size_t of) {
  OpenFlags flags;
  flags.write = flags.create = true;
  auto out = must(co_await dir.open(name, flags));
  LayerWriter::Options options;
  options.virtual_size = kSize;
  LayerWriter writer(std::move(out), options);
  SeededRandom random(layer + 1);
  std::vector<std::byte> bytes(kChunkSize);
  for (std::uint64_t chunk = 0; chunk < kSize / kChunkSize; ++chunk) {
    BlockMask data = 0;
    for (unsigned b = 0; b < kBlocksPerChunk; ++b) {
      const std::uint64_t hash = (chunk * kBlocksPerChunk + b) * 0x9e3779b97f4a7c15u >> 20;
      if (layer == 0 || hash % of == layer) data = static_cast<BlockMask>(data | 1u << b);
    }
    if (data == 0) continue;
    const auto stored =
        std::span(bytes).first(kBlockSize * static_cast<unsigned>(__builtin_popcount(data)));
    random.fill(stored);
    must(co_await writer.add(ChunkIndex(chunk), data, 0, stored));
  }
  must(co_await writer.finish());
}

Task<void> make_case(Directory& dir, Case& c) {
  for (std::size_t i = 0; i < c.layers; ++i) {
    c.names.push_back(std::to_string(c.layers) + "-" + std::to_string(i));
    co_await write_layer(dir, c.names.back(), i, c.layers);
  }
}

Task<std::shared_ptr<LayerStack>> open_stack(Directory& dir, const Case& c) {
  std::vector<std::shared_ptr<Layer>> layers;
  for (const std::string& name : c.names) {
    auto file = must(co_await dir.open(name, OpenFlags{}));
    layers.push_back(must(co_await Layer::open(std::move(file), std::nullopt)));
  }
  co_return LayerStack::make(std::move(layers));
}

Task<void> open_case(Directory& dir, Case& c) {
  Volume::Parts parts;
  parts.size = kSize;
  parts.layers = co_await open_stack(dir, c);
  c.volume = std::make_unique<Volume>(std::move(parts));
}

Task<void> read_random(Volume& volume, std::uint64_t seed, int reads, WaitGroup& group) {
  SeededRandom random(seed);
  std::vector<std::byte> buffer(kBlockSize);
  for (int i = 0; i < reads; ++i) {
    const ByteOffset at(random.below(kBlocks) * kBlockSize);
    if (volume.read_now(at, buffer)) continue;  // as a connection does
    must(co_await volume.read(at, buffer));
  }
  group.done();
}

Task<void> read_bare(const std::vector<Place>& places, std::uint64_t seed, int reads,
                     WaitGroup& group) {
  SeededRandom random(seed);
  std::vector<std::byte> buffer(kBlockSize);
  for (int i = 0; i < reads; ++i) {
    const Place& place = places[random.below(kBlocks)];
    FileOp op = place.layer->read_raw(buffer, place.offset);
    auto got = must(co_await op);
    if (got != kBlockSize) fail(Error(ErrorCode::kIo, "short read of " + place.layer->path()));
  }
  group.done();
}

/// Nanoseconds a read.
Task<double> round_of(Case& c, bool bare, std::uint64_t round) {
  WaitGroup group;
  group.add(kDepth);
  const auto begin = Clock::now();
  for (std::uint64_t i = 0; i < kDepth; ++i) {
    const std::uint64_t seed = round * kDepth + i;
    EventLoop::current()->spawn(bare ? read_bare(c.places, seed, kReads / kDepth, group)
                                     : read_random(*c.volume, seed, kReads / kDepth, group));
  }
  co_await group.wait();
  co_return seconds_since(begin) * 1e9 / kReads;
}

Task<void> find_places(Case& c) {
  LayerStack& stack = *c.volume->parts().layers;
  for (ChunkIndex chunk(0); chunk.value < kSize / kChunkSize; ++chunk) {
    const auto owners = must(co_await stack.owners(chunk));
    for (unsigned b = 0; b < kBlocksPerChunk; ++b) {
      const auto& layer = stack.layers()[static_cast<std::size_t>(owners[b])];
      const auto entry = must(co_await layer->find(chunk));
      const auto before = static_cast<unsigned>(entry->data & ((1u << b) - 1u));
      const auto rank = static_cast<unsigned>(__builtin_popcount(before));
      c.places.push_back({layer, ByteOffset(entry->offset + rank * kBlockSize)});
    }
  }
}

Task<void> measure_reads(std::vector<Case>& cases) {
  for (Case& c : cases) {
    must(co_await c.volume->prefetch(ByteOffset(0), kSize));
    co_await find_places(c);
  }
  for (std::uint64_t round = 0; round < kRounds; ++round) {
    for (Case& c : cases) {
      c.nanoseconds.push_back(co_await round_of(c, false, round));
      c.bare.push_back(co_await round_of(c, true, round));
    }
  }
  for (const Case& c : cases) {
    std::vector<double> of_one;
    std::vector<double> bare_of_one;
    std::vector<double> of_bare;
    for (std::size_t r = 0; r < kRounds; ++r) {
      of_one.push_back(cases[0].nanoseconds[r] / c.nanoseconds[r]);
      bare_of_one.push_back(cases[0].bare[r] / c.bare[r]);
      of_bare.push_back(c.bare[r] / c.nanoseconds[r]);
    }
    std::printf(
        "4 KiB random read, depth %d, %4zu layers: %8.0f IOPS, %.2f of 1 layer "
        "(bare files: %8.0f IOPS, %.2f of 1 file); %.2f of bare\n",
        kDepth, c.layers, 1e9 / median(c.nanoseconds), median(of_one), 1e9 / median(c.bare),
        median(bare_of_one), median(of_bare));
  }
}

Task<void> measure_open(Directory& dir, const Case& c) {
  std::vector<double> times;
  for (int i = 0; i < kRounds; ++i) {
    const auto begin = Clock::now();
    auto stack = co_await open_stack(dir, c);
    times.push_back(seconds_since(begin) * 1e3);
  }
  std::printf("open of a chain of %zu layers: %.2f ms\n", c.layers, median(times));
}

/// A read of a block of a leaf that is not filled. The layers are opened anew for each, so no slice
/// is cached; the files are.
Task<void> measure_first_touch(Directory& dir, const Case& c) {
  std::vector<double> times;
  std::vector<std::byte> buffer(kBlockSize);
  for (int i = 0; i < kRounds; ++i) {
    auto stack = co_await open_stack(dir, c);
    const auto begin = Clock::now();
    must(co_await stack->read(ByteOffset(0), buffer));
    times.push_back(seconds_since(begin) * 1e3);
  }
  std::printf("first touch of 32 MiB through %zu layers: %.2f ms\n", c.layers, median(times));
}

Task<void> run(std::string path) {
  auto dir = must(co_await open_directory(path, true));
  std::vector<Case> cases(3);
  cases[0].layers = 1;
  cases[1].layers = 64;
  cases[2].layers = 1000;
  for (Case& c : cases) {
    co_await make_case(*dir, c);
    co_await open_case(*dir, c);
  }
  co_await measure_reads(cases);
  co_await measure_open(*dir, cases[1]);
  co_await measure_first_touch(*dir, cases[2]);
  cases.clear();
}

}  // namespace

int main(int argc, char** argv) {
  const std::filesystem::path base = argc > 1 ? argv[1] : std::filesystem::temp_directory_path();
  const std::filesystem::path path = base / "snap-chain-bench";
  auto loop = must(make_event_loop());
  std::printf("loop: %s\n", loop->name());
  loop->run(run(path.string()));
  std::error_code error;
  std::filesystem::remove_all(path, error);
  if (error) {
    std::fprintf(stderr, "chain_bench: remove %s: %s\n", path.c_str(), error.message().c_str());
    return 1;
  }
}
