// The store on the real disk: what it makes, finds, refuses and removes.
#include "engine/store/store_test_support.h"

#include <sys/stat.h>

#include <catch2/catch.hpp>
#include <filesystem>
#include <fstream>

#include "engine/store/format_file.h"
#include "snap/limits.h"

using namespace snap;
namespace fs = std::filesystem;

namespace {

unsigned mode_of(const std::string& path) {
  struct stat s {};
  REQUIRE(::stat(path.c_str(), &s) == 0);
  return s.st_mode & 07777;
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
  features.incompat = 1u << 5;
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
