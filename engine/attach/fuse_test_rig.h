// A FuseDisk with the loops that serve it, for its tests.
//
// They need root, /dev/fuse and loop devices (packages fuse3, e2fsprogs, util-linux) and fail
// without. Whoever uses the file blocks, so every loop that serves it has a thread of its own.
#pragma once

#include <unistd.h>

#include <atomic>
#include <catch2/catch.hpp>
#include <cerrno>
#include <chrono>
#include <memory>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "engine/attach/fuse_disk.h"
#include "engine/io/test_rig.h"
#include "engine/nbd/memory_export.h"

namespace snap::attach {

using Bytes = std::vector<std::byte>;

inline constexpr std::uint64_t kMiB = 1u << 20;

inline LoopOptions::Kind loop_kind() {
  const bool uring = GENERATE(true, false);
  return uring ? LoopOptions::Kind::kUring : LoopOptions::Kind::kThreads;
}

/// A disk with loops that serve it, each on a thread.
class Served {
 public:
  Served(std::shared_ptr<nbd::Export> disk, LoopOptions::Kind kind, unsigned loops = 1)
      : fuse(must(FuseDisk::mount(std::move(disk), temp.path()))) {
    for (unsigned i = 0; i < loops; ++i) {
      LoopOptions options;
      options.kind = kind;
      loops_.push_back(must(make_event_loop(options)));
      threads_.emplace_back([this, loop = loops_.back().get()] {
        loop->run(fuse->serve());
        ++ended_;
      });
    }
  }
  ~Served() {
    fuse->stop();
    for (auto& thread : threads_)
      thread.join();
  }
  bool has_ended() const { return ended_ == threads_.size(); }
  /// Within 10 s.
  bool ends() const {
    for (int i = 0; i < 10000 && !has_ended(); ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    return has_ended();
  }
  UniqueFd open() { return must(fuse->open_file()); }

  TempDir temp;
  std::unique_ptr<FuseDisk> fuse;

 private:
  std::vector<std::unique_ptr<EventLoop>> loops_;
  std::vector<std::thread> threads_;
  std::atomic<std::size_t> ended_{0};
};

/// What the export itself gives.
inline Bytes content(nbd::Export& disk) {
  auto loop = must(make_event_loop({.kind = LoopOptions::Kind::kThreads}));
  Bytes bytes(disk.size());
  must(loop->run(disk.read(ByteOffset(0), bytes)));
  return bytes;
}

inline Bytes read_all(int fd, std::uint64_t size) {
  Bytes bytes(size);
  std::size_t done = 0;
  while (done < size) {
    const ssize_t n = ::pread(fd, bytes.data() + done, size - done, static_cast<off_t>(done));
    if (n <= 0) break;
    done += static_cast<std::size_t>(n);
  }
  bytes.resize(done);
  return bytes;
}

/// 0 or the errno.
inline int outcome(ssize_t result) {
  return result < 0 ? errno : 0;
}
inline int write_at(int fd, std::uint64_t at, const Bytes& bytes) {
  const ssize_t n = ::pwrite(fd, bytes.data(), bytes.size(), static_cast<off_t>(at));
  if (n >= 0 && static_cast<std::size_t>(n) != bytes.size()) return EBADMSG;
  return outcome(n);
}

}  // namespace snap::attach
