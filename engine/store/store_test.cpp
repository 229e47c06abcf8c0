// The store on the real disk: what it makes, finds, refuses and removes.
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <chrono>
#include <filesystem>
#include <fstream>

#include "engine/store/format_file.h"
#include "engine/store/store_test_support.h"
#include "snap/limits.h"

using namespace snap;
namespace fs = std::filesystem;

namespace {

unsigned mode_of(const std::string& path) {
  struct stat s {};
  REQUIRE(::stat(path.c_str(), &s) == 0);
  return s.st_mode & 07777;
}

std::string slurp(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(in), {});
}
void spill(const std::string& path, const std::string& text) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << text;
}

template <class T>
std::string message_of(const Result<T>& result) {
  return result ? std::string() : result.error().message();
}
template <class T>
ErrorCode code_of(const Result<T>& result) {
  REQUIRE_FALSE(result);
  return result.error().code();
}
bool holds(const std::string& text, std::string_view part) {
  return text.find(part) != std::string::npos;
}

std::size_t entries_of(const std::string& path) {
  return static_cast<std::size_t>(
      std::distance(fs::directory_iterator(path), fs::directory_iterator()));
}

std::vector<std::byte> read_volume(StoreRig& rig, Volume& volume, std::uint64_t at) {
  std::vector<std::byte> out(kBlockSize);
  must(rig.run(volume.read(ByteOffset(at), out)));
  return out;
}
std::vector<std::byte> block(std::uint8_t fill) {
  return std::vector<std::byte>(kBlockSize, static_cast<std::byte>(fill));
}

}  // namespace

TEST_CASE("a new store is closed to others, whatever the umask") {
  const mode_t old = ::umask(0);
  StoreRig rig(false);
  fs::create_directory(rig.path);
  ::chmod(rig.path.c_str(), 0777);
  rig.store = must(rig.open());
  rig.image("base:1", 7);
  rig.volume("a");
  ::umask(old);
  CHECK(mode_of(rig.path) == 0700);
  for (const auto& entry : fs::recursive_directory_iterator(rig.path)) {
    const std::string path = entry.path().string();
    const bool blob = holds(path, "/blobs/sha256/");
    const unsigned expected = entry.is_directory() ? 0700 : blob ? 0444 : 0600;
    INFO(path);
    CHECK(mode_of(path) == expected);
  }
}

TEST_CASE("a volume of an image reads the image and keeps what is written") {
  StoreRig rig;
  const Image base = rig.image("base:1", 7);
  const VolumeRecord record = rig.volume("a", base);
  CHECK(record.size == base.size);
  CHECK(record.manifest == base.manifest);
  {
    auto open = must(rig.run(rig.store->open_volume("a", Holder{})));
    CHECK(read_volume(rig, open->volume(), 0) == block(7));
    CHECK(read_volume(rig, open->volume(), kChunkSize) == block(0));
    must(rig.run(open->volume().write(ByteOffset(0), block(9), {})));
    must(rig.run(open->volume().flush()));
    must(rig.run(open->close()));
  }
  rig.store = nullptr;
  rig.store = must(rig.open());
  auto again = must(rig.run(rig.store->open_volume("a", Holder{})));
  CHECK(read_volume(rig, again->volume(), 0) == block(9));
  CHECK(read_volume(rig, again->volume(), kBlockSize) == block(7));
  must(rig.run(again->close()));
  const auto view = must(rig.run(rig.store->open_image(base)));
  CHECK(view->read_only());
  CHECK(read_volume(rig, *view, 0) == block(7));
}

TEST_CASE("opening a directory that is no store, or another's, leaves it alone") {
  StoreRig rig(false);
  fs::create_directory(rig.path);
  spill(rig.path + "/precious", "mine");
  auto refused = rig.open();
  CHECK(code_of(refused) == ErrorCode::kInvalidArgument);
  CHECK(holds(message_of(refused), "precious"));
  CHECK(entries_of(rig.path) == 1);
  fs::remove(rig.path + "/precious");
  Store::OpenOptions no_create;
  no_create.create = false;
  CHECK(code_of(rig.open(no_create)) == ErrorCode::kNotFound);
  CHECK(entries_of(rig.path) == 0);
  rig.path += "/missing";
  CHECK(code_of(rig.open(no_create)) == ErrorCode::kNotFound);
}

