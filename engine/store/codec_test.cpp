// The text formats of the store: what they take, what they refuse, and that no flipped bit and no
// cut goes unnoticed.
#include <catch2/catch.hpp>
#include <functional>

#include "engine/store/format_file.h"
#include "engine/store/image_codec.h"
#include "engine/store/names.h"
#include "engine/store/text_sum.h"
#include "engine/store/volume_codec.h"
#include "snap/limits.h"
#include "snap/version.h"

using namespace snap;

namespace {

template <class D>
D digest(std::uint8_t fill) {
  D out;
  out.bytes.fill(fill);
  return out;
}

Image sample_image() {
  Image image;
  image.size = 1u << 20;
  image.layers = {{digest<BlobDigest>(1), digest<ContentDigest>(2), 12288},
                  {digest<BlobDigest>(3), digest<ContentDigest>(4), 8192}};
  image.history = {{"2024-05-01T12:00:00Z", "import disk.raw", "pakho", "the base", false},
                   {"2024-05-01T12:01:00Z", "label", "", "", true},
                   {"2024-05-01T12:02:00Z", "commit a", "pakho", "webapps", false}};
  image.labels = {{"team", "storage"}, {"empty", ""}};
  image.created = "2024-05-01T12:02:00Z";
  image.author = "pakho";
  return image;
}

StoredVolume sample_volume() {
  StoredVolume volume;
  volume.generation = 3;
  VolumeRecord& record = volume.record;
  record.name = "a";
  record.id = "0a0b0c0d-0001-4002-8003-000000000001";
  record.created = "2024-05-01T12:00:00Z";
  record.size = record.floor = 1u << 20;
  record.delta = "0a0b0c0d-0001-4002-8003-000000000002";
  record.sealed = {{"0a0b0c0d-0001-4002-8003-000000000003", 65536}};
  record.manifest = digest<BlobDigest>(5);
  record.image = digest<ImageId>(6);
  record.base_manifest = digest<BlobDigest>(7);
  record.image_name = "base:1";
  record.labels = {{"k", "v"}};
  record.limit = 65536;
  SnapshotRecord snapshot;
  snapshot.name = "before";
  snapshot.created = record.created;
  snapshot.size = 1u << 20;
  snapshot.sealed = record.sealed;
  snapshot.manifest = record.manifest;
  record.snapshots = {snapshot};
  return volume;
}

/// Every text that differs from `good` by one flipped bit, or is a first part of it.
void for_each_damage(const std::string& good,
                     const std::function<void(const std::string&)>& try_it) {
  for (std::size_t i = 0; i < good.size(); ++i) {
    for (int bit = 0; bit < 8; ++bit) {
      std::string bad = good;
      bad[i] = static_cast<char>(bad[i] ^ (1 << bit));
      try_it(bad);
    }
    try_it(good.substr(0, i));
  }
}

std::string fingerprint(const std::vector<IndexEntry>& entries) {
  std::string out;
  for (const IndexEntry& entry : entries) {
    out += entry.manifest.str() + " " + std::to_string(entry.size) + " " + entry.media_type + " " +
           (entry.reference ? entry.reference->str() : "-") + "\n";
  }
  return out;
}

}  // namespace

TEST_CASE("references are those of the OCI distribution spec") {
  for (const char* good :
       {"base", "base:1", "a/b/c:x", "localhost:5000/team/base:2", "ghcr.io/Org.x/y" /* no */}) {
    const bool expected = std::string_view(good) != "ghcr.io/Org.x/y";
    INFO(good);
    CHECK(Reference::parse(good).has_value() == expected);
  }
  const Reference full = Reference::parse("localhost:5000/team/base:2").value();
  CHECK(full.name == "localhost:5000/team/base");
  CHECK(full.tag == "2");
  CHECK(Reference::parse("base").value().str() == "base:latest");
  CHECK(Reference::parse("localhost:5000/base").value().str() == "localhost:5000/base:latest");
  for (const char* bad :
       {"", ":1", "base:", "../x", "a//b", "/a", "a/", "a..b", "-a", "a-", "UPPER", "a b", "a:b:c",
        "a:.x", "a@sha256:00", "a\nb", "host:port/x", "a___b"}) {
    INFO(bad);
    CHECK_FALSE(Reference::parse(bad));
  }
}

