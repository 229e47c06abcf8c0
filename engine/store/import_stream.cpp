// A stream: standard input, a pipe, a character device. Read once, in order; its size is known at
// its end.
//
// Waiting for a slow writer happens on a helper thread and ends now and then with an empty piece,
// so that the importer can look whether it has been cancelled.
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "engine/store/import_source.h"
#include "snap/limits.h"

namespace snap {

namespace {

constexpr int kPatienceMs = 200;

struct Filled {
  std::size_t bytes = 0;
  bool ended = false;
};

/// Reads until `out` is full, the stream ends, or nothing has come for kPatienceMs.
Result<Filled> fill_from(int fd, std::span<std::byte> out, const std::string& name) {
  Filled filled;
  while (filled.bytes < out.size()) {
    pollfd waiting{fd, POLLIN, 0};
    const int ready = ::poll(&waiting, 1, kPatienceMs);
    if (ready == 0) return filled;
    if (ready < 0) {
      if (errno == EINTR) continue;
      return Error::from_errno(errno, "wait for " + name);
    }
    const ssize_t n = ::read(fd, out.data() + filled.bytes, out.size() - filled.bytes);
    if (n < 0) {
      if (errno == EINTR || errno == EAGAIN) continue;
      return Error::from_errno(errno, "read " + name);
    }
    if (n == 0) {
      filled.ended = true;
      return filled;
    }
    filled.bytes += static_cast<std::size_t>(n);
  }
  return filled;
}

class StreamSource final : public ImportSource {
 public:
  StreamSource(int fd, bool close_fd, std::string name, std::optional<std::uint64_t> grow_to)
      : fd_(fd), close_fd_(close_fd), name_(std::move(name)), grow_to_(grow_to) {}
  StreamSource(const StreamSource&) = delete;
  StreamSource& operator=(const StreamSource&) = delete;
  ~StreamSource() override {
    if (close_fd_) ::close(fd_);  // read only: there is nothing that a failure could lose
  }

  std::optional<std::uint64_t> size() const override { return size_; }

  Task<Result<std::optional<Piece>>> next(std::span<std::byte> buffer) override {
    if (size_) co_return std::optional<Piece>();
    buffer = buffer.first(round_down(buffer.size(), kChunkSize));
    const auto rest = buffer.subspan(filled_);
    auto filled_work = offload([this, rest] { return fill_from(fd_, rest, name_); });
    auto filled = co_await filled_work;
    if (!filled) co_return filled.error();
    filled_ += filled->bytes;
    if (grow_to_ && position_ + filled_ > *grow_to_) {
      co_return Error(ErrorCode::kInvalidArgument, "import from " + name_ +
                                                       ": it has more bytes than the size of " +
                                                       std::to_string(*grow_to_));
    }
    if (filled->ended) {
      auto size = import_size(position_ + filled_, grow_to_, name_);
      if (!size) co_return size.error();
      size_ = *size;
    }
    Piece piece;
    piece.offset = position_;
    if (filled_ == buffer.size() || size_) piece.length = std::exchange(filled_, 0);
    position_ += piece.length;
    if (position_ > kMaxVolumeSize) {
      co_return Error(ErrorCode::kTooLarge, "import from " + name_ +
                                                ": it has more bytes than a volume can (" +
                                                std::to_string(kMaxVolumeSize) + ")");
    }
    co_return std::optional<Piece>(piece);
  }

 private:
  const int fd_;
  const bool close_fd_;
  const std::string name_;
  const std::optional<std::uint64_t> grow_to_;
  std::uint64_t position_ = 0;  // bytes in the pieces handed out
  std::size_t filled_ = 0;      // bytes of the buffer that wait to be handed out
  std::optional<std::uint64_t> size_;
};

}  // namespace

std::unique_ptr<ImportSource> make_stream_source(int fd, bool close_fd, std::string name,
                                                 std::optional<std::uint64_t> grow_to) {
  return std::make_unique<StreamSource>(fd, close_fd, std::move(name), grow_to);
}

}  // namespace snap