TEST_CASE("a store of a later release is refused, naming the release, or only read") {
  StoreRig rig;
  const Image base = rig.image("base:1", 7);
  rig.volume("a", base);
  rig.store = nullptr;
  Features features = own_features();
  features.needs = "7.8.9";
  features.incompat = 1;
  spill(rig.path + "/format", encode_format(features));
  auto refused = rig.open();
  CHECK(code_of(refused) == ErrorCode::kUnsupported);
  CHECK(holds(message_of(refused), "7.8.9"));

  features.incompat = 0;
  features.ro_compat = 2;
  spill(rig.path + "/format", encode_format(features));
  rig.store = must(rig.open());
  CHECK(must(rig.run(rig.store->images())).size() == 1);
  const auto view = must(rig.run(rig.store->open_image(base)));
  CHECK(read_volume(rig, *view, 0) == block(7));
  const auto before = slurp(rig.path + "/index.json");
  CHECK(code_of(rig.run(rig.store->tag("base:1", Reference{"x", "1"}))) == ErrorCode::kReadOnly);
  CHECK(code_of(rig.run(rig.store->remove_volume("a", false))) == ErrorCode::kReadOnly);
  CHECK(code_of(rig.run(rig.store->remove_image("base:1", true, false))) == ErrorCode::kReadOnly);
  CHECK(code_of(rig.run(rig.store->open_volume("a", Holder{}))) == ErrorCode::kReadOnly);
  CHECK(code_of(rig.run(rig.store->prune(false))) == ErrorCode::kReadOnly);
  CHECK(slurp(rig.path + "/index.json") == before);
}

TEST_CASE("a store that lost a part says which, and is not made anew") {
  StoreRig rig;
  rig.image("base:1", 7);
  for (const char* part : {"index.json", "oci-layout", "volumes", "deltas", "blobs"}) {
    rig.store = nullptr;
    fs::rename(rig.path + "/" + part, rig.temp.path() + "/kept");
    auto refused = rig.open();
    CHECK(code_of(refused) == ErrorCode::kCorrupt);
    CHECK(holds(message_of(refused), part));
    fs::rename(rig.temp.path() + "/kept", rig.path + "/" + part);
  }
  rig.store = must(rig.open());
  CHECK(must(rig.run(rig.store->images())).size() == 1);
}

TEST_CASE("a network file system is refused by name") {
  CHECK(code_of(refuse_network("/x", "nfs")) == ErrorCode::kUnsupported);
  CHECK(holds(message_of(refuse_network("/x", "cifs")), "cifs"));
  CHECK(refuse_network("/x", "ext4"));
}

TEST_CASE("info says what the file system can do") {
  StoreRig rig;
  rig.image("base:1", 7);
  rig.volume("a");
  const Store::Info info = must(rig.run(rig.store->info()));
  CHECK(info.path == rig.path);
  CHECK(info.images == 1);
  CHECK(info.volumes == 1);
  CHECK(info.locks);
  CHECK(info.rename_noreplace);
  CHECK(info.format_version == 1);
  CHECK(info.total > 0);
  CHECK_FALSE(info.file_system.empty());
}

TEST_CASE("images are found by tag and by prefix of their ID, and the nearest tag is suggested") {
  StoreRig rig;
  const Image one = rig.image("base:1", 7);
  const Image two = rig.image("r.io/team/base:2", 8);
  CHECK(must(rig.run(rig.store->image("base:1"))).id == one.id);
  CHECK(must(rig.run(rig.store->image("r.io/team/base:2"))).id == two.id);
  CHECK(must(rig.run(rig.store->image(two.id.hex().substr(0, 12)))).id == two.id);
  CHECK(must(rig.run(rig.store->image(two.id.str()))).id == two.id);
  auto other_tag = rig.run(rig.store->image("base"));
  CHECK(code_of(other_tag) == ErrorCode::kNotFound);
  CHECK(holds(message_of(other_tag), "did you mean 'base:1'?"));
  CHECK(holds(message_of(rig.run(rig.store->image("bsae:1"))), "did you mean 'base:1'?"));
  CHECK(code_of(rig.run(rig.store->image("sha256:"))) == ErrorCode::kInvalidArgument);
  CHECK(code_of(rig.run(rig.store->image(std::string(10000, 'x')))) == ErrorCode::kInvalidArgument);
}

