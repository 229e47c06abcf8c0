// Claims about save and load: what one store saves another reads, layers that are there are
// skipped, and a file that is cut, damaged or hostile leaves the store as it was.
#include <archive.h>
#include <archive_entry.h>

#include <array>
#include <cstdio>
#include <filesystem>
#include <fstream>

#include "engine/store/ops_test_support.h"
#include "engine/store/program.h"

namespace snap {
namespace {

std::string read_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(in), {});
}

void write_file(const std::string& path, std::string_view text) {
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  out << text;
  REQUIRE(out.good());
}

/// A store with base:1 and app:1 of two layers, and room for files beside it.
struct Saved {
  Saved() : rig("threads") {
    model.bytes = random_bytes(kTestSize, 1);
    rig.import("base:1", model.bytes);
    base = model.bytes;
    rig.create("v", image_of(rig, "base:1"));
    auto volume = rig.open("v");
    SeededRandom random(3);
    must(rig.run(mutate_often(volume->volume(), model, random, 6)));
    rig.commit(*volume, "app:1");
    rig.close(std::move(volume));
  }
  std::string path(const std::string& name) const { return files.path() + "/" + name; }
  void save(std::vector<std::string> images, const std::string& file) {
    must(rig.run(rig.store->save(std::move(images), file, Progress{})));
  }
  StoreRig rig;
  Model model;
  Bytes base;
  TempDir files;
};

struct Told {
  std::vector<std::pair<BlobDigest, bool>> layers;
  std::function<void(const BlobDigest&, bool)> on_layer() {
    return [this](const BlobDigest& digest, bool existed) { layers.emplace_back(digest, existed); };
  }
};

Result<Store::Loaded> load(StoreRig& rig, const std::string& file) {
  return rig.run(rig.store->load(file, Progress{}, {}));
}

/// Nothing is in the store, and nothing is left of the attempt.
void check_empty(StoreRig& rig) {
  CHECK(must(rig.run(rig.store->images())).empty());
  CHECK(rig.entries({"blobs", "sha256"}).empty());
  CHECK(rig.entries({"tmp"}).empty());
}

struct TarEntry {
  std::string name;
  std::string text;
  unsigned type = AE_IFREG;
  std::string link;
};

std::string sha(std::string_view text) {
  return to_hex(sha256(bytes_of(text)));
}

/// A tar of the given entries, hostile if they are.
void make_tar(const std::string& path, const std::vector<TarEntry>& entries) {
  struct archive* tar = archive_write_new();
  archive_write_set_format_pax_restricted(tar);
  REQUIRE(archive_write_open_filename(tar, path.c_str()) == ARCHIVE_OK);
  for (const TarEntry& e : entries) {
    struct archive_entry* entry = archive_entry_new();
    archive_entry_set_pathname(entry, e.name.c_str());
    archive_entry_set_filetype(entry, e.type);
    archive_entry_set_perm(entry, 0644);
    archive_entry_set_size(entry, static_cast<la_int64_t>(e.text.size()));
    if (!e.link.empty() && e.type == AE_IFLNK) archive_entry_set_symlink(entry, e.link.c_str());
    if (!e.link.empty() && e.type != AE_IFLNK) archive_entry_set_hardlink(entry, e.link.c_str());
    archive_write_header(tar, entry);
    archive_write_data(tar, e.text.data(), e.text.size());
    archive_entry_free(entry);
  }
  archive_write_close(tar);
  archive_write_free(tar);
}

}  // namespace

TEST_CASE("what one store saves another loads, and reads the same") {
  Saved s;
  s.save({"app:1", "base:1"}, s.path("all.tar"));
  StoreRig other("threads");
  Told told;
  const auto loaded =
      must(other.run(other.store->load(s.path("all.tar"), Progress{}, told.on_layer())));
  CHECK(loaded.images.size() == 2);
  CHECK(loaded.layers_new.size() == 2);
  CHECK(loaded.layers_existing.empty());
  CHECK(told.layers.size() == 2);
  for (const std::string name : {"app:1", "base:1"}) {
    CHECK(image_of(other, name).id == image_of(s.rig, name).id);
    CHECK(other.content(image_of(other, name)) == (name == "app:1" ? s.model.bytes : s.base));
  }
  check_no_leftovers(other);
  // A volume of it works, and what it commits can go back.
  other.create("w", image_of(other, "app:1"));
  CHECK(other.at_rest("w") == s.model.bytes);
}

