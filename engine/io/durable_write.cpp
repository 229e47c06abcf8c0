#include "engine/io/durable_write.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <string_view>

#include "engine/io/real_calls.h"

namespace snap {

bool takes_durable_writes(const File& f) noexcept {
  constexpr std::array<std::string_view, 5> kKnown = {"ext4", "xfs", "btrfs", "f2fs", "tmpfs"};
  if (f.native_handle() < 0) return false;
  const real::SpaceResult found = real::space_of(f.native_handle());
  return found.err == 0 && std::ranges::find(kKnown, found.space.type) != kKnown.end();
}

Task<Result<std::size_t>> write_durably(File& f, std::span<const std::byte> in, ByteOffset at,
                                        bool at_once) {
  if (at_once) {
    FileOp write(f, IoOpcode::kWrite, const_cast<std::byte*>(in.data()), in.size(), at.value,
                 kDurableWrite);
    auto wrote = co_await write;
    // A kernel that does not know the flag has written nothing.
    if (wrote || wrote.error().sys_errno() != EOPNOTSUPP) co_return wrote;
  }
  auto wrote = co_await write_some(f, in, at);
  if (!wrote) co_return wrote;
  FileOp sync(f, IoOpcode::kDataSync, nullptr, *wrote, at.value);
  auto synced = co_await sync;
  if (!synced) co_return synced.error();
  co_return wrote;
}

}  // namespace snap