TEST_CASE("an ID prefix that two images share is ambiguous") {
  StoreRig rig;
  std::set<char> first;
  std::string shared;
  for (int i = 1; shared.empty(); ++i) {
    REQUIRE(i < 20);
    const Image image = rig.image("base:" + std::to_string(i), static_cast<std::uint8_t>(i));
    if (!first.insert(image.id.hex()[0]).second) shared = image.id.hex().substr(0, 1);
  }
  auto ambiguous = rig.run(rig.store->image("sha256:" + shared));
  CHECK(code_of(ambiguous) == ErrorCode::kInvalidArgument);
  CHECK(holds(message_of(ambiguous), "ambiguous"));
}

TEST_CASE("a tag that moves leaves the image that had it, without a tag") {
  StoreRig rig;
  const Image one = rig.image("base:1", 7);
  const Image two = rig.image("base:1", 8);
  CHECK(must(rig.run(rig.store->image("base:1"))).id == two.id);
  const auto images = must(rig.run(rig.store->images()));
  REQUIRE(images.size() == 2);
  CHECK(must(rig.run(rig.store->image(one.id.str()))).tags.empty());
  must(rig.run(rig.store->prune(false)));
  CHECK(must(rig.run(rig.store->images())).size() == 2);
}

TEST_CASE("removing an image keeps the layers that another image has") {
  StoreRig rig;
  const Image base = rig.image("base:1", 7);
  const Image top = must(rig.run(add_image(*rig.store, "top:1", 9, ChunkIndex(3), base)));
  const auto would = must(rig.run(rig.store->remove_image("base:1", false, true)));
  CHECK(would.untagged == std::vector<std::string>{"base:1"});
  CHECK(would.freed > 0);
  CHECK(must(rig.run(rig.store->images())).size() == 2);
  const auto removed = must(rig.run(rig.store->remove_image("base:1", false, false)));
  CHECK(removed.deleted == would.deleted);
  CHECK(std::count(removed.deleted.begin(), removed.deleted.end(), base.id.str()) == 1);
  CHECK(std::count(removed.deleted.begin(), removed.deleted.end(), base.layers[0].blob.str()) == 0);
  CHECK(must(rig.run(rig.store->images())).size() == 1);
  const auto view = must(rig.run(rig.store->open_image(top)));
  CHECK(read_volume(rig, *view, 0) == block(7));
  CHECK(read_volume(rig, *view, 3 * kChunkSize) == block(9));
  must(rig.run(rig.store->remove_image("top:1", false, false)));
  CHECK(entries_of(rig.path + "/blobs/sha256") == 0);
}

TEST_CASE("an image with several tags loses one at a time, or all by force") {
  StoreRig rig;
  const Image image = rig.image("base:1", 7);
  must(rig.run(rig.store->tag("base:1", Reference{"base", "2"})));
  must(rig.run(rig.store->tag("base:1", Reference{"base", "3"})));
  CHECK(must(rig.run(rig.store->remove_image("base:1", false, false))).deleted.empty());
  auto busy = rig.run(rig.store->remove_image(image.id.hex(), false, false));
  CHECK(code_of(busy) == ErrorCode::kBusy);
  CHECK(holds(message_of(busy), "base:2, base:3"));
  const auto removed = must(rig.run(rig.store->remove_image(image.id.hex(), true, false)));
  CHECK(removed.untagged.size() == 2);
  CHECK(entries_of(rig.path + "/blobs/sha256") == 0);
}