TEST_CASE("a layer that is there already is skipped and said to be") {
  Saved s;
  s.save({"base:1"}, s.path("base.tar"));
  s.save({"app:1"}, s.path("app.tar"));
  StoreRig other("threads");
  must(load(other, s.path("base.tar")));
  Told told;
  const auto loaded =
      must(other.run(other.store->load(s.path("app.tar"), Progress{}, told.on_layer())));
  CHECK(loaded.layers_existing.size() == 1);
  CHECK(loaded.layers_new.size() == 1);
  REQUIRE(told.layers.size() == 2);
  CHECK(told.layers[0].second);
  CHECK_FALSE(told.layers[1].second);
  CHECK(other.content(image_of(other, "app:1")) == s.model.bytes);
  const auto again = must(load(other, s.path("app.tar")));
  CHECK(again.layers_new.empty());
}

TEST_CASE("the same images give the same file, whenever they are saved") {
  Saved s;
  s.save({"app:1"}, s.path("a.tar"));
  s.save({"app:1"}, s.path("b.tar"));
  CHECK(read_file(s.path("a.tar")) == read_file(s.path("b.tar")));
}

TEST_CASE("a saved image without a tag is loaded without one") {
  Saved s;
  const Image image = image_of(s.rig, "app:1");
  s.rig.import("app:1", random_bytes(kTestSize, 77));  // takes the tag away
  s.save({image.id.hex().substr(0, 12)}, s.path("a.tar"));
  StoreRig other("threads");
  const auto loaded = must(load(other, s.path("a.tar")));
  REQUIRE(loaded.images.size() == 1);
  CHECK(loaded.images[0].tags.empty());
  CHECK(other.content(image_of(other, image.id.hex())) == s.model.bytes);
}

TEST_CASE("a folder that is an OCI image layout is loaded, a store's own folder too") {
  Saved s;
  StoreRig other("threads");
  must(load(other, s.rig.temp.path()));
  CHECK(other.content(image_of(other, "app:1")) == s.model.bytes);
  check_no_leftovers(other);
}

TEST_CASE("skopeo copies what was saved, and the copy is loaded") {
  Saved s;
  s.save({"app:1"}, s.path("a.tar"));
  const auto skopeo = find_program("skopeo");
  INFO("skopeo is needed (package skopeo)");
  REQUIRE(skopeo);
  const auto ran = must(run_program({*skopeo, "--insecure-policy", "copy",
                                     "oci-archive:" + s.path("a.tar") + ":app:1",
                                     "oci-archive:" + s.path("b.tar") + ":copy:2"}));
  INFO(ran.errors);
  REQUIRE(ran.exit_code == 0);
  StoreRig other("threads");
  must(load(other, s.path("b.tar")));
  CHECK(other.content(image_of(other, "copy:2")) == s.model.bytes);
  CHECK(image_of(other, "copy:2").id == image_of(s.rig, "app:1").id);
}

TEST_CASE("a compressed tar is loaded") {
  Saved s;
  s.save({"app:1"}, s.path("a.tar"));
  must(run_program({*find_program("gzip"), s.path("a.tar")}));
  StoreRig other("threads");
  must(load(other, s.path("a.tar.gz")));
  CHECK(other.content(image_of(other, "app:1")) == s.model.bytes);
}

