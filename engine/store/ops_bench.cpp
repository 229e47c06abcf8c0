// Figures of the store's operations, in turns with what they are held against:
//   import of a raw file        against  cp and sync of the same file
//   commit of changed data      against  cp and sync of as many bytes; and its pause
//   a flush under load during a commit  against  before it
//   create and clone of 1 TiB, open of a chain of 64 layers
//
// Usage: ops_bench FOLDER [import MiB (2048)] [commit MiB (1024)] [rounds (5)]
// FOLDER is on the file system to measure and needs room for about six times the import.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <mutex>
#include <thread>

#include "engine/base/uuid.h"
#include "engine/store/program.h"
#include "snap/store.h"
#include "snap/units.h"

namespace snap {
namespace {

using Clock = std::chrono::steady_clock;

template <class T>
T need(Result<T> r) {
  if (r) return std::move(*r);
  std::fprintf(stderr, "ops_bench: %s\n", r.error().message().c_str());
  std::exit(1);
}
void need(const Result<void>& r) {
  if (r) return;
  std::fprintf(stderr, "ops_bench: %s\n", r.error().message().c_str());
  std::exit(1);
}

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

struct Bench {
  std::string folder;
  std::uint64_t import_bytes = 0, commit_bytes = 0;
  int rounds = 0;
  std::unique_ptr<EventLoop> loop = need(make_event_loop({}));
  std::unique_ptr<Store> store;