TEST_CASE("an image that a volume uses cannot be removed, and the volume is named") {
  StoreRig rig;
  const Image base = rig.image("base:1", 7);
  rig.volume("a", base);
  auto busy = rig.run(rig.store->remove_image("base:1", true, false));
  CHECK(code_of(busy) == ErrorCode::kBusy);
  CHECK(holds(message_of(busy), "volume a"));
  must(rig.run(rig.store->tag("base:1", Reference{"base", "2"})));
  must(rig.run(rig.store->remove_image("base:1", false, false)));
  must(rig.run(rig.store->remove_volume("a", false)));
  must(rig.run(rig.store->remove_image("base:2", false, false)));
  CHECK(entries_of(rig.path + "/blobs/sha256") == 0);
  CHECK(entries_of(rig.path + "/deltas") == 0);
  CHECK(entries_of(rig.path + "/volumes") == 0);
  CHECK(entries_of(rig.path + "/tmp") == 0);
}

TEST_CASE("an image that went away between looking and creating is NotFound, with nothing left") {
  StoreRig rig;
  const Image base = rig.image("base:1", 7);
  must(rig.run(rig.store->remove_image("base:1", false, false)));
  Store::CreateOptions options;
  options.name = "a";
  options.image = base;
  CHECK(code_of(rig.run(rig.store->create_volume(options))) == ErrorCode::kNotFound);
  CHECK(entries_of(rig.path + "/volumes") == 0);
  CHECK(entries_of(rig.path + "/deltas") == 0);
}

TEST_CASE("what cannot be created is refused before anything is made") {
  StoreRig rig;
  const Image base = rig.image("base:1", 7);
  Store::CreateOptions options;
  options.name = "a";
  SECTION("no size and no image") {}
  SECTION("odd size") {
    options.size = 1000;
  }
  SECTION("too large") {
    options.size = kMaxVolumeSize + 512;
  }
  SECTION("less than the image") {
    options.image = base;
    options.size = 512;
  }
  SECTION("name with ..") {
    options.size = 512;
    options.name = "../x";
  }
  SECTION("long name") {
    options.size = 512;
    options.name = std::string(10000, 'a');
  }
  SECTION("bad label") {
    options.size = 512;
    options.labels["x"] = "\xff";
  }
  CHECK_FALSE(rig.run(rig.store->create_volume(options)));
  CHECK(entries_of(rig.path + "/volumes") == 0);
  CHECK(entries_of(rig.path + "/deltas") == 0);
}

TEST_CASE("volumes are listed, found, renamed and removed") {
  StoreRig rig;
  const VolumeRecord a = rig.volume("tomcat01");
  rig.volume("tomcat02");
  Store::CreateOptions again;
  again.name = "tomcat01";
  again.size = 512;
  CHECK(code_of(rig.run(rig.store->create_volume(again))) == ErrorCode::kExists);
  CHECK(names_of(must(rig.run(rig.store->volumes()))) ==
        std::vector<std::string>{"tomcat01", "tomcat02"});
  CHECK(must(rig.run(rig.store->volume(a.id.substr(0, 13)))).record.name == "tomcat01");
  auto missing = rig.run(rig.store->volume("tomcat1"));
  CHECK(code_of(missing) == ErrorCode::kNotFound);
  CHECK(holds(message_of(missing), "did you mean 'tomcat01'?"));
  CHECK(code_of(rig.run(rig.store->rename_volume("tomcat01", "tomcat02"))) == ErrorCode::kExists);
  CHECK(code_of(rig.run(rig.store->rename_volume("tomcat01", "../x"))) ==
        ErrorCode::kInvalidArgument);
  must(rig.run(rig.store->rename_volume("tomcat01", "web")));
  CHECK(must(rig.run(rig.store->volume("web"))).record.id == a.id);
  CHECK(must(rig.run(rig.store->remove_volume("web", true))).deleted.size() == 1);
  CHECK(names_of(must(rig.run(rig.store->volumes()))) ==
        std::vector<std::string>{"tomcat02", "web"});
  CHECK(must(rig.run(rig.store->remove_volume("web", false))).deleted ==
        std::vector<std::string>{a.delta});
  CHECK(names_of(must(rig.run(rig.store->volumes()))) == std::vector<std::string>{"tomcat02"});
  CHECK(entries_of(rig.path + "/deltas") == 1);
  CHECK(code_of(rig.run(rig.store->remove_volume("web", false))) == ErrorCode::kNotFound);
}

