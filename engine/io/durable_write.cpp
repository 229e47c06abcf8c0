#include "engine/io/durable_write.h"

#include <linux/magic.h>
#include <sys/vfs.h>

#include <algorithm>
#include <array>
#include <cerrno>

namespace snap {

namespace {
constexpr std::uint32_t kXfsMagic = 0x58465342;  // not in linux/magic.h everywhere
constexpr std::array<std::uint32_t, 5> kKnown = {EXT4_SUPER_MAGIC, kXfsMagic, BTRFS_SUPER_MAGIC,
                                                 F2FS_SUPER_MAGIC, TMPFS_MAGIC};
}  // namespace

bool takes_durable_writes(const File& f) noexcept {
  struct statfs s {};
  if (f.native_handle() < 0 || ::fstatfs(f.native_handle(), &s) != 0) return false;
  return std::ranges::find(kKnown, static_cast<std::uint32_t>(s.f_type)) != kKnown.end();
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