  template <class T>
  auto run(Task<T> task) {
    return loop->run(std::move(task));
  }
  std::string path(const char* name) const { return folder + "/" + name; }
  void write_file(const char* name, std::uint64_t bytes);
  void make_raw_file();
  void touch_memory(std::uint64_t bytes);
  double copy_and_sync();
  double import_once(int round);
  void measure_import();
  void measure_commit();
  void measure_flush();
  void measure_quick();
  void measure_chain();
};

/// Random bytes, synced.
void Bench::write_file(const char* name, std::uint64_t bytes) {
  const int fd = ::open(path(name).c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  std::vector<std::byte> buffer(1u << 20);
  SeededRandom random(1);
  for (std::uint64_t at = 0; at < bytes; at += buffer.size()) {
    random.fill(buffer);
    if (::write(fd, buffer.data(), buffer.size()) != static_cast<ssize_t>(buffer.size()))
      need(Result<void>(Error::from_errno(errno, "write " + path(name))));
  }
  if (::fsync(fd) != 0) need(Result<void>(Error::from_errno(errno, "sync " + path(name))));
  ::close(fd);
}

void Bench::make_raw_file() {
  write_file("raw", import_bytes);
}

/// Before each measured run: in a virtual machine whose free pages go back to the host, a page
/// cache grows at 1 GB/s, but at 4 GB/s into pages that were freed just now. So both sides find
/// such pages.
void Bench::touch_memory(std::uint64_t bytes) {
  write_file("touched", bytes);
  std::filesystem::remove(path("touched"));
}

/// `cp raw copy; sync copy`, and the copy is removed.
double Bench::copy_and_sync() {
  touch_memory(import_bytes);
  const auto begin = Clock::now();
  const auto ran =
      need(run_program({*find_program("cp"), "--reflink=never", path("raw"), path("copy")}));
  if (ran.exit_code != 0) need(Result<void>(Error(ErrorCode::kIo, ran.errors)));
  need(run_program({*find_program("sync"), path("copy")}));
  const double took = seconds_since(begin);
  std::filesystem::remove(path("copy"));
  return took;
}

double Bench::import_once(int round) {
  touch_memory(import_bytes);
  const auto begin = Clock::now();
  auto scratch = need(run(open_directory(folder)));
  auto source = need(run(make_import_source({.source = path("raw")}, *scratch)));
  Store::ImportOptions options;
  options.name = need(Reference::parse("bench:" + std::to_string(round)));
  need(run(store->import(*source, options, Progress{})));
  const double took = seconds_since(begin);
  need(run(store->remove_image(options.name.str(), true, false)));
  return took;
}

void Bench::measure_import() {
  make_raw_file();
  std::vector<double> ratios;
  for (int i = 0; i < rounds; ++i) {
    const double copy = copy_and_sync();
    const double import = import_once(i);
    ratios.push_back(copy / import);
    std::printf("import %llu MiB: %.2f s, cp+sync %.2f s, speed of cp %.2f\n",
                static_cast<unsigned long long>(import_bytes >> 20), import, copy, copy / import);
  }
  std::printf("import: median of ratios %.2f (wanted: 0.50 or more)\n", median(ratios));
}

/// Writes `bytes` of random data into the volume, in pieces of 1 MiB.
Task<Result<void>> dirty(Volume& volume, std::uint64_t bytes, std::uint64_t seed) {
  std::vector<std::byte> buffer(1u << 20);
  SeededRandom random(seed);
  for (std::uint64_t at = 0; at < bytes; at += buffer.size()) {
    random.fill(buffer);
    auto written = co_await volume.write(ByteOffset(at), buffer, {});
    if (!written) co_return written.error();
  }
  auto flushed = co_await volume.flush();
  co_return flushed;
}

void Bench::measure_commit() {
  import_bytes = commit_bytes;  // of the file that cp copies
  make_raw_file();
  std::vector<double> ratios, pauses;
  for (int i = 0; i < rounds; ++i) {
    const double copy = copy_and_sync();
    Store::CreateOptions create{.name = "bench", .size = std::uint64_t{16} << 30};
    need(run(store->create_volume(create)));
    auto volume = need(run(store->open_volume("bench", Holder{})));
    need(run(dirty(volume->volume(), commit_bytes, static_cast<std::uint64_t>(i))));
    touch_memory(commit_bytes);
    Store::CommitOptions options;
    options.name = need(Reference::parse("commit:" + std::to_string(i)));
    const auto done = need(run(store->commit(*volume, options, Progress{})));
    const double took = static_cast<double>(done.total.count()) / 1e6;
    ratios.push_back(copy / took);
    pauses.push_back(static_cast<double>(done.pause.count()) / 1e3);
    std::printf("commit %llu MiB: %.2f s, pause %.1f ms, cp+sync %.2f s, speed of cp %.2f\n",
                static_cast<unsigned long long>(commit_bytes >> 20), took, pauses.back(), copy,
                copy / took);
    need(run(volume->close()));
    need(run(store->remove_volume("bench", false)));
    need(run(store->remove_image(options.name->str(), true, false)));
  }
  std::printf(
      "commit: median of ratios %.2f (wanted: 0.50 or more), pause median %.1f ms, worst "
      "%.1f ms (wanted: under 50)\n",
      median(ratios), median(pauses), *std::max_element(pauses.begin(), pauses.end()));
}

/// A guest with a journal: a 4 KiB write at random, a flush, and again, on a thread with a loop of
/// its own, as in a server.
class FlushLoad {
 public:
  FlushLoad(Volume& volume, std::uint64_t bytes)
      : volume_(volume), blocks_(bytes / kBlockSize), thread_([this] { run(); }) {}
  ~FlushLoad() {
    stop_ = true;
    thread_.join();
  }
  /// Takes what was measured since it was called last, in ms, sorted.
  std::vector<double> take() {
    std::lock_guard guard(lock_);
    std::sort(flushes_.begin(), flushes_.end());
    return std::exchange(flushes_, {});
  }

 private:
  void run() {
    auto loop = need(make_event_loop({}));
    need(loop->run(write_and_flush()));
  }
  Task<Result<void>> write_and_flush() {
    SeededRandom random(7);
    std::vector<std::byte> block(kBlockSize);
    while (!stop_) {
      random.fill(block);
      auto written =
          co_await volume_.write(ByteOffset(random.below(blocks_) * kBlockSize), block, {});
      if (!written) co_return written.error();
      const auto begin = Clock::now();
      auto flushed = co_await volume_.flush();
      if (!flushed) co_return flushed.error();
      std::lock_guard guard(lock_);
      flushes_.push_back(1e3 * seconds_since(begin));
    }
    co_return Result<void>();
  }

  Volume& volume_;
  const std::uint64_t blocks_;
  std::atomic<bool> stop_{false};
  std::mutex lock_;
  std::vector<double> flushes_;
  std::thread thread_;
};

double quantile(const std::vector<double>& sorted, double q) {
  return sorted.empty()
             ? 0
             : sorted[static_cast<std::size_t>(q * static_cast<double>(sorted.size() - 1))];
}

void print_flushes(const char* when, const std::vector<double>& sorted) {
  std::printf("flush under load, %s: %zu flushes, p50 %.2f ms, p99 %.2f ms, worst %.2f ms\n", when,
              sorted.size(), quantile(sorted, 0.5), quantile(sorted, 0.99), quantile(sorted, 1));
}

void Bench::measure_flush() {
  for (int i = 0; i < rounds; ++i) {
    need(run(store->create_volume({.name = "bench", .size = std::uint64_t{16} << 30})));
    auto volume = need(run(store->open_volume("bench", Holder{})));
    need(run(dirty(volume->volume(), commit_bytes, static_cast<std::uint64_t>(i))));
    touch_memory(commit_bytes);
    Store::CommitOptions options;
    options.name = need(Reference::parse("flush:" + std::to_string(i)));
    {
      FlushLoad load(volume->volume(), commit_bytes);
      std::this_thread::sleep_for(std::chrono::seconds(1));
      static_cast<void>(load.take());  // the first ones are not like the rest
      std::this_thread::sleep_for(std::chrono::seconds(2));
      print_flushes("alone", load.take());
      need(run(store->commit(*volume, options, Progress{})));
      print_flushes("during a commit", load.take());
    }
    need(run(volume->close()));
    need(run(store->remove_volume("bench", false)));
    need(run(store->remove_image(options.name->str(), true, false)));
  }
}

void Bench::measure_quick() {
  std::vector<double> creates, clones;
  for (int i = 0; i < 4 * rounds; ++i) {
    const std::string name = "t" + std::to_string(i);
    auto begin = Clock::now();
    need(run(store->create_volume({.name = name, .size = std::uint64_t{1} << 40})));
    creates.push_back(1e3 * seconds_since(begin));
    auto volume = need(run(store->open_volume(name, Holder{})));
    need(run(dirty(volume->volume(), 8u << 20, 1)));
    begin = Clock::now();
    need(run(store->clone(*volume, name + "-clone")));
    clones.push_back(1e3 * seconds_since(begin));
    need(run(volume->close()));
    need(run(store->remove_volume(name + "-clone", false)));
    need(run(store->remove_volume(name, false)));
  }
  std::printf("create of 1 TiB: median %.1f ms, worst %.1f ms (wanted: under 20)\n",
              median(creates), *std::max_element(creates.begin(), creates.end()));
  std::printf("clone of 1 TiB: median %.1f ms, worst %.1f ms (wanted: under 20)\n", median(clones),
              *std::max_element(clones.begin(), clones.end()));
}

void Bench::measure_chain() {
  need(run(store->create_volume({.name = "chain", .size = std::uint64_t{1} << 30})));
  auto volume = need(run(store->open_volume("chain", Holder{})));
  for (int i = 0; i < 64; ++i) {
    need(run(dirty(volume->volume(), 4u << 20, static_cast<std::uint64_t>(i))));
    need(run(store->commit(*volume, {}, Progress{})));
  }
  need(run(volume->close()));
  std::vector<double> opens;
  for (int i = 0; i < 4 * rounds; ++i) {
    const auto begin = Clock::now();
    volume = need(run(store->open_volume("chain", Holder{})));
    std::vector<std::byte> block(kBlockSize);
    need(run(volume->volume().read(ByteOffset(0), block)));
    opens.push_back(1e3 * seconds_since(begin));
    need(run(volume->close()));
    volume.reset();
  }
  std::printf(
      "open of a chain of 64 layers and a first read: median %.1f ms, worst %.1f ms "
      "(wanted: under 50)\n",
      median(opens), *std::max_element(opens.begin(), opens.end()));
}

int run_bench(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: ops_bench FOLDER [import MiB] [commit MiB] [rounds]\n");
    return 64;
  }
  const auto number = [argc, argv](int i, std::uint64_t otherwise) {
    return argc > i ? std::strtoull(argv[i], nullptr, 10) : otherwise;
  };
  Bench bench;
  bench.folder = argv[1];
  bench.import_bytes = number(2, 2048) << 20;
  bench.commit_bytes = number(3, 1024) << 20;
  bench.rounds = static_cast<int>(std::max<std::uint64_t>(1, number(4, 5)));
  bench.store = need(bench.run(Store::open(bench.path("store"), Store::OpenOptions{})));
  bench.measure_quick();
  bench.measure_import();
  bench.measure_commit();
  bench.measure_flush();
  bench.measure_chain();
  bench.store.reset();
  std::filesystem::remove_all(bench.path("store"));
  std::filesystem::remove(bench.path("raw"));
  return 0;
}

}  // namespace
}  // namespace snap

int main(int argc, char** argv) {
  return snap::run_bench(argc, argv);
}
