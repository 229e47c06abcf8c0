// What is read from the file that a FuseDisk serves, and what is written to it: a real mount, the
// file with O_DIRECT.
#include <fcntl.h>
#include <linux/falloc.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <random>
#include <set>

#include "engine/attach/fuse_requests.h"
#include "engine/attach/fuse_test_rig.h"

namespace snap::attach {
namespace {

Bytes random_bytes(std::mt19937_64& random, std::size_t size) {
  Bytes bytes(size);
  for (std::byte& b : bytes)
    b = static_cast<std::byte>(random());
  return bytes;
}

TEST_CASE("the file has the bytes of the export, to an uneven end") {
  const auto kind = loop_kind();
  constexpr std::uint64_t kSize = 5 * kMiB + 3 * 4096 + 1536;
  auto disk = std::make_shared<nbd::MemoryExport>("disk", kSize);
  Served served(disk, kind);
  const UniqueFd file = served.open();
  std::mt19937_64 random(7);
  const Bytes bytes = random_bytes(random, kSize);
  REQUIRE(write_at(file.get(), 0, bytes) == 0);
  CHECK(content(*disk) == bytes);
  CHECK(read_all(file.get(), kSize + 4096) == bytes);
  struct stat st {};
  REQUIRE(::fstat(file.get(), &st) == 0);
  CHECK(static_cast<std::uint64_t>(st.st_size) == kSize);

  // Across the end: a short read, a write that is refused as a whole.
  Bytes tail(4096);
  CHECK(::pread(file.get(), tail.data(), tail.size(), kSize - 512) == 512);
  CHECK(::pread(file.get(), tail.data(), tail.size(), kSize) == 0);
  CHECK(write_at(file.get(), kSize - 512, tail) == ENOSPC);
  CHECK(write_at(file.get(), kSize + kMiB, tail) == ENOSPC);
  CHECK(outcome(::ftruncate(file.get(), 0)) == EPERM);
  CHECK(content(*disk) == bytes);

  // The directory holds nothing else.
  std::set<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(served.fuse->directory()))
    names.insert(entry.path().filename());
  CHECK(names == std::set<std::string>{"snapctl:disk"});
}

TEST_CASE("what is punched or zeroed reads zero, to the last byte, and nothing else does") {
  const auto kind = loop_kind();
  constexpr std::uint64_t kSize = 2 * kMiB;
  auto disk = std::make_shared<nbd::MemoryExport>("disk", kSize);
  Served served(disk, kind);
  const UniqueFd file = served.open();
  std::mt19937_64 random(8);
  Bytes model = random_bytes(random, kSize);
  REQUIRE(write_at(file.get(), 0, model) == 0);
  const int punch = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
  struct Case {
    int mode;
    std::uint64_t at, length;
  };
  for (const Case& c :
       {Case{punch, 512, 512}, Case{punch, 5000, 100000}, Case{FALLOC_FL_ZERO_RANGE, 200704, 4096},
        Case{FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, 300000, 70001}}) {
    REQUIRE(outcome(::fallocate(file.get(), c.mode, static_cast<off_t>(c.at),
                                static_cast<off_t>(c.length))) == 0);
    std::fill_n(model.begin() + static_cast<std::ptrdiff_t>(c.at), c.length, std::byte{0});
  }
  CHECK(read_all(file.get(), kSize) == model);
  CHECK(content(*disk) == model);
  CHECK(outcome(::fallocate(file.get(), punch, kSize - 4096, kMiB)) == 0);
  std::fill_n(model.end() - 4096, 4096, std::byte{0});
  CHECK(outcome(::fallocate(file.get(), punch, 2 * kSize, kMiB)) == 0);
  CHECK(outcome(::fallocate(file.get(), FALLOC_FL_ZERO_RANGE, kSize - 4096, kMiB)) == ENOSPC);
  CHECK(outcome(::fallocate(file.get(), 0, 0, 4096)) == EOPNOTSUPP);
  CHECK(outcome(::fallocate(file.get(), FALLOC_FL_COLLAPSE_RANGE, 0, 4096)) == EOPNOTSUPP);
  CHECK(content(*disk) == model);
}

TEST_CASE("a sync reaches the export") {
  const auto kind = loop_kind();
  auto disk = std::make_shared<nbd::MemoryExport>("disk", kMiB);
  Served served(disk, kind);
  const UniqueFd file = served.open();
  CHECK(::fsync(file.get()) == 0);
  CHECK(disk->flushes() == 1);
  CHECK(::fdatasync(file.get()) == 0);
  CHECK(disk->flushes() == 2);
}

TEST_CASE("an error is the caller's alone") {
  const auto kind = loop_kind();
  auto disk = std::make_shared<nbd::MemoryExport>("disk", kMiB);
  Served served(disk, kind);
  const UniqueFd file = served.open();
  const Bytes bytes(4096, std::byte{1});
  Bytes out(4096);
  const std::pair<ErrorCode, int> kCases[] = {
      {ErrorCode::kIo, EIO},         {ErrorCode::kCorrupt, EIO},
      {ErrorCode::kNoSpace, ENOSPC}, {ErrorCode::kUnsupported, EOPNOTSUPP},
      {ErrorCode::kReadOnly, EROFS}, {ErrorCode::kOutOfMemory, ENOMEM}};
  for (const auto& [code, err] : kCases) {
    // An errno of the layers below is not handed on: ENOSYS would end all syncs for good.
    disk->set_fault(Error(code, "planted", ENOSYS));
    CHECK(write_at(file.get(), 0, bytes) == err);
    CHECK(outcome(::pread(file.get(), out.data(), out.size(), 0)) == err);
    CHECK(outcome(::fsync(file.get())) == err);
    CHECK(outcome(::fallocate(file.get(), FALLOC_FL_ZERO_RANGE, 0, 4096)) == err);
    disk->set_fault({});
    CHECK(write_at(file.get(), 0, bytes) == 0);
    CHECK(::pread(file.get(), out.data(), out.size(), 0) == 4096);
    CHECK(::fsync(file.get()) == 0);
  }
  CHECK(disk->flushes() == std::size(kCases));
  for (int code = 0; code <= static_cast<int>(ErrorCode::kProtocol); ++code) {
    CHECK(errno_of(static_cast<ErrorCode>(code)) != ENOSYS);
    CHECK(errno_of(static_cast<ErrorCode>(code)) > 0);
  }
}

TEST_CASE("a read-only export takes no writer") {
  const auto kind = loop_kind();
  auto disk = std::make_shared<nbd::MemoryExport>("disk", kMiB, true);
  Served served(disk, kind);
  const UniqueFd file = served.open();
  CHECK(read_all(file.get(), kMiB) == Bytes(kMiB));
  CHECK(write_at(file.get(), 0, Bytes(512)) == EBADF);
  const std::string path = served.fuse->directory() + "/snapctl:disk";
  CHECK(outcome(::open(path.c_str(), O_RDWR | O_CLOEXEC)) == EROFS);
}

// Each thread has a part of the disk for itself, and knows what it must hold.
struct Worker {
  Worker(int file, std::uint64_t begin, std::uint64_t length, std::uint64_t seed)
      : fd(file), base(begin), random(seed), model(length) {}