TEST_CASE("a delta that two volumes share goes with the last of them") {
  StoreRig rig;
  const VolumeRecord a = rig.volume("a");
  rig.volume("b");
  VolumeStore& volumes = rig.store->impl().volumes;
  auto lock = must(rig.run(volumes.lock("b", Holder{})));
  StoredVolume b = must(rig.run(volumes.read_locked(lock, "b")));
  b.record.sealed.push_back({a.delta, a.size});
  must(rig.run(volumes.replace(lock, b)));
  lock.release();
  CHECK(must(rig.run(rig.store->remove_volume("a", false))).deleted.empty());
  CHECK(must(rig.run(rig.store->prune(false))).deleted.empty());
  CHECK(must(rig.run(rig.store->remove_volume("b", false))).deleted.size() == 2);
}

TEST_CASE("a volume that is open is Busy, and is listed with its holder") {
  StoreRig rig;
  rig.volume("a");
  auto open = must(rig.run(rig.store->open_volume("a", Holder{4711, "/run/a.sock"})));
  auto second = must(rig.open());
  auto busy = rig.run(second->open_volume("a", Holder{}));
  CHECK(code_of(busy) == ErrorCode::kBusy);
  CHECK(holds(message_of(busy), "4711"));
  CHECK(code_of(rig.run(second->remove_volume("a", false))) == ErrorCode::kBusy);
  CHECK(code_of(rig.run(second->rename_volume("a", "b"))) == ErrorCode::kBusy);
  const auto summary = must(rig.run(second->volume("a")));
  REQUIRE(summary.holder);
  CHECK(summary.holder->pid == 4711);
  CHECK(summary.holder->control_socket == "/run/a.sock");
  must(rig.run(open->close()));
  CHECK_FALSE(must(rig.run(second->volume("a"))).holder);
  must(rig.run(must(rig.run(second->open_volume("a", Holder{})))->close()));
}

TEST_CASE("a process that is killed leaves the volume free and tmp to be cleaned") {
  TempDir temp;
  const std::string path = temp.path() + "/store";
  int ready[2];
  REQUIRE(::pipe(ready) == 0);
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    auto loop = must(make_event_loop());
    auto store = must(loop->run(Store::open(path, Store::OpenOptions{})));
    Store::CreateOptions options;
    options.name = "a";
    options.size = 1u << 20;
    must(loop->run(store->create_volume(options)));
    auto open = must(loop->run(store->open_volume("a", Holder{})));
    auto scratch = must(loop->run(store->impl().scratch()));
    must(loop->run(scratch.dir().open("half-written", for_write())));
    if (::write(ready[1], "x", 1) != 1) ::_exit(1);
    ::pause();
    ::_exit(0);
  }
  char byte = 0;
  REQUIRE(::read(ready[0], &byte, 1) == 1);
  StoreRig rig(false);
  rig.path = path;
  rig.store = must(rig.open());
  CHECK(entries_of(path + "/tmp") == 1);  // in use: not ours to remove
  auto busy = rig.run(rig.store->open_volume("a", Holder{}));
  CHECK(code_of(busy) == ErrorCode::kBusy);
  CHECK(holds(message_of(busy), "process " + std::to_string(child)));
  REQUIRE(::kill(child, SIGKILL) == 0);
  REQUIRE(::waitpid(child, nullptr, 0) == child);
  rig.store = nullptr;
  rig.store = must(rig.open());
  CHECK(entries_of(path + "/tmp") == 0);
  must(rig.run(must(rig.run(rig.store->open_volume("a", Holder{})))->close()));
  ::close(ready[0]);
  ::close(ready[1]);
}

