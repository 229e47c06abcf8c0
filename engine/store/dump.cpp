// See dump.h. Reading runs one buffer ahead of writing.
#include "engine/store/dump.h"

#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <vector>

#include "engine/base/checksum.h"
#include "engine/io/sync.h"

namespace snap {

namespace {

constexpr std::uint64_t kBufferBytes = 1u << 20;
constexpr std::size_t kExtentsAtOnce = 4096;
constexpr std::uint64_t kExtentBytes = std::uint64_t{1} << 40;  // looked at in one go
constexpr int kPatienceMs = 200;

/// What a dump is written to.
class Sink {
 public:
  virtual ~Sink() = default;
  virtual Task<Result<void>> data(std::uint64_t at, std::span<const std::byte> bytes) = 0;
  virtual Task<Result<void>> zeros(std::uint64_t at, std::uint64_t length) = 0;
};

/// Pieces of the volume in order: data that has been read, or zeros.
class VolumeReader {
 public:
  explicit VolumeReader(Volume& volume) : volume_(volume) {}

  struct Piece {
    std::uint64_t at = 0;
    std::uint64_t length = 0;
    bool data = false;
  };
  /// The next piece, at most `max` bytes if it is data; length 0 at the end.
  Task<Result<Piece>> next(std::uint64_t max) {
    if (position_ == volume_.size()) co_return Piece{};
    if (next_ == extents_.size()) {
      const std::uint64_t length = std::min(kExtentBytes, volume_.size() - position_);
      auto more = co_await volume_.extents(ByteOffset(position_), length, kExtentsAtOnce);
      if (!more) co_return more.error();
      extents_ = std::move(*more);
      next_ = 0;
    }
    const Extent& extent = extents_[next_];
    const std::uint64_t end = extent.offset.value + extent.length;
    Piece piece{position_, end - position_, extent.data};
    if (piece.data) piece.length = std::min(piece.length, max);
    position_ += piece.length;
    if (position_ == end) ++next_;
    co_return piece;
  }

 private:
  Volume& volume_;
  std::uint64_t position_ = 0;
  std::vector<Extent> extents_;
  std::size_t next_ = 0;
};

struct Buffer {
  VolumeReader::Piece piece;
  std::vector<std::byte> bytes = std::vector<std::byte>(kBufferBytes);
  Result<void> result;
};

Task<void> fill(Volume& volume, VolumeReader& reader, Buffer& buffer, WaitGroup& reading) {
  auto piece = co_await reader.next(kBufferBytes);
  if (!piece) {
    buffer.result = piece.error();
  } else {
    buffer.piece = *piece;
    if (piece->data) {
      buffer.result =
          co_await volume.read(ByteOffset(piece->at), std::span(buffer.bytes).first(piece->length));
    }
  }
  reading.done();
}

Task<Result<void>> drain(Buffer& buffer, Sink& sink) {
  const auto& piece = buffer.piece;
  const auto bytes = std::span(buffer.bytes).first(piece.data ? piece.length : 0);
  Result<void> written;
  if (piece.data && !is_zero(bytes)) {
    written = co_await sink.data(piece.at, bytes);
  } else {
    written = co_await sink.zeros(piece.at, piece.length);
  }
  co_return written;
}

Task<Result<void>> copy(Volume& volume, Sink& sink, const Progress& progress) {
  VolumeReader reader(volume);
  std::array<Buffer, 2> buffers;
  WaitGroup reading;
  reading.add();
  co_await fill(volume, reader, buffers[0], reading);
  for (std::size_t current = 0;; current ^= 1) {
    Buffer& buffer = buffers[current];
    if (!buffer.result) co_return buffer.result.error();
    if (buffer.piece.length == 0) co_return Result<void>();
    if (progress.is_cancelled()) co_return Error(ErrorCode::kCancelled, "dump: cancelled");
    reading.add();
    EventLoop::current()->spawn(fill(volume, reader, buffers[current ^ 1], reading));
    auto written = co_await drain(buffer, sink);
    co_await reading.wait();  // it uses what lives here, so also on failure
    if (!written) co_return written.error();
    progress.tell("dump", buffer.piece.at + buffer.piece.length, volume.size());
  }
}

class FileSink final : public Sink {
 public:
  FileSink(File& out, bool reads_zero) : out_(out), reads_zero_(reads_zero) {}

  Task<Result<void>> data(std::uint64_t at, std::span<const std::byte> bytes) override {
    auto written = co_await write_all(out_, bytes, ByteOffset(at));
    co_return written;
  }