TEST_CASE("a file cut at any length is refused and leaves the store empty") {
  Saved s;
  s.save({"app:1"}, s.path("a.tar"));
  const std::string whole = read_file(s.path("a.tar"));
  StoreRig other("threads");
  SeededRandom random(99);
  std::vector<std::size_t> lengths{0, 1, 511, 512, 513, 1024, whole.size() / 2};
  for (int i = 0; i < 60; ++i)
    lengths.push_back(random.below(whole.size() - 2048));
  for (const std::size_t length : lengths) {
    INFO("cut at " << length << " of " << whole.size());
    write_file(s.path("cut.tar"), std::string_view(whole).substr(0, length));
    const auto loaded = load(other, s.path("cut.tar"));
    REQUIRE_FALSE(loaded);
    CHECK(loaded.error().message().find("cut.tar") != std::string::npos);
    check_empty(other);
  }
  // Without the zeros at its end a tar is whole all the same.
  write_file(s.path("cut.tar"), std::string_view(whole).substr(0, whole.size() - 1024));
  CHECK(load(other, s.path("cut.tar")));
}

TEST_CASE("a flipped byte anywhere is refused, or changes nothing that is loaded") {
  Saved s;
  s.save({"app:1"}, s.path("a.tar"));
  const std::string whole = read_file(s.path("a.tar"));
  SeededRandom random(7);
  int refused = 0;
  for (int i = 0; i < 80; ++i) {
    std::string damaged = whole;
    const std::size_t at = random.below(whole.size());
    damaged[at] = static_cast<char>(damaged[at] ^ (1 << random.below(8)));
    INFO("flipped byte " << at);
    write_file(s.path("bad.tar"), damaged);
    StoreRig other("threads");
    const auto loaded = load(other, s.path("bad.tar"));
    if (!loaded) {
      ++refused;
      check_empty(other);
      continue;
    }
    for (const Image& image : loaded->images)
      CHECK(other.content(image) == s.model.bytes);
  }
  CHECK(refused > 40);
}

TEST_CASE("hostile files are refused with a reason and leave the store empty") {
  Saved s;
  StoreRig other("threads");
  const std::string layout = "{\"imageLayoutVersion\":\"1.0.0\"}";
  const std::string index = "{\"schemaVersion\":2,\"manifests\":[]}";
  const std::string blob = "blobs/sha256/" + sha("x");
  const std::string outside = s.path("outside");
  const std::vector<std::pair<std::vector<TarEntry>, std::string>> cases{
      {{{"../outside", "x"}}, "relative"},
      {{{"blobs/../../outside", "x"}}, "relative"},
      {{{outside, "x"}}, "relative"},
      {{{blob, "", AE_IFLNK, "/etc/passwd"}}, "link"},
      {{{"oci-layout", layout}, {blob, "", AE_IFREG, "oci-layout"}}, "link"},
      {{{blob, "", AE_IFCHR}}, "neither"},
      {{{blob, "", AE_IFIFO}}, "neither"},
      {{{blob, "y"}}, "digest"},
      {{{"oci-layout", layout}, {"index.json", index}}, "no image"},
      {{{"oci-layout", layout}, {"index.json", "{"}}, "index"},
      {{{"oci-layout", layout}, {"index.json", index}, {"index.json", index}}, "two"},
      {{{"index.json", index}}, "oci-layout"},
      {{{"readme", "hello"}}, "oci-layout"},
      {{}, "oci-layout"},
      {{{"index.json", std::string(17u << 20, ' ')}}, "more than"},
  };
  for (std::size_t i = 0; i < cases.size(); ++i) {
    INFO("case " << i);
    make_tar(s.path("bad.tar"), cases[i].first);
    const auto loaded = load(other, s.path("bad.tar"));
    REQUIRE_FALSE(loaded);
    INFO(loaded.error().message());
    CHECK(loaded.error().message().find(cases[i].second) != std::string::npos);
    check_empty(other);
    CHECK_FALSE(std::filesystem::exists(outside));
  }
}

