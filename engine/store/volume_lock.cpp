// The lock of a volume: the flock of volumes/<name>/lock, and what the file says of its holder.
//
// A folder may be removed and made again between the opening of its lock file and the flock: then
// the flock is of a file without a name and guards nothing. So whoever gets the flock writes a
// token into the file and reads it back by name.
#include <charconv>

#include "engine/store/names.h"
#include "engine/store/volume_store.h"

namespace snap {

namespace {

constexpr std::size_t kMaxLockBytes = 8192;
// `ls` takes the lock for a moment to see whether someone holds it: try again before giving up.
constexpr int kTries = 10;
constexpr std::chrono::milliseconds kPause{5};

struct LockText {
  Holder holder;
  std::string token;
};

std::string encode(const LockText& text) {
  return "pid " + std::to_string(text.holder.pid) + "\ntoken " + text.token + "\nsocket " +
         text.holder.control_socket;
}

/// The value of the line that begins with `key`, which is taken off; empty if it is another line.
std::string take_line(std::string_view& text, std::string_view key, bool to_end) {
  if (!text.starts_with(key)) return "";
  text.remove_prefix(key.size());
  const std::size_t end = to_end ? text.size() : text.find('\n');
  const std::string value(text.substr(0, end));
  text.remove_prefix(end == std::string_view::npos ? text.size() : std::min(end + 1, text.size()));
  return value;
}

/// Nothing is trusted: the file may be half written by a process that takes the lock right now.
LockText decode(std::string_view bytes) {
  LockText out;
  const std::string pid = take_line(bytes, "pid ", false);
  const auto parsed = std::from_chars(pid.data(), pid.data() + pid.size(), out.holder.pid);
  if (parsed.ec != std::errc() || out.holder.pid < 0) out.holder.pid = 0;
  out.token = take_line(bytes, "token ", false);
  out.holder.control_socket = take_line(bytes, "socket ", true);
  return out;
}

Task<LockText> read_lock(Directory& dir) {
  auto bytes = co_await read_whole(dir, kVolumeLock, kMaxLockBytes);
  if (!bytes) co_return LockText{};
  co_return decode(std::string_view(reinterpret_cast<const char*>(bytes->data()), bytes->size()));
}

Error busy(const std::string& name, const Holder& holder) {
  std::string by = "another process";
  if (holder.pid != 0) by = "process " + std::to_string(holder.pid);
  return Error(ErrorCode::kBusy, "volume " + shown(name) + " is in use by " + by +
                                     "; stop that one or use its control socket");
}

Task<Result<bool>> try_for_a_while(File& file) {
  for (int i = 0; i < kTries; ++i) {
    auto got = co_await file.try_lock(true);
    if (!got) co_return got.error();
    if (*got) co_return true;
    co_await Sleep(kPause);
  }
  co_return false;
}

}  // namespace

Task<Result<VolumeLock>> VolumeStore::try_lock_dir(std::string name, Holder holder) {
  auto dir = co_await volumes_->open_dir(name);
  if (!dir) co_return dir.error();
  OpenFlags flags;
  flags.write = flags.create = true;
  auto file = co_await (*dir)->open(kVolumeLock, flags);
  if (!file) co_return file.error();
  auto got = co_await try_for_a_while(**file);
  if (!got) co_return got.error();
  if (!*got) {
    const LockText text = co_await read_lock(**dir);
    co_return busy(name, text.holder);
  }
  const LockText mine{holder, Uuid::make(*random_).str()};
  const std::string bytes = encode(mine);
  auto cut = co_await (*file)->truncate(0);
  if (!cut) co_return cut.error();
  auto written = co_await write_all(**file, std::as_bytes(std::span(bytes.data(), bytes.size())),
                                    ByteOffset(0));
  if (!written) co_return written.error();
  // By its name: the folder may have been removed or renamed before the lock was ours.
  LockText found;
  auto named = co_await volumes_->open_dir(name);
  if (named) found = co_await read_lock(**named);
  if (found.token != mine.token) {
    co_return Error(ErrorCode::kNotFound,
                    "volume " + shown(name) + " was removed or renamed at this moment; try again");
  }
  co_return VolumeLock(std::move(*dir), std::move(*file));
}

Task<Result<VolumeStore::Still>> VolumeStore::hold_still(std::string name) {
  auto dir = co_await volumes_->open_dir(name);
  if (!dir) co_return dir.error();
  Still still;
  still.at_rest = true;
  auto file = co_await (*dir)->open(kVolumeLock, OpenFlags{});
  if (!file && file.error().code() != ErrorCode::kNotFound) co_return file.error();
  if (file) {
    auto free = co_await (*file)->try_lock(false);
    if (!free) co_return free.error();
    still.at_rest = *free;
    if (*free) still.handle = std::move(*file);
  }
  auto stored = co_await read_record(**dir, name);
  if (!stored) co_return stored.error();
  still.record = std::move(stored->record);
  co_return std::move(still);
}

Task<Result<std::optional<Holder>>> VolumeStore::holder(std::string name) {
  auto dir = co_await volumes_->open_dir(name);
  if (!dir) co_return dir.error();
  auto file = co_await (*dir)->open(kVolumeLock, OpenFlags{});
  if (!file) {
    if (file.error().code() == ErrorCode::kNotFound) co_return std::optional<Holder>();
    co_return file.error();
  }
  auto free = co_await (*file)->try_lock(false);
  if (!free) co_return free.error();
  if (*free) co_return std::optional<Holder>();
  const LockText text = co_await read_lock(**dir);
  co_return std::optional<Holder>(text.holder);
}

}  // namespace snap
