// Claims about the sources of import: every kind gives the bytes that its tool says are there,
// holes are not read, and what cannot be imported is refused with a reason.
//
// Needs qemu-utils, e2fsprogs (mke2fs, debugfs) and libnbd-dev.
#include "engine/store/import_source.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <fstream>
#include <thread>

#include "engine/base/uuid.h"
#include "engine/io/test_rig.h"
#include "engine/store/program.h"
#include "snap/limits.h"

namespace snap {
namespace {

constexpr std::uint64_t kMiB = 1u << 20;

/// What a source gave.
struct Imported {
  std::vector<std::byte> bytes;  // size() of them
  std::uint64_t read = 0;        // bytes in pieces
};

Task<Result<Imported>> read_source(ImportSource& source, std::size_t buffer_bytes) {
  Imported out;
  std::vector<std::byte> buffer(buffer_bytes);
  std::uint64_t end = 0;
  for (;;) {
    auto piece = co_await source.next(buffer);
    if (!piece) co_return piece.error();
    if (!*piece) break;
    if ((*piece)->length == 0) continue;
    const auto [offset, length] = **piece;
    if (offset % kChunkSize != 0 || offset < end || length > buffer.size())
      co_return Error(ErrorCode::kProtocol, "a piece at " + std::to_string(offset));
    end = offset + length;
    out.read += length;
    out.bytes.resize(end);
    std::copy_n(buffer.begin(), length, out.bytes.begin() + static_cast<std::ptrdiff_t>(offset));
  }
  if (!source.size() || *source.size() < end)
    co_return Error(ErrorCode::kProtocol, "no size at the end");
  out.bytes.resize(*source.size());
  co_return out;
}

Task<Result<Imported>> import_all(ImportFrom from, Directory& scratch) {
  auto source = co_await make_import_source(std::move(from), scratch);
  if (!source) co_return source.error();
  auto imported = co_await read_source(**source, 4 * kMiB);
  co_return imported;
}

struct Rig : TestRig {
  Rig() : TestRig("threads") {}
  Result<Imported> import(ImportFrom from) { return loop->run(import_all(from, *root)); }
  std::string path(const std::string& name) const { return temp.path() + "/" + name; }
};

std::vector<std::byte> pattern(std::size_t size, std::uint64_t seed) {
  std::vector<std::byte> bytes(size);
  SeededRandom random(seed);
  random.fill(bytes);
  return bytes;
}

void write_at(const std::string& path, std::uint64_t at, std::span<const std::byte> bytes) {
  const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
  REQUIRE(fd >= 0);
  REQUIRE(::pwrite(fd, bytes.data(), bytes.size(), static_cast<off_t>(at)) ==
          static_cast<ssize_t>(bytes.size()));
  ::close(fd);
}

/// A file of `size` bytes with data in a few places, and its content.
std::vector<std::byte> make_holey_file(const std::string& path, std::uint64_t size) {
  std::vector<std::byte> content(size);
  write_at(path, 0, {});
  REQUIRE(::truncate(path.c_str(), static_cast<off_t>(size)) == 0);
  std::uint64_t seed = 1;
  for (const std::uint64_t at : {std::uint64_t{4096}, 3 * kMiB + 8192, 7 * kMiB, size - 4096}) {
    const auto data = pattern(4096, seed++);
    write_at(path, at, data);
    std::copy(data.begin(), data.end(), content.begin() + static_cast<std::ptrdiff_t>(at));
  }
  return content;
}

int run(std::vector<std::string> argv) {
  const auto program = find_program(argv[0]);
  INFO(argv[0] << " is needed (packages qemu-utils, e2fsprogs)");
  REQUIRE(program);
  argv[0] = *program;
  auto result = run_program(argv);
  REQUIRE(result);
  INFO(result->errors);
  CHECK(result->exit_code == 0);
  return result->exit_code;
}

}  // namespace

TEST_CASE("a raw file is imported as it is, and its holes are not read") {
  Rig rig;
  const auto content = make_holey_file(rig.path("disk"), 16 * kMiB);
  const auto got = rig.import({.source = rig.path("disk")});
  REQUIRE(got);
  CHECK(got->bytes == content);
  CHECK(got->read <= 4 * kChunkSize);
}

TEST_CASE("a file larger than the buffer comes in pieces that meet on chunk boundaries") {
  Rig rig;
  const auto content = pattern(9 * kMiB + 3 * 4096, 5);
  write_at(rig.path("disk"), 0, content);
  const auto got = rig.import({.source = rig.path("disk"), .format = "raw"});
  REQUIRE(got);
  CHECK(got->bytes == content);
}

TEST_CASE("a file that is cut while it is imported is refused, also where its hole begins") {
  Rig rig;
  const std::string path = rig.path("disk");
  write_at(path, 0, pattern(kMiB, 5));
  write_at(path, 8 * kMiB, pattern(kMiB, 6));
  auto source = must(rig.loop->run(make_import_source({.source = path}, *rig.root)));
  std::vector<std::byte> buffer(4 * kMiB);
  const auto first = must(rig.loop->run(source->next(buffer)));
  REQUIRE(first);
  CHECK(first->length == kMiB);
  REQUIRE(::truncate(path.c_str(), static_cast<off_t>(kMiB)) == 0);
  const auto next = rig.loop->run(source->next(buffer));
  REQUIRE_FALSE(next);
  INFO(next.error().message());
  CHECK(next.error().message().find("it was cut") != std::string::npos);
}

TEST_CASE("an odd size is padded with zeros to a whole sector") {
  Rig rig;
  auto content = pattern(kMiB + 77, 6);
  write_at(rig.path("disk"), 0, content);
  const auto got = rig.import({.source = rig.path("disk")});
  REQUIRE(got);
  content.resize(kMiB + 512);
  CHECK(got->bytes == content);
}

TEST_CASE("an image may be made larger than its source, and not smaller") {
  Rig rig;
  auto content = pattern(kMiB, 6);
  write_at(rig.path("disk"), 0, content);
  const auto got = rig.import({.source = rig.path("disk"), .size = 3 * kMiB});
  REQUIRE(got);
  content.resize(3 * kMiB);
  CHECK(got->bytes == content);
  const auto small = rig.import({.source = rig.path("disk"), .size = 4096});
  REQUIRE_FALSE(small);
  CHECK(small.error().code() == ErrorCode::kInvalidArgument);
}

TEST_CASE("what cannot be imported is refused with a reason") {
  Rig rig;
  write_at(rig.path("empty"), 0, {});
  write_at(rig.path("full"), 0, pattern(4096, 1));
  const auto refused = [&rig](ImportFrom from, ErrorCode code, const std::string& word) {
    const auto got = rig.import(from);
    REQUIRE_FALSE(got);
    INFO(got.error().message());
    CHECK(got.error().code() == code);
    CHECK(got.error().message().find(word) != std::string::npos);
  };
  refused({.source = rig.path("empty")}, ErrorCode::kInvalidArgument, "empty");
  refused({.source = rig.path("nothing")}, ErrorCode::kNotFound, "nothing");
  refused({.source = rig.path("full"), .format = "../x"}, ErrorCode::kInvalidArgument, "format");
  refused({.source = rig.path("full"), .format = "qcow2"}, ErrorCode::kInvalidArgument, "qcow2");
  refused({.source = rig.path("full"), .format = "nosuchformat"}, ErrorCode::kInvalidArgument,
          "nosuchformat");
  refused({.source = rig.path("full"), .size = kMaxVolumeSize + 4096}, ErrorCode::kTooLarge,
          "more than");
  refused({.source = "nbd+unix:///?socket=" + rig.path("none")}, ErrorCode::kNotFound, "none");
}

TEST_CASE("a file without read permission is refused") {
  if (::geteuid() == 0) {
    // Root reads everything: try as nobody, in a child.
    Rig rig;
    write_at(rig.path("secret"), 0, pattern(4096, 1));
    REQUIRE(::chmod(rig.path("secret").c_str(), 0) == 0);
    REQUIRE(::chmod(rig.temp.path().c_str(), 0755) == 0);
    const pid_t child = ::fork();
    if (child == 0) {
      if (::setuid(65534) != 0) ::_exit(9);
      auto loop = must(make_event_loop({.kind = LoopOptions::Kind::kThreads}));
      auto file = loop->run(open_file(rig.path("secret"), OpenFlags{}));
      ::_exit(!file && file.error().code() == ErrorCode::kPermission ? 0 : 1);
    }
    int status = 0;
    REQUIRE(::waitpid(child, &status, 0) == child);
    CHECK(WEXITSTATUS(status) == 0);
    return;
  }
  Rig rig;
  write_at(rig.path("secret"), 0, pattern(4096, 1));
  REQUIRE(::chmod(rig.path("secret").c_str(), 0) == 0);
  const auto got = rig.import({.source = rig.path("secret")});
  REQUIRE_FALSE(got);
  CHECK(got.error().code() == ErrorCode::kPermission);
}

TEST_CASE("a pipe is read to its end, however the writer cuts it up") {
  Rig rig;
  const auto content = pattern(5 * kMiB + 512, 7);
  std::array<int, 2> ends{};
  REQUIRE(::pipe2(ends.data(), O_CLOEXEC) == 0);
  std::thread writer([&content, &ends] {
    std::size_t at = 0;
    for (std::size_t piece = 1; at < content.size(); piece = piece * 3 + 1) {
      const std::size_t n = std::min({piece, content.size() - at, std::size_t{100000}});
      const ssize_t done = ::write(ends[1], content.data() + at, n);
      if (done <= 0) break;
      at += static_cast<std::size_t>(done);
    }
    ::close(ends[1]);
  });
  auto source = make_stream_source(ends[0], true, "the pipe", std::nullopt);
  const auto got = rig.loop->run(read_source(*source, kMiB));
  writer.join();
  REQUIRE(got);
  CHECK(got->bytes == content);
}

TEST_CASE("a pipe that brings more than the size that was asked for is refused on its way") {
  Rig rig;
  std::array<int, 2> ends{};
  REQUIRE(::pipe2(ends.data(), O_CLOEXEC) == 0);
  auto source = make_stream_source(ends[0], true, "the pipe", kBlockSize);
  const auto content = pattern(2 * kBlockSize, 7);
  REQUIRE(::write(ends[1], content.data(), content.size()) == static_cast<ssize_t>(content.size()));
  std::vector<std::byte> buffer(kMiB);
  const auto piece = rig.loop->run(source->next(buffer));  // the writer has not ended
  ::close(ends[1]);
  REQUIRE_FALSE(piece);
  CHECK(piece.error().code() == ErrorCode::kInvalidArgument);
  CHECK(piece.error().message().find("more bytes than the size") != std::string::npos);
}

TEST_CASE("a pipe that stays silent gives an empty piece, so that a cancel is seen") {
  Rig rig;
  std::array<int, 2> ends{};
  REQUIRE(::pipe2(ends.data(), O_CLOEXEC) == 0);
  auto source = make_stream_source(ends[0], true, "the pipe", std::nullopt);
  std::vector<std::byte> buffer(kMiB);
  const auto piece = rig.loop->run(source->next(buffer));
  ::close(ends[1]);
  REQUIRE(piece);
  REQUIRE(*piece);
  CHECK((*piece)->length == 0);
  const auto got = rig.loop->run(read_source(*source, kMiB));
  REQUIRE_FALSE(got);
  CHECK(got.error().message().find("empty") != std::string::npos);
}

TEST_CASE("a directory becomes an ext4 file system with its files in it") {
  Rig rig;
  std::filesystem::create_directories(rig.path("tree/sub"));
  const auto content = pattern(300000, 8);
  write_at(rig.path("tree/sub/file"), 0, content);
  std::filesystem::create_symlink("sub/file", rig.path("tree/link"));
  std::filesystem::create_hard_link(rig.path("tree/sub/file"), rig.path("tree/again"));
  const auto got = rig.import({.source = rig.path("tree")});
  REQUIRE(got);
  CHECK(got->read < got->bytes.size() / 4);
  write_at(rig.path("fs"), 0, got->bytes);
  run({"e2fsck", "-fn", rig.path("fs")});
  run({"debugfs", "-R", "dump /sub/file " + rig.path("out"), rig.path("fs")});
  std::ifstream out(rig.path("out"), std::ios::binary);
  std::string copy(std::istreambuf_iterator<char>(out), {});
  CHECK(copy == text_of(content));
  // Nothing is left in scratch.
  for (const auto& entry : std::filesystem::directory_iterator(rig.temp.path()))
    CHECK(entry.path().extension() != ".ext4");
}

TEST_CASE("a directory that there is no room for is refused before it is written anywhere") {
  Rig rig;
  std::filesystem::create_directories(rig.path("tree"));
  write_at(rig.path("tree/file"), 0, pattern(9 * kMiB, 8));
  std::uint64_t asked = 0;
  bool named = false;
  const auto got =
      rig.import({.source = rig.path("tree"), .room = [&](std::uint64_t bytes) {
                    asked = bytes;
                    for (const auto& entry : std::filesystem::directory_iterator(rig.temp.path()))
                      named = named || entry.path().extension() == ".ext4";
                    return Result<void>(Error(ErrorCode::kNoSpace, "no room"));
                  }});
  REQUIRE_FALSE(got);
  CHECK(got.error().code() == ErrorCode::kNoSpace);
  CHECK(asked >= 9 * kMiB);
  CHECK(asked <= 10 * kMiB);
  // What is written there does not count as part of the store either.
  CHECK_FALSE(named);
}

TEST_CASE("a file system that is asked to be too small for its tree says so") {
  Rig rig;
  std::filesystem::create_directories(rig.path("tree"));
  write_at(rig.path("tree/file"), 0, pattern(9 * kMiB, 8));
  const auto got = rig.import({.source = rig.path("tree"), .size = 8 * kMiB});
  REQUIRE_FALSE(got);
  INFO(got.error().message());
  CHECK(got.error().message().find("enough") != std::string::npos);
  for (const auto& entry : std::filesystem::directory_iterator(rig.temp.path()))
    CHECK(entry.path().extension() != ".ext4");
}

TEST_CASE("disk images of qemu's formats are recognised and read through qemu-nbd") {
  Rig rig;
  const auto content = make_holey_file(rig.path("raw"), 16 * kMiB);
  for (const std::string format : {"qcow2", "vmdk", "vhdx", "vdi", "vpc"}) {
    INFO(format);
    std::vector<std::string> argv{"qemu-img", "convert", "-f", "raw", "-O", format};
    // vpc rounds sizes to its geometry unless told not to.
    if (format == "vpc") argv.insert(argv.end(), {"-o", "force_size"});
    argv.insert(argv.end(), {rig.path("raw"), rig.path(format)});
    REQUIRE(run(argv) == 0);
    const auto got = rig.import({.source = rig.path(format)});
    if (!got) FAIL(got.error().message());
    CHECK(got->bytes == content);
    // The others allocate in blocks of megabytes.
    if (format == "qcow2" || format == "vmdk") CHECK(got->read < 4 * kMiB);
  }
}

TEST_CASE("a qcow2 image that names a backing file needs its format to be given") {
  Rig rig;
  const auto content = make_holey_file(rig.path("base"), 16 * kMiB);
  REQUIRE(run({"qemu-img", "create", "-f", "qcow2", "-F", "raw", "-b", rig.path("base"),
               rig.path("top")}) == 0);
  const auto refused = rig.import({.source = rig.path("top")});
  REQUIRE_FALSE(refused);
  CHECK(refused.error().message().find("--format qcow2") != std::string::npos);
  const auto got = rig.import({.source = rig.path("top"), .format = "qcow2"});
  REQUIRE(got);
  CHECK(got->bytes == content);
}

TEST_CASE("an NBD server is read by its URI") {
  Rig rig;
  const auto content = make_holey_file(rig.path("raw"), 16 * kMiB + 512);
  const std::string socket = rig.path("sock");
  const auto program = find_program("qemu-nbd");
  REQUIRE(program);
  const pid_t child = ::fork();
  if (child == 0) {
    ::execl(program->c_str(), "qemu-nbd", "-r", "-f", "raw", "-k", socket.c_str(),
            rig.path("raw").c_str(), nullptr);
    ::_exit(9);
  }
  for (int i = 0; i < 500 && !std::filesystem::exists(socket); ++i)
    ::usleep(10000);
  auto got = rig.import({.source = "nbd+unix:///?socket=" + socket});
  // The socket is there a moment before the server listens on it.
  for (int i = 0; i < 500 && !got; ++i) {
    if (got.error().message().find("refused") == std::string::npos) break;
    ::usleep(10000);
    got = rig.import({.source = "nbd+unix:///?socket=" + socket});
  }
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
  if (!got) FAIL(got.error().message());
  CHECK(got->bytes == content);
  CHECK(got->read < 4 * kMiB);
}

}  // namespace snap
