// The claims of file.h, the same ones on every kind of loop and disk.
#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <cerrno>
#include <fstream>
#include <future>
#include <string>
#include <thread>
#include <vector>

#include "engine/io/cached_io.h"
#include "engine/io/durable_write.h"
#include "engine/io/sync.h"
#include "engine/io/test_rig.h"
#include "engine/io/unique_fd.h"

using namespace snap;

namespace {

#define EVERY_KIND GENERATE(as<std::string>{}, "threads", "uring", "simulated")

ErrorCode code_of(const Result<void>& r) {
  return r ? ErrorCode::kIo : r.error().code();
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
  auto full = co_await full_sync(*file);
  CHECK(full.has_value());
  std::vector<std::byte> rest(100);
  auto got1 = co_await read_up_to(*file, rest, ByteOffset(5005));
  CHECK(must(std::move(got1)) == 6);
  auto beyond = co_await read_exact(*file, rest, ByteOffset(5005));
  REQUIRE_FALSE(beyond.has_value());
  CHECK(beyond.error().code() == ErrorCode::kCorrupt);
  CHECK(beyond.error().message().find("ends at 5011") != std::string::npos);
}

Task<void> vectors(Directory& root) {
  auto file = must(co_await root.open("v", for_write()));
  std::string one = "first,";
  std::string two = "second";
  iovec parts[2] = {{one.data(), one.size()}, {two.data(), two.size()}};
  FileOp write(*file, IoOpcode::kWritev, nullptr, 0, 100);
  write.iov = parts;
  write.iov_count = 2;
  auto wrote = co_await write;
  CHECK(must(std::move(wrote)) == 12);
  std::string back1(4, ' ');
  std::string back2(8, ' ');
  iovec into[2] = {{back1.data(), 4}, {back2.data(), 8}};
  FileOp read(*file, IoOpcode::kReadv, nullptr, 0, 100);
  read.iov = into;
  read.iov_count = 2;
  auto got = co_await read;
  CHECK(must(std::move(got)) == 12);
  CHECK(back1 + back2 == "first,second");
}

Task<void> holes(Directory& root) {
  auto file = must(co_await root.open("h", for_write()));
  std::vector<std::byte> ones(1u << 20, std::byte{1});
  must(co_await write_all(*file, ones, ByteOffset(1u << 20)));
  must(co_await data_sync(*file));
  auto extent = must(co_await file->next_data(0));
  REQUIRE(extent.has_value());
  CHECK(extent->begin == 1u << 20);
  CHECK(extent->end == 2u << 20);
  const std::uint64_t before = must(co_await file->stat()).allocated;
  auto punched = co_await punch_hole(*file, ByteOffset(1u << 20), 512u << 10);
  CHECK(punched.has_value());
  extent = must(co_await file->next_data(0));
  REQUIRE(extent.has_value());
  CHECK(extent->begin == 1536u << 10);
  std::vector<std::byte> got(4096, std::byte{7});
  must(co_await read_exact(*file, got, ByteOffset(1u << 20)));
  CHECK(got == std::vector<std::byte>(4096));
  auto got2 = co_await file->stat();
  CHECK(must(std::move(got2)).size == 2u << 20);
  // Less by what was punched; some file systems hold more than was written.
  auto got3 = co_await file->stat();
  CHECK(must(std::move(got3)).allocated == before - (512u << 10));
  extent = must(co_await file->next_data(2u << 20));
  CHECK_FALSE(extent.has_value());
}

Task<void> space_ahead(Directory& root) {
  auto file = must(co_await root.open("s", for_write()));
  auto kept = co_await allocate(*file, ByteOffset(0), 64u << 10, true);
  CHECK(kept.has_value());
  auto got4 = co_await file->stat();
  CHECK(must(std::move(got4)).size == 0);
  auto got5 = co_await file->stat();
  CHECK(must(std::move(got5)).allocated == 64u << 10);
  auto grown = co_await allocate(*file, ByteOffset(0), 128u << 10, false);
  CHECK(grown.has_value());
  auto got6 = co_await file->stat();
  CHECK(must(std::move(got6)).size == 128u << 10);
  must(co_await file->truncate(1000));
  auto got7 = co_await file->stat();
  CHECK(must(std::move(got7)).size == 1000);
  must(co_await write_all(*file, bytes_of("x"), ByteOffset(999)));
  must(co_await file->truncate(500));
  must(co_await file->truncate(1000));
  std::vector<std::byte> got(1000, std::byte{7});
  must(co_await read_exact(*file, got, ByteOffset(0)));
  CHECK(got == std::vector<std::byte>(1000));
}

Task<void> opening(Directory& root) {
  auto missing = co_await root.open("nothing", OpenFlags{});
  REQUIRE_FALSE(missing.has_value());
  CHECK(missing.error().code() == ErrorCode::kNotFound);
  CHECK(missing.error().message().find("/nothing") != std::string::npos);
  OpenFlags flags = for_write();
  flags.exclusive = true;
  flags.mode = 0666;
  auto file = must(co_await root.open("f", flags));
  auto got8 = co_await file->stat();
  CHECK(must(std::move(got8)).mode == 0666);
  must(co_await write_all(*file, bytes_of("text"), ByteOffset(0)));
  auto again = co_await root.open("f", flags);
  REQUIRE_FALSE(again.has_value());
  CHECK(again.error().code() == ErrorCode::kExists);
  flags = for_write();
  flags.mode = 0400;
  auto same = must(co_await root.open("f", flags));
  auto got9 = co_await same->stat();
  CHECK(must(std::move(got9)).size == 4);
  auto got10 = co_await same->stat();
  CHECK(must(std::move(got10)).mode == 0666);  // the mode is that of a created file
  must(co_await same->set_mode(0444));
  auto got11 = co_await root.stat("f");
  CHECK(must(std::move(got11)).mode == 0444);
  flags.truncate = true;
  auto empty = must(co_await root.open("f", flags));
  auto got12 = co_await empty->stat();
  CHECK(must(std::move(got12)).size == 0);
  must(co_await root.make_dir("d", 0755));
  auto got13 = co_await root.stat("d");
  CHECK(must(std::move(got13)).mode == 0755);
  auto directory = co_await root.open("d", OpenFlags{});
  CHECK_FALSE(directory.has_value());
  auto reader = must(co_await root.open("f", OpenFlags{}));
  auto denied = co_await write_all(*reader, bytes_of("x"), ByteOffset(0));
  CHECK_FALSE(denied.has_value());
}

Task<void> locks(Directory& root) {
  auto a = must(co_await root.open("lock", for_write()));
  auto b = must(co_await root.open("lock", for_write()));
  auto got14 = co_await a->try_lock(true);
  CHECK(must(std::move(got14)));
  auto got15 = co_await b->try_lock(true);
  CHECK_FALSE(must(std::move(got15)));
  auto got16 = co_await b->try_lock(false);
  CHECK_FALSE(must(std::move(got16)));
  must(co_await a->unlock());
  auto got17 = co_await b->try_lock(false);
  CHECK(must(std::move(got17)));
  auto got18 = co_await a->try_lock(false);
  CHECK(must(std::move(got18)));
  auto got19 = co_await a->try_lock(true);
  CHECK_FALSE(must(std::move(got19)));
  b.reset();
  auto got20 = co_await a->try_lock(true);
  CHECK(must(std::move(got20)));
}

Task<void> bad_names(Directory& root) {
  const std::string names[] = {
      "", ".", "..", "a/b", "/etc", std::string("a\0b", 3), std::string(256, 'x')};
  for (const std::string& name : names) {
    INFO(name);
    auto opened = co_await root.open(name, for_write());
    REQUIRE_FALSE(opened.has_value());
    CHECK(opened.error().code() == ErrorCode::kInvalidArgument);
    auto made = co_await root.make_dir(name);
    CHECK(code_of(made) == ErrorCode::kInvalidArgument);
    auto moved = co_await root.rename("x", root, name);
    CHECK(code_of(moved) == ErrorCode::kInvalidArgument);
    auto unlinked = co_await root.unlink(name);
    CHECK(code_of(unlinked) == ErrorCode::kInvalidArgument);
    auto removed = co_await root.remove_dir(name);
    CHECK(code_of(removed) == ErrorCode::kInvalidArgument);
    auto looked = co_await root.stat(name);
    CHECK_FALSE(looked.has_value());
    auto entered = co_await root.open_dir(name);
    CHECK_FALSE(entered.has_value());
  }
}

Task<void> names(Directory& root) {
  must(co_await root.make_dir("dir"));
  auto made_again = co_await root.make_dir("dir");
  CHECK(code_of(made_again) == ErrorCode::kExists);
  auto dir = must(co_await root.open_dir("dir"));
  for (const char* name : {"b", "a", "c"}) {
    auto file = must(co_await root.open(name, for_write()));
    must(co_await write_all(*file, bytes_of(name), ByteOffset(0)));
  }
  auto entries = must(co_await root.list());
  REQUIRE(entries.size() == 4);
  CHECK(entries[0].name == "a");
  CHECK(entries[3].name == "dir");
  CHECK(entries[3].type == FileStat::Type::kDirectory);

  auto kept = co_await root.rename("a", root, "b", true);
  CHECK(code_of(kept) == ErrorCode::kExists);
  must(co_await root.rename("a", root, "b"));
  auto got21 = co_await read_whole(root, "b", 100);
  CHECK(text_of(must(std::move(got21))) == "a");
  must(co_await root.rename("b", *dir, "moved", true));
  auto got22 = co_await read_whole(*dir, "moved", 100);
  CHECK(text_of(must(std::move(got22))) == "a");
  auto gone = co_await root.stat("b");
  CHECK_FALSE(gone.has_value());
  auto missing = co_await root.rename("b", root, "z");
  CHECK(code_of(missing) == ErrorCode::kNotFound);

  auto full = co_await root.remove_dir("dir");
  CHECK(code_of(full) == ErrorCode::kExists);
  must(co_await dir->unlink("moved"));
  must(co_await dir->sync());
  must(co_await root.remove_dir("dir"));
  must(co_await root.unlink("c"));
  must(co_await root.sync());
  auto got23 = co_await root.list();
  CHECK(must(std::move(got23)).empty());
  const auto space = must(co_await root.space());
  CHECK(space.total >= space.available);
  CHECK_FALSE(space.type.empty());
}

Task<void> helpers(Directory& root) {
  must(co_await replace_file(root, "f", bytes_of("one"), 0640));
  must(co_await replace_file(root, "f", bytes_of("two and more")));
  auto got24 = co_await read_whole(root, "f", 12);
  CHECK(text_of(must(std::move(got24))) == "two and more");
  auto got25 = co_await root.stat("f");
  CHECK(must(std::move(got25)).mode == 0600);
  auto got26 = co_await root.list();
  CHECK(must(std::move(got26)).size() == 1);
  auto too_large = co_await read_whole(root, "f", 11);
  REQUIRE_FALSE(too_large.has_value());
  CHECK(too_large.error().code() == ErrorCode::kTooLarge);
  auto missing = co_await read_whole(root, "g", 11);
  REQUIRE_FALSE(missing.has_value());
  CHECK(missing.error().code() == ErrorCode::kNotFound);

  must(co_await root.make_dir("t"));
  auto t = must(co_await root.open_dir("t"));
  must(co_await t->make_dir("u"));
  auto u = must(co_await t->open_dir("u"));
  must(co_await replace_file(*u, "x", bytes_of("x")));
  must(co_await replace_file(*t, "y", bytes_of("y")));
  must(co_await remove_tree(root, "t"));
  must(co_await remove_tree(root, "f"));
  must(co_await remove_tree(root, "never was"));
  auto got27 = co_await root.list();
  CHECK(must(std::move(got27)).empty());
}

Task<Result<void>> write_then_read(File& file, std::uint64_t index) {
  std::vector<std::byte> out(4096, static_cast<std::byte>(index % 251));
  const ByteOffset at(index * 4096);
  auto written = co_await write_all(file, out, at);
  if (!written) co_return written.error();
  std::vector<std::byte> back(4096);
  auto got = co_await read_exact(file, back, at);
  if (!got) co_return got.error();
  if (back != out) co_return Error(ErrorCode::kCorrupt, "another block was read");
  co_return Result<void>();
}

Task<void> many_at_once(Directory& root) {
  auto file = must(co_await root.open("many", for_write()));
  std::vector<Task<Result<void>>> tasks;
  for (std::uint64_t i = 0; i < 3000; ++i)
    tasks.push_back(write_then_read(*file, i));
  auto results = co_await gather(std::move(tasks));
  std::size_t good = 0;
  for (const auto& r : results)
    good += r.has_value();
  CHECK(good == 3000);
}

Task<void> real_only(Directory& root, std::string path) {
  REQUIRE(::mkfifo((path + "/fifo").c_str(), 0600) == 0);
  // The open returns at once, with an error, though no one writes to the pipe.
  auto fifo = co_await root.open("fifo", OpenFlags{});
  REQUIRE_FALSE(fifo.has_value());
  CHECK(fifo.error().code() == ErrorCode::kInvalidArgument);
  auto made = must(co_await open_directory(path + "/p/q", true));
  auto got28 = co_await root.stat("p");
  CHECK(must(std::move(got28)).mode == 0700);
  auto again = must(co_await open_directory(path + "/p/q/", true));
  OpenFlags flags = for_write();
  auto file = must(co_await open_file(path + "/p/q/f", flags));
  CHECK((::fcntl(file->native_handle(), F_GETFD) & FD_CLOEXEC) != 0);
  CHECK((::fcntl(file->native_handle(), F_GETFL) & O_NONBLOCK) == 0);
  auto got29 = co_await read_whole(*made, "f", 10);
  CHECK(text_of(must(std::move(got29))).empty());
}

Task<void> now(Directory& root) {
  auto file = must(co_await root.open("n", for_write()));
  auto first = file->write_now(bytes_of("first"), ByteOffset(3));
  REQUIRE(first);
  CHECK(must(std::move(*first)) == 5);
  std::vector<std::byte> got(8, std::byte{7});
  CHECK(file->read_now(got, ByteOffset(0)));
  CHECK(text_of(got) == std::string("\0\0\0first", 8));
  CHECK_FALSE(file->read_now(got, ByteOffset(1)));  // ends before
  auto reading = must(co_await root.open("n", OpenFlags{}));
  auto second = reading->write_now(bytes_of("second"), ByteOffset(0));
  REQUIRE(second);
  CHECK_FALSE(second->has_value());
  CHECK(reading->read_now(got, ByteOffset(0)));
  CHECK(text_of(got) == std::string("\0\0\0first", 8));
}

Task<void> write_and_hint(Directory& root) {
  auto file = must(co_await root.open("w", for_write()));
  const std::vector<std::byte> ones(1u << 20, std::byte{1});
  must(co_await write_all(*file, ones, ByteOffset(0)));
  auto some = co_await start_writeback(*file, ByteOffset(64u << 10), 128u << 10);
  CHECK(some.has_value());
  must(file->check_writeback());
  must(co_await data_sync(*file));
  std::vector<std::byte> got(1u << 20);
  must(co_await read_exact(*file, got, ByteOffset(0)));
  CHECK(got == std::vector<std::byte>(1u << 20, std::byte{1}));
}

/// A pipe that is full for a while stands for a disk that keeps writers waiting.
class FullPipe {
 public:
  FullPipe() {
    int ends[2];
    REQUIRE(::pipe(ends) == 0);
    out_ = UniqueFd(ends[0]);
    in_ = UniqueFd(ends[1]);
    bytes_.resize(static_cast<std::size_t>(::fcntl(in_.get(), F_GETPIPE_SZ)));
    op_.opcode = IoOpcode::kWrite;
    op_.fd = in_.get();
    op_.buffer = bytes_.data();
    op_.length = 100;
  }
  /// A brief write that waits, for 20 ms or more.
  std::optional<std::int64_t> wait_and_write(BriefWrites& writes) {
    drain();
    REQUIRE(::write(in_.get(), bytes_.data(), bytes_.size()) == std::ssize(bytes_));
    std::thread reader([this, writer = ::gettid()] {
      while (!sleeps(writer))
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      drain();
    });
    const auto result = writes.run(op_);
    reader.join();
    return result;
  }
  std::optional<std::int64_t> write(BriefWrites& writes) {
    drain();
    return writes.run(op_);
  }