TEST_CASE("damage of a config or manifest is found, whichever byte, and can be removed") {
  StoreRig rig;
  const Image image = rig.image("base:1", 7);
  rig.image("good:1", 8);
  Store::Impl& impl = rig.store->impl();
  for (const std::string& hex : {image.id.hex(), image.manifest.hex()}) {
    const std::string path = rig.path + "/blobs/sha256/" + hex;
    const std::string good = slurp(path);
    REQUIRE_FALSE(good.empty());
    ::chmod(path.c_str(), 0600);
    for (std::size_t i = 0; i <= good.size(); ++i) {
      std::string bad = good.substr(0, i);
      if (i < good.size()) {
        bad = good;
        bad[i] = static_cast<char>(bad[i] ^ (1 << (i % 8)));
      } else {
        bad.resize(i / 2);
      }
      spill(path, bad);
      ImageStore fresh(*impl.root, impl.blobs);
      auto found = rig.run(fresh.find("base:1"));
      REQUIRE(code_of(found) == ErrorCode::kCorrupt);
      REQUIRE(holds(message_of(found), hex));
    }
    spill(path, good);
  }
  spill(rig.path + "/blobs/sha256/" + image.manifest.hex(), "{}");
  auto kept = rig.run(rig.store->prune(false));
  CHECK(code_of(kept) == ErrorCode::kCorrupt);
  CHECK(holds(message_of(kept), "base:1"));
  must(rig.run(rig.store->remove_image("base:1", false, false)));
  must(rig.run(rig.store->prune(false)));
  CHECK(must(rig.run(rig.store->images())).size() == 1);
  CHECK(entries_of(rig.path + "/blobs/sha256") == 3);
}

TEST_CASE("damage of volume.json or index.json stops what relies on it and nothing is swept") {
  StoreRig rig;
  const Image base = rig.image("base:1", 7);
  rig.volume("a", base);
  rig.volume("b");
  const std::string record = rig.path + "/volumes/a/volume.json";
  const std::string good = slurp(record);
  spill(record, good.substr(0, good.size() / 2));
  CHECK(code_of(rig.run(rig.store->open_volume("a", Holder{}))) == ErrorCode::kCorrupt);
  CHECK(holds(message_of(rig.run(rig.store->volumes())), "'a'"));
  CHECK(code_of(rig.run(rig.store->prune(false))) == ErrorCode::kCorrupt);
  CHECK(code_of(rig.run(rig.store->remove_image("base:1", true, false))) == ErrorCode::kCorrupt);
  must(rig.run(must(rig.run(rig.store->open_volume("b", Holder{})))->close()));
  spill(record, good);
  must(rig.run(must(rig.run(rig.store->open_volume("a", Holder{})))->close()));

  const std::string index = slurp(rig.path + "/index.json");
  spill(rig.path + "/index.json", index.substr(0, index.size() / 2));
  CHECK(code_of(rig.run(rig.store->images())) == ErrorCode::kCorrupt);
  CHECK(code_of(rig.run(rig.store->prune(false))) == ErrorCode::kCorrupt);
  spill(rig.path + "/index.json", index);

  // A volume that is damaged for good can be removed, and what it used is then reclaimed.
  spill(record, "");
  must(rig.run(rig.store->remove_volume("a", false)));
  CHECK(must(rig.run(rig.store->prune(false))).deleted.size() == 1);
}

TEST_CASE("a chain that misses a layer or a delta says which") {
  StoreRig rig;
  const Image base = rig.image("base:1", 7);
  const VolumeRecord record = rig.volume("a", base);
  const std::string layer = rig.path + "/blobs/sha256/" + base.layers[0].blob.hex();
  fs::rename(layer, rig.temp.path() + "/kept");
  auto no_layer = rig.run(rig.store->open_volume("a", Holder{}));
  CHECK(code_of(no_layer) == ErrorCode::kCorrupt);
  CHECK(holds(message_of(no_layer), base.layers[0].blob.hex()));
  CHECK(holds(message_of(no_layer), "'a'"));
  fs::rename(rig.temp.path() + "/kept", layer);
  const std::string delta = rig.path + "/deltas/" + record.delta;
  fs::rename(delta, rig.temp.path() + "/kept");
  auto no_delta = rig.run(rig.store->open_volume("a", Holder{}));
  CHECK(code_of(no_delta) == ErrorCode::kCorrupt);
  CHECK(holds(message_of(no_delta), record.delta));
  fs::rename(rig.temp.path() + "/kept", delta);
  must(rig.run(must(rig.run(rig.store->open_volume("a", Holder{})))->close()));
}

