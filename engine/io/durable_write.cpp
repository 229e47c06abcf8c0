#include "engine/io/durable_write.h"

namespace snap {

Task<Result<std::size_t>> write_durably(File& f, std::span<const std::byte> in, ByteOffset at) {
  const bool real = f.native_handle() >= 0;
  FileOp write(f, IoOpcode::kWrite, const_cast<std::byte*>(in.data()), in.size(), at.value,
               real ? kDurableWrite : 0);
  auto wrote = co_await write;
  if (!wrote || real) co_return wrote;
  auto synced = co_await data_sync(f);
  if (!synced) co_return synced.error();
  co_return wrote;
}

}  // namespace snap