 private:
  static bool sleeps(pid_t thread) {
    std::ifstream stat("/proc/self/task/" + std::to_string(thread) + "/stat");
    const std::string text((std::istreambuf_iterator<char>(stat)), {});
    const std::size_t name_end = text.rfind(')');
    return name_end != std::string::npos && text.substr(name_end + 2, 1) == "S";
  }
  void drain() {
    pollfd look{out_.get(), POLLIN, 0};
    std::vector<std::byte> gone(bytes_.size());
    while (::poll(&look, 1, 0) > 0)
      REQUIRE(::read(out_.get(), gone.data(), gone.size()) > 0);
  }

  UniqueFd out_, in_;
  std::vector<std::byte> bytes_;
  IoOp op_;
};

void brief_writes_that_wait() {
  FullPipe pipe;
  BriefWrites writes;
  CHECK(pipe.wait_and_write(writes) == 100);
  // One may have lost the processor: only the next is looked at closely.
  CHECK(pipe.write(writes) == 100);
  CHECK(pipe.wait_and_write(writes) == 100);
  CHECK(pipe.write(writes) == std::nullopt);
  std::this_thread::sleep_for(std::chrono::milliseconds(400));
  while (pipe.write(writes) != 100)
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
}

Task<void> write_briefly(Directory& root) {
  auto file = must(co_await root.open("brief", for_write()));
  auto op = write_cached(*file, bytes_of("now"), ByteOffset(4), true);
  const std::size_t written = must(co_await op);
  CHECK(written == 3);
  auto whole = co_await read_whole(root, "brief", 10);
  CHECK(text_of(must(std::move(whole))) == std::string("\0\0\0\0now", 7));
}

Task<void> write_what_stays(Directory& root) {
  auto file = must(co_await root.open("stays", for_write()));
  must(co_await root.sync());
  const std::size_t written = must(
      co_await write_durably(*file, bytes_of("now"), ByteOffset(4), takes_durable_writes(*file)));
  CHECK(written == 3);
  auto whole = co_await read_whole(root, "stays", 10);
  CHECK(text_of(must(std::move(whole))) == std::string("\0\0\0\0now", 7));
}

Task<void> find_what_stayed(Directory& root) {
  auto whole = co_await read_whole(root, "stays", 10);
  CHECK(text_of(must(std::move(whole))) == std::string("\0\0\0\0now", 7));
}

/// The descriptor is open still when its File is gone, for the helpers have other work.
Task<void> close_without_name(Directory& root) {
  auto named = must(co_await root.open("named", for_write()));
  auto unnamed = must(co_await root.open("unnamed", for_write()));
  auto unlinking = root.unlink("unnamed");
  must(co_await std::move(unlinking));
  const int named_fd = named->native_handle();
  const int unnamed_fd = unnamed->native_handle();
  std::promise<void> release;
  std::shared_future<void> released(release.get_future());
  EventLoop::current()->offload_raw([released] { released.wait(); });
  named.reset();
  unnamed.reset();
  CHECK(::fcntl(named_fd, F_GETFD) == -1);
  CHECK(::fcntl(unnamed_fd, F_GETFD) != -1);
  release.set_value();
  auto behind = offload([] {});
  co_await behind;
  CHECK(::fcntl(unnamed_fd, F_GETFD) == -1);
}

}  // namespace

