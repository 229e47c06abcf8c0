// The simulated disk keeps its fault model (sim_disk.h), and replace_file its promise on it.
#include <algorithm>
#include <catch2/catch.hpp>
#include <cerrno>
#include <set>
#include <string>
#include <vector>

#include "engine/io/sim_disk.h"
#include "engine/io/sync.h"
#include "engine/io/test_rig.h"

using namespace snap;

namespace {

using Files = std::map<std::string, std::vector<std::byte>>;

template <class T>
T run_on(std::uint64_t seed, Task<T> task) {
  SimLoop loop(seed);
  return loop.run(std::move(task));
}

Task<void> write_text(Directory& dir, std::string name, std::string text) {
  auto file = must(co_await dir.open(name, for_write()));
  must(co_await write_all(*file, bytes_of(text), ByteOffset(0)));
}

Task<void> write_synced(Directory& dir, std::string name, std::string text) {
  auto file = must(co_await dir.open(name, for_write()));
  must(co_await write_all(*file, bytes_of(text), ByteOffset(0)));
  must(co_await full_sync(*file));
  must(co_await dir.sync());
}

std::string visible(const SimDisk& disk, const std::string& name) {
  const Files files = disk.visible_files();
  auto found = files.find(name);
  return found == files.end() ? "(none)" : text_of(found->second);
}

// ---- Syncs

Task<void> sync_then_overwrite(Directory& dir) {
  auto file = must(co_await dir.open("f", for_write()));
  must(co_await write_all(*file, bytes_of("stable"), ByteOffset(0)));
  must(co_await file->set_mode(0640));
  must(co_await data_sync(*file));
  must(co_await dir.sync());
  must(co_await write_all(*file, bytes_of("VOLATI"), ByteOffset(0)));
  must(co_await file->truncate(3));
}

Task<Result<std::size_t>> one_op(File& file, IoOpcode opcode, std::string* text) {
  FileOp op(file, opcode, text->data(), text->size(), 0);
  auto done = co_await op;
  co_return done;
}

/// A write and a sync in flight together.
Task<void> write_beside_sync(Directory& dir) {
  auto file = must(co_await dir.open("f", for_write()));
  must(co_await dir.sync());
  std::string text = "too late";
  std::vector<Task<Result<std::size_t>>> both;
  both.push_back(one_op(*file, IoOpcode::kWrite, &text));
  both.push_back(one_op(*file, IoOpcode::kDataSync, &text));
  auto results = co_await gather(std::move(both));
  CHECK(results[0].has_value());
  CHECK(results[1].has_value());
}

// ---- Names

Task<void> three_names(Directory& dir) {
  for (const char* name : {"a", "b", "c"})
    co_await write_text(dir, name, name);
}

Task<void> move_between(Directory& root) {
  must(co_await root.make_dir("x"));
  must(co_await root.make_dir("y"));
  must(co_await root.sync());
  auto x = must(co_await root.open_dir("x"));
  auto y = must(co_await root.open_dir("y"));
  co_await write_synced(*x, "f", "content");
  must(co_await x->rename("f", *y, "g"));
}

Task<void> move_and_sync(Directory& root, std::string synced) {
  co_await move_between(root);
  auto dir = must(co_await root.open_dir(synced));
  must(co_await dir->sync());
}

// ---- Tears

Task<void> overwrite(Directory& dir, std::size_t size, unsigned value) {
  auto file = must(co_await dir.open("f", for_write()));
  std::vector<std::byte> bytes(size, static_cast<std::byte>(value));
  must(co_await write_all(*file, bytes, ByteOffset(0)));
}

Task<void> parts_of_a_sector(Directory& dir) {
  auto file = must(co_await dir.open("f", for_write()));
  must(co_await write_all(*file, bytes_of("1"), ByteOffset(100)));
  must(co_await write_all(*file, bytes_of("2"), ByteOffset(200)));
  must(co_await write_all(*file, bytes_of("3"), ByteOffset(100)));
}

Task<bool> read_beside_write(Directory& dir) {
  auto file = must(co_await dir.open("f", for_write()));
  std::string old_text(4096, 'o');
  must(co_await write_all(*file, bytes_of(old_text), ByteOffset(0)));
  std::string new_text(4096, 'n');
  std::string seen(4096, ' ');
  std::vector<Task<Result<std::size_t>>> both;
  both.push_back(one_op(*file, IoOpcode::kWrite, &new_text));
  both.push_back(one_op(*file, IoOpcode::kRead, &seen));
  auto done = co_await gather(std::move(both));
  CHECK(done[1].has_value());
  co_return seen != old_text&& seen != new_text;
}

// ---- Faults

Task<void> sync_on_handles(SimDisk& disk, Directory& root) {
  auto one = must(co_await root.open("f", for_write()));
  auto other = must(co_await root.open("f", for_write()));
  must(co_await write_all(*one, bytes_of("new"), ByteOffset(0)));
  disk.inject({SimOpKind::kDataSync, 1, EIO, 0});
  auto failed = co_await data_sync(*one);
  REQUIRE(!failed);
  auto later = must(co_await root.open("f", for_write()));
  must(co_await data_sync(*later));
  must(co_await data_sync(*one));
  auto told = other->check_writeback();
  REQUIRE(!told);
  CHECK(told.error().sys_errno() == EIO);
  must(co_await full_sync(*other));
}

Task<void> failed_sync(SimDisk& disk, Directory& dir) {
  auto file = must(co_await dir.open("f", for_write()));
  must(co_await dir.sync());
  must(co_await write_all(*file, bytes_of("old"), ByteOffset(0)));
  must(co_await data_sync(*file));
  must(co_await write_all(*file, bytes_of("new"), ByteOffset(0)));
  disk.inject({SimOpKind::kDataSync, 1, EIO});
  auto failed = co_await data_sync(*file);
  REQUIRE_FALSE(failed.has_value());
  CHECK(failed.error().code() == ErrorCode::kIo);
  auto again = co_await data_sync(*file);
  CHECK(again.has_value());  // the kernel has forgotten the pages: this is the trap
  std::vector<std::byte> got(3);
  must(co_await read_exact(*file, got, ByteOffset(0)));
  CHECK(text_of(got) == "new");
  must(co_await file->drop_cache());
  must(co_await read_exact(*file, got, ByteOffset(0)));
  CHECK(text_of(got) == "old");
}

Task<void> short_and_failed(SimDisk& disk, Directory& dir) {
  auto file = must(co_await dir.open("f", for_write()));
  disk.inject({SimOpKind::kWrite, 1, 0, 3});
  disk.inject({SimOpKind::kRead, 2, 0, 2});
  must(co_await write_all(*file, bytes_of("abcdef"), ByteOffset(0)));
  std::vector<std::byte> got(6);
  must(co_await read_exact(*file, got, ByteOffset(0)));
  must(co_await read_exact(*file, got, ByteOffset(0)));
  CHECK(text_of(got) == "abcdef");
  const auto is = [](SimOpKind kind) {
    return [kind](const SimOp& op) { return op.kind == kind; };
  };
  const auto& log = disk.log();
  CHECK(std::count_if(log.begin(), log.end(), is(SimOpKind::kWrite)) == 2);
  CHECK(std::count_if(log.begin(), log.end(), is(SimOpKind::kRead)) == 3);
  disk.inject({SimOpKind::kRename, 1, ENOSPC});
  auto renamed = co_await dir.rename("f", dir, "g");
  REQUIRE_FALSE(renamed.has_value());
  CHECK(renamed.error().code() == ErrorCode::kNoSpace);
  must(co_await dir.rename("f", dir, "g"));
}

Task<void> fill_up(Directory& dir) {
  auto file = must(co_await dir.open("f", for_write()));
  std::vector<std::byte> bytes(16384, std::byte{1});
  must(co_await write_all(*file, bytes, ByteOffset(0)));
  auto full = co_await write_all(*file, bytes, ByteOffset(16384));
  REQUIRE_FALSE(full.has_value());
  CHECK(full.error().code() == ErrorCode::kNoSpace);
  must(co_await write_all(*file, bytes, ByteOffset(0)));
  auto punched = co_await punch_hole(*file, ByteOffset(0), 4096);
  CHECK(punched.has_value());
  must(co_await write_all(*file, std::span(bytes).first(4096), ByteOffset(1u << 20)));
  auto got1 = co_await dir.space();
  CHECK(must(std::move(got1)).available == 0);
  file.reset();
  must(co_await dir.unlink("f"));
  auto got2 = co_await dir.space();
  CHECK(must(std::move(got2)).available == 16384);
}

Task<void> unaligned_direct(Directory& dir) {
  OpenFlags flags = for_write();
  flags.direct = true;
  auto file = must(co_await dir.open("f", flags));
  alignas(4096) static std::byte buffer[8192];
  must(co_await write_all(*file, std::span(buffer).first(4096), ByteOffset(4096)));
  auto offset = co_await write_all(*file, std::span(buffer).first(4096), ByteOffset(512));
  CHECK_FALSE(offset.has_value());
  auto memory = co_await write_all(*file, std::span(buffer).subspan(8, 4096), ByteOffset(0));
  CHECK_FALSE(memory.has_value());
}

Task<void> after_the_freeze(SimDisk& disk, Directory& dir) {
  auto file = must(co_await dir.open("f", for_write()));
  disk.freeze_after(1);
  must(co_await write_all(*file, bytes_of("in"), ByteOffset(0)));
  auto late = co_await write_all(*file, bytes_of("out"), ByteOffset(0));
  REQUIRE_FALSE(late.has_value());
  CHECK(late.error().sys_errno() == EIO);
  auto name = co_await dir.unlink("f");
  CHECK_FALSE(name.has_value());
  auto synced = co_await data_sync(*file);
  CHECK_FALSE(synced.has_value());
}

// ---- replace_file

using Replace = Task<Result<void>> (*)(Directory&, std::string);

Task<Result<void>> correct(Directory& dir, std::string text) {
  auto done = co_await replace_file(dir, "f", bytes_of(text));
  co_return done;
}

/// Planted bugs: the two syncs of replace_file, each left out.
Task<Result<void>> replace_badly(Directory& dir, std::string text, bool sync_bytes,
                                 bool sync_name) {
  auto file = co_await dir.open("tmp", for_write());
  if (!file) co_return file.error();
  auto written = co_await write_all(**file, bytes_of(text), ByteOffset(0));
  if (!written) co_return written.error();
  if (sync_bytes) {
    auto synced = co_await full_sync(**file);
    if (!synced) co_return synced.error();
  }
  auto renamed = co_await dir.rename("tmp", dir, "f");
  if (!renamed) co_return renamed.error();
  if (sync_name) {
    auto synced = co_await dir.sync();
    if (!synced) co_return synced.error();
  }
  co_return Result<void>();
}
Task<Result<void>> without_directory_sync(Directory& dir, std::string text) {
  auto done = co_await replace_badly(dir, text, true, false);
  co_return done;
}
Task<Result<void>> without_file_sync(Directory& dir, std::string text) {
  auto done = co_await replace_badly(dir, text, false, true);
  co_return done;
}

/// Cuts the power at each change of a replace, 20 times each: whether the file always was old or
/// new, and new once the replace had succeeded.
bool holds_promise(Replace replace) {
  const std::string old_text(3000, 'o');
  const std::string new_text(5000, 'n');
  for (std::uint64_t boundary = 0;; ++boundary) {
    bool ended = false;
    for (std::uint64_t seed = 0; seed < 20; ++seed) {
      SimDisk disk(seed);
      auto root = disk.root();
      run_on(seed, write_synced(*root, "f", old_text));
      disk.freeze_after(boundary);
      const bool done = run_on(seed, replace(*root, new_text)).has_value();
      ended = ended || (done && !disk.frozen());
      std::mt19937_64 random(seed);
      disk.crash(random);
      const std::string left = visible(disk, "f");
      if (left != new_text && (done || left != old_text)) return false;
    }
    if (ended) return true;
  }
}

// ---- Determinism

Task<Result<void>> busy_writer(File& file, std::uint64_t index) {
  std::vector<std::byte> bytes(4096, static_cast<std::byte>(index));
  for (std::uint64_t i = 0; i < 5; ++i) {
    auto written = co_await write_all(file, bytes, ByteOffset((index * 7 + i) % 20 * 2048));
    if (!written) co_return written.error();
    if (i == 2) {
      auto synced = co_await data_sync(file);
      if (!synced) co_return synced.error();
    }
  }
  co_return Result<void>();
}

Task<void> busy(Directory& root) {
  must(co_await root.make_dir("d"));
  auto dir = must(co_await root.open_dir("d"));
  auto file = must(co_await dir->open("f", for_write()));
  std::vector<Task<Result<void>>> writers;
  for (std::uint64_t i = 1; i <= 8; ++i)
    writers.push_back(busy_writer(*file, i));
  auto results = co_await gather(std::move(writers));
  for (const auto& r : results)
    CHECK(r.has_value());
  auto punched = co_await punch_hole(*file, ByteOffset(4096), 8192);
  CHECK(punched.has_value());
  must(co_await replace_file(root, "g", bytes_of("text")));
  must(co_await file->truncate(20000));
  must(co_await dir->rename("f", root, "moved"));
}

std::string story(const SimDisk& disk) {
  std::string out;
  for (const SimOp& op : disk.log()) {
    out += std::string(sim_op_name(op.kind)) + " " + op.path + " " + op.name + " " +
           std::to_string(op.offset) + "+" + std::to_string(op.length) + "\n";
  }
  return out;
}

std::string busy_story(std::uint64_t seed) {
  SimDisk disk(seed);
  auto root = disk.root();
  run_on(seed, busy(*root));
  return story(disk);
}

Task<EventLoop::Clock::duration> sleep_an_hour() {
  const auto before = EventLoop::current()->now();
  co_await Sleep(std::chrono::hours(1));
  co_return EventLoop::current()->now() - before;
}

}  // namespace

