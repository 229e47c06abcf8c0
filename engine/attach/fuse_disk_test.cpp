// A FuseDisk as its users meet it: a real mount, the file with O_DIRECT, a real loop device.
//
// Needs root, /dev/fuse and loop devices (packages fuse3, e2fsprogs, util-linux) and fails without.
// Whoever uses the file blocks, so the loop that serves it has a thread of its own.
#include "engine/attach/fuse_disk.h"

#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <linux/loop.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

#include <atomic>
#include <catch2/catch.hpp>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iostream>
#include <random>
#include <set>
#include <sstream>
#include <thread>

#include "engine/attach/fuse_requests.h"
#include "engine/io/test_rig.h"
#include "engine/nbd/memory_export.h"

namespace snap::attach {
namespace {

using Bytes = std::vector<std::byte>;
using namespace std::chrono_literals;

constexpr std::uint64_t kMiB = 1u << 20;

LoopOptions::Kind loop_kind() {
  const bool uring = GENERATE(true, false);
  return uring ? LoopOptions::Kind::kUring : LoopOptions::Kind::kThreads;
}

/// A disk in memory that can grow, and knows which threads have asked it.
class GrowingExport final : public nbd::Export {
 public:
  explicit GrowingExport(std::uint64_t size)
      : memory_("disk", std::uint64_t{1} << 40), size_(size) {}

  void grow(std::uint64_t size) { size_ = size; }
  std::size_t threads() {
    std::lock_guard guard(lock_);
    return threads_.size();
  }

  const std::string& name() const noexcept override { return memory_.name(); }
  const std::string& description() const noexcept override { return memory_.description(); }
  std::uint64_t size() const noexcept override { return size_; }
  bool read_only() const noexcept override { return false; }
  Task<Result<void>> read(ByteOffset at, std::span<std::byte> out) override {
    {
      std::lock_guard guard(lock_);
      threads_.insert(std::this_thread::get_id());
    }
    return memory_.read(at, out);
  }
  Task<Result<void>> write(ByteOffset at, std::span<const std::byte> bytes,
                           Volume::WriteOptions options) override {
    return memory_.write(at, bytes, options);
  }
  Task<Result<void>> write_zeroes(ByteOffset at, std::uint64_t length,
                                  Volume::ZeroOptions options) override {
    return memory_.write_zeroes(at, length, options);
  }
  Task<Result<void>> trim(ByteOffset at, std::uint64_t length,
                          Volume::WriteOptions options) override {
    return memory_.trim(at, length, options);
  }
  Task<Result<void>> flush() override { return memory_.flush(); }
  Task<Result<std::vector<Extent>>> extents(ByteOffset at, std::uint64_t length,
                                            std::size_t max) override {
    return memory_.extents(at, length, max);
  }
  Task<Result<void>> prefetch(ByteOffset at, std::uint64_t length) override {
    return memory_.prefetch(at, length);
  }