TEST_CASE("what is written is read back, and a read past the end says where the file ends") {
  TestRig rig(EVERY_KIND);
  rig.loop->run(write_and_read_back(*rig.root));
}

TEST_CASE("vectored reads and writes use all of their parts") {
  TestRig rig(EVERY_KIND);
  rig.loop->run(vectors(*rig.root));
}

TEST_CASE("a punched range is a hole that reads zero, and next_data finds what is left") {
  TestRig rig(EVERY_KIND);
  rig.loop->run(holes(*rig.root));
}

TEST_CASE("space can be taken ahead, and a file that shrinks and grows reads zero") {
  TestRig rig(EVERY_KIND);
  rig.loop->run(space_ahead(*rig.root));
}

TEST_CASE("opening obeys its flags, and modes hold whatever the umask") {
  TestRig rig(EVERY_KIND);
  const mode_t before = ::umask(077);
  rig.loop->run(opening(*rig.root));
  ::umask(before);
}

TEST_CASE("on a real disk a file is not created through a link that leads nowhere") {
  TestRig rig("threads");
  std::filesystem::create_symlink("nowhere/file", rig.temp.path() + "/link");
  const auto opened = rig.loop->run(rig.root->open("link", for_write()));
  REQUIRE_FALSE(opened);
  CHECK(opened.error().sys_errno() == ELOOP);
}