namespace {

/// Puts an index into the layout that names one blob `times` times; gives the index's digest.
std::string add_index(const std::string& layout, const std::string& type, const std::string& digest,
                      std::size_t size, int times) {
  const std::string entry = R"({"mediaType":")" + type + R"(","digest":"sha256:)" + digest +
                            R"(","size":)" + std::to_string(size) + "}";
  std::string text = R"({"schemaVersion":2,"manifests":[)" + entry;
  for (int i = 1; i < times; ++i)
    text += "," + entry;
  text += "]}";
  write_file(layout + "/blobs/sha256/" + sha(text), text);
  write_file(layout + "/index.json", text);
  return sha(text);
}

}  // namespace

TEST_CASE("indexes that name each other over and over are read once, and not without end") {
  Saved s;
  s.save({"app:1"}, s.path("a.tar"));
  const std::string layout = s.path("layout");
  std::filesystem::create_directory(layout);
  must(run_program({*find_program("tar"), "-xf", s.path("a.tar"), "-C", layout}));
  const Image image = image_of(s.rig, "app:1");
  std::string below = image.manifest.hex();
  std::string type(kManifestMediaType);
  for (int depth = 0; depth < 4; ++depth) {
    const auto size = std::filesystem::file_size(layout + "/blobs/sha256/" + below);
    below = add_index(layout, type, below, size, 5000);
    type = kIndexMediaType;
  }
  StoreRig other("threads");
  const auto loaded = must(load(other, layout));
  REQUIRE(loaded.images.size() == 1);
  CHECK(other.content(loaded.images[0]) == s.model.bytes);

  const auto size = std::filesystem::file_size(layout + "/blobs/sha256/" + below);
  add_index(layout, type, below, size, 50'000 - 4 * 5000 + 1);
  StoreRig third("threads");
  const auto refused = load(third, layout);
  REQUIRE_FALSE(refused);
  CHECK(refused.error().code() == ErrorCode::kTooLarge);
  check_empty(third);
}

TEST_CASE("an entry that claims gigabytes and has a few bytes is refused at once") {
  Saved s;
  StoreRig other("threads");
  make_tar(s.path("small.tar"), {{"blobs/sha256/" + sha("x"), "x"}});
  const std::string small = read_file(s.path("small.tar"));
  // The size field of the header: 12 octal digits, or base 256 with the top bit set.
  for (const std::string& claim :
       {std::string("40000000000\0", 12), std::string("77777777777\0", 12),
        std::string("\x80\0\0\0\x10\0\0\0\0\0\0\0", 12),
        std::string("\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", 12)}) {
    std::string tar = small;
    tar.replace(124, 12, claim);
    tar.replace(148, 8, 8, ' ');
    unsigned sum = 0;
    for (std::size_t i = 0; i < 512; ++i)
      sum += static_cast<unsigned char>(tar[i]);
    std::array<char, 8> digits{};
    std::snprintf(digits.data(), digits.size(), "%06o", sum);
    tar.replace(148, 8, digits.data(), 8);
    write_file(s.path("claims.tar"), tar);
    const auto loaded = load(other, s.path("claims.tar"));
    REQUIRE_FALSE(loaded);
    INFO(loaded.error().message());
    CHECK(loaded.error().message().find("claims.tar") != std::string::npos);
    check_empty(other);
  }
}

TEST_CASE("save to a place that cannot be written fails and leaves nothing behind") {
  Saved s;
  CHECK_FALSE(s.rig.run(s.rig.store->save({"app:1"}, s.path("no/such/dir.tar"), Progress{})));
  CHECK_FALSE(s.rig.run(s.rig.store->save({"nothing:1"}, s.path("a.tar"), Progress{})));
  const Progress progress{.cancelled = [] { return true; }};
  CHECK_FALSE(s.rig.run(s.rig.store->save({"app:1"}, s.path("a.tar"), progress)));
  CHECK_FALSE(s.rig.run(s.rig.store->save({}, s.path("a.tar"), Progress{})));
  CHECK(std::filesystem::is_empty(s.files.path()));
}

TEST_CASE("a damaged layer is not saved") {
  Saved s;
  const LayerRef layer = image_of(s.rig, "app:1").layers[0];
  const std::string blob = s.rig.temp.path() + "/blobs/sha256/" + layer.blob.hex();
  std::string bytes = read_file(blob);
  bytes[bytes.size() / 2] ^= 1;
  std::filesystem::permissions(blob, std::filesystem::perms::owner_all);
  write_file(blob, bytes);
  const auto saved = s.rig.run(s.rig.store->save({"app:1"}, s.path("a.tar"), Progress{}));
  REQUIRE_FALSE(saved);
  CHECK(saved.error().code() == ErrorCode::kCorrupt);
  CHECK(std::filesystem::is_empty(s.files.path()));
}

namespace {

void replace_all(std::string& text, const std::string& from, const std::string& to) {
  for (std::size_t at = 0; (at = text.find(from, at)) != std::string::npos; at += to.size())
    text.replace(at, from.size(), to);
}

/// Saves base:1 as a tar whose config and manifest say something else of it, under the tag `tag`.
/// The digests of all blobs are right: it is the claims that are false.
void forge(Saved& s, const std::string& tar, const std::string& tag, const std::string& from,
           const std::string& to) {
  const auto blob = [&s](const std::string& hex) {
    return read_file(s.rig.temp.path() + "/blobs/sha256/" + hex);
  };
  const Image image = image_of(s.rig, "base:1");
  std::string config = blob(image.id.hex());
  std::string manifest = blob(image.manifest.hex());
  const std::string old_config = config;
  replace_all(config, from, to);
  replace_all(manifest, from, to);
  REQUIRE((config != old_config || manifest != blob(image.manifest.hex())));
  replace_all(manifest, image.id.hex(), sha(config));
  replace_all(manifest, std::to_string(old_config.size()), std::to_string(config.size()));
  const std::string index =
      "{\"schemaVersion\":2,\"manifests\":[{\"mediaType\":\"application/"
      "vnd.oci.image.manifest.v1+json\",\"digest\":\"sha256:" +
      sha(manifest) + "\",\"size\":" + std::to_string(manifest.size()) +
      ",\"annotations\":{\"org.opencontainers.image.ref.name\":\"" + tag + "\"}}]}";
  make_tar(tar, {{"oci-layout", "{\"imageLayoutVersion\":\"1.0.0\"}"},
                 {"index.json", index},
                 {"blobs/sha256/" + sha(manifest), manifest},
                 {"blobs/sha256/" + sha(config), config},
                 {"blobs/sha256/" + image.layers[0].blob.hex(), blob(image.layers[0].blob.hex())}});
}

}  // namespace

TEST_CASE("load refuses an image whose layers are not what it says of them") {
  Saved s;
  s.save({"base:1"}, s.path("a.tar"));
  const Image image = image_of(s.rig, "base:1");
  const LayerRef layer = image.layers[0];
  std::string from, to;
  SECTION("another content") {
    from = to = layer.content.hex();
    to[0] = to[0] == '0' ? '1' : '0';
  }
  SECTION("another size of the file") {
    from = std::to_string(layer.file_size);
    to = std::to_string(layer.file_size + kBlockSize);
  }
  SECTION("another size of the disk") {
    from = std::to_string(image.size);
    to = std::to_string(image.size + kChunkSize);
  }
  SECTION("a blob that is no layer") {
    from = layer.blob.hex();
    to = image.id.hex();
  }
  forge(s, s.path("forged.tar"), "base:1", from, to);
  for (const bool has_it : {false, true}) {
    INFO("the store " << (has_it ? "has" : "lacks") << " the layer");
    StoreRig other("threads");
    if (has_it) must(load(other, s.path("a.tar")));
    const auto loaded = load(other, s.path("forged.tar"));
    REQUIRE_FALSE(loaded);
    INFO(loaded.error().message());
    CHECK(loaded.error().code() == ErrorCode::kCorrupt);
    CHECK(loaded.error().message().find("forged.tar") != std::string::npos);
    if (!has_it) check_empty(other);
    if (has_it) CHECK(image_of(other, "base:1").manifest == image.manifest);
    CHECK(other.entries({"tmp"}).empty());
  }
}

}  // namespace snap
