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

#include "snap/event_loop.h"
#include "snap/file.h"

namespace snap {

/// A directory of the real disk that goes when the test ends.
class TempDir {
 public:
  TempDir() {
    std::string pattern = (std::filesystem::temp_directory_path() / "snap-io-XXXXXX").string();
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

}  // namespace snap