TEST_CASE("bytes that were synced stay, later ones and the mode go") {
  SimDisk disk;
  auto root = disk.root();
  run_on(1, sync_then_overwrite(*root));
  CHECK(visible(disk, "f") == "VOL");
  SECTION("when all that is volatile is lost") {
    disk.crash_all_lost();
    CHECK(visible(disk, "f") == "stable");
    root = disk.root();
    CHECK(must(run_on(1, root->stat("f"))).mode == 0600);
  }
  SECTION("unless all of it was written back") {
    disk.crash_all_kept();
    CHECK(visible(disk, "f") == "VOL");
    root = disk.root();
    CHECK(must(run_on(1, root->stat("f"))).mode == 0640);
  }
}

TEST_CASE("a sync does not cover a write that was in flight when it began") {
  for (std::uint64_t seed = 0; seed < 50; ++seed) {
    SimDisk disk(seed);
    auto root = disk.root();
    run_on(seed, write_beside_sync(*root));
    disk.crash_all_lost();
    INFO("seed " << seed);
    CHECK(visible(disk, "f").empty());
  }
}

TEST_CASE("a file whose directory was not synced is gone, though its bytes were") {
  SimDisk disk;
  auto root = disk.root();
  run_on(1, write_text(*root, "f", "text"));
  disk.crash_all_lost();
  CHECK(disk.visible_files().empty());
}

