// layer_bench DIR [MIB]   How fast layers are written, opened, verified and read, against SHA-256
// of one core over the same bytes. Writes a file of MIB (1024) in DIR and removes it.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "engine/base/uuid.h"
#include "engine/io/test_rig.h"
#include "engine/layer/layer.h"

using namespace snap;

namespace {

using Clock = std::chrono::steady_clock;
using Bytes = std::vector<std::byte>;

constexpr const char* kName = "layer-bench.tmp";

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

void report(const char* what, std::uint64_t bytes, double seconds) {
  std::printf("%-44s %8.3f s  %8.0f MiB/s\n", what, seconds,
              static_cast<double>(bytes) / seconds / (1 << 20));
}

/// Half random, half repetitive, so that compression has something to do; no chunk twice.
Bytes source_bytes() {
  Bytes bytes(64u << 20);
  SeededRandom random(1);
  for (std::size_t at = 0; at < bytes.size(); at += 64) {
    auto line = std::span(bytes).subspan(at, 64);
    std::memset(line.data(), 'a' + static_cast<int>(at / 64 % 7), 64);
    random.fill(line.first(32));
  }
  return bytes;
}

Task<void> write_one(Directory& dir, const Bytes& source, std::uint64_t total, Encoding encoding,
                     const char* what) {
  OpenFlags flags;
  flags.write = flags.create = flags.truncate = true;
  auto file = must(co_await dir.open(kName, flags));
  LayerWriter::Options options;
  options.virtual_size = total;
  options.encoding = encoding;
  const auto start = Clock::now();
  LayerWriter writer(std::move(file), options);
  Bytes chunk(kChunkSize);
  for (std::uint64_t at = 0; at < total; at += kChunkSize) {
    std::memcpy(chunk.data(), source.data() + at % source.size(), kChunkSize);
    std::memcpy(chunk.data(), &at, sizeof at);
    must(co_await writer.add(chunk_of(ByteOffset(at)), kAllBlocks, 0, chunk));
  }
  const double added = seconds_since(start);
  auto written = must(co_await writer.finish());
  report((std::string(what) + ", until finish()").c_str(), total, added);
  report((std::string(what) + ", synced").c_str(), total, seconds_since(start));
  std::printf("%-44s %8llu MiB\n", "  file",
              static_cast<unsigned long long>(written.info.file_size >> 20));
}

Task<void> read_one(Directory& dir, std::uint64_t total, const char* what) {
  auto start = Clock::now();
  auto file = must(co_await dir.open(kName, OpenFlags{}));
  auto layer = must(co_await Layer::open(std::move(file), std::nullopt));
  std::printf("%-44s %8.3f ms\n", (std::string(what) + ", open").c_str(),
              seconds_since(start) * 1e3);
  for (const char* pass : {", read all, first touch", ", read all again"}) {
    start = Clock::now();
    Bytes out(kChunkSize);
    for (std::size_t i = 0; i < layer->slice_count(); ++i) {
      auto slice = must(co_await layer->read_slice(i));
      for (const ChunkEntry& entry : *slice)
        must(co_await layer->read_blocks(entry, entry.data, out));
    }
    report((std::string(what) + pass).c_str(), total, seconds_since(start));
  }
  start = Clock::now();
  must(co_await layer->verify_all({}));
  report((std::string(what) + ", verify_all").c_str(), total, seconds_since(start));
}

/// What cp does in the end: the same bytes in pieces of 1 MiB, and a sync.
Task<void> plain_write(Directory& dir, const Bytes& source, std::uint64_t total) {
  OpenFlags flags;
  flags.write = flags.create = flags.truncate = true;
  auto file = must(co_await dir.open(kName, flags));
  const auto start = Clock::now();
  constexpr std::size_t kPiece = 1u << 20;
  for (std::uint64_t at = 0; at < total; at += kPiece) {
    auto piece = std::span(source).subspan(at % source.size(), kPiece);
    must(co_await write_all(*file, piece, ByteOffset(at)));
  }
  report("plain write, until sync", total, seconds_since(start));
  auto synced = co_await full_sync(*file);
  if (!synced) test_failed(synced.error());
  report("plain write, synced", total, seconds_since(start));
}

Task<void> bench(std::string path, std::uint64_t total) {
  const Bytes source = source_bytes();
  auto start = Clock::now();
  Sha256Stream stream;
  for (std::uint64_t at = 0; at < total; at += source.size())
    stream.update(source);
  stream.finish();
  report("SHA-256, one core", total, seconds_since(start));
  auto dir = must(co_await open_directory(std::move(path)));
  co_await plain_write(*dir, source, total);
  co_await write_one(*dir, source, total, Encoding::kRaw, "write raw");
  co_await read_one(*dir, total, "raw");
  co_await write_one(*dir, source, total, Encoding::kZstd, "write zstd");
  co_await read_one(*dir, total, "zstd");
  must(co_await dir->unlink(kName));
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: layer_bench DIR [MIB]\n");
    return 64;
  }
  const std::uint64_t mib = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1024;
  auto loop = must(make_event_loop());
  std::printf("%llu MiB in %s on the %s loop\n", static_cast<unsigned long long>(mib), argv[1],
              loop->name());
  loop->run(bench(argv[1], round_up(mib << 20, 64u << 20)));
  return 0;
}