TEST_CASE("a name of 10,000 characters or with .. or / in it is refused in a short message") {
  for (const std::string& bad :
       {std::string(10000, 'a'), std::string("../../etc/passwd"), std::string("a/b"),
        std::string(".."), std::string("."), std::string(""), std::string("-x"),
        std::string("a\0b", 3), std::string("\x1b[31m"), std::string(129, 'a')}) {
    auto checked = check_volume_name(bad);
    REQUIRE_FALSE(checked);
    CHECK(checked.error().code() == ErrorCode::kInvalidArgument);
    CHECK(checked.error().message().size() < 300);
    CHECK(checked.error().message().find('\x1b') == std::string::npos);
  }
  CHECK(check_volume_name(std::string(128, 'a')));
  CHECK(check_volume_name("web-1.test_x"));
  auto reference = Reference::parse(std::string(10000, 'a'));
  REQUIRE_FALSE(reference);
  CHECK(reference.error().message().size() < 300);
}

TEST_CASE("the nearest name is suggested only if it is near") {
  const std::vector<std::string> names = {"tomcat01", "tomcat02", "postgres"};
  CHECK(nearest_name("tomcat2", names) == "tomcat02");
  CHECK(nearest_name("postgers", names) == "postgres");
  CHECK_FALSE(nearest_name("redis", names));
  CHECK_FALSE(nearest_name("", names));
  CHECK_FALSE(nearest_name(std::string(10000, 'a'), names));
}

TEST_CASE("times are RFC 3339") {
  CHECK(is_rfc3339(now_rfc3339()));
  CHECK(is_rfc3339("2024-05-01T12:00:00.123456789Z"));
  CHECK(is_rfc3339("2024-05-01T12:00:00+02:00"));
  for (const char* bad : {"", "2024-05-01", "2024-05-01T12:00:00", "2024-05-01 12:00:00Z",
                          "2024-05-01T12:00:00.Z", "2024-05-01T12:00:00+0200", "x"}) {
    INFO(bad);
    CHECK_FALSE(is_rfc3339(bad));
  }
}

TEST_CASE("an image reads back as it was encoded") {
  const Image image = sample_image();
  const EncodedImage encoded = encode_image(image).value();
  const ManifestParts parts = decode_manifest(encoded.manifest).value();
  const Image back = decode_image(encoded.manifest_digest, parts, encoded.config).value();
  CHECK(back.id == encoded.id);
  CHECK(back.manifest == encoded.manifest_digest);
  CHECK(back.size == image.size);
  CHECK(back.labels == image.labels);
  CHECK(back.author == image.author);
  CHECK(back.created == image.created);
  REQUIRE(back.layers.size() == 2);
  CHECK(back.layers[1].blob == image.layers[1].blob);
  CHECK(back.layers[1].content == image.layers[1].content);
  CHECK(back.stored_size() == 20480);
  REQUIRE(back.history.size() == 3);
  CHECK(back.history[1].empty_layer);
  CHECK(back.history[2].comment == "webapps");
  CHECK(encode_image(back).value().id == encoded.id);
}

TEST_CASE("an image that could not be read is not encoded") {
  Image image = sample_image();
  SECTION("reserved label") {
    image.labels["dev.snapctl.size"] = "1";
  }
  SECTION("text that is not UTF-8") {
    image.author = "\xff\xfe";
  }
  SECTION("odd size") {
    image.size = 1000;
  }
  SECTION("no size") {
    image.size = 0;
  }
  SECTION("too large") {
    image.size = kMaxVolumeSize + 512;
  }
  SECTION("history of another length") {
    image.history.pop_back();
  }
  SECTION("long label") {
    image.labels["x"] = std::string(kMaxLabelBytes + 1, 'x');
  }
  SECTION("a time that is none") {
    image.created = "yesterday";
  }
  SECTION("many labels") {
    for (std::size_t i = 0; i <= kMaxLabels; ++i)
      image.labels["l" + std::to_string(i)] = "";
  }
  SECTION("many layers") {
    image.layers.resize(kMaxLayersPerImage + 1, image.layers[0]);
  }
  const auto encoded = encode_image(image);
  REQUIRE_FALSE(encoded);
  CHECK(encoded.error().code() == ErrorCode::kInvalidArgument);
}

