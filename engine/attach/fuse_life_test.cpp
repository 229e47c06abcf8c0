// A FuseDisk from its mount to its end: who sees it, who serves it, what ends it; and a real loop
// device with a file system made of it.
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/loop.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <mutex>
#include <set>
#include <sstream>

#include "engine/attach/fuse_requests.h"
#include "engine/attach/fuse_test_rig.h"
#include "engine/attach/loop_device.h"

namespace snap::attach {
namespace {

using namespace std::chrono_literals;

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

/// The loop device of a file, as Devices makes it, held open.
class LoopDevice {
 public:
  explicit LoopDevice(int file)
      : path_(must(make_loop_device(file, std::string(), false))),
        fd_(::open(path_.c_str(), O_RDWR | O_CLOEXEC)) {}
  ~LoopDevice() { clear(); }
  void clear() {
    if (!fd_) return;
    fd_.reset();
    must(release_loop_device(path_));
  }
  int fd() const { return fd_.get(); }
  const std::string& path() const { return path_; }
  std::uint64_t size() const {
    std::uint64_t bytes = 0;
    ::ioctl(fd_.get(), BLKGETSIZE64, &bytes);
    return bytes;
  }

 private:
  std::string path_;
  UniqueFd fd_;
};

/// What the kernel takes the size for, without asking.
std::uint64_t known_size(int fd) {
  struct statx st {};
  ::statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_SIZE, &st);
  return st.stx_size;
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
  const LoopDevice device(file.get());
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
  must(refresh_loop_size(device.path()));
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
  CHECK(loop_file(device.path()).empty());
  CHECK_FALSE(seen_in_mounts(served.temp.path()));
  CHECK(std::filesystem::is_empty(served.temp.path()));
}

}  // namespace
}  // namespace snap::attach
