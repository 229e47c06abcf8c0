// What a file system can do: found by trying, for what documentation says is not always so.
#include <cstdlib>
#include <memory>

#include "engine/store/format_file.h"
#include "snap/units.h"

namespace snap {

namespace {

struct FreeAligned {
  void operator()(std::byte* p) const { std::free(p); }
};

Task<bool> can_write_direct(Directory& dir) {
  OpenFlags flags;
  flags.write = flags.create = flags.direct = true;
  auto file = co_await dir.open("direct", flags);
  if (!file) co_return false;
  const std::unique_ptr<std::byte, FreeAligned> page(
      static_cast<std::byte*>(std::aligned_alloc(kBlockSize, kBlockSize)));
  if (!page) co_return false;
  std::fill_n(page.get(), kBlockSize, std::byte{1});
  auto written = co_await write_all(**file, std::span(page.get(), kBlockSize), ByteOffset(0));
  co_return written.has_value();
}

Task<bool> can_punch(File& file) {
  const std::vector<std::byte> bytes(2 * kBlockSize, std::byte{1});
  auto written = co_await write_all(file, bytes, ByteOffset(0));
  if (!written) co_return false;
  auto punched = co_await punch_hole(file, ByteOffset(0), kBlockSize);
  if (!punched) co_return false;
  std::vector<std::byte> back(kBlockSize, std::byte{2});
  auto read = co_await read_exact(file, back, ByteOffset(0));
  co_return read.has_value() && back == std::vector<std::byte>(kBlockSize);
}

/// Two open files of one name exclude each other.
Task<bool> can_lock(Directory& dir, File& first) {
  auto second = co_await dir.open("probe", OpenFlags{});
  if (!second) co_return false;
  auto got = co_await first.try_lock(true);
  if (!got || !*got) co_return false;
  auto denied = co_await (*second)->try_lock(true);
  co_return denied.has_value() && !*denied;
}

Task<bool> can_rename_without_replacing(Directory& dir) {
  OpenFlags flags;
  flags.write = flags.create = true;
  auto other = co_await dir.open("taken", flags);
  if (!other) co_return false;
  auto refused = co_await dir.rename("probe", dir, "taken", true);
  if (refused || refused.error().code() != ErrorCode::kExists) co_return false;
  auto renamed = co_await dir.rename("probe", dir, "renamed", true);
  co_return renamed.has_value();
}

}  // namespace

Task<Result<Probe>> probe_file_system(Directory& scratch, std::string file_system) {
  Probe probe;
  probe.file_system = file_system;
  OpenFlags flags;
  flags.write = flags.create = true;
  auto file = co_await scratch.open("probe", flags);
  if (!file) co_return file.error();
  probe.direct_io = co_await can_write_direct(scratch);
  probe.punch_hole = co_await can_punch(**file);
  probe.locks = co_await can_lock(scratch, **file);
  probe.rename_noreplace = co_await can_rename_without_replacing(scratch);
  const char* missing = nullptr;
  if (!probe.locks) missing = "file locks (flock)";
  if (!probe.rename_noreplace) missing = "renaming that replaces nothing";
  if (missing != nullptr) {
    co_return Error(ErrorCode::kUnsupported, "the file system (" + file_system + ") lacks " +
                                                 missing + ", which a store needs: use another");
  }
  co_return probe;
}

}  // namespace snap