TEST_CASE("a container image is told from one of block layers") {
  const EncodedImage encoded = encode_image(sample_image()).value();
  ManifestParts parts = decode_manifest(encoded.manifest).value();
  parts.layers[0].media_type = "application/vnd.oci.image.layer.v1.tar+gzip";
  auto image = decode_image(encoded.manifest_digest, parts, encoded.config);
  REQUIRE_FALSE(image);
  CHECK(image.error().code() == ErrorCode::kUnsupported);
}

TEST_CASE("manifests and configs with any bit flipped are decoded or refused, never more") {
  // Their digests find the damage; here the decoders alone have to stand what comes.
  const EncodedImage encoded = encode_image(sample_image()).value();
  const ManifestParts parts = decode_manifest(encoded.manifest).value();
  std::size_t refused = 0;
  for_each_damage(encoded.manifest, [&](const std::string& bad) {
    if (!decode_manifest(bad)) ++refused;
  });
  CHECK(refused > encoded.manifest.size());
  refused = 0;
  for_each_damage(encoded.config, [&](const std::string& bad) {
    if (!decode_image(encoded.manifest_digest, parts, bad)) ++refused;
  });
  CHECK(refused > encoded.config.size());
}

TEST_CASE("JSON that is hostile is refused in bounded time and memory") {
  const std::string deep = std::string(1u << 20, '[');
  CHECK_FALSE(decode_manifest(deep));
  CHECK_FALSE(decode_manifest("{\"schemaVersion\":2,\"x\":" + std::string(100000, '[') +
                              std::string(100000, ']') + "}"));
  std::string many = R"({"schemaVersion":2,"manifests":[)";
  for (std::size_t i = 0; i <= kMaxIndexEntries; ++i)
    many += i == 0 ? "0" : ",0";
  const auto index = decode_index(many + "]}");
  REQUIRE_FALSE(index);
  CHECK(index.error().message().find("50001 entries") != std::string::npos);
  for (const char* bad :
       {"", "null", "[]", "{}", "{\"schemaVersion\":2}", "\xff", "{\"a\":1e999}",
        R"({"schemaVersion":-2,"manifests":[]})", R"({"schemaVersion":2,"manifests":[{}]})"}) {
    INFO(bad);
    CHECK_FALSE(decode_index(bad));
    CHECK_FALSE(decode_volume("a", bad));
    CHECK_FALSE(decode_manifest(bad));
  }
}

TEST_CASE("index.json: no flipped bit and no cut changes what a tag points at") {
  const std::vector<IndexEntry> entries = {
      make_index_entry(digest<BlobDigest>(1), 700, Reference::parse("base:1").value()),
      make_index_entry(digest<BlobDigest>(2), 800, Reference::parse("r.io/x/y:2").value()),
      make_index_entry(digest<BlobDigest>(3), 900, std::nullopt)};
  const std::string good = encode_index(entries);
  const std::string meaning = fingerprint(decode_index(good).value());
  CHECK(meaning == fingerprint(entries));
  std::size_t refused = 0;
  for_each_damage(good, [&](const std::string& bad) {
    auto decoded = decode_index(bad);
    if (!decoded) {
      ++refused;
      return;
    }
    INFO(bad);
    REQUIRE(fingerprint(*decoded) == meaning);
  });
  CHECK(refused > 8 * good.size() / 2);
}

TEST_CASE("index.json keeps entries and fields of other tools") {
  const std::string foreign =
      R"({"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json",)"
      R"("digest":")" +
      digest<BlobDigest>(9).str() +
      R"(","size":7,"platform":{"os":"linux"},"annotations":{)"
      R"("org.opencontainers.image.ref.name":"Not A Reference","x":"y"}}]})";
  const auto entries = decode_index(foreign).value();
  REQUIRE(entries.size() == 1);
  CHECK(entries[0].ref_name == "Not A Reference");
  CHECK_FALSE(entries[0].reference);
  const std::string again = encode_index(entries);
  CHECK(again.find(R"("platform":{"os":"linux"})") != std::string::npos);
  CHECK(again.find(R"("x":"y")") != std::string::npos);
}

