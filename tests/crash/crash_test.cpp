// crash_test: power cuts, enumerated.
//
//   crash_test                     the fixed workloads, and some random ones, always the same
//   crash_test --long SECONDS      random workloads for that long
//   crash_test --list              the fixed workloads
//   crash_test --workload NAME --seed S [--boundary B --keep LIST]
//                                  one workload, or one state of it (as printed with a failure)
//
// Other options: --seeds N (times as many of each workload), --jobs N (threads). Ends with 'N
// passed, M failed'.
#include <malloc.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <map>
#include <mutex>
#include <thread>

#include "tests/crash/explore.h"

using namespace snap::crash;

namespace {

using Clock = std::chrono::steady_clock;

/// Random workloads in a full run, which must reach kWantedStates.
constexpr std::uint64_t kRandomWorkloads = 72;
constexpr std::size_t kWantedStates = 100'000;

struct Options {
  std::uint64_t seeds = 1;
  unsigned jobs = std::max(1u, std::thread::hardware_concurrency());
  double seconds = 0;  ///< of random workloads
  std::string workload;
  std::optional<std::uint64_t> seed, boundary;
  std::string keep = "none";
  bool list = false;
};

unsigned long long n(std::uint64_t value) {
  return value;
}

/// What came of a workload, over all its seeds.
struct Sum {
  std::uint64_t tried = 0, recovered = 0, cut_again = 0, continued = 0, failures = 0, runs = 0;
  double seconds = 0;
  std::unordered_set<std::uint64_t> disks;

  void add(const Report& report) {
    tried += report.tried;
    recovered += report.recovered;
    cut_again += report.cut_again;
    continued += report.continued;
    failures += report.failures;
    ++runs;
  }
};

/// Runs `work(i)` for i from 0 on, in threads, until it says false or `count` is reached.
template <class Work>
void in_threads(unsigned jobs, std::uint64_t count, Work work) {
  std::atomic<std::uint64_t> next{0};
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < jobs; ++t) {
    threads.emplace_back([&next, count, &work] {
      for (std::uint64_t i = next++; i < count; i = next++) {
        if (!work(i)) return;
      }
    });
  }
  for (std::thread& t : threads)
    t.join();
}

int finish(std::uint64_t passed, std::uint64_t failed) {
  std::printf("%llu passed, %llu failed\n", n(passed), n(failed));
  return failed == 0 ? 0 : 1;
}

/// The same seed must give the same run, to the last byte of the disk.
bool runs_the_same(const Workload& workload, std::uint64_t seed) {
  const Trace one = record(workload, seed);
  const Trace two = record(workload, seed);
  return one.final_hash == two.final_hash && one.log.size() == two.log.size();
}

int run_fixed(const Options& options) {
  std::vector<Workload> workloads = fixed_workloads();
  if (!options.workload.empty()) {
    std::erase_if(workloads, [&](const Workload& w) { return w.name != options.workload; });
    if (options.workload == "random")
      workloads.push_back(random_workload(options.seed.value_or(1)));
  }
  if (workloads.empty()) {
    std::printf("no workload %s (see --list)\n", options.workload.c_str());
    return 64;
  }
  struct Job {
    Workload workload;
    std::uint64_t seed;
    std::size_t row;
    bool first;
  };
  std::vector<Job> jobs;
  const std::uint64_t first_seed = options.seed.value_or(1);
  for (std::uint64_t seed = first_seed; seed < first_seed + options.seeds; ++seed) {
    for (std::size_t w = 0; w < workloads.size(); ++w)
      jobs.push_back({workloads[w], seed, w, seed == first_seed});
  }
  if (options.workload.empty()) {
    workloads.emplace_back().name = "random";
    for (std::uint64_t seed = 1; seed <= kRandomWorkloads * options.seeds; ++seed)
      jobs.push_back({random_workload(seed), seed, workloads.size() - 1, seed == 1});
  }
  std::vector<Sum> sums(workloads.size());
  std::unordered_set<std::uint64_t> disks;
  std::mutex lock;
  std::uint64_t same = 0, not_same = 0;
  const auto began = Clock::now();
  in_threads(options.jobs, jobs.size(), [&](std::uint64_t i) {
    const auto& [workload, seed, row, first] = jobs[i];
    const auto start = Clock::now();
    const bool equal = !first || runs_the_same(workload, seed);
    const Trace trace = record(workload, seed);
    const Report report = explore(trace, {});
    std::lock_guard guard(lock);
    if (first) ++(equal ? same : not_same);
    if (!equal) std::printf("%s, seed %llu: two runs differ\n", workload.name.c_str(), n(seed));
    sums[row].add(report);
    sums[row].seconds += std::chrono::duration<double>(Clock::now() - start).count();
    sums[row].disks.insert(report.disks.begin(), report.disks.end());
    disks.insert(report.disks.begin(), report.disks.end());
    for (const std::string& message : report.messages)
      std::printf("FAILED %s\n", message.c_str());
    std::fflush(stdout);
    return true;
  });
  std::printf("%-24s %10s %10s %10s %10s %8s\n", "workload", "states", "distinct", "cut again",
              "went on", "seconds");
  Sum all;
  std::uint64_t failed = 0;
  for (std::size_t w = 0; w < workloads.size(); ++w) {
    const Sum& s = sums[w];
    std::printf("%-24s %10llu %10zu %10llu %10llu %8.1f\n", workloads[w].name.c_str(), n(s.tried),
                s.disks.size(), n(s.cut_again), n(s.continued), s.seconds);
    all.tried += s.tried;
    all.cut_again += s.cut_again;
    all.continued += s.continued;
    failed += s.failures != 0;
  }
  std::printf("%-24s %10llu %10zu %10llu %10llu %8.1f\n", "all", n(all.tried), disks.size(),
              n(all.cut_again), n(all.continued),
              std::chrono::duration<double>(Clock::now() - began).count());
  std::uint64_t passed = workloads.size() - failed + same;
  failed += not_same;
  if (options.workload.empty()) {
    const bool enough = disks.size() >= kWantedStates;
    if (!enough) std::printf("FAILED fewer than %zu distinct crash states\n", kWantedStates);
    ++(enough ? passed : failed);
  }
  return finish(passed, failed);
}

