#include "tests/crash/explore.h"

#include <algorithm>
#include <cstdio>
#include <random>
#include <sstream>

#include "engine/base/checksum.h"

namespace snap::crash {

namespace {

constexpr std::size_t kAllSubsetsUpTo = 10;
constexpr int kSeededSubsets = 64;
constexpr std::uint64_t kContinueEach = 4;
constexpr std::uint64_t kTidyEach = 8;
constexpr std::uint64_t kStoreCutEach = 3;

class ChoiceChooser final : public CrashChooser {
 public:
  explicit ChoiceChooser(const Choice& choice) : choice_(choice) {}
  void about(std::uint64_t id) override {
    auto found = choice_.find(id);
    keep_ = found == choice_.end() ? nullptr : &found->second;
  }
  Fate fate() override {
    if (keep_ == nullptr) return Fate::kLost;
    return keep_->torn ? Fate::kTorn : Fate::kKept;
  }
  bool keep_sector(std::uint64_t index, std::uint64_t) override {
    return keep_->last_part ? index >= keep_->bound : index < keep_->bound;
  }
  bool keep_name() override { return keep_ != nullptr; }

 private:
  const Choice& choice_;
  const Keep* keep_ = nullptr;
};

/// Calls `with` for each choice; some come twice.
template <class With>
void each_choice(const std::vector<SimPending>& pending, std::uint64_t seed, With with) {
  const std::size_t n = pending.size();
  const auto subset = [&pending, n](auto keeps) {
    Choice choice;
    for (std::size_t i = 0; i < n; ++i) {
      if (keeps(i)) choice[pending[i].id] = Keep{};
    }
    return choice;
  };
  if (n <= kAllSubsetsUpTo) {
    for (std::size_t bits = 0; bits < std::size_t{1} << n; ++bits)
      with(subset([bits](std::size_t i) { return (bits >> i & 1) != 0; }));
  } else {
    for (std::size_t k = 0; k <= n; ++k) {
      with(subset([k](std::size_t i) { return i < k; }));
      with(subset([k](std::size_t i) { return i == k; }));
      with(subset([k](std::size_t i) { return i != k; }));
    }
    std::mt19937_64 random(seed);
    for (int s = 0; s < kSeededSubsets; ++s) {
      const std::uint64_t density = 1 + random() % 7;
      with(subset([&random, density](std::size_t) { return random() % 8 < density; }));
    }
  }
  for (std::size_t t = 0; t < n; ++t) {
    for (std::uint64_t bound = 1; bound < pending[t].sectors; ++bound) {
      for (const bool last_part : {false, true}) {
        for (const bool others : {false, true}) {
          Choice choice = subset([t, others](std::size_t i) { return others && i != t; });
          choice[pending[t].id] = Keep{true, last_part, bound};
          with(std::move(choice));
        }
      }
    }
  }
}

std::uint64_t recipe_of(std::uint64_t stable, const Choice& choice) {
  std::vector<std::uint64_t> words{stable};
  for (const auto& [id, keep] : choice) {
    words.push_back(id);
    words.push_back(keep.torn ? keep.bound << 2 | (keep.last_part ? 2u : 0u) | 1u : 0);
  }
  return xxh3(std::as_bytes(std::span(words)));
}

bool makes_stable(SimOpKind kind) {
  return kind == SimOpKind::kDataSync || kind == SimOpKind::kSync || kind == SimOpKind::kDirSync;
}

std::string difference(const Content& a, const Content& b) {
  for (const auto& [name, ids] : a) {
    auto found = b.find(name);
    if (found == b.end()) return name + " is gone";
    if (ids == found->second) continue;
    if (ids.size() != found->second.size()) return name + " has another size";
    const auto s =
        static_cast<std::size_t>(std::ranges::mismatch(ids, found->second).in1 - ids.begin());
    return name + ", sector " + std::to_string(s) + ": it held " + id_text(ids[s]) + ", now " +
           id_text(found->second[s]);
  }
  return a.size() == b.size() ? std::string() : "something is there that was not";
}

/// One disk after a cut: recovers it, and again from a cut within.
struct Verdict {
  std::string failure;
  Content content;
};

class Explorer {
 public:
  Explorer(const Trace& trace, const ExploreOptions& options)
      : trace_(trace), options_(options), model_(trace) {}

  Report run() {
    auto disk = trace_.start->clone();
    std::uint64_t stable = 0;
    for (std::uint64_t boundary = 0;; ++boundary) {
      boundary_ = boundary;
      model_.cut_at(boundary);
      each_choice(disk->pending(), trace_.seed * 1000003 + boundary,
                  [&](Choice choice) { try_choice(*disk, stable, choice); });
      if (report_.failures >= options_.stop_after || boundary == trace_.log.size()) break;
      disk->replay(trace_.log[boundary]);
      if (makes_stable(trace_.log[boundary].kind)) ++stable;
    }
    return std::move(report_);
  }