TEST_CASE("index.json with one tag twice is refused") {
  const auto reference = Reference::parse("base:1").value();
  const std::string twice = encode_index({make_index_entry(digest<BlobDigest>(1), 700, reference),
                                          make_index_entry(digest<BlobDigest>(2), 700, reference)});
  const auto decoded = decode_index(twice);
  REQUIRE_FALSE(decoded);
  CHECK(decoded.error().message().find("base:1") != std::string::npos);
}

TEST_CASE("a volume reads back as it was encoded") {
  const StoredVolume volume = sample_volume();
  const std::string text = encode_volume(volume).value();
  const StoredVolume back = decode_volume("a", text).value();
  CHECK(back.generation == 3);
  CHECK(back.record.name == "a");
  CHECK(back.record.sealed.size() == 1);
  CHECK(back.record.snapshots.at(0).sealed.at(0).floor == 65536);
  CHECK(back.record.base_manifest == volume.record.base_manifest);
  CHECK(back.record.image_name == "base:1");
  CHECK(back.record.limit == 65536u);
  CHECK(encode_volume(back).value() == text);
  // The folder's name is the volume's: a rename is one rename.
  CHECK(decode_volume("b", text).value().record.name == "b");
}

TEST_CASE("volume.json: every flipped bit and every cut is found or harmless") {
  const std::string good = encode_volume(sample_volume()).value();
  for_each_damage(good, [&](const std::string& bad) {
    auto decoded = decode_volume("a", bad);
    if (!decoded) return;
    INFO(bad);
    REQUIRE(encode_volume(*decoded).value() == good);
  });
}

TEST_CASE("a volume that could not be read is not written") {
  StoredVolume volume = sample_volume();
  VolumeRecord& record = volume.record;
  SECTION("a delta twice in the chain") {
    record.sealed[0].delta = record.delta;
  }
  SECTION("a chain that is too long") {
    record.sealed.resize(kMaxSealedDeltas + 1, record.sealed[0]);
  }
  SECTION("a delta that is no UUID") {
    record.delta = "../../etc";
  }
  SECTION("size 0") {
    record.size = 0;
  }
  SECTION("odd size") {
    record.size = 1000;
  }
  SECTION("huge size") {
    record.size = kMaxVolumeSize + 512;
  }
  SECTION("a limit below a block") {
    record.limit = 4095;
  }
  SECTION("a huge limit") {
    record.limit = kMaxVolumeSize + 1;
  }
  SECTION("two snapshots of one name") {
    record.snapshots.push_back(record.snapshots[0]);
  }
  SECTION("a snapshot with a bad name") {
    record.snapshots[0].name = "a/b";
  }
  SECTION("a label that is not UTF-8") {
    record.labels["x"] = "\xff";
  }
  const auto encoded = encode_volume(volume);
  REQUIRE_FALSE(encoded);
  CHECK(encoded.error().code() == ErrorCode::kInvalidArgument);
}

TEST_CASE("the format file: every flipped bit and every cut is found") {
  const std::string good = encode_format(own_features());
  for_each_damage(good, [&](const std::string& bad) {
    INFO(bad);
    REQUIRE_FALSE(decode_format(bad));
  });
  CHECK(decode_format(good).value().needs == kFormatRelease);
}