TEST_CASE("a lock excludes other handles until it is given back or its file goes") {
  TestRig rig(EVERY_KIND);
  rig.loop->run(locks(*rig.root));
}

TEST_CASE("a name that is no single component is refused by every operation") {
  TestRig rig(EVERY_KIND);
  rig.loop->run(bad_names(*rig.root));
}

TEST_CASE("names are listed in order, renamed with and without replacing, and removed") {
  TestRig rig(EVERY_KIND);
  rig.loop->run(names(*rig.root));
}

TEST_CASE("files are replaced whole, read within a limit, and trees removed") {
  TestRig rig(EVERY_KIND);
  rig.loop->run(helpers(*rig.root));
}

TEST_CASE("more operations at once than the ring has entries all complete") {
  TestRig rig(EVERY_KIND);
  rig.loop->run(many_at_once(*rig.root));
}

TEST_CASE("on a real disk pipes are refused without waiting and descriptors close on exec") {
  TestRig rig(GENERATE(as<std::string>{}, "threads", "uring"));
  rig.loop->run(real_only(*rig.root, rig.temp.path()));
}

TEST_CASE("what takes no waiting is read and written at once, or not at all") {
  TestRig rig(EVERY_KIND);
  rig.loop->run(now(*rig.root));
}

TEST_CASE("writeback may be begun for a part of a file") {
  TestRig rig(EVERY_KIND);
  rig.loop->run(write_and_hint(*rig.root));
}

TEST_CASE("a brief write is a write") {
  TestRig rig(EVERY_KIND);
  rig.loop->run(write_briefly(*rig.root));
}

TEST_CASE("a durable write is a write") {
  TestRig rig(EVERY_KIND);
  rig.loop->run(write_what_stays(*rig.root));
}

TEST_CASE("a durable write survives a power cut") {
  TestRig rig("simulated");
  rig.loop->run(write_what_stays(*rig.root));
  rig.root.reset();
  rig.disk.crash_all_lost();
  rig.root = rig.disk.root();
  rig.loop->run(find_what_stayed(*rig.root));
}

TEST_CASE("after brief writes that had to wait the next go to the loop's workers for a while") {
  brief_writes_that_wait();
}

TEST_CASE("a file that has no name any more is closed by a helper, any other at once") {
  TestRig rig(GENERATE(as<std::string>{}, "threads", "uring"), 64, 1);
  rig.loop->run(close_without_name(*rig.root));
}
