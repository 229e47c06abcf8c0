// What a kernel says that has no nbd, or an nbd that lacks a command. What one with nbd does is
// tested in a guest (tests/attach/test_nbd.py).
#include "engine/attach/nbd_netlink.h"

#include <catch2/catch.hpp>

namespace snap::attach {
namespace {

TEST_CASE("a kernel without nbd is told of, and what to do") {
  auto netlink = NbdNetlink::open("no such family");
  REQUIRE_FALSE(netlink);
  CHECK(netlink.error().code() == ErrorCode::kUnsupported);
  CHECK(netlink.error().message().find("modprobe nbd") != std::string::npos);
}

TEST_CASE("a kernel that lacks a command says so in one clear line") {
  // The family of generic netlink itself, which has none of these numbers.
  auto netlink = NbdNetlink::open("nlctrl");
  REQUIRE(netlink);
  const auto gone = netlink->disconnect(0);
  REQUIRE_FALSE(gone);
  CHECK(gone.error().code() == ErrorCode::kUnsupported);
  CHECK(gone.error().message() == "disconnect /dev/nbd0: this kernel's nbd cannot do that");
  const auto connected = netlink->connected(7);
  REQUIRE_FALSE(connected);
  CHECK(connected.error().code() == ErrorCode::kUnsupported);
}

}  // namespace
}  // namespace snap::attach