TEST_CASE("the format file has one form: with a right checksum another is refused") {
  const auto replaced = [](std::string text, const std::string& what, const std::string& by) {
    const std::size_t at = text.find(what);
    REQUIRE(at != std::string::npos);
    text.replace(at, what.size(), by);
    const std::string body = text.substr(0, text.rfind("checksum "));
    return body + "checksum " + checksum_hex(body) + "\n";
  };
  Features features = own_features();
  features.ro_compat = 0xd0;
  const std::string good = encode_format(features);
  CHECK(decode_format(replaced(good, "00d0", "00d1")).value().ro_compat == 0xd1);
  CHECK_FALSE(decode_format(replaced(good, "00d0", "00D0")));
  CHECK_FALSE(decode_format(replaced(good, "00d0", "0d0")));
  CHECK_FALSE(decode_format(replaced(good, "00d0", "00g0")));
  CHECK_FALSE(decode_format(replaced(good, "store 1", "store 01")));
  CHECK_FALSE(decode_format(replaced(good, "store 1", "store 4294967297")));
  CHECK_FALSE(decode_format(replaced(good, "store 1", "store ")));
}

TEST_CASE("a feature that is not known is refused naming the release, or allows reading") {
  Features features = own_features();
  features.needs = "7.8.9";
  features.compat = ~std::uint64_t{0};
  CHECK_FALSE(check_features(features, "x").value());
  features.ro_compat = 1u << 4;
  const auto read_only = check_features(features, "x").value();
  REQUIRE(read_only);
  CHECK(read_only->code() == ErrorCode::kReadOnly);
  CHECK(read_only->message().find("7.8.9") != std::string::npos);
  features.incompat = 1u << 5;
  const auto refused = check_features(features, "x");
  REQUIRE_FALSE(refused);
  CHECK(refused.error().code() == ErrorCode::kUnsupported);
  CHECK(refused.error().message().find("7.8.9") != std::string::npos);
  CHECK(refused.error().message().find("bit 5") != std::string::npos);

  StoredVolume volume = sample_volume();
  volume.features.ro_compat = 2;
  CHECK(decode_volume("a", encode_volume(volume).value()).value().read_only);
}

// The examples of docs/format.md: what the first release wrote opens for ever.
TEST_CASE("the files shown in docs/format.md are read") {
  const std::string format =
      "snapctl-store 1\ncompat 0000000000000000\nro-compat 0000000000000000\n"
      "incompat 0000000000000000\nneeds 0.1.0\nchecksum 42c536e9db3a9c29\n";
  CHECK(decode_format(format).value().version == 1);

  const auto entries = decode_index(R"({"schemaVersion":2,)"
                                    R"("mediaType":"application/vnd.oci.image.index.v1+json",)"
                                    R"("manifests":[
{"annotations":{"dev.snapctl.checksum":"939bd8689a648cca",)"
                                    R"("org.opencontainers.image.ref.name":"base:1"},)"
                                    R"("digest":"sha256:b050e7ee90a4e9571c83f562caacec53)"
                                    R"(38d06a825405110453f0b44992102cea",)"
                                    R"("mediaType":"application/vnd.oci.image.manifest.v1+json",)"
                                    R"("size":392}
]}
)");
  REQUIRE(entries.value().size() == 1);
  CHECK(entries.value()[0].reference->str() == "base:1");

  const auto volume = decode_volume("a", R"({
 "base_manifest": "sha256:b050e7ee90a4e9571c83f562caacec5338d06a825405110453f0b44992102cea",
 "checksum": "5fa1665914c40530",
 "created": "2026-11-24T07:01:01Z",
 "delta": "405bdca5-9f72-4de6-8376-1ec4b135a16e",
 "floor": 1048576,
 "format": {
  "compat": 0,
  "incompat": 0,
  "needs": "0.1.0",
  "ro_compat": 0,
  "version": 1
 },
 "generation": 1,
 "id": "f38af89a-19b9-48b9-a711-906925bc3a16",
 "image": "sha256:16ecbb6cd09217a6142995d841affbcca996dcce87101d0cb028ac33c8280e0c",
 "image_name": "",
 "labels": {},
 "manifest": "sha256:b050e7ee90a4e9571c83f562caacec5338d06a825405110453f0b44992102cea",
 "sealed": [],
 "size": 1048576,
 "snapshots": []
})");
  REQUIRE(volume);
  CHECK(volume->record.size == 1u << 20);
  CHECK(volume->record.delta == "405bdca5-9f72-4de6-8376-1ec4b135a16e");
  CHECK(volume->record.manifest);
}
