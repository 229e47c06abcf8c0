// An NBD server, or a disk image in one of qemu's formats through a qemu-nbd of our own (started by
// libnbd with socket activation; it ends when the handle is closed).
//
// libnbd is driven through its asynchronous calls on a helper thread, so that a server that stops
// answering ends in an error after kPatience and not in a hang. Block status, where the server
// offers it, says where the zeros are: they are neither read nor sent.
#include <libnbd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <functional>

#include "engine/store/import_source.h"
#include "engine/store/program.h"
#include "snap/limits.h"

namespace snap {

namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::seconds kPatience{60};
constexpr int kPollMs = 1000;
constexpr std::uint64_t kReadBytes = 1u << 20;       // a request; every server takes that much
constexpr std::uint64_t kStatusBytes = 1u << 30;     // asked for at once
constexpr std::size_t kMaxExtentEntries = 1u << 20;  // a reply may hold; more is no sane server

/// NBD_NULL_COMPLETION is a compound literal, which C++ does not have.
constexpr nbd_completion_callback kNoCompletion{};

/// A run of bytes and whether it must be read.
struct Run {
  std::uint64_t end = 0;
  bool data = true;
};

/// The handle and what is known of its export. Used by one helper thread at a time.
class Connection {
 public:
  explicit Connection(std::string name) : name_(std::move(name)), nbd_(nbd_create()) {}
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;
  ~Connection() {
    if (nbd_ != nullptr) nbd_close(nbd_);
  }

  Result<void> connect_uri(const std::string& uri);
  Result<void> connect_command(std::vector<std::string> argv);
  std::uint64_t size() const { return size_; }
  /// Reads out.size() bytes with several requests in flight.
  Result<void> read(std::span<std::byte> out, std::uint64_t at);
  /// Moves `at` past what is zero; gives the end of the data that begins there (or at == size).
  Result<Run> next_run(std::uint64_t at);

 private:
  Error failure(const std::string& what) const {
    const char* why = nbd_get_error();
    const int code = nbd_get_errno();
    return Error(code == ENOENT ? ErrorCode::kNotFound : ErrorCode::kIo,
                 what + " " + name_ + ": " + (why != nullptr ? why : "libnbd failed"), code);
  }
  Result<void> prepare();
  Result<void> after_connect();
  /// Turns libnbd until `done` says so, at most kPatience without an event.
  Result<void> pump(const std::string& what, const std::function<Result<bool>()>& done);
  Result<void> finish_command(const std::string& what, std::int64_t cookie);
  Result<void> ask_status(std::uint64_t at);
  static int on_extents(void* self, const char* context, std::uint64_t offset,
                        std::uint32_t* entries, std::size_t count, int* error);

