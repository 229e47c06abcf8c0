// The claims of file.h, the same ones on every kind of loop and disk.
#include <catch2/catch.hpp>
#include <cstring>
#include <string>
#include <vector>

#include "engine/io/test_rig.h"
#include "snap/file.h"

using namespace snap;

namespace {

struct Rig {
  explicit Rig(const std::string& kind) {
    LoopOptions options;
    options.kind = kind == "uring" ? LoopOptions::Kind::kUring : LoopOptions::Kind::kThreads;
    loop = must(make_event_loop(options));
    root = must(loop->run(open_directory(temp.path())));
  }
  TempDir temp;
  std::unique_ptr<EventLoop> loop;
  std::unique_ptr<Directory> root;
};

std::string text_of(std::span<const std::byte> bytes) {
  return std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size());
}
std::span<const std::byte> bytes_of(std::string_view s) {
  return std::as_bytes(std::span(s.data(), s.size()));
}

OpenFlags for_write() {
  OpenFlags flags;
  flags.write = flags.create = true;
  return flags;
}

Task<void> write_and_read_back(Directory& root) {
  auto file = must(co_await root.open("a", for_write()));
  must(co_await write_all(*file, bytes_of("hello world"), ByteOffset(5000)));
  std::vector<std::byte> got(11);
  must(co_await read_exact(*file, got, ByteOffset(5000)));
  CHECK(text_of(got) == "hello world");
  const FileStat stat = must(co_await file->stat());
  CHECK(stat.size == 5011);
  CHECK(stat.mode == 0600);
  CHECK(stat.type == FileStat::Type::kFile);
  auto synced = co_await data_sync(*file);
  CHECK(synced.has_value());
  std::vector<std::byte> rest(100);
  CHECK(must(co_await read_up_to(*file, rest, ByteOffset(5005))) == 6);
  auto beyond = co_await read_exact(*file, rest, ByteOffset(5005));
  REQUIRE_FALSE(beyond.has_value());
  CHECK(beyond.error().code() == ErrorCode::kCorrupt);
}

}  // namespace

TEST_CASE("what is written is read back, and a read past the end says where the file ends") {
  const auto* kind = GENERATE("threads", "uring");
  Rig rig(kind);
  rig.loop->run(write_and_read_back(*rig.root));
}
