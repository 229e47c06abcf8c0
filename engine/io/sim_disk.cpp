#include "engine/io/sim_disk.h"

#include <errno.h>
#include <sys/uio.h>

#include <algorithm>
#include <cstring>
#include <functional>

#include "engine/io/sim_file.h"

namespace snap {

namespace {

/// Fates from a generator of random numbers.
class RandomChooser final : public CrashChooser {
 public:
  explicit RandomChooser(std::mt19937_64& random) : random_(random), keep_names_(random() % 4) {}
  Fate fate() override {
    shape_ = random_() % 3;
    bound_ = random_();
    const std::uint64_t roll = random_() % 3;
    return roll == 0 ? Fate::kKept : roll == 1 ? Fate::kLost : Fate::kTorn;
  }
  bool keep_sector(std::uint64_t index, std::uint64_t count) override {
    if (shape_ == 0) return random_() % 2 == 0;
    const bool before = index < bound_ % (count + 1);
    return shape_ == 1 ? before : !before;
  }
  bool keep_name() override {
    // Sometimes none, sometimes all, else a first part of random length.
    if (keep_names_ < 2) return keep_names_ == 1;
    return random_() % 4 != 0;
  }

 private:
  std::mt19937_64& random_;
  std::uint64_t keep_names_;
  std::uint64_t shape_ = 0;  // of a tear: any subset, the first part, the last part
  std::uint64_t bound_ = 0;
};

class SameChooser final : public CrashChooser {
 public:
  explicit SameChooser(bool keep) : keep_(keep) {}
  Fate fate() override { return keep_ ? Fate::kKept : Fate::kLost; }
  bool keep_sector(std::uint64_t, std::uint64_t) override { return keep_; }
  bool keep_name() override { return keep_; }

