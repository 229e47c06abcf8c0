// What is read from the command line: names of objects, labels, compression, short options.
#include <catch2/catch.hpp>

#include <algorithm>

#include "snap/limits.h"
#include "tools/snapctl/compression.h"
#include "tools/snapctl/names.h"
#include "tools/snapctl/short_options.h"

using namespace snap;
using namespace snap::cli;

TEST_CASE("a prefix forces the kind of an object, and @ names a snapshot") {
  using Kind = ObjectName::Kind;
  ObjectName plain = parse_object_name("base:1");
  CHECK(plain.kind == Kind::kAny);
  CHECK(plain.name == "base:1");
  CHECK(plain.snapshot.empty());
  CHECK(parse_object_name("volume:web").kind == Kind::kVolume);
  CHECK(parse_object_name("volume:web").name == "web");
  ObjectName image = parse_object_name("image:host/a@sha256:00");
  CHECK(image.kind == Kind::kImage);
  CHECK(image.name == "host/a@sha256:00");
  ObjectName snapshot = parse_object_name("web@now");
  CHECK(snapshot.kind == Kind::kVolume);
  CHECK(snapshot.name == "web");
  CHECK(snapshot.snapshot == "now");
}

TEST_CASE("made-up names are valid, and none that is taken") {
  std::vector<std::string> taken;
  for (int i = 0; i < 200; ++i) {
    std::string name = made_up_name(taken);
    REQUIRE(check_volume_name(name).has_value());
    REQUIRE(std::find(taken.begin(), taken.end(), name) == taken.end());
    taken.push_back(name);
  }
  CHECK(check_volume_name(name_of_now()).has_value());
}

TEST_CASE("labels are KEY=VALUE, where only the key must not be empty") {
  auto labels = parse_labels({"a=b", "c=d=e", "f=", "g"});
  REQUIRE(labels.has_value());
  CHECK(*labels == Labels{{"a", "b"}, {"c", "d=e"}, {"f", ""}, {"g", ""}});
  CHECK(parse_labels({"=x"}).error().code() == ErrorCode::kInvalidArgument);
  CHECK(parse_labels({std::string(kMaxLabelBytes + 1, 'x')}).error().code() ==
        ErrorCode::kTooLarge);
  std::vector<std::string> many;
  for (std::size_t i = 0; i <= kMaxLabels; ++i)
    many.push_back("k" + std::to_string(i) + "=v");
  CHECK(parse_labels(many).error().code() == ErrorCode::kTooLarge);
}

TEST_CASE("compression is zstd with a level of 1 to 19, or none") {
  CHECK_FALSE(parse_compression("")->enabled);
  CHECK_FALSE(parse_compression("none")->enabled);
  CHECK(parse_compression("zstd")->zstd_level == 3);
  CHECK(parse_compression("zstd:1")->zstd_level == 1);
  CHECK(parse_compression("zstd:19")->zstd_level == 19);
  for (const char* text : {"zstd:", "zstd:0", "zstd:20", "zstd:-1", "zstd:3x", "gzip", "zstd3"}) {
    INFO(text);
    REQUIRE_FALSE(parse_compression(text).has_value());
    CHECK(parse_compression(text).error().code() == ErrorCode::kInvalidArgument);
  }
}

TEST_CASE("one = behind a short option goes, any other stays") {
  std::vector<std::string> words = {"commit", "-a=pakho", "-m==x", "-m=", "--author==y",
                                    "-m",     "=z",       "-ab",   "--",  "-a=late"};
  mark_values(words);
  CHECK(words[0] == "commit");
  CHECK(without_mark(words[1].substr(2)) == "pakho");
  CHECK(without_mark(words[2].substr(2)) == "=x");
  CHECK(without_mark(words[3].substr(2)).empty());
  CHECK(words[4] == "--author==y");
  CHECK(without_mark(words[6]) == "=z");
  CHECK(words[7] == "-ab");
  CHECK(words[9] == "-a=late");
}