TEST_CASE("of the names of a directory a first part survives") {
  std::set<std::string> seen;
  for (std::uint64_t seed = 0; seed < 100; ++seed) {
    SimDisk disk(seed);
    auto root = disk.root();
    run_on(seed, three_names(*root));
    std::mt19937_64 random(seed);
    disk.crash(random);
    std::string names;
    for (const auto& [name, bytes] : disk.visible_files())
      names += name;
    seen.insert(names);
  }
  CHECK(seen == std::set<std::string>{"", "a", "ab", "abc"});
}

TEST_CASE("a rename between directories is in both or in neither") {
  std::set<std::string> seen;
  for (std::uint64_t seed = 0; seed < 60; ++seed) {
    SimDisk disk(seed);
    auto root = disk.root();
    run_on(seed, move_between(*root));
    std::mt19937_64 random(seed);
    disk.crash(random);
    std::string all;
    for (const auto& [name, bytes] : disk.visible_files())
      all += name + "=" + text_of(bytes) + ";";
    seen.insert(all);
  }
  CHECK(seen == std::set<std::string>{"x/f=content;", "y/g=content;"});
  for (const char* synced : {"x", "y"}) {
    SimDisk disk;
    auto root = disk.root();
    run_on(1, move_and_sync(*root, synced));
    disk.crash_all_lost();
    CHECK(visible(disk, "y/g") == "content");
    CHECK(visible(disk, "x/f") == "(none)");
  }
}