 private:
  nbd::MemoryExport memory_;
  std::atomic<std::uint64_t> size_;
  std::mutex lock_;
  std::set<std::thread::id> threads_;
};

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
      std::this_thread::sleep_for(1ms);
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

Bytes random_bytes(std::mt19937_64& random, std::size_t size) {
  Bytes bytes(size);
  for (std::byte& b : bytes)
    b = static_cast<std::byte>(random());
  return bytes;
}

/// What the export itself gives.
Bytes content(nbd::Export& disk) {
  auto loop = must(make_event_loop({.kind = LoopOptions::Kind::kThreads}));
  Bytes bytes(disk.size());
  must(loop->run(disk.read(ByteOffset(0), bytes)));
  return bytes;
}

Bytes read_all(int fd, std::uint64_t size) {
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
int outcome(ssize_t result) {
  return result < 0 ? errno : 0;
}
int write_at(int fd, std::uint64_t at, const Bytes& bytes) {
  const ssize_t n = ::pwrite(fd, bytes.data(), bytes.size(), static_cast<off_t>(at));
  if (n >= 0 && static_cast<std::size_t>(n) != bytes.size()) return EBADMSG;
  return outcome(n);
}

std::string text_of_file(const std::string& path) {
  std::ifstream in(path);
  std::stringstream text;
  text << in.rdbuf();
  return text.str();
}

bool seen_in_mounts(const std::string& text) {
  return text_of_file("/proc/self/mountinfo").find(text) != std::string::npos;
}

int run(const std::string& command) {
  INFO(command);
  const std::string log = "/tmp/snap-fuse-test." + std::to_string(::getpid());
  const int status = std::system((command + " >" + log + " 2>&1").c_str());
  if (status != 0) std::cerr << command << "\n" << text_of_file(log);
  ::unlink(log.c_str());
  return status;
}

class LoopDevice {
 public:
  explicit LoopDevice(int file) {
    const UniqueFd control(::open("/dev/loop-control", O_RDWR | O_CLOEXEC));
    REQUIRE(control);
    // Another process may take the free one first.
    for (int attempt = 0; attempt < 20 && path_.empty(); ++attempt) {
      const int number = ::ioctl(control.get(), LOOP_CTL_GET_FREE);
      REQUIRE(number >= 0);
      const std::string path = "/dev/loop" + std::to_string(number);
      fd_ = UniqueFd(::open(path.c_str(), O_RDWR | O_CLOEXEC));
      REQUIRE(fd_);
      loop_config config{};
      config.fd = static_cast<std::uint32_t>(file);
      config.info.lo_flags = LO_FLAGS_DIRECT_IO;
      if (::ioctl(fd_.get(), LOOP_CONFIGURE, &config) == 0) path_ = path;
    }
    REQUIRE_FALSE(path_.empty());
  }
  ~LoopDevice() { clear(); }
  void clear() {
    if (fd_) ::ioctl(fd_.get(), LOOP_CLR_FD);
    fd_.reset();
  }
  int fd() const { return fd_.get(); }
  const std::string& path() const { return path_; }
  std::uint64_t size() const {
    std::uint64_t bytes = 0;
    ::ioctl(fd_.get(), BLKGETSIZE64, &bytes);
    return bytes;
  }

 private:
  UniqueFd fd_;
  std::string path_;
};

/// What the kernel takes the size for, without asking.
std::uint64_t known_size(int fd) {
  struct statx st {};
  ::statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_SIZE, &st);
  return st.stx_size;
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

TEST_CASE("after hide nothing is seen, and the last descriptor ends the session") {
  const auto kind = loop_kind();
  auto disk = std::make_shared<nbd::MemoryExport>("disk", kMiB);
  Served served(disk, kind, 2);
  UniqueFd file = served.open();
  const std::string directory = served.fuse->directory();
  struct stat st {};
  CHECK(seen_in_mounts(directory));
  must(served.fuse->hide());
  CHECK_FALSE(seen_in_mounts(directory));
  CHECK(std::filesystem::is_empty(served.temp.path()));
  must(served.fuse->hide());

  CHECK(write_at(file.get(), 0, Bytes(8192, std::byte{3})) == 0);
  UniqueFd second(::dup(file.get()));
  file.reset();
  CHECK(::fstat(second.get(), &st) == 0);
  CHECK_FALSE(served.has_ended());
  second.reset();
  CHECK(served.ends());
  must(served.fuse->refresh_size());
  CHECK(content(*disk)[8191] == std::byte{3});
}

TEST_CASE("a file system that is destroyed while it is mounted leaves nothing") {
  TempDir temp;
  std::string directory;
  {
    auto disk = std::make_shared<nbd::MemoryExport>("disk", kMiB);
    auto fuse = must(FuseDisk::mount(disk, temp.path()));
    directory = fuse->directory();
    CHECK(seen_in_mounts(directory));
  }
  CHECK_FALSE(seen_in_mounts(directory));
  CHECK(std::filesystem::is_empty(temp.path()));
}

TEST_CASE("a mount that fails says why and leaves nothing") {
  auto disk = std::make_shared<nbd::MemoryExport>("disk", kMiB);
  TempDir temp;
  auto nowhere = FuseDisk::mount(disk, temp.path() + "/none");
  REQUIRE_FALSE(nowhere);
  CHECK(nowhere.error().code() == ErrorCode::kNotFound);
  std::filesystem::permissions(temp.path(), std::filesystem::perms::all);
  REQUIRE(::seteuid(65534) == 0);
  auto denied = FuseDisk::mount(disk, temp.path());
  REQUIRE(::seteuid(0) == 0);
  REQUIRE_FALSE(denied);
  CHECK(denied.error().code() == ErrorCode::kPermission);
  CHECK(denied.error().message().find("root") != std::string::npos);
  CHECK(std::filesystem::is_empty(temp.path()));
}

TEST_CASE("stop lets what is in flight finish, and cuts off the rest") {
  const auto kind = loop_kind();
  auto disk = std::make_shared<nbd::MemoryExport>("disk", 64 * kMiB);
  Served served(disk, kind);
  const UniqueFd file = served.open();
  // More than a lane has buffers for: the rest stays in the kernel and ends with the session.
  constexpr std::size_t kReaders = 80;
  disk->hold_reads();
  std::atomic<std::size_t> read{0}, refused{0}, other{0};
  std::vector<std::thread> readers;
  for (std::size_t i = 0; i < kReaders; ++i)
    readers.emplace_back([&, i] {
      Bytes out(4096);
      const int err =
          outcome(::pread(file.get(), out.data(), out.size(), static_cast<off_t>(i * out.size())));
      ++(err == 0 ? read : err == ENOTCONN || err == ECONNABORTED ? refused : other);
    });
  for (int i = 0; i < 10000 && disk->reading() < 64; ++i)
    std::this_thread::sleep_for(1ms);
  CHECK(disk->reading() == 64);
  served.fuse->stop();
  std::this_thread::sleep_for(100ms);
  CHECK_FALSE(served.has_ended());
  disk->let_reads_go();
  CHECK(served.ends());
  for (auto& reader : readers)
    reader.join();
  CHECK(read == 64);
  CHECK(refused == kReaders - 64);
  CHECK(other == 0);
  Bytes out(4096);
  CHECK(outcome(::pread(file.get(), out.data(), out.size(), 0)) == ENOTCONN);
}

TEST_CASE("a loop that is shut down ends the session") {
  const auto kind = loop_kind();
  auto disk = std::make_shared<nbd::MemoryExport>("disk", kMiB);
  TempDir temp;
  auto fuse = must(FuseDisk::mount(disk, temp.path()));
  LoopOptions options;
  options.kind = kind;
  auto loop = must(make_event_loop(options));
  std::thread thread([&] { loop->run(fuse->serve()); });
  const UniqueFd file = must(fuse->open_file());
  loop->shutdown();
  thread.join();
  CHECK(outcome(::fsync(file.get())) == ENOTCONN);
  loop->run(fuse->serve());  // has nothing to do any more
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
  const char* given = std::getenv("SEED");
  const std::uint64_t seed =
      given != nullptr ? std::strtoull(given, nullptr, 10) : std::random_device()();
  INFO("seed " << seed << "; again: SEED=" << seed << " build/engine/attach/attach_fuse_test");
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

TEST_CASE("every loop that serves a disk gets requests") {
  const auto kind = loop_kind();
  auto disk = std::make_shared<GrowingExport>(kMiB);
  Served served(disk, kind, 2);
  const UniqueFd file = served.open();
  std::vector<std::thread> readers;
  for (int i = 0; i < 4; ++i)
    readers.emplace_back([&] {
      Bytes out(65536);
      for (int n = 0; n < 20000 && disk->threads() < 2; ++n)
        if (::pread(file.get(), out.data(), out.size(), 0) < 0) break;
    });
  for (auto& reader : readers)
    reader.join();
  CHECK(disk->threads() == 2);
}

TEST_CASE("a size that grows is known at once, whatever is in flight") {
  const auto kind = loop_kind();
  auto disk = std::make_shared<GrowingExport>(kMiB);
  Served served(disk, kind, 2);
  const UniqueFd file = served.open();
  must(served.fuse->hide());
  LoopDevice device(file.get());
  CHECK(device.size() == kMiB);
  std::atomic<bool> enough{false};
  std::atomic<std::uint64_t> done{0}, wrong{0};
  std::vector<std::thread> load;
  for (int i = 0; i < 3; ++i)
    load.emplace_back([&, i] {
      Bytes bytes(4096, std::byte{9});
      while (!enough) {
        if (write_at(file.get(), static_cast<std::uint64_t>(i) * 4096, bytes) != 0) ++wrong;
        if (::pread(file.get(), bytes.data(), bytes.size(), 8 * 4096) != 4096) ++wrong;
        ++done;
      }
    });
  std::uint64_t size = kMiB;
  std::uint64_t unknown = 0;
  for (int i = 0; i < 200 || done < 200; ++i) {
    size += i % 2 == 0 ? 512 : 65536;
    disk->grow(size);
    must(served.fuse->refresh_size());
    if (known_size(file.get()) != size) ++unknown;
  }
  CHECK(unknown == 0);
  enough = true;
  for (auto& thread : load)
    thread.join();
  CHECK(wrong == 0);
  CHECK(::ioctl(device.fd(), LOOP_SET_CAPACITY) == 0);
  CHECK(device.size() == size);
  const Bytes bytes(512, std::byte{5});
  CHECK(write_at(file.get(), size - 512, bytes) == 0);
  Bytes out(512);
  CHECK(::pread(device.fd(), out.data(), out.size(), static_cast<off_t>(size - 512)) == 512);
  CHECK(out == bytes);
}

TEST_CASE("a file system lives on a loop device of it, and nothing is left afterwards") {
  const auto kind = loop_kind();
  auto disk = std::make_shared<nbd::MemoryExport>("disk", 64 * kMiB);
  Served served(disk, kind);
  UniqueFd file = served.open();
  LoopDevice device(file.get());
  file.reset();
  must(served.fuse->hide());
  loop_info64 info{};
  REQUIRE(::ioctl(device.fd(), LOOP_GET_STATUS64, &info) == 0);
  CHECK((info.lo_flags & LO_FLAGS_DIRECT_IO) != 0);

  TempDir mount_point;
  const std::string& at = mount_point.path();
  REQUIRE(run("mkfs.ext4 -q " + device.path()) == 0);
  REQUIRE(run("mount " + device.path() + " " + at) == 0);
  CHECK(run("dd if=/dev/urandom of=" + at + "/a bs=1M count=20 conv=fsync") == 0);
  CHECK(run("cp " + at + "/a " + at + "/b && sync -f " + at) == 0);
  CHECK(run("rm " + at + "/b && sync -f " + at + " && fstrim -v " + at) == 0);
  CHECK(run("sh -c 'cd " + at + " && sha1sum a >sum'") == 0);
  REQUIRE(run("umount " + at) == 0);
  const auto flushes = disk->flushes();
  CHECK(flushes > 0);
  CHECK(run("e2fsck -fn " + device.path()) == 0);
  // What was removed and trimmed reads zero: 20 MiB of random bytes are left, not 40.
  const Bytes bytes = content(*disk);
  std::uint64_t used = 0;
  for (std::size_t b = 0; b < bytes.size(); b += 4096)
    if (std::any_of(bytes.begin() + static_cast<std::ptrdiff_t>(b),
                    bytes.begin() + static_cast<std::ptrdiff_t>(b + 4096),
                    [](std::byte v) { return v != std::byte{0}; }))
      used += 4096;
  CHECK(used >= 20 * kMiB);
  CHECK(used < 30 * kMiB);
  REQUIRE(run("mount -o ro " + device.path() + " " + at) == 0);
  CHECK(run("sh -c 'cd " + at + " && sha1sum -c sum'") == 0);
  CHECK(run("umount " + at) == 0);

  device.clear();
  CHECK(served.ends());
  CHECK_FALSE(
      std::filesystem::exists("/sys/block/" + device.path().substr(5) + "/loop/backing_file"));
  CHECK_FALSE(seen_in_mounts(served.temp.path()));
  CHECK(std::filesystem::is_empty(served.temp.path()));
}

}  // namespace
}  // namespace snap::attach