  const std::string name_;
  nbd_handle* nbd_;
  std::uint64_t size_ = 0;
  bool has_status_ = false;
  std::vector<Run> runs_;  // known, ascending
  std::size_t next_run_ = 0;
};

Result<void> Connection::prepare() {
  if (nbd_ == nullptr) return failure("make a handle for");
  if (nbd_add_meta_context(nbd_, LIBNBD_CONTEXT_BASE_ALLOCATION) < 0) return failure("set up");
  return {};
}

Result<void> Connection::pump(const std::string& what, const std::function<Result<bool>()>& done) {
  auto last_event = Clock::now();
  for (;;) {
    auto finished = done();
    if (!finished) return finished.error();
    if (*finished) return {};
    const int events = nbd_poll(nbd_, kPollMs);
    if (events < 0) return failure(what);
    if (events > 0) last_event = Clock::now();
    if (Clock::now() - last_event > kPatience) {
      return Error(ErrorCode::kIo, what + " " + name_ + ": no answer for " +
                                       std::to_string(kPatience.count()) + " s");
    }
  }
}

Result<void> Connection::connect_uri(const std::string& uri) {
  auto ready = prepare();
  if (!ready) return ready.error();
  if (nbd_aio_connect_uri(nbd_, uri.c_str()) < 0) return failure("connect to");
  return after_connect();
}

Result<void> Connection::connect_command(std::vector<std::string> argv) {
  auto ready = prepare();
  if (!ready) return ready.error();
  std::vector<char*> pointers;
  for (auto& a : argv)
    pointers.push_back(a.data());
  pointers.push_back(nullptr);
  if (nbd_aio_connect_systemd_socket_activation(nbd_, pointers.data()) < 0) return failure("open");
  return after_connect();
}

Result<void> Connection::after_connect() {
  auto connected = pump("connect to", [this]() -> Result<bool> {
    if (nbd_aio_is_ready(nbd_) == 1) return true;
    if (nbd_aio_is_dead(nbd_) == 1 || nbd_aio_is_closed(nbd_) == 1) return failure("connect to");
    return false;
  });
  if (!connected) return connected.error();
  const std::int64_t size = nbd_get_size(nbd_);
  if (size < 0) return failure("ask the size of");
  size_ = static_cast<std::uint64_t>(size);
  has_status_ = nbd_can_meta_context(nbd_, LIBNBD_CONTEXT_BASE_ALLOCATION) == 1;
  return {};
}

Result<void> Connection::finish_command(const std::string& what, std::int64_t cookie) {
  if (cookie < 0) return failure(what);
  const auto id = static_cast<std::uint64_t>(cookie);
  return pump(what, [this, id, &what]() -> Result<bool> {
    const int done = nbd_aio_command_completed(nbd_, id);
    if (done < 0) return failure(what);
    return done == 1;
  });
}

Result<void> Connection::read(std::span<std::byte> out, std::uint64_t at) {
  std::vector<std::int64_t> cookies;
  std::optional<Error> error;
  for (std::size_t done = 0; done < out.size() && !error; done += kReadBytes) {
    const std::size_t n = std::min<std::size_t>(kReadBytes, out.size() - done);
    const std::int64_t cookie =
        nbd_aio_pread(nbd_, out.data() + done, n, at + done, kNoCompletion, 0);
    if (cookie < 0) error = failure("read");
    if (cookie >= 0) cookies.push_back(cookie);
  }
  for (const std::int64_t cookie : cookies) {
    auto finished = finish_command("read", cookie);
    if (!finished && !error) error = finished.error();
  }
  if (error) {
    // A request that is still open writes into `out`: with the handle gone none can.
    nbd_close(std::exchange(nbd_, nullptr));
    return error->with_context("at " + std::to_string(at));
  }
  return {};
}

int Connection::on_extents(void* self, const char* context, std::uint64_t offset,
                           std::uint32_t* entries, std::size_t count, int*) {
  auto& me = *static_cast<Connection*>(self);
  if (std::string_view(context) != LIBNBD_CONTEXT_BASE_ALLOCATION) return 0;
  if (count / 2 > kMaxExtentEntries) return -1;
  std::uint64_t at = offset;
  for (std::size_t i = 0; i + 1 < count; i += 2) {
    at += entries[i];
    const bool data = (entries[i + 1] & LIBNBD_STATE_ZERO) == 0;
    if (!me.runs_.empty() && me.runs_.back().data == data) {
      me.runs_.back().end = at;
    } else {
      if (me.runs_.size() == kMaxExtentEntries) return -1;  // many replies, or parts of one
      me.runs_.push_back({at, data});
    }
  }
  return 0;
}

Result<void> Connection::ask_status(std::uint64_t at) {
  runs_.clear();
  next_run_ = 0;
  if (!has_status_) {
    runs_.push_back({size_, true});
    return {};
  }
  const nbd_extent_callback callback{.callback = on_extents, .user_data = this, .free = nullptr};
  const std::int64_t cookie = nbd_aio_block_status(nbd_, std::min(kStatusBytes, size_ - at), at,
                                                   callback, kNoCompletion, 0);
  auto finished = finish_command("ask for the holes of", cookie);
  if (!finished) {
    nbd_close(std::exchange(nbd_, nullptr));
    return finished.error();
  }
  if (runs_.empty() || runs_.back().end <= at) {
    return Error(ErrorCode::kProtocol,
                 "ask for the holes of " + name_ + ": the server's answer is empty");
  }
  runs_.back().end = std::min(runs_.back().end, size_);
  return {};
}

Result<Run> Connection::next_run(std::uint64_t at) {
  while (next_run_ < runs_.size() && runs_[next_run_].end <= at)
    ++next_run_;
  if (next_run_ == runs_.size()) {
    auto asked = ask_status(at);
    if (!asked) return asked.error();
  }
  return runs_[next_run_];
}

class NbdSource final : public ImportSource {
 public:
  NbdSource(std::unique_ptr<Connection> connection, std::uint64_t size)
      : connection_(std::move(connection)), size_(size) {}

  std::optional<std::uint64_t> size() const override { return size_; }

  Task<Result<std::optional<Piece>>> next(std::span<std::byte> buffer) override {
    auto piece_work = offload([this, buffer] { return read_next(buffer); });
    auto piece = co_await piece_work;
    co_return piece;
  }