TEST_CASE("an unsynced write is kept, lost or torn between sectors") {
  bool kept = false;
  bool lost = false;
  bool torn = false;
  for (std::uint64_t seed = 0; seed < 100; ++seed) {
    INFO("seed " << seed);
    SimDisk disk(seed);
    auto root = disk.root();
    run_on(seed, write_synced(*root, "f", std::string(8192, 'o')));
    run_on(seed, overwrite(*root, 8192, 'n'));
    std::mt19937_64 random(seed);
    disk.crash(random);
    const std::string left = visible(disk, "f");
    REQUIRE(left.size() == 8192);
    std::size_t fresh = 0;
    for (std::size_t at = 0; at < left.size(); at += 512) {
      REQUIRE(left.substr(at, 512) == std::string(512, left[at]));
      fresh += left[at] == 'n';
    }
    kept = kept || fresh == 16;
    lost = lost || fresh == 0;
    torn = torn || (fresh != 0 && fresh != 16);
  }
  CHECK(kept);
  CHECK(lost);
  CHECK(torn);
}

TEST_CASE("a sector ends as a version that it had, never as a mix") {
  std::set<std::string> seen;
  for (std::uint64_t seed = 0; seed < 200; ++seed) {
    SimDisk disk(seed);
    auto root = disk.root();
    run_on(seed, write_synced(*root, "f", std::string(512, '.')));
    run_on(seed, parts_of_a_sector(*root));
    std::mt19937_64 random(seed);
    disk.crash(random);
    const std::string left = visible(disk, "f");
    seen.insert(std::string{left[100], left[200]});
  }
  CHECK(seen == std::set<std::string>{"..", "1.", "12", "32"});
}