 private:
  void try_choice(const SimDisk& disk, std::uint64_t stable, const Choice& choice) {
    if (report_.failures >= options_.stop_after) return;
    ++report_.tried;
    const std::uint64_t recipe = recipe_of(stable, choice);
    auto known = recipes_.find(recipe);
    std::uint64_t hash = 0;
    if (known != recipes_.end()) {
      hash = known->second;
    } else {
      auto cut_disk = disk.clone();
      cut_disk->set_space_limit(~std::uint64_t{0});
      cut(*cut_disk, choice);
      hash = cut_disk->hash();
      recipes_[recipe] = hash;
      if (report_.disks.insert(hash).second) verdicts_[hash] = judge(*cut_disk, hash);
    }
    const Verdict& verdict = verdicts_.at(hash);
    std::string wrong = verdict.failure;
    if (wrong.empty()) wrong = model_.check(verdict.content);
    if (!wrong.empty()) fail(choice, wrong);
  }

  Verdict judge(const SimDisk& disk, std::uint64_t hash) {
    ++report_.recovered;
    Verdict verdict;
    auto first = disk.clone();
    first->record_data(true);
    const bool tidy = hash % kTidyEach == 0;
    Recovered once = recover(trace_.workload.level, *first, tidy);
    verdict.failure = std::move(once.failure);
    verdict.content = std::move(once.content);
    if (!verdict.failure.empty()) return verdict;
    // Recoveries of a store cost several times those of a delta: every third of them is cut again.
    if (trace_.workload.level == Level::kDelta || hash / 64 % kStoreCutEach == 0)
      verdict.failure = cut_within(disk, *first, verdict.content, hash);
    if (verdict.failure.empty() && hash / 16 % kContinueEach == 0)
      verdict.failure = go_on(*first, verdict.content, hash);
    return verdict;
  }

  /// Cuts the recovery that `recovered` has logged at a seeded place.
  std::string cut_within(const SimDisk& disk, const SimDisk& recovered, const Content& content,
                         std::uint64_t hash) {
    std::vector<const SimOp*> changes;
    for (const SimOp& op : recovered.log()) {
      if (op.kind != SimOpKind::kRead) changes.push_back(&op);
    }
    if (changes.empty()) return {};
    ++report_.cut_again;
    std::mt19937_64 random(hash);
    auto again = disk.clone();
    const std::uint64_t boundary = 1 + random() % changes.size();
    for (std::uint64_t i = 0; i < boundary; ++i)
      again->replay(*changes[i]);
    again->crash(random);
    const Recovered twice = recover(trace_.workload.level, *again);
    const std::string where = "cut again after change " + std::to_string(boundary) +
                              " of its recovery (seed " + std::to_string(hash) + "): ";
    if (!twice.failure.empty()) return where + twice.failure;
    const std::string differs = difference(content, twice.content);
    return differs.empty() ? differs : where + differs;
  }

  std::string go_on(SimDisk& disk, const Content& content, std::uint64_t hash) {
    auto volume = content.find(kVolume);
    if (volume == content.end()) return {};
    ++report_.continued;
    const std::uint64_t blocks = volume->second.size() * kSectorSize / kBlockSize;
    const ByteOffset block(hash % blocks * kBlockSize);
    const std::string where = "after a write of block " + std::to_string(hash % blocks) +
                              " that followed the recovery, and a cut: ";
    std::string failure = recover_and_write(trace_.workload.level, disk, block);
    if (!failure.empty()) return where + failure;
    disk.crash_all_lost();
    const Recovered after = recover(trace_.workload.level, disk);
    if (!after.failure.empty()) return where + after.failure;
    Content expected = content;
    std::fill_n(expected[kVolume].begin() + static_cast<std::ptrdiff_t>(block.value / kSectorSize),
                kBlockSize / kSectorSize, kAfterwards);
    const std::string differs = difference(expected, after.content);
    return differs.empty() ? differs : where + differs;
  }

  void fail(const Choice& choice, const std::string& wrong) {
    ++report_.failures;
    const std::string state = "--workload " + trace_.workload.name + " --seed " +
                              std::to_string(trace_.seed) + " --boundary " +
                              std::to_string(boundary_) + " --keep " + choice_text(choice);
    report_.messages.push_back(trace_.workload.name + ", seed " + std::to_string(trace_.seed) +
                               ", cut at boundary " + std::to_string(boundary_) + " of " +
                               std::to_string(trace_.log.size()) + ": " + wrong +
                               "\n    again: " + options_.program + " " + state);
  }

