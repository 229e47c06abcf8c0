// The store is an OCI image layout: the real skopeo copies images from store to store, bit by bit.
#include <catch2/catch.hpp>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "engine/store/store_test_support.h"

using namespace snap;
namespace fs = std::filesystem;

namespace {

void need_skopeo() {
  if (std::system("command -v skopeo > /dev/null") != 0)
    FAIL("skopeo is missing: install the Debian package skopeo");
}

void skopeo_copy(const StoreRig& from, const StoreRig& to, const std::string& reference) {
  const std::string command = "skopeo --insecure-policy copy oci:" + from.path + ":" + reference +
                              " oci:" + to.path + ":" + reference + " > " + to.temp.path() +
                              "/log 2>&1";
  const int status = std::system(command.c_str());
  std::ifstream log(to.temp.path() + "/log");
  const std::string said(std::istreambuf_iterator<char>(log), {});
  INFO(command << "\n" << said);
  REQUIRE(status == 0);
}

std::map<std::string, std::string> blobs_of(const StoreRig& rig) {
  std::map<std::string, std::string> out;
  for (const auto& entry : fs::directory_iterator(rig.path + "/blobs/sha256")) {
    std::ifstream in(entry.path(), std::ios::binary);
    out[entry.path().filename()] = std::string(std::istreambuf_iterator<char>(in), {});
  }
  return out;
}

}  // namespace

TEST_CASE("skopeo copies an image from store to store and back, bit by bit") {
  need_skopeo();
  StoreRig one, two;
  for (const char* name : {"base:1", "base", "localhost:5000/team/base:2"}) {
    INFO(name);
    const Image base = one.image(name, 7);
    const Image top = must(one.run(add_image(*one.store, name, 9, ChunkIndex(3), base)));
    const std::string reference = top.tags.at(0).str();
    skopeo_copy(one, two, reference);
    const Image copy = must(two.run(two.store->image(reference)));
    CHECK(copy.id == top.id);
    CHECK(copy.manifest == top.manifest);
    CHECK(must(two.run(two.store->images())).size() == 1);
    const auto view = must(two.run(two.store->open_image(copy)));
    std::vector<std::byte> block(kBlockSize);
    must(two.run(view->read(ByteOffset(3 * kChunkSize), block)));
    CHECK(block == std::vector<std::byte>(kBlockSize, std::byte{9}));

    must(one.run(one.store->remove_image(reference, false, false)));
    must(one.run(one.store->remove_image(base.id.str(), false, false)));
    CHECK(blobs_of(one).empty());
    skopeo_copy(two, one, reference);
    CHECK(blobs_of(one) == blobs_of(two));
    CHECK(must(one.run(one.store->image(reference))).id == top.id);
    // What skopeo wrote is ours to use and to remove.
    VolumeRecord volume = one.volume("v", must(one.run(one.store->image(reference))));
    CHECK(volume.manifest == top.manifest);
    must(one.run(one.store->remove_volume("v", false)));
    must(one.run(one.store->remove_image(reference, false, false)));
    must(two.run(two.store->remove_image(reference, false, false)));
    CHECK(blobs_of(two).empty());
  }
}
