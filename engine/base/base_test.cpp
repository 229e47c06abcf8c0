// The ground the engine stands on: results, digests, checksums, codec, identifiers.
#include <catch2/catch.hpp>
#include <cerrno>
#include <cstring>
#include <vector>

#include "engine/base/checksum.h"
#include "engine/base/codec.h"
#include "engine/base/uuid.h"
#include "snap/digest.h"
#include "snap/result.h"
#include "snap/units.h"

using namespace snap;

namespace {
std::span<const std::byte> bytes_of(std::string_view s) {
  return std::as_bytes(std::span(s.data(), s.size()));
}
}  // namespace

TEST_CASE("an error of an errno keeps code, errno and context") {
  Error e = Error::from_errno(ENOSPC, "write 4096 bytes at 8192 to data").with_context("volume a");
  CHECK(e.code() == ErrorCode::kNoSpace);
  CHECK(e.sys_errno() == ENOSPC);
  CHECK(e.message() == "volume a: write 4096 bytes at 8192 to data: No space left on device");
}

TEST_CASE("SHA-256 matches the vectors of FIPS 180-4") {
  BlobDigest abc{sha256(bytes_of("abc"))};
  CHECK(abc.str() == "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  CHECK(parse_digest<BlobDigest>(abc.str()) == abc);
  CHECK_FALSE(parse_digest<BlobDigest>("sha256:BA7816bf"));
  Sha256Stream pieces;
  pieces.update("a");
  pieces.update("bc");
  CHECK(pieces.finish() == abc.bytes);
}

TEST_CASE("integers are encoded in the byte order that is asked for") {
  std::byte buffer[15]{};
  Encoder out(buffer);
  out.le<std::uint32_t>(0x01020304);
  out.be<std::uint64_t>(0x0102030405060708);
  out.be<std::uint16_t>(0x0a0b);
  out.le<std::uint8_t>(0xff);
  CHECK(buffer[0] == std::byte{4});
  CHECK(buffer[4] == std::byte{1});
  CHECK(buffer[12] == std::byte{0x0a});
  Decoder in(buffer);
  CHECK(in.le<std::uint32_t>() == 0x01020304);
  CHECK(in.be<std::uint64_t>() == 0x0102030405060708);
  CHECK(in.be<std::uint16_t>() == 0x0a0b);
  CHECK(in.le<std::uint8_t>() == 0xff);
  CHECK(in.ok());
}

TEST_CASE("a decoder that runs out gives zeros and says so") {
  std::byte buffer[3]{};
  Decoder in(buffer);
  CHECK(in.le<std::uint32_t>() == 0);
  CHECK_FALSE(in.ok());
  CHECK(in.le<std::uint8_t>() == 0);
}

TEST_CASE("is_zero sees a single set bit anywhere") {
  std::vector<std::byte> block(4096);
  CHECK(is_zero(block));
  for (std::size_t i : {std::size_t{0}, std::size_t{1}, std::size_t{2047}, std::size_t{4095}}) {
    block[i] = std::byte{1};
    CHECK_FALSE(is_zero(block));
    block[i] = std::byte{0};
  }
}

TEST_CASE("a keyed checksum depends on the secret") {
  SeededRandom random(1);
  ChecksumSecret a;
  ChecksumSecret b;
  random.fill(a);
  random.fill(b);
  CHECK(xxh3_keyed(bytes_of("record"), a) != xxh3_keyed(bytes_of("record"), b));
  CHECK(xxh3_keyed(bytes_of("record"), a) == xxh3_keyed(bytes_of("record"), a));
}

TEST_CASE("a uuid reads back what it prints") {
  SeededRandom random(2);
  Uuid id = Uuid::make(random);
  CHECK(id.str().size() == 36);
  CHECK(id.str()[14] == '4');
  CHECK(Uuid::parse(id.str()) == id);
  CHECK_FALSE(Uuid::parse(id.str().substr(1)));
  CHECK_FALSE(Uuid::parse(std::string(36, '-')));
}

TEST_CASE("units convert between blocks, chunks and bytes") {
  CHECK(chunk_of(ByteOffset(65535)).value == 0);
  CHECK(chunk_of(ByteOffset(65536)).value == 1);
  CHECK(block_in_chunk(ByteOffset(65536 + 8191)) == 1);
  CHECK(block_range(0, 16) == kAllBlocks);
  CHECK(block_range(3, 2) == 0b11000);
  CHECK(block_range(5, 0) == 0);
  CHECK(chunk_count(1) == 1);
  CHECK(chunk_count(65537) == 2);
}
