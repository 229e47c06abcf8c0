// TestRig: one loop and one empty directory of a kind, so that a test makes the same claims about
// all kinds. For tests only.
#pragma once

#include <stdlib.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <stdexcept>
#include <string>

#include "engine/io/sim_disk.h"
#include "snap/event_loop.h"
#include "snap/file.h"

namespace snap {

/// A directory, by default of the real disk, that goes when the test ends.
class TempDir {
 public:
  explicit TempDir(std::filesystem::path in = std::filesystem::temp_directory_path()) {
    std::string pattern = (in / "snap-io-XXXXXX").string();
    if (::mkdtemp(pattern.data()) == nullptr) throw std::runtime_error("mkdtemp " + pattern);
    path_ = pattern;
  }
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;
  ~TempDir() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

[[noreturn]] inline void test_failed(const Error& error) {
  // An exception cannot leave a task; this ends the program with the reason on its last line.
  std::fprintf(stderr, "test needs a result and got: %s\n", error.message().c_str());
  std::abort();
}
/// The value of a result that the test takes for granted.
template <class T>
T must(Result<T> r) {
  if (!r) test_failed(r.error());
  return std::move(*r);
}
inline void must(const Result<void>& r) {
  if (!r) test_failed(r.error());
}

inline std::string text_of(std::span<const std::byte> bytes) {
  return std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size());
}
inline std::span<const std::byte> bytes_of(std::string_view s) {
  return std::as_bytes(std::span(s.data(), s.size()));
}

inline OpenFlags for_write() {
  OpenFlags flags;
  flags.write = flags.create = true;
  return flags;
}

/// A loop of the kind "threads" or "uring" with a directory of the real disk, or "simulated".
struct TestRig {
  explicit TestRig(const std::string& kind, unsigned queue_depth = 64,
                   unsigned offload_threads = LoopOptions{}.offload_threads) {
    if (kind == "simulated") {
      loop = std::make_unique<SimLoop>(7);
      root = disk.root();
      return;
    }
    LoopOptions options;
    options.kind = kind == "uring" ? LoopOptions::Kind::kUring : LoopOptions::Kind::kThreads;
    options.queue_depth = queue_depth;
    options.offload_threads = offload_threads;
    loop = must(make_event_loop(options));
    root = must(loop->run(open_directory(temp.path())));
  }
  TempDir temp;
  SimDisk disk;
  std::unique_ptr<EventLoop> loop;
  std::unique_ptr<Directory> root;
};

}  // namespace snap
