#include "tests/crash/model.h"

#include <algorithm>

namespace snap::crash {

namespace {

constexpr std::uint64_t kNever = ~std::uint64_t{0};

bool makes_durable(const Done& done) {
  switch (done.op.verb) {
    case Verb::kFlush:
    case Verb::kSnapshot:
    case Verb::kCommit:
    case Verb::kClone:
    case Verb::kReopen:
      return done.ok;
    default:
      return false;
  }
}

/// The sectors that an operation sets, and to whose value; nothing if none.
struct Change {
  std::uint64_t begin = 0, end = 0;
  WriteId id = 0;
};
std::optional<Change> change_of(const Done& done, std::uint64_t sectors) {
  const Op& op = done.op;
  switch (op.verb) {
    case Verb::kWrite:
    case Verb::kFuaWrite:
      return Change{op.at / kSectorSize, (op.at + op.length) / kSectorSize, done.id};
    case Verb::kZero:
    case Verb::kZeroKeep:
      return Change{op.at / kSectorSize, (op.at + op.length) / kSectorSize, kZeros};
    case Verb::kTrim:
    case Verb::kFuaTrim: {
      const std::uint64_t begin = round_up(op.at, kBlockSize);
      const std::uint64_t end = round_down(op.at + op.length, kBlockSize);
      if (begin >= end) return std::nullopt;
      return Change{begin / kSectorSize, end / kSectorSize, kZeros};
    }
    case Verb::kResize:
      // What a shrink cuts off reads zero when the volume grows again.
      return Change{op.length / kSectorSize, sectors, kZeros};
    default:
      return std::nullopt;
  }
}

}  // namespace

std::string id_text(WriteId id) {
  if (id == kBelow) return "what lies below";
  if (id == kZeros) return "zeros";
  if (id == kGarbage) return "garbage";
  if (id == kAfterwards) return "the write after the recovery";
  return "write " + std::to_string(id);
}

Model::Model(const Trace& trace) : trace_(trace) {
  std::uint64_t most = trace.before.size();
  sizes_.push_back({most, 0, 0});
  for (const Done& done : trace.ops) {
    if (done.op.verb != Verb::kResize) continue;
    const std::uint64_t size = done.op.length / kSectorSize;
    sizes_.push_back({size, done.start.boundary, done.ok ? done.end->boundary : kNever});
    most = std::max(most, size);
  }
  sectors_.resize(most);
  for (std::size_t s = 0; s < most; ++s) {
    const WriteId id = s < trace.before.size() ? trace.before[s] : kZeros;
    sectors_[s].push_back({id, 0, 0, 0, 0, 0});
  }
  volume_.name = kVolume;
  for (const Done& done : trace.ops)
    add_versions(done);
  add_objects();
}

std::uint64_t Model::durable_at(const Done& done) const {
  if (!done.ok) return kNever;
  const Verb verb = done.op.verb;
  if (verb == Verb::kFuaWrite || verb == Verb::kFuaTrim || verb == Verb::kResize)
    return done.end->boundary;
  std::uint64_t at = kNever;
  for (const Done& flush : trace_.ops) {
    if (!makes_durable(flush) || flush.start.order < done.end->order) continue;
    // What a process had not flushed when it was killed may be gone when another flushes.
    if (flush.process != done.process) continue;
    at = std::min(at, flush.end->boundary);
  }
  return at;
}

void Model::add_versions(const Done& done) {
  const auto change = change_of(done, sectors_.size());
  if (!change) return;
  Version v;
  v.id = change->id;
  v.start = done.start.order;
  v.begun_at = done.start.boundary;
  v.end = done.end ? done.end->order : kNever;
  v.durable_at = durable_at(done);
  // A killed process takes along what it had not flushed.
  const bool survives = done.process == trace_.ops.back().process;
  v.done_at = done.ok && survives ? done.end->boundary : v.durable_at;
  for (std::uint64_t s = change->begin; s < change->end; ++s)
    sectors_[s].push_back(v);
}

std::vector<WriteId> Model::volume_before(const Done& done) const {
  std::uint64_t size = sizes_[0].sectors;
  for (const Done& earlier : trace_.ops) {
    if (earlier.op.verb == Verb::kResize && earlier.ok && earlier.end->order < done.start.order)
      size = earlier.op.length / kSectorSize;
  }
  std::vector<WriteId> out;
  for (std::size_t s = 0; s < size; ++s) {
    // The workloads that make objects have no two writes of one sector in flight together.
    WriteId id = 0;
    for (const Version& v : sectors_[s]) {
      if (v.end < done.start.order && v.done_at != kNever) id = v.id;
    }
    out.push_back(id);
  }
  return out;
}

void Model::add_objects() {
  if (trace_.workload.level == Level::kStore) {
    Object base;
    base.name = "base:1";
    base.content = trace_.before;
    objects_.push_back(std::move(base));
  }
  for (const Done& done : trace_.ops) {
    const Op& op = done.op;
    const std::uint64_t begun = done.start.boundary;
    const std::uint64_t ended = done.ok ? done.end->boundary : kNever;
    if (op.verb == Verb::kSnapshot || op.verb == Verb::kClone || op.verb == Verb::kCommit) {
      Object made;
      made.name = op.verb == Verb::kSnapshot ? std::string(kVolume) + "@" + op.name : op.name;
      made.content = volume_before(done);
      made.begun_at = begun;
      made.there_at = ended;
      objects_.push_back(std::move(made));
    } else if (op.verb == Verb::kRemoveSnapshot) {
      for (Object& o : objects_) {
        if (o.name != std::string(kVolume) + "@" + op.name) continue;
        o.leaving_at = begun;
        o.gone_at = ended;
      }
    } else if (op.verb == Verb::kRemoveVolume) {
      volume_.leaving_at = begun;
      volume_.gone_at = ended;
      for (Object& o : objects_) {
        if (o.name.find('@') == std::string::npos) continue;
        o.leaving_at = std::min(o.leaving_at, begun);
        o.gone_at = std::min(o.gone_at, ended);
      }
    }
  }
}

void Model::at(std::uint64_t boundary, bool nothing_lost) {
  boundary_ = boundary;
  allowed_.assign(sectors_.size(), {});
  for (std::size_t s = 0; s < sectors_.size(); ++s) {
    const auto& versions = sectors_[s];
    for (const Version& v : versions) {
      if (v.begun_at > boundary) continue;
      const bool over = std::ranges::any_of(versions, [&](const Version& later) {
        const std::uint64_t counts_at = nothing_lost ? later.done_at : later.durable_at;
        return counts_at != kNever && counts_at <= boundary && later.start > v.end;
      });
      if (!over) allowed_[s].push_back(v.id);
    }
  }
}

std::string Model::check(const Content& content) const {
  const auto presence = [this, &content](const Object& o) -> std::string {
    const bool there = content.count(o.name) != 0;
    if (there && (boundary_ < o.begun_at || boundary_ >= o.gone_at))
      return o.name + " is there, and must not be";
    if (!there && boundary_ >= o.there_at && boundary_ < o.leaving_at)
      return o.name + " is not there, and was answered to be";
    return {};
  };
  if (std::string wrong = presence(volume_); !wrong.empty()) return wrong;
  for (const Object& o : objects_) {
    if (std::string wrong = presence(o); !wrong.empty()) return wrong;
    auto found = content.find(o.name);
    if (found == content.end() || found->second == o.content) continue;
    const auto& have = found->second;
    if (have.size() != o.content.size())
      return o.name + " has " + std::to_string(have.size()) + " sectors, not " +
             std::to_string(o.content.size());
    const auto s =
        static_cast<std::size_t>(std::ranges::mismatch(have, o.content).in1 - have.begin());
    return o.name + ", sector " + std::to_string(s) + ": it holds " + id_text(have[s]) + ", not " +
           id_text(o.content[s]);
  }
  for (const auto& [name, ids] : content) {
    const bool known =
        name == kVolume ||
        std::ranges::any_of(objects_, [&name = name](const Object& o) { return o.name == name; });
    if (!known) return name + " is there, and was never made";
  }
  auto found = content.find(kVolume);
  if (found == content.end()) return {};
  const auto& have = found->second;
  const auto last_done = std::find_if(sizes_.rbegin(), sizes_.rend(), [this](const Size& size) {
    return size.done_at <= boundary_;
  });
  const bool size_fits =
      std::any_of(sizes_.rbegin(), last_done + 1, [this, &have](const Size& size) {
        return size.begun_at <= boundary_ && size.sectors == have.size();
      });
  if (!size_fits) return "the volume has " + std::to_string(have.size()) + " sectors";
  for (std::size_t s = 0; s < have.size(); ++s) {
    if (std::ranges::find(allowed_[s], have[s]) != allowed_[s].end()) continue;
    std::string text = "sector " + std::to_string(s) + ": it holds " + id_text(have[s]) + ", not";
    for (const WriteId id : allowed_[s])
      text += (id == allowed_[s].front() ? " " : " or ") + id_text(id);
    return text;
  }
  return {};
}

}  // namespace snap::crash