 private:
  Result<std::optional<Piece>> read_next(std::span<std::byte> buffer) {
    const std::uint64_t bytes = connection_->size();
    while (position_ < bytes) {
      auto run = connection_->next_run(position_);
      if (!run) return run.error();
      if (!run->data) {
        // A chunk that is zero only in part is read whole.
        const std::uint64_t skip_to = run->end >= bytes ? bytes : round_down(run->end, kChunkSize);
        if (skip_to > position_) {
          position_ = skip_to;
          continue;
        }
      }
      Piece piece;
      piece.offset = position_;
      const std::uint64_t end =
          std::min(bytes, round_up(std::max(run->end, position_ + 1), kChunkSize));
      piece.length =
          std::min<std::uint64_t>(round_down(buffer.size(), kChunkSize), end - position_);
      auto read = connection_->read(buffer.first(piece.length), position_);
      if (!read) return read.error();
      position_ += piece.length;
      return std::optional<Piece>(piece);
    }
    return std::optional<Piece>();
  }

  std::unique_ptr<Connection> connection_;
  const std::uint64_t size_;
  std::uint64_t position_ = 0;  // a chunk boundary, or the end
};

Result<std::unique_ptr<ImportSource>> finish_source(std::unique_ptr<Connection> connection,
                                                    const std::string& name,
                                                    std::optional<std::uint64_t> grow_to) {
  auto size = import_size(connection->size(), grow_to, name);
  if (!size) return size.error();
  return std::make_unique<NbdSource>(std::move(connection), *size);
}

Result<std::unique_ptr<ImportSource>> open_uri(const std::string& uri,
                                               std::optional<std::uint64_t> grow_to) {
  auto connection = std::make_unique<Connection>(uri);
  auto connected = connection->connect_uri(uri);
  if (!connected) return connected.error();
  return finish_source(std::move(connection), uri, grow_to);
}

/// Has qemu-img look at the file first: what is wrong with it then comes in qemu's words, for of a
/// qemu-nbd that gives up libnbd only says that it hung up. And qemu-nbd reads zeros for what a
/// file that was cut off has lost; only the check of its metadata finds that.
Result<void> check_with_qemu_img(const std::string& path, const std::string& format) {
  const auto qemu_img = find_program("qemu-img");
  if (!qemu_img) return {};
  auto ran = run_program({*qemu_img, "info", "-U", "-f", format, path});
  if (!ran) return ran.error();
  const std::string what = "import from " + path + " as " + format + ": ";
  if (ran->exit_code != 0) return Error(ErrorCode::kInvalidArgument, what + ran->errors);
  auto checked = run_program({*qemu_img, "check", "-U", "-q", "-f", format, path});
  if (!checked) return checked.error();
  // 3: space that nothing uses, which loses nothing; 63: a format without a check.
  if (checked->exit_code == 0 || checked->exit_code == 3 || checked->exit_code == 63) return {};
  return Error(ErrorCode::kCorrupt,
               what + "qemu-img check finds it damaged or cut off; get a whole copy of it");
}

Result<std::unique_ptr<ImportSource>> open_qemu(const std::string& path, const std::string& format,
                                                std::optional<std::uint64_t> grow_to) {
  const auto qemu_nbd = find_program("qemu-nbd");
  if (!qemu_nbd) {
    return Error(ErrorCode::kUnsupported, "import from " + path + " as " + format +
                                              ": qemu-nbd is not installed (package qemu-utils)");
  }
  // An absolute path is no option and no qemu URL ("json:...", "nbd:...").
  char* absolute = ::realpath(path.c_str(), nullptr);
  if (absolute == nullptr) return Error::from_errno(errno, "import from " + path);
  const std::string file = absolute;
  std::free(absolute);
  auto checked = check_with_qemu_img(file, format);
  if (!checked) return checked.error();
  auto connection = std::make_unique<Connection>(path);
  auto connected =
      connection->connect_command({*qemu_nbd, "--read-only", "--format=" + format, file});
  if (!connected) return connected.error();
  return finish_source(std::move(connection), path, grow_to);
}

}  // namespace

bool is_nbd_uri(std::string_view source) noexcept {
  for (const std::string_view scheme :
       {"nbd://", "nbds://", "nbd+unix://", "nbds+unix://", "nbd+vsock://", "nbds+vsock://"}) {
    if (source.starts_with(scheme)) return true;
  }
  return false;
}

Task<Result<std::unique_ptr<ImportSource>>> make_nbd_source(std::string uri,
                                                            std::optional<std::uint64_t> grow_to) {
  auto source_work = offload([&uri, grow_to] { return open_uri(uri, grow_to); });
  auto source = co_await source_work;
  co_return source;
}

Task<Result<std::unique_ptr<ImportSource>>> make_qemu_source(std::string path, std::string format,
                                                             std::optional<std::uint64_t> grow_to) {
  auto source_work =
      offload([&path, &format, grow_to] { return open_qemu(path, format, grow_to); });
  auto source = co_await source_work;
  co_return source;
}

}  // namespace snap