  const Trace& trace_;
  const ExploreOptions& options_;
  Model model_;
  Report report_;
  std::uint64_t boundary_ = 0;
  std::unordered_map<std::uint64_t, std::uint64_t> recipes_;
  std::unordered_map<std::uint64_t, Verdict> verdicts_;
};

std::string op_text(const SimOp& op) {
  std::ostringstream out;
  out << sim_op_name(op.kind) << ' ' << op.path;
  if (!op.name.empty()) out << '/' << op.name;
  if (!op.to.empty()) out << " -> " << op.to;
  if (op.length != 0) out << ' ' << op.offset << '+' << op.length;
  return out.str();
}

}  // namespace

std::string choice_text(const Choice& choice) {
  if (choice.empty()) return "none";
  std::string out;
  for (const auto& [id, keep] : choice) {
    if (!out.empty()) out += ',';
    out += std::to_string(id);
    if (keep.torn) out += (keep.last_part ? ":-" : ":") + std::to_string(keep.bound);
  }
  return out;
}

Choice parse_choice(const std::string& text) {
  Choice choice;
  if (text == "none") return choice;
  std::istringstream in(text);
  for (std::string part; std::getline(in, part, ',');) {
    Keep keep;
    const auto colon = part.find(':');
    if (colon != std::string::npos) {
      keep.torn = true;
      keep.last_part = part[colon + 1] == '-';
      keep.bound = std::stoull(part.substr(colon + (keep.last_part ? 2 : 1)));
    }
    choice[std::stoull(part)] = keep;
  }
  return choice;
}

void cut(SimDisk& disk, const Choice& choice) {
  ChoiceChooser chooser(choice);
  disk.crash(chooser);
}

std::unique_ptr<SimDisk> disk_at(const Trace& trace, std::uint64_t boundary) {
  auto disk = trace.start->clone();
  for (std::uint64_t i = 0; i < boundary && i < trace.log.size(); ++i)
    disk->replay(trace.log[i]);
  return disk;
}

Report explore(const Trace& trace, const ExploreOptions& options) {
  if (trace.failure.empty()) {
    Model model(trace);
    model.at_the_end();
    const std::string wrong = trace.live.empty() ? "" : model.check(trace.live);
    if (wrong.empty()) return Explorer(trace, options).run();
    Report report;
    report.failures = 1;
    report.messages.push_back(trace.workload.name + ", seed " + std::to_string(trace.seed) +
                              ", with no cut at all: " + wrong);
    return report;
  }
  Report report;
  report.failures = 1;
  report.messages.push_back(trace.workload.name + ", seed " + std::to_string(trace.seed) + ": " +
                            trace.failure);
  return report;
}

bool repeat_state(const Trace& trace, std::uint64_t boundary, const Choice& choice) {
  std::printf("operations (began and were answered at these boundaries):\n");
  for (const Done& done : trace.ops) {
    std::printf("  %-12s %llu+%llu %s id %u: %llu to %lld%s\n", verb_name(done.op.verb),
                static_cast<unsigned long long>(done.op.at),
                static_cast<unsigned long long>(done.op.length), done.op.name.c_str(), done.id,
                static_cast<unsigned long long>(done.start.boundary),
                done.end ? static_cast<long long>(done.end->boundary) : -1,
                done.ok ? "" : " (failed)");
  }
  std::printf("changes of the disk:\n");
  for (std::size_t i = 0; i < trace.log.size(); ++i) {
    if (i == boundary) std::printf("  ---- the power goes here\n");
    std::printf("  %3zu  %s\n", i, op_text(trace.log[i]).c_str());
  }
  auto disk = disk_at(trace, boundary);
  disk->set_space_limit(~std::uint64_t{0});
  std::printf("pending, and what becomes of it:\n");
  for (const SimPending& p : disk->pending()) {
    auto keep = choice.find(p.id);
    std::string fate = "lost";
    if (keep != choice.end()) fate = keep->second.torn ? "torn" : "kept";
    std::printf("  %llu: %s %s %llu+%llu: %s\n", static_cast<unsigned long long>(p.id),
                sim_op_name(p.kind), p.path.c_str(), static_cast<unsigned long long>(p.offset),
                static_cast<unsigned long long>(p.length), fate.c_str());
  }
  cut(*disk, choice);
  Recovered found = recover(trace.workload.level, *disk);
  Model model(trace);
  model.cut_at(boundary);
  const std::string wrong = found.failure.empty() ? model.check(found.content) : found.failure;
  std::printf("%s\n", wrong.empty() ? "the volume holds what it may hold" : wrong.c_str());
  return wrong.empty();
}

}  // namespace snap::crash
