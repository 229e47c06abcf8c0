// A write into the page cache on the loop's own thread.
//
// io_uring hands every buffered write to a kernel worker where the file system has no NOWAIT writes
// (ext4): 15 us for what takes 4. A system call on the loop costs just these 4, but it holds up the
// loop while the kernel makes it wait: for a punch or a journal commit, or because there are too
// many dirty pages. So whoever expects no waiting says so, for a small write; and after a write
// that did wait, those of the file go to the workers again for a while.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <optional>

#include "snap/file.h"
#include "snap/limits.h"

namespace snap {

/// In the flags of a kWrite: it is brief.
inline constexpr int kBriefWrite = 1;

/// write_some(), on the loop's thread if `brief` and the file is real, for at most kMaxWritePiece.
inline FileOp write_cached(File& f, std::span<const std::byte> in, ByteOffset at, bool brief) {
  const bool fits = in.size() <= kMaxWritePiece;
  return FileOp(f, IoOpcode::kWrite, const_cast<std::byte*>(in.data()), in.size(), at.value,
                brief && fits ? kBriefWrite : 0);
}

/// Whether brief writes of a file may be done at once. Thread-safe; knows nothing at first.
class BriefWrites {
 public:
  using Clock = std::chrono::steady_clock;
  /// Runs the write; nothing if it had better go to a worker.
  std::optional<std::int64_t> run(const IoOp& op) noexcept;

 private:
  std::atomic<Clock::rep> again_{0};  ///< when the next may be tried
};

}  // namespace snap