namespace {

/// Adopts a layer and publishes it only after a pause, as a slow command would.
Task<Result<Image>> add_slowly(Store* store, Image like, std::string file, AsyncEvent* adopted) {
  Store::Impl& impl = store->impl();
  auto lock = co_await impl.lock.shared("add slowly");
  if (!lock) co_return lock.error();
  auto scratch = co_await impl.scratch();
  if (!scratch) co_return scratch.error();
  const std::string bytes = slurp(file);
  auto out = co_await scratch->dir().open("layer", for_write());
  if (!out) co_return out.error();
  auto written = co_await write_all(**out, bytes_of(bytes), ByteOffset(0));
  if (!written) co_return written.error();
  auto put = co_await impl.blobs.adopt(scratch->dir(), "layer", like.layers[0].blob);
  if (!put) co_return put.error();
  auto delta = co_await impl.volumes.create_delta(1u << 20);
  if (!delta) co_return delta.error();
  auto closed = co_await (*delta)->close();
  if (!closed) co_return closed.error();
  adopted->set();
  co_await Sleep(std::chrono::milliseconds(100));
  auto there = co_await impl.volumes.delta_allocated((*delta)->id().str());
  if (!there) co_return there.error();
  Reference slow{"slow", "1"};
  auto image = co_await impl.images.publish(like, std::move(slow));
  lock->release();
  auto removed = co_await scratch->remove();
  if (!removed) co_return removed.error();
  co_return image;
}

Task<Result<Image>> prune_meanwhile(Store* store, AsyncEvent* adopted) {
  co_await adopted->wait();
  auto pruned = co_await store->prune(false);
  if (!pruned) co_return pruned.error();
  auto image = co_await store->image("slow:1");
  co_return image;
}

Task<std::vector<Result<Image>>> add_and_prune(Store* store, Image like, std::string file) {
  AsyncEvent adopted;
  std::vector<Task<Result<Image>>> both;
  both.push_back(add_slowly(store, like, file, &adopted));
  both.push_back(prune_meanwhile(store, &adopted));
  auto results = co_await gather(std::move(both));
  co_return results;
}

}  // namespace

TEST_CASE("prune waits for a command that has stored what nothing names yet") {
  StoreRig rig;
  Image image = rig.image("base:1", 7);
  const std::string kept = rig.temp.path() + "/layer";
  fs::copy_file(rig.path + "/blobs/sha256/" + image.layers[0].blob.hex(), kept);
  must(rig.run(rig.store->remove_image("base:1", false, false)));
  CHECK(entries_of(rig.path + "/blobs/sha256") == 0);
  const auto results = rig.run(add_and_prune(rig.store.get(), image, kept));
  const Image slow = must(results[0]);
  CHECK(must(results[1]).id == slow.id);
  const auto view = must(rig.run(rig.store->open_image(slow)));
  CHECK(read_volume(rig, *view, 0) == block(7));
  // The delta, which no volume names in the end, went with the prune that had to wait.
  CHECK(entries_of(rig.path + "/deltas") == 0);
}

TEST_CASE("a sweep does not wait for ever, and names the lock") {
  StoreRig rig;
  auto held = must(rig.run(rig.store->impl().lock.shared("a long command")));
  auto waited = rig.run(
      lock_file(*rig.store->impl().root, "lock", true, "prune", std::chrono::milliseconds(30)));
  CHECK(code_of(waited) == ErrorCode::kBusy);
  CHECK(holds(message_of(waited), rig.path + "/lock"));
  held.release();
  CHECK(rig.run(rig.store->prune(false)));
}

TEST_CASE("layers and resolved maps are shared in a process while someone uses them") {
  StoreRig rig;
  const Image base = rig.image("base:1", 7);
  const Image top = must(rig.run(add_image(*rig.store, "top:1", 9, ChunkIndex(3), base)));
  ChainCache& chains = rig.store->impl().chains;
  auto one = must(rig.run(chains.stack(base.layers)));
  auto two = must(rig.run(chains.stack(base.layers)));
  auto three = must(rig.run(chains.stack(top.layers)));
  CHECK(one == two);
  CHECK(one != three);
  CHECK(one->layers()[0] == three->layers()[0]);
  const std::weak_ptr<Layer> layer = one->layers()[0];
  one = two = three = nullptr;
  CHECK(layer.expired());
}

