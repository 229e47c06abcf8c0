// Reads and writes of the page cache on the loop's own thread.
//
// The ring costs such a request more than the copy it is for: a cached read is another turn of the
// loop, and every buffered write goes to a kernel worker where the file system has no NOWAIT writes
// (ext4): 15 us for what takes 4. A system call on the loop costs just these 4.
//
// A read says that it will not wait (RWF_NOWAIT). A write cannot: it holds up the loop while the
// kernel makes it wait, for a punch or a journal commit, or because there are too many dirty pages.
// So whoever expects no waiting says so, for a small write; and after writes that did wait, those
// of the file go to the workers again for a while.
//
// What is long had better be copied by another processor, while this one sees to what else has
// come.
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
/// In the flags of a kRead: its bytes are likely to be in the page cache.
inline constexpr int kCachedRead = 1;
/// It is so long that another processor had better copy it.
inline constexpr int kLongRead = 2;
inline constexpr std::size_t kLongBytes = 64u << 10;

/// write_some(), on the loop's thread if `brief` and the file is real, for at most kMaxWritePiece.
inline FileOp write_cached(File& f, std::span<const std::byte> in, ByteOffset at, bool brief) {
  const bool fits = in.size() <= kMaxWritePiece;
  return FileOp(f, IoOpcode::kWrite, const_cast<std::byte*>(in.data()), in.size(), at.value,
                brief && fits ? kBriefWrite : 0);
}

/// read_some(). Of a real file, a short one is done on the loop's thread if the bytes, or some of
/// them, are in the page cache; with io_uring a long one by a kernel worker.
inline FileOp read_cached(File& f, std::span<std::byte> out, ByteOffset at) {
  const bool is_long = out.size() >= kLongBytes;
  return FileOp(f, IoOpcode::kRead, out.data(), out.size(), at.value,
                is_long ? kLongRead : kCachedRead);
}

/// Whether brief writes of a file may be done at once. Thread-safe; knows nothing at first.
///
/// A write that takes long may have waited, or just have lost the processor to others: so one of a
/// few milliseconds only has those after it watched for a while, at the price of two more system
/// calls each.
class BriefWrites {
 public:
  using Clock = std::chrono::steady_clock;
  /// Runs the write; nothing if it had better go to a worker.
  std::optional<std::int64_t> run(const IoOp& op) noexcept;

 private:
  std::atomic<Clock::rep> again_{0};          ///< when the next may be tried
  std::atomic<Clock::rep> watched_until_{0};  ///< until then it is asked whether they waited
};

}  // namespace snap