  void step() {
    // Mostly small, sometimes more than one request.
    const std::uint64_t most = random() % 8 == 0 ? model.size() : 20000;
    const std::uint64_t at = random() % model.size();
    const std::uint64_t length = 1 + random() % std::min(most, model.size() - at);
    const auto here = model.begin() + static_cast<std::ptrdiff_t>(at);
    switch (random() % 5) {
      case 0:
      case 1: {
        const Bytes bytes = random_bytes(random, length);
        if (write_at(fd, base + at, bytes) != 0) ++wrong;
        std::copy(bytes.begin(), bytes.end(), here);
        break;
      }
      case 2: {
        const int mode =
            random() % 2 == 0 ? FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE : FALLOC_FL_ZERO_RANGE;
        if (::fallocate(fd, mode, static_cast<off_t>(base + at), static_cast<off_t>(length)) != 0)
          ++wrong;
        std::fill_n(here, length, std::byte{0});
        break;
      }
      default: {
        Bytes out(length);
        const ssize_t n = ::pread(fd, out.data(), length, static_cast<off_t>(base + at));
        if (n != static_cast<ssize_t>(length) || !std::equal(out.begin(), out.end(), here)) ++wrong;
      }
    }
  }

  int fd;
  std::uint64_t base;
  std::mt19937_64 random;
  Bytes model;
  std::uint64_t wrong = 0;
};

TEST_CASE("random reads, writes and zeros of several threads agree with a model") {
  const auto kind = loop_kind();
  const unsigned loops = GENERATE(1u, 2u);
  const char* given = std::getenv("SNAP_TEST_SEED");
  const std::uint64_t seed =
      given != nullptr ? std::strtoull(given, nullptr, 10) : std::random_device()();
  INFO("SNAP_TEST_SEED=" << seed);
  constexpr std::uint64_t kPart = 3 * kMiB + 512;
  constexpr std::uint64_t kThreads = 6;
  auto disk = std::make_shared<nbd::MemoryExport>("disk", kThreads * kPart);
  disk->set_slow(true);
  Served served(disk, kind, loops);
  const UniqueFd file = served.open();
  std::vector<Worker> workers;
  for (std::uint64_t i = 0; i < kThreads; ++i)
    workers.emplace_back(file.get(), i * kPart, kPart, seed + i);
  std::vector<std::thread> threads;
  for (Worker& worker : workers)
    threads.emplace_back([&worker] {
      for (int i = 0; i < 120; ++i)
        worker.step();
    });
  for (auto& thread : threads)
    thread.join();
  Bytes model;
  for (const Worker& worker : workers) {
    CHECK(worker.wrong == 0);
    model.insert(model.end(), worker.model.begin(), worker.model.end());
  }
  CHECK(read_all(file.get(), model.size()) == model);
  CHECK(content(*disk) == model);
}

}  // namespace
}  // namespace snap::attach
