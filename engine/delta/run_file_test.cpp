// The note that a delta leaves for who opens it next.
#include <catch2/catch.hpp>

#include <cerrno>

#include "engine/delta/delta_test_util.h"
#include "engine/delta/fault_disk.h"
#include "engine/delta/run_file.h"
#include "engine/io/test_rig.h"

using namespace snap;

namespace {

Task<std::unique_ptr<File>> make_file(Directory* dir, std::string name) {
  co_return must(co_await dir->open(name, for_write()));
}

Task<void> flip(Directory* dir, std::uint64_t at) {
  auto run = must(co_await dir->open("run", for_write()));
  std::byte byte{};
  must(co_await read_exact(*run, std::span(&byte, 1), ByteOffset(at)));
  byte ^= std::byte{1};
  must(co_await write_all(*run, std::span(&byte, 1), ByteOffset(at)));
}

Task<void> cut(Directory* dir, std::uint64_t size) {
  auto run = must(co_await dir->open("run", for_write()));
  must(co_await run->truncate(size));
}

}  // namespace

TEST_CASE("a note says who has the delta open, or that its data file was closed on this boot") {
  TestRig rig("threads");
  Directory* dir = rig.root.get();
  const auto data = rig.loop->run(make_file(dir, "data"));
  const auto copy = rig.loop->run(make_file(dir, "copy"));
  const auto note = [&](const File& of) { return rig.loop->run(read_run(*dir, of)); };
  const auto says_nothing = [](const RunNote& n) { return !n.token && !n.closed; };
  CHECK(says_nothing(note(*data)));

  must(rig.loop->run(note_open(*dir, test_uuid(7))));
  CHECK(note(*data).token == test_uuid(7));
  CHECK_FALSE(note(*data).closed);
  // As earlier builds wrote it.
  rig.loop->run(cut(dir, 16));
  CHECK(note(*data).token == test_uuid(7));
  rig.loop->run(cut(dir, 15));
  CHECK(says_nothing(note(*data)));

  rig.loop->run(note_closed(*dir, *data));
  CHECK(note(*data).closed);
  CHECK_FALSE(note(*data).token);
  CHECK(says_nothing(note(*copy)));
  for (std::uint64_t byte = 0; byte < 64; ++byte) {
    INFO("byte " << byte);
    rig.loop->run(flip(dir, byte));
    CHECK_FALSE(note(*data).closed);
    rig.loop->run(flip(dir, byte));
    CHECK(note(*data).closed);
  }
  must(rig.loop->run(note_open(*dir, test_uuid(8))));
  CHECK_FALSE(note(*data).closed);
  CHECK(note(*data).token == test_uuid(8));

  rig.loop->run(note_closed(*dir, *data));
  rig.loop->run(cut(dir, 63));
  CHECK(says_nothing(note(*data)));
  must(rig.loop->run(remove_run(*dir)));
  CHECK(says_nothing(note(*data)));
  must(rig.loop->run(remove_run(*dir)));
}

TEST_CASE("a note of an opening is durable, or there is none") {
  TestRig rig("simulated");
  must(rig.loop->run(note_open(*rig.root, test_uuid(1))));
  must(rig.loop->run(rig.root->sync()));
  must(rig.loop->run(note_open(*rig.root, test_uuid(2))));
  rig.disk.crash_all_lost();
  const auto root = rig.disk.root();
  const auto data = rig.loop->run(make_file(root.get(), "data"));
  CHECK(rig.loop->run(read_run(*root, *data)).token == test_uuid(2));
  rig.disk.inject({SimOpKind::kDataSync, 1, EIO, 0});
  CHECK_FALSE(rig.loop->run(note_open(*root, test_uuid(3))).has_value());
}