 private:
  bool keep_;
};

SimOpKind kind_of(IoOpcode opcode) {
  switch (opcode) {
    case IoOpcode::kRead:
    case IoOpcode::kReadv:
      return SimOpKind::kRead;
    case IoOpcode::kDataSync:
      return SimOpKind::kDataSync;
    case IoOpcode::kSync:
      return SimOpKind::kSync;
    case IoOpcode::kPunch:
      return SimOpKind::kPunch;
    case IoOpcode::kAllocate:
      return SimOpKind::kAllocate;
    default:
      return SimOpKind::kWrite;
  }
}

bool is_vector(const IoOp& op) {
  return op.opcode == IoOpcode::kReadv || op.opcode == IoOpcode::kWritev;
}

std::uint64_t bytes_of(const IoOp& op) {
  if (!is_vector(op)) return op.length;
  std::uint64_t total = 0;
  for (unsigned i = 0; i < op.iov_count; ++i)
    total += op.iov[i].iov_len;
  return total;
}

/// Calls `with` for each contiguous part of the memory of bytes from..from+count of the op.
void each_part(const IoOp& op, std::uint64_t from, std::uint64_t count,
               const std::function<void(std::span<std::byte>)>& with) {
  const iovec one{op.buffer, op.length};
  const iovec* iov = is_vector(op) ? op.iov : &one;
  const unsigned parts = is_vector(op) ? op.iov_count : 1;
  for (unsigned i = 0; i < parts && count > 0; ++i) {
    if (from >= iov[i].iov_len) {
      from -= iov[i].iov_len;
      continue;
    }
    const std::uint64_t n = std::min<std::uint64_t>(count, iov[i].iov_len - from);
    with(std::span(static_cast<std::byte*>(iov[i].iov_base) + from, n));
    from = 0;
    count -= n;
  }
}

bool is_aligned(const IoOp& op) {
  constexpr std::uint64_t kAlign = 4096;
  bool aligned = op.offset % kAlign == 0;
  each_part(op, 0, bytes_of(op), [&aligned](std::span<std::byte> part) {
    aligned = aligned && part.size() % kAlign == 0 &&
              reinterpret_cast<std::uintptr_t>(part.data()) % kAlign == 0;
  });
  return aligned;
}

}  // namespace

std::unique_ptr<Directory> SimDisk::root() {
  std::lock_guard guard(lock_);
  return std::make_unique<SimDirectory>("sim", *this, SimState::kRoot);
}

std::unique_ptr<SimDisk> SimDisk::clone() const {
  std::lock_guard guard(lock_);
  auto copy = std::make_unique<SimDisk>();
  copy->state_ = state_;
  copy->random_ = random_;
  copy->next_operation_ = next_operation_;
  copy->space_limit_ = space_limit_;
  copy->space_told_ = space_told_;
  copy->changes_ = changes_;
  return copy;
}

// ---- Power cuts

void SimDisk::crash(CrashChooser& choose) {
  kill();
  std::lock_guard guard(lock_);
  state_.crash(choose);
}

void SimDisk::kill() {
  std::lock_guard guard(lock_);
  ++generation_;
  open_.clear();
  locks_.clear();
  frozen_ = false;
  freeze_at_ = ~std::uint64_t{0};
}

std::vector<SimPending> SimDisk::pending() const {
  std::lock_guard guard(lock_);
  return state_.pending();
}

std::uint64_t SimDisk::hash() const {
  std::lock_guard guard(lock_);
  return state_.hash();
}

void SimDisk::crash(std::mt19937_64& random) {
  RandomChooser choose(random);
  crash(choose);
}

void SimDisk::crash_all_lost() {
  SameChooser choose(false);
  crash(choose);
}

void SimDisk::crash_all_kept() {
  SameChooser choose(true);
  crash(choose);
}

void SimDisk::freeze_after(std::uint64_t n) {
  std::lock_guard guard(lock_);
  freeze_at_ = changes_ + n;
  frozen_ = false;
  if (n == 0) freeze();
}

void SimDisk::on_freeze(std::function<void()> call) {
  std::lock_guard guard(lock_);
  on_freeze_ = std::move(call);
}

void SimDisk::freeze() {
  frozen_ = true;
  if (on_freeze_) on_freeze_();
}

void SimDisk::thaw() {
  std::lock_guard guard(lock_);
  frozen_ = false;
  freeze_at_ = ~std::uint64_t{0};
}

bool SimDisk::frozen() const {
  std::lock_guard guard(lock_);
  return frozen_;
}

// ---- Faults and the log

void SimDisk::inject(const SimFault& f) {
  std::lock_guard guard(lock_);
  faults_.push_back(f);
}

void SimDisk::set_space_limit(std::uint64_t bytes, bool told) {
  std::lock_guard guard(lock_);
  space_limit_ = bytes;
  space_told_ = told;
}

int SimDisk::fault(SimOpKind kind, std::uint64_t* limit) {
  int error = 0;
  for (SimFault& f : faults_) {
    if (f.kind != kind || --f.nth != 0) continue;
    if (f.error != 0) {
      error = f.error;
    } else if (limit != nullptr) {
      *limit = f.short_to;
    }
  }
  std::erase_if(faults_, [](const SimFault& f) { return f.nth == 0; });
  return error;
}

std::uint64_t SimDisk::changes() const {
  std::lock_guard guard(lock_);
  return changes_;
}

void SimDisk::clear_log() {
  std::lock_guard guard(lock_);
  log_.clear();
}

void SimDisk::record_data(bool on) {
  std::lock_guard guard(lock_);
  record_data_ = on;
}

void SimDisk::note(SimOp op) {
  if (!record_data_) op.data = nullptr;
  log_.push_back(std::move(op));
}

int SimDisk::execute(SimOp op) {
  const int err = state_.apply(op);
  if (err != 0) return err;
  if (++changes_ == freeze_at_) freeze();
  note(std::move(op));
  return 0;
}

void SimDisk::replay(const SimOp& op) {
  std::lock_guard guard(lock_);
  if (op.kind == SimOpKind::kRead) return;
  next_operation_ = std::max(next_operation_, op.operation + 1);
  // The original succeeded on the same state, so this does.
  (void)execute(op);
}

std::map<std::string, std::vector<std::byte>> SimDisk::visible_files() const {
  std::lock_guard guard(lock_);
  std::map<std::string, std::vector<std::byte>> files;
  std::vector<std::pair<std::string, InodeId>> next{{"", SimState::kRoot}};
  while (!next.empty()) {
    const auto [path, id] = next.back();
    next.pop_back();
    const SimState::Inode& inode = *state_.find(id);
    for (const auto& [name, child] : inode.entries)
      next.emplace_back(path.empty() ? name : path + "/" + name, child);
    if (inode.is_directory) continue;
    std::vector<std::byte>& bytes = files[path];
    bytes.resize(inode.size);
    inode.bytes.read(0, bytes);
  }
  return files;
}

bool SimDisk::has_space(InodeId file, std::uint64_t at, std::uint64_t length) const {
  if (space_limit_ == ~std::uint64_t{0}) return true;
  const std::uint64_t more = state_.new_pages(file, at, length);
  if (more == 0) return true;
  const auto is_open = [this](InodeId id) { return open_.count(id) != 0; };
  return (state_.used_pages(is_open) + more) * SparseBytes::kPage <= space_limit_;
}

// ---- Operations in flight

Task<void> SimDisk::take_turns() {
  unsigned turns = 1;
  {
    std::lock_guard guard(lock_);
    if (random_() % 4 == 0) turns += static_cast<unsigned>(random_() % 8);
  }
  for (; turns != 0; --turns)
    co_await yield_now();
}

void SimDisk::begin(IoOp& op) {
  std::lock_guard guard(lock_);
  Flight flight;
  flight.operation = next_operation_++;
  flight.began = state_.clock();
  flights_[&op] = flight;
}

std::optional<std::int64_t> SimDisk::step(IoOp& op) {
  std::lock_guard guard(lock_);
  auto flight = flights_.find(&op);
  std::optional<std::int64_t> result = advance(op, flight->second);
  if (result) flights_.erase(flight);
  return result;
}

std::optional<std::int64_t> SimDisk::advance(IoOp& op, Flight& flight) {
  SimFile& file = static_cast<SimFile&>(*op.file);
  if (!alive(file.generation_)) return -EIO;
  const SimOpKind kind = kind_of(op.opcode);
  if (!flight.started) {
    flight.started = true;
    const bool moves = kind == SimOpKind::kRead || kind == SimOpKind::kWrite;
    const bool syncs = kind == SimOpKind::kSync || kind == SimOpKind::kDataSync;
    if (kind != SimOpKind::kRead && !file.writable_ && !syncs) return -EBADF;
    if (moves && file.direct_ && !is_aligned(op)) return -EINVAL;
    const int err = fault(kind, &flight.limit);
    if (err != 0 && !syncs) return -err;
    if (err != 0) lose(file.inode_, err);
    if (const int lost = syncs ? failure_for(file) : 0; lost != 0) {
      (void)simple(op, flight, true);
      return -lost;
    }
    flight.limit = moves ? std::min(flight.limit, bytes_of(op)) : 0;
  }
  if (kind == SimOpKind::kRead) return read(op, flight);
  if (kind == SimOpKind::kWrite) return write(op, flight);
  return simple(op, flight, false);
}

SimDisk::SyncFailures SimDisk::failures_of(InodeId file) const {
  const auto found = sync_failures_.find(file);
  return found == sync_failures_.end() ? SyncFailures{} : found->second;
}

void SimDisk::lose(InodeId file, int error) {
  SyncFailures& failures = sync_failures_[file];
  ++failures.count;
  failures.error = error;
}

int SimDisk::failure_for(SimFile& file) {
  const SyncFailures failures = failures_of(file.inode_);
  return std::exchange(file.failures_told_, failures.count) < failures.count ? failures.error : 0;
}

int SimDisk::lost_write(SimFile& file) {
  std::lock_guard guard(lock_);
  if (!alive(file.generation_)) return EIO;
  if (const int err = fault(SimOpKind::kLostWrite); err != 0) {
    lose(file.inode_, err);
    SimOp entry;
    entry.kind = SimOpKind::kDataSync;
    entry.file = file.inode_;
    entry.path = file.path();
    entry.operation = next_operation_++;
    entry.began = state_.clock();
    entry.failed = true;
    (void)execute(std::move(entry));
  }
  return failure_for(file);
}

std::int64_t SimDisk::read(IoOp& op, Flight& flight) {
  const SimFile& file = static_cast<const SimFile&>(*op.file);
  const SimState::Inode& inode = *state_.find(file.inode_);
  if (op.offset >= inode.size) return 0;
  const std::uint64_t n = std::min(flight.limit, inode.size - op.offset);
  std::uint64_t at = op.offset;
  each_part(op, 0, n, [&inode, &at](std::span<std::byte> part) {
    inode.bytes.read(at, part);
    at += part.size();
  });
  SimOp entry;
  entry.kind = SimOpKind::kRead;
  entry.file = file.inode_;
  entry.path = file.path();
  entry.offset = op.offset;
  entry.length = n;
  entry.operation = flight.operation;
  note(std::move(entry));
  return static_cast<std::int64_t>(n);
}

std::optional<std::int64_t> SimDisk::write(IoOp& op, Flight& flight) {
  const SimFile& file = static_cast<const SimFile&>(*op.file);
  const std::uint64_t at = op.offset + flight.done;
  std::uint64_t n = flight.limit - flight.done;
  if (n == 0) return static_cast<std::int64_t>(flight.done);
  // A part that ends on a sector boundary, sometimes; the rest in a later step.
  const std::uint64_t sectors = n / SimState::kSector;
  if (sectors > 1 && random_() % 4 == 0) {
    const std::uint64_t end =
        (at + (1 + random_() % (sectors - 1)) * SimState::kSector) / SimState::kSector;
    if (end * SimState::kSector > at) n = end * SimState::kSector - at;
  }
  if (!has_space(file.inode_, at, n)) {
    // As the kernel: the bytes that fit were written, and only a write of none fails.
    if (flight.done == 0) return -ENOSPC;
    flight.limit = flight.done;
    n = 0;
  }
  auto data = std::make_shared<std::vector<std::byte>>();
  data->reserve(n);
  each_part(op, flight.done, n, [&data](std::span<std::byte> part) {
    data->insert(data->end(), part.begin(), part.end());
  });
  SimOp entry;
  entry.kind = SimOpKind::kWrite;
  entry.file = file.inode_;
  entry.path = file.path();
  entry.offset = at;
  entry.length = n;
  entry.data = std::move(data);
  entry.operation = flight.operation;
  entry.first = flight.done == 0;
  entry.last = flight.done + n == flight.limit;
  const bool last = entry.last;
  if (const int err = execute(std::move(entry)); err != 0) return err;
  flight.done += n;
  if (!last) return std::nullopt;
  return static_cast<std::int64_t>(flight.done);
}

std::int64_t SimDisk::simple(IoOp& op, const Flight& flight, bool failed) {
  const SimFile& file = static_cast<const SimFile&>(*op.file);
  SimOp entry;
  entry.kind = kind_of(op.opcode);
  entry.file = file.inode_;
  entry.path = file.path();
  entry.offset = op.offset;
  entry.length = op.length;
  entry.keep_size = op.opcode == IoOpcode::kAllocate && op.flags != 0;
  entry.operation = flight.operation;
  entry.began = flight.began;
  entry.failed = failed;
  if (entry.kind == SimOpKind::kAllocate && !has_space(file.inode_, op.offset, op.length))
    return -ENOSPC;
  if ((entry.kind == SimOpKind::kAllocate || entry.kind == SimOpKind::kPunch) && op.length == 0)
    return -EINVAL;
  return execute(std::move(entry));
}

}  // namespace snap