TEST_CASE("an existing blob is never replaced, and one that differs is damage") {
  StoreRig rig;
  BlobStore& blobs = rig.store->impl().blobs;
  const auto first = must(rig.run(blobs.put("{\"a\":1}")));
  CHECK_FALSE(first.existed);
  CHECK(must(rig.run(blobs.put("{\"a\":1}"))).existed);
  const std::string path = rig.path + "/blobs/sha256/" + first.digest.hex();
  ::chmod(path.c_str(), 0600);
  spill(path, "{\"a\":2}");
  CHECK(code_of(rig.run(blobs.put("{\"a\":1}"))) == ErrorCode::kCorrupt);
  CHECK(slurp(path) == "{\"a\":2}");
  CHECK(entries_of(rig.path + "/tmp") == 0);
}

TEST_CASE("a snapshot and the chain of a volume at rest can be read") {
  StoreRig rig;
  const Image base = rig.image("base:1", 7);
  const VolumeRecord record = rig.volume("a", base);
  {
    auto open = must(rig.run(rig.store->open_volume("a", Holder{})));
    must(rig.run(open->volume().write(ByteOffset(0), block(9), {})));
    must(rig.run(open->volume().flush()));
    must(rig.run(open->close()));
  }
  auto whole = must(rig.run(rig.store->open_snapshot("a", "")));
  CHECK(whole->read_only());
  CHECK(read_volume(rig, *whole, 0) == block(9));
  CHECK(read_volume(rig, *whole, kBlockSize) == block(7));
  CHECK(code_of(rig.run(rig.store->open_volume("a", Holder{}))) == ErrorCode::kBusy);
  whole = nullptr;
  {
    // Having been read so, it takes writes as before.
    auto open = must(rig.run(rig.store->open_volume("a", Holder{})));
    must(rig.run(open->volume().write(ByteOffset(kChunkSize), block(5), {})));
    must(rig.run(open->volume().flush()));
  }
  whole = must(rig.run(rig.store->open_snapshot("a", "")));
  CHECK(read_volume(rig, *whole, kChunkSize) == block(5));
  CHECK(read_volume(rig, *whole, 0) == block(9));
  whole = nullptr;

  VolumeStore& volumes = rig.store->impl().volumes;
  auto lock = must(rig.run(volumes.lock("a", Holder{})));
  StoredVolume stored = must(rig.run(volumes.read_locked(lock, "a")));
  SnapshotRecord snapshot;
  snapshot.name = "clean";
  snapshot.size = record.size;
  snapshot.manifest = record.manifest;
  stored.record.snapshots.push_back(snapshot);
  must(rig.run(volumes.replace(lock, stored)));
  lock.release();
  const auto clean = must(rig.run(rig.store->open_snapshot("a", "clean")));
  CHECK(read_volume(rig, *clean, 0) == block(7));
  auto missing = rig.run(rig.store->open_snapshot("a", "claen"));
  CHECK(code_of(missing) == ErrorCode::kNotFound);
  CHECK(holds(message_of(missing), "did you mean 'clean'?"));
}

TEST_CASE("usage adds up, and says what sharing saves and what prune would free") {
  StoreRig rig;
  const Image base = rig.image("base:1", 7);
  must(rig.run(add_image(*rig.store, "top:1", 9, ChunkIndex(3), base)));
  rig.volume("a", base);
  const auto usage = must(rig.run(rig.store->usage()));
  CHECK(usage.shared_saving == base.stored_size());
  CHECK(usage.reclaimable == 0);
  CHECK(usage.layer_bytes >= base.stored_size());
  REQUIRE(usage.rows.size() == 3);
  must(rig.run(rig.store->impl().blobs.put("{\"nobody\":\"names it\"}")));
  const auto more = must(rig.run(rig.store->usage()));
  CHECK(more.reclaimable > 0);
  CHECK(must(rig.run(rig.store->prune(true))).freed == more.reclaimable);
  CHECK(must(rig.run(rig.store->prune(false))).freed == more.reclaimable);
  CHECK(must(rig.run(rig.store->usage())).reclaimable == 0);
}