TEST_CASE("a read beside a write sees part of it, sometimes") {
  std::size_t mixed = 0;
  for (std::uint64_t seed = 0; seed < 200; ++seed) {
    SimDisk disk(seed);
    auto root = disk.root();
    mixed += run_on(seed, read_beside_write(*root));
  }
  CHECK(mixed > 0);
  CHECK(mixed < 100);
}

TEST_CASE("what a failed sync covered is not stored by a later one") {
  SimDisk disk;
  auto root = disk.root();
  run_on(1, failed_sync(disk, *root));
  disk.crash_all_lost();
  CHECK(visible(disk, "f") == "old");
}

TEST_CASE("every handle that is open hears of a failed sync once, later ones do not") {
  SimDisk disk;
  auto root = disk.root();
  run_on(1, sync_on_handles(disk, *root));
}

TEST_CASE("injected short and failed operations come when they are due, once") {
  SimDisk disk;
  auto root = disk.root();
  run_on(1, short_and_failed(disk, *root));
}

TEST_CASE("a full disk takes overwrites and punches, and space comes back") {
  SimDisk disk;
  disk.set_space_limit(16384);
  auto root = disk.root();
  run_on(1, fill_up(*root));
}

TEST_CASE("direct I/O that is not aligned is refused") {
  SimDisk disk;
  auto root = disk.root();
  run_on(1, unaligned_direct(*root));
}

TEST_CASE("a frozen disk takes nothing, and after the cut old handles are dead") {
  SimDisk disk;
  auto root = disk.root();
  run_on(1, after_the_freeze(disk, *root));
  disk.crash_all_kept();
  CHECK(visible(disk, "f") == "in");
  CHECK_FALSE(run_on(1, root->list()).has_value());
  root = disk.root();
  CHECK(must(run_on(1, root->list())).size() == 1);
}

TEST_CASE("replace_file leaves the old bytes or the new, and the new once it has returned") {
  CHECK(holds_promise(correct));
  // The checker sees what it is for.
  CHECK_FALSE(holds_promise(without_directory_sync));
  CHECK_FALSE(holds_promise(without_file_sync));
}

TEST_CASE("the same seed gives the same run, another one another") {
  CHECK(busy_story(3) == busy_story(3));
  std::set<std::string> stories;
  for (std::uint64_t seed = 0; seed < 10; ++seed)
    stories.insert(busy_story(seed));
  CHECK(stories.size() > 5);
}

TEST_CASE("a clone and the log rebuild the disk, what is volatile and what is stable") {
  SimDisk disk(5);
  auto root = disk.root();
  const auto start = disk.clone();
  disk.record_data(true);
  run_on(5, busy(*root));
  auto rebuilt = start->clone();
  std::uint64_t boundary = 0;
  for (const SimOp& op : disk.log()) {
    rebuilt->replay(op);
    if (op.kind != SimOpKind::kRead) ++boundary;
  }
  CHECK(boundary == disk.changes());
  CHECK(rebuilt->visible_files() == disk.visible_files());
  // What is stable is the same too, for each kind of cut.
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    auto one = disk.clone();
    auto two = rebuilt->clone();
    std::mt19937_64 random_one(seed);
    std::mt19937_64 random_two(seed);
    one->crash(random_one);
    two->crash(random_two);
    CHECK(one->visible_files() == two->visible_files());
  }
}

TEST_CASE("a clone does not share what happens later") {
  SimDisk disk;
  auto root = disk.root();
  run_on(1, write_synced(*root, "f", "before"));
  auto copy = disk.clone();
  run_on(1, overwrite(*root, 6, 'x'));
  CHECK(visible(disk, "f") == "xxxxxx");
  CHECK(visible(*copy, "f") == "before");
}

TEST_CASE("an hour of simulated sleep takes no time") {
  CHECK(run_on(1, sleep_an_hour()) == std::chrono::hours(1));
}
