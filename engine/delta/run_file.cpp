#include "engine/delta/run_file.h"

#include <algorithm>
#include <array>
#include <span>

#include "engine/base/codec.h"

namespace snap {

namespace {

constexpr const char* kRunName = "run";
constexpr std::size_t kTokenBytes = sizeof(Uuid);
constexpr std::size_t kNoteBytes = 64;
using NoteBytes = std::array<std::byte, kNoteBytes>;

void put(std::byte* out, const Uuid& id) {
  std::ranges::copy(std::as_bytes(std::span(id.bytes)), out);
}

NoteBytes encode_closed(const Uuid& boot, const FileIdentity& data) {
  NoteBytes out{};
  put(&out[16], boot);
  store_le(&out[32], data.device_major);
  store_le(&out[36], data.device_minor);
  store_le(&out[40], data.inode);
  store_le(&out[48], static_cast<std::uint64_t>(data.birth_seconds));
  store_le(&out[56], data.birth_nanoseconds);
  return out;
}

Task<Result<std::unique_ptr<File>>> open_run(Directory& dir) {
  OpenFlags flags;
  flags.write = flags.create = true;
  auto file = co_await dir.open(kRunName, flags);
  co_return file;
}

}  // namespace

Task<RunNote> read_run(Directory& dir, const File& data) {
  RunNote note;
  auto file = co_await dir.open(kRunName, OpenFlags{});
  if (!file) co_return note;
  NoteBytes bytes{};
  auto got = co_await read_up_to(**file, bytes, ByteOffset(0));
  if (!got || *got < kTokenBytes) co_return note;
  Uuid token;
  std::ranges::copy(std::span(bytes).first<kTokenBytes>(),
                    std::as_writable_bytes(std::span(token.bytes)).begin());
  if (token != Uuid{}) {
    note.token = token;
    co_return note;
  }
  const auto boot = boot_id();
  auto identity = identity_of(data);
  note.closed = boot && identity && *got == kNoteBytes && bytes == encode_closed(*boot, *identity);
  co_return note;
}

Task<Result<void>> note_open(Directory& dir, Uuid token) {
  auto file = co_await open_run(dir);
  SNAP_CO_RETURN_IF_ERROR(file);
  NoteBytes bytes{};
  put(bytes.data(), token);
  auto written = co_await write_all(**file, bytes, ByteOffset(0));
  SNAP_CO_RETURN_IF_ERROR(written);
  auto synced = co_await data_sync(**file);
  SNAP_CO_RETURN_IF_ERROR(synced);
  co_return Result<void>();
}

Task<void> note_closed(Directory& dir, const File& data) {
  const auto boot = boot_id();
  auto identity = identity_of(data);
  if (!boot || !identity) co_return;
  auto file = co_await open_run(dir);
  if (!file) co_return;
  const NoteBytes bytes = encode_closed(*boot, *identity);
  auto written = co_await write_all(**file, bytes, ByteOffset(0));
  (void)written;  // one that is cut short says nothing
}

Task<Result<void>> remove_run(Directory& dir) {
  auto gone = co_await dir.unlink(kRunName);
  if (!gone && gone.error().code() != ErrorCode::kNotFound) co_return gone.error();
  co_return Result<void>();
}

}  // namespace snap