  Task<Result<void>> zeros(std::uint64_t at, std::uint64_t length) override {
    if (reads_zero_) co_return Result<void>();
    auto whole = co_await punch(at, length);
    if (!whole) co_return whole.error();
    if (*whole) co_return Result<void>();
    // A device has no hole that ends within one of its sectors, which may be larger than ours.
    std::uint64_t punched = length - std::min(length, (at + length) % kBlockSize);
    auto most = co_await punch(at, punched);
    if (!most) co_return most.error();
    if (!*most) punched = 0;
    const std::vector<std::byte> zeros(std::min(length - punched, kBufferBytes));
    for (std::uint64_t done = punched; done < length; done += zeros.size()) {
      const auto piece =
          std::span(zeros).first(std::min<std::uint64_t>(zeros.size(), length - done));
      auto written = co_await write_all(out_, piece, ByteOffset(at + done));
      if (!written) co_return written.error();
    }
    co_return Result<void>();
  }

 private:
  /// False: the range cannot become a hole.
  Task<Result<bool>> punch(std::uint64_t at, std::uint64_t length) {
    if (!can_punch_ || length == 0) co_return false;
    auto punched = co_await punch_hole(out_, ByteOffset(at), length);
    if (punched) co_return true;
    if (punched.error().sys_errno() == EINVAL) co_return false;
    if (punched.error().sys_errno() != EOPNOTSUPP) co_return punched.error();
    can_punch_ = false;
    co_return false;
  }

  File& out_;
  const bool reads_zero_;  // wherever nothing is written
  bool can_punch_ = true;
};

/// Writes all, waiting for the reader in steps; false if nothing could be written for kPatienceMs.
Result<std::size_t> write_some_to(int fd, std::span<const std::byte> bytes) {
  for (;;) {
    pollfd waiting{fd, POLLOUT, 0};
    const int ready = ::poll(&waiting, 1, kPatienceMs);
    if (ready == 0) return std::size_t{0};
    if (ready < 0) {
      if (errno == EINTR) continue;
      return Error::from_errno(errno, "dump to the stream");
    }
    // A pipe that polls writable takes PIPE_BUF bytes without blocking; more may block until the
    // reader has taken them.
    const ssize_t n = ::write(fd, bytes.data(), bytes.size());
    if (n >= 0) return static_cast<std::size_t>(n);
    if (errno != EINTR && errno != EAGAIN) return Error::from_errno(errno, "dump to the stream");
  }
}

class StreamSink final : public Sink {
 public:
  StreamSink(int fd, const Progress& progress) : fd_(fd), progress_(progress) {}

  Task<Result<void>> data(std::uint64_t, std::span<const std::byte> bytes) override {
    while (!bytes.empty()) {
      const int fd = fd_;
      auto work = offload([fd, bytes] { return write_some_to(fd, bytes); });
      auto written = co_await work;
      if (!written) co_return written.error();
      if (progress_.is_cancelled()) co_return Error(ErrorCode::kCancelled, "dump: cancelled");
      bytes = bytes.subspan(*written);
    }
    co_return Result<void>();
  }

  Task<Result<void>> zeros(std::uint64_t at, std::uint64_t length) override {
    if (zeros_.empty()) zeros_.resize(kBufferBytes);
    for (std::uint64_t done = 0; done < length;) {
      const auto piece =
          std::span(zeros_).first(std::min<std::uint64_t>(zeros_.size(), length - done));
      auto written = co_await data(at + done, piece);
      if (!written) co_return written.error();
      done += piece.size();
    }
    co_return Result<void>();
  }

 private:
  const int fd_;
  const Progress& progress_;
  std::vector<std::byte> zeros_;
};

}  // namespace

Task<Result<void>> dump_to_file(Volume& volume, File& out, Progress progress) {
  auto stat = co_await out.stat();
  if (!stat) co_return stat.error();
  const bool regular = stat->type == FileStat::Type::kFile;
  if (regular) {
    // Emptied first: what is not written afterwards reads zero.
    for (const std::uint64_t size : {std::uint64_t{0}, volume.size()}) {
      auto sized = co_await out.truncate(size);
      if (!sized) co_return sized.error();
    }
  } else if (stat->size < volume.size()) {
    co_return Error(ErrorCode::kNoSpace, "dump to " + out.path() + ": it has " +
                                             std::to_string(stat->size) + " bytes, the volume " +
                                             std::to_string(volume.size()));
  }
  FileSink sink(out, regular);
  auto copied = co_await copy(volume, sink, progress);
  if (!copied) co_return copied.error().with_context("dump to " + out.path());
  auto synced = co_await full_sync(out);
  if (!synced) co_return synced.error();
  co_return Result<void>();
}

Task<Result<void>> dump_to_stream(Volume& volume, int fd, Progress progress) {
  StreamSink sink(fd, progress);
  auto copied = co_await copy(volume, sink, progress);
  co_return copied;
}

}  // namespace snap