int run_long(const Options& options) {
  const std::uint64_t base = options.seed.value_or(
      static_cast<std::uint64_t>(std::chrono::system_clock::now().time_since_epoch().count()) /
      1000 % 1'000'000'000);
  std::printf("random workloads from seed %llu on: again with --long SECONDS --seed %llu\n",
              n(base), n(base));
  const auto until = Clock::now() + std::chrono::duration<double>(options.seconds);
  Sum sum;
  std::mutex lock;
  std::uint64_t failed = 0;
  in_threads(options.jobs, ~std::uint64_t{0}, [&](std::uint64_t i) {
    if (Clock::now() >= until) return false;
    const Trace trace = record(random_workload(base + i), base + i);
    const Report report = explore(trace, {});
    std::lock_guard guard(lock);
    sum.add(report);
    failed += report.failures != 0;
    for (const std::string& message : report.messages)
      std::printf("FAILED %s\n", message.c_str());
    if (sum.runs % 500 == 0)
      std::printf("%llu workloads, %llu states, %llu recovered\n", n(sum.runs), n(sum.tried),
                  n(sum.recovered));
    std::fflush(stdout);
    return true;
  });
  std::printf("%llu workloads, %llu states, %llu recovered, %llu cut again\n", n(sum.runs),
              n(sum.tried), n(sum.recovered), n(sum.cut_again));
  return finish(sum.runs - failed, failed);
}

bool parse(int argc, char** argv, Options* options) {
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    if (name == "--list" || name == "--without-syncs") {
      options->list = true;
      continue;
    }
    if (i + 1 == argc) return false;
    const char* value = argv[++i];
    if (name == "--long")
      options->seconds = std::stod(value);
    else if (name == "--seeds")
      options->seeds = std::stoull(value);
    else if (name == "--jobs")
      options->jobs = static_cast<unsigned>(std::stoul(value));
    else if (name == "--workload")
      options->workload = value;
    else if (name == "--seed")
      options->seed = std::stoull(value);
    else if (name == "--boundary")
      options->boundary = std::stoull(value);
    else if (name == "--keep")
      options->keep = value;
    else
      return false;
  }
  return true;
}

int run_one_state(const Options& options) {
  const std::uint64_t seed = options.seed.value_or(1);
  for (const Workload& w : fixed_workloads()) {
    if (w.name == options.workload)
      return repeat_state(record(w, seed), *options.boundary, parse_choice(options.keep)) ? 0 : 1;
  }
  return repeat_state(record(random_workload(seed), seed), *options.boundary,
                      parse_choice(options.keep))
             ? 0
             : 1;
}

}  // namespace

int main(int argc, char** argv) {
  // Recoveries come by the hundred thousand: memory given back to the kernel is dear.
  mallopt(M_MMAP_THRESHOLD, 64 << 20);
  mallopt(M_TRIM_THRESHOLD, 512 << 20);
  Options options;
  if (!parse(argc, argv, &options)) {
    std::fprintf(stderr, "usage: see the head of tests/crash/crash_test.cpp\n");
    return 64;
  }
  if (options.list) {
    for (const Workload& w : fixed_workloads())
      std::printf("%s\n", w.name.c_str());
    return 0;
  }
  if (options.boundary) return run_one_state(options);
  if (options.seconds > 0) return run_long(options);
  return run_fixed(options);
}
