#include "engine/store/event_log.h"

#include <sys/stat.h>

#include <algorithm>
#include <array>

#include "engine/store/json_fields.h"
#include "engine/store/names.h"
#include "engine/store/store_lock.h"

namespace snap {

namespace {

constexpr const char* kFolder = "events";
constexpr const char* kLog = "log";
constexpr const char* kOlder = "log.1";
constexpr const char* kState = "state";
constexpr const char* kLock = "lock";
constexpr std::chrono::seconds kPatience{2};
/// Taken ahead, so that events find their place on a full disk, which is when they matter.
constexpr std::uint64_t kAhead = 64u << 10;
constexpr std::size_t kStateBytes = 24;
constexpr std::size_t kReadBytes = 64u << 10;
constexpr std::size_t kMaxMessage = 1024;
constexpr std::size_t kMaxNumbers = 16;

std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

OpenFlags to_write() {
  OpenFlags flags;
  flags.write = flags.create = true;
  return flags;
}

/// Of one length, so that it is always written in place: a full disk does not hinder it.
std::string encode_state(const std::array<bool, 2>& state) {
  return std::string("low-water ") + (state[0] ? "1" : "0") + "\nlimit     " +
         (state[1] ? "1" : "0") + "\n";
}

/// What is no state says that no mark holds: at worst an event comes twice.
Task<Result<std::array<bool, 2>>> read_state(File& file) {
  std::array<bool, 2> state{};
  std::string text(kStateBytes + 1, '\0');
  auto got = co_await read_up_to(file, std::as_writable_bytes(std::span(text)), ByteOffset(0));
  if (!got) co_return got.error();
  text.resize(*got);
  for (const bool low : {false, true}) {
    for (const bool full : {false, true}) {
      const std::array<bool, 2> candidate{low, full};
      if (text == encode_state(candidate)) state = candidate;
    }
  }
  co_return state;
}

/// Sees to it that there is space behind the end of the log.
Task<Result<void>> take_ahead(File& file) {
  auto stat = co_await file.stat();
  if (!stat) co_return stat.error();
  if (stat->allocated >= stat->size + kAhead / 4) co_return Result<void>();
  auto taken = co_await allocate(file, ByteOffset(stat->size), kAhead, true);
  if (!taken) co_return taken.error();
  co_return Result<void>();
}

/// Appends a line that ends in a line feed. The caller holds the lock.
Task<Result<void>> append(Directory& folder, std::string line) {
  auto file = co_await folder.open(kLog, to_write());
  if (!file) co_return file.error();
  auto stat = co_await (*file)->stat();
  if (!stat) co_return stat.error();
  if (stat->size != 0 && stat->size + line.size() > EventLog::kMaxFile) {
    auto renamed = co_await folder.rename(kLog, folder, kOlder);
    if (!renamed) co_return renamed.error();
    file = co_await folder.open(kLog, to_write());
    if (!file) co_return file.error();
    stat->size = 0;
  }
  if (stat->size != 0) {
    // Who died in the middle of a line, or found the disk full, must not spoil this one.
    std::array<std::byte, 1> last{};
    auto read = co_await read_up_to(**file, last, ByteOffset(stat->size - 1));
    if (!read) co_return read.error();
    if (last[0] != std::byte{'\n'}) {
      std::string begun = "\n";
      begun += line;
      line = std::move(begun);
    }
  }
  auto written = co_await write_all(**file, bytes_of(line), ByteOffset(stat->size));
  if (!written) co_return written.error();
  auto taken = co_await take_ahead(**file);
  static_cast<void>(taken);  // without it the next event may not fit on a full disk
  co_return Result<void>();
}

/// A copy of the text of at most `size` bytes that is not cut inside a UTF-8 sequence.
std::string cut(const std::string& text, std::size_t size) {
  if (text.size() <= size) return text;
  while (size > 0 && (static_cast<unsigned char>(text[size]) & 0xc0) == 0x80)
    --size;
  return text.substr(0, size);
}

bool same_file(const File& a, const File& b) {
  struct stat one {
  }, other{};
  return ::fstat(a.native_handle(), &one) == 0 && ::fstat(b.native_handle(), &other) == 0 &&
         one.st_ino == other.st_ino && one.st_dev == other.st_dev;
}

}  // namespace

// ---- One event

std::string encode_event(const StoreEvent& event) {
  nlohmann::ordered_json value = {{"time", event.time}, {"event", event.kind}};
  if (!event.volume.empty()) value["volume"] = event.volume;
  for (const auto& [name, number] : event.numbers)
    value[name] = number;
  value["message"] = cut(event.message, kMaxMessage);
  return value.dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::optional<StoreEvent> decode_event(std::string_view line) {
  if (line.size() > EventLog::kMaxLine) return std::nullopt;
  auto value = parse_json(line);
  if (!value || !value->is_object()) return std::nullopt;
  std::optional<Error> error;
  JsonFields fields(*value, "", error);
  StoreEvent event;
  event.time = fields.text("time", 64);
  event.kind = fields.text("event", 64);
  event.volume = fields.optional_text("volume", 256);
  event.message = fields.optional_text("message", EventLog::kMaxLine);
  if (error || event.kind.empty() || !is_rfc3339(event.time)) return std::nullopt;
  for (const auto& [name, field] : value->items()) {
    if (field.is_number_unsigned() && name.size() <= 64 && event.numbers.size() < kMaxNumbers)
      event.numbers[name] = field.get<std::uint64_t>();
  }
  return event;
}

// ---- EventLog

Task<Result<std::unique_ptr<Directory>>> EventLog::open_folder(bool create) {
  auto folder = co_await root_->open_dir(kFolder);
  if (folder || !create || folder.error().code() != ErrorCode::kNotFound) co_return folder;
  auto made = co_await root_->make_dir(kFolder);
  if (!made && made.error().code() != ErrorCode::kExists) co_return made.error();
  auto opened = co_await root_->open_dir(kFolder);
  co_return opened;
}

Task<Result<void>> EventLog::prepare() {
  auto folder = co_await open_folder(true);
  if (!folder) co_return folder.error();
  auto held = co_await lock_file(**folder, kLock, true, "make room for events", kPatience);
  if (!held) co_return held.error();
  auto state_file = co_await (*folder)->open(kState, to_write());
  if (!state_file) co_return state_file.error();
  auto state = co_await read_state(**state_file);
  if (!state) co_return state.error();
  const std::string text = encode_state(*state);
  auto written = co_await write_all(**state_file, bytes_of(text), ByteOffset(0));
  if (!written) co_return written.error();
  auto log = co_await (*folder)->open(kLog, to_write());
  if (!log) co_return log.error();
  auto taken = co_await take_ahead(**log);
  co_return taken;
}

Task<Result<void>> EventLog::add(StoreEvent event) {
  auto folder = co_await open_folder(true);
  if (!folder) co_return folder.error();
  auto held = co_await lock_file(**folder, kLock, true, "add an event", kPatience);
  if (!held) co_return held.error();
  event.time = now_rfc3339();
  std::string line = encode_event(event) + "\n";
  auto added = co_await append(**folder, std::move(line));
  co_return added;
}

Task<Result<bool>> EventLog::change(Mark mark, bool holds, StoreEvent event) {
  auto folder = co_await open_folder(holds);
  if (!folder) {
    if (!holds && folder.error().code() == ErrorCode::kNotFound) co_return false;
    co_return folder.error();
  }
  auto held = co_await lock_file(**folder, kLock, true, "add an event", kPatience);
  if (!held) co_return held.error();
  auto file = co_await (*folder)->open(kState, to_write());
  if (!file) co_return file.error();
  auto state = co_await read_state(**file);
  if (!state) co_return state.error();
  bool& known = (*state)[static_cast<std::size_t>(mark)];
  if (known == holds) co_return false;
  // The event comes before the state: between the two it may be told twice, but not never. And what
  // has no space for a state must not add the event anew with each look, so that is taken first.
  const std::string before = encode_state(*state);
  auto placed = co_await write_all(**file, bytes_of(before), ByteOffset(0));
  if (!placed) co_return placed.error();
  event.time = now_rfc3339();
  std::string line = encode_event(event) + "\n";
  auto added = co_await append(**folder, std::move(line));
  if (!added) co_return added.error();
  known = holds;
  const std::string after = encode_state(*state);
  auto written = co_await write_all(**file, bytes_of(after), ByteOffset(0));
  static_cast<void>(written);  // the event is there: that others may add it, too, is no failure
  co_return true;
}

// ---- EventReader

Task<Result<void>> EventReader::read_on(File& file, Batch& batch) {
  std::vector<std::byte> buffer(kReadBytes);
  for (;;) {
    auto got = co_await read_up_to(file, buffer, ByteOffset(position_));
    if (!got) co_return got.error();
    if (*got == 0) co_return Result<void>();
    position_ += *got;
    std::string_view text(reinterpret_cast<const char*>(buffer.data()), *got);
    for (std::size_t end = text.find('\n'); end != std::string_view::npos; end = text.find('\n')) {
      partial_.append(text.substr(0, end));
      text.remove_prefix(end + 1);
      auto event = oversized_ ? std::nullopt : decode_event(partial_);
      if (event) {
        batch.events.push_back(std::move(*event));
      } else if (oversized_ || !partial_.empty()) {
        ++batch.passed_over;
      }
      partial_.clear();
      oversized_ = false;
    }
    // However long a line is, no more of it is kept than an event can have.
    if (partial_.size() + text.size() > EventLog::kMaxLine) {
      oversized_ = true;
      partial_.clear();
    } else if (!oversized_) {
      partial_.append(text);
    }
  }
}

Task<Result<EventReader::Batch>> EventReader::next() {
  Batch batch;
  if (folder_ == nullptr) {
    auto folder = co_await open_directory(path_ + "/" + kFolder);
    if (!folder && folder.error().code() == ErrorCode::kNotFound) co_return batch;
    if (!folder) co_return folder.error();
    folder_ = std::move(*folder);
  }
  if (file_ == nullptr) {
    auto older = co_await folder_->open(kOlder, OpenFlags{});
    if (older) file_ = std::move(*older);
  }
  if (file_ != nullptr) {
    auto read = co_await read_on(*file_, batch);
    if (!read) co_return read.error();
  }
  auto log = co_await folder_->open(kLog, OpenFlags{});
  if (!log && log.error().code() == ErrorCode::kNotFound) co_return batch;
  if (!log) co_return log.error();
  if (file_ != nullptr && same_file(*file_, **log)) co_return batch;
  // It was rotated, maybe since the reading above: its end first. (The present one is read whole
  // from its beginning.)
  if (file_ != nullptr) {
    auto rest = co_await read_on(*file_, batch);
    if (!rest) co_return rest.error();
  }
  file_ = std::move(*log);
  position_ = 0;
  if (!partial_.empty() || oversized_) ++batch.passed_over;
  partial_.clear();
  oversized_ = false;
  auto read = co_await read_on(*file_, batch);
  if (!read) co_return read.error();
  co_return batch;
}

}  // namespace snap
