#include "engine/io/piece_writer.h"

#include <algorithm>
#include <catch2/catch.hpp>
#include <cerrno>
#include <vector>

#include "engine/io/test_rig.h"

using namespace snap;

namespace {

/// Bytes that differ from piece to piece, and from place to place in one.
std::vector<std::byte> numbered(std::size_t bytes) {
  std::vector<std::byte> out(bytes);
  for (std::size_t i = 0; i < bytes; ++i)
    out[i] = static_cast<std::byte>(i % 251);
  return out;
}

Task<void> write_in_pieces(Directory& root, std::size_t at_a_time, std::size_t bytes) {
  const std::vector<std::byte> all = numbered(bytes);
  auto file = must(co_await root.open("pieces", for_write()));
  PieceWriter out(*file);
  for (std::size_t at = 0; at < bytes; at += at_a_time) {
    must(co_await out.append(std::span(all).subspan(at, std::min(at_a_time, bytes - at))));
    const std::size_t given = std::min(at + at_a_time, bytes);
    CHECK(out.written() == given - given % PieceWriter::kPieceBytes);
  }
  must(co_await out.finish());
  CHECK(out.written() == bytes);
  auto whole = co_await read_whole(root, "pieces", bytes);
  CHECK(must(std::move(whole)) == all);
}

Task<void> fail_a_piece(Directory& root, std::uint64_t failing) {
  const std::vector<std::byte> all = numbered(2 * PieceWriter::kPieceBytes + 1);
  auto file = must(co_await root.open("pieces", for_write()));
  PieceWriter out(*file);
  auto appended = co_await out.append(std::span(all).first(1));
  CHECK(appended.has_value());
  appended = co_await out.append(std::span(all).subspan(1));
  CHECK(appended.has_value() == (failing == 3));
  if (!appended) co_return;
  auto finished = co_await out.finish();
  CHECK_FALSE(finished.has_value());
}

}  // namespace

TEST_CASE("a file written front to back is given whole pieces, whatever comes at a time") {
  const std::size_t piece = PieceWriter::kPieceBytes;
  for (std::size_t at_a_time :
       {std::size_t{70000}, piece - 1, piece, piece + 4096, 3 * piece + 5}) {
    for (std::size_t bytes : {std::size_t{0}, std::size_t{1}, 3 * piece, 4 * piece + 7}) {
      TestRig rig("simulated");
      rig.loop->run(write_in_pieces(*rig.root, at_a_time, bytes));
    }
  }
}

TEST_CASE("a piece that cannot be written is told, the last one, too") {
  for (std::uint64_t failing = 1; failing <= 3; ++failing) {
    TestRig rig("simulated");
    rig.disk.inject({SimOpKind::kWrite, failing, EIO, 0});
    rig.loop->run(fail_a_piece(*rig.root, failing));
  }
}
