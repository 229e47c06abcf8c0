#include "engine/server/remote.h"

#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "engine/io/unique_fd.h"
#include "engine/server/remote_codec.h"
#include "snap/event_loop.h"

namespace snap::server {

namespace {

/// For operations that take a moment. (A named Progress: g++ 12 destroys temporaries of aggregates
/// in the operand of co_await twice.)
Task<Result<std::string>> call_quietly(ControlClient& server, std::string op, std::string args) {
  const Progress none;
  auto result = co_await server.call(std::move(op), std::move(args), none);
  co_return result;
}

}  // namespace

Task<Result<Store::Committed>> remote_commit(ControlClient& server, std::string volume,
                                             Store::CommitOptions options, Progress progress) {
  std::string args = encode_commit_args(volume, options);
  auto result = co_await server.call("commit", std::move(args), progress);
  if (!result) co_return result.error();
  co_return decode_committed(*result);
}

Task<Result<Volume::Pause>> remote_snapshot(ControlClient& server, std::string volume,
                                            std::string name) {
  std::string args = encode_volume_args({volume, name, 0});
  auto result = co_await call_quietly(server, "snapshot", std::move(args));
  if (!result) co_return result.error();
  co_return decode_pause(*result);
}

Task<Result<void>> remote_make_room(ControlClient& server, std::string volume,
                                    Store::CommitOptions how) {
  std::string args = encode_commit_args(volume, how);
  auto result = co_await call_quietly(server, "make-room", std::move(args));
  if (!result) co_return result.error();
  co_return Result<void>();
}

Task<Result<Volume::Pause>> remote_freeze(ControlClient& server, std::string volume) {
  std::string args = encode_volume_args({volume, std::string(), 0});
  auto result = co_await call_quietly(server, "freeze", std::move(args));
  if (!result) co_return result.error();
  co_return decode_pause(*result);
}

Task<Result<VolumeRecord>> remote_clone(ControlClient& server, std::string volume,
                                        std::string new_name) {
  std::string args = encode_volume_args({volume, new_name, 0});
  auto result = co_await call_quietly(server, "clone", std::move(args));
  if (!result) co_return result.error();
  co_return decode_record(*result);
}

Task<Result<void>> remote_resize(ControlClient& server, std::string volume, std::uint64_t size) {
  std::string args = encode_volume_args({volume, std::string(), size});
  auto result = co_await call_quietly(server, "resize", std::move(args));
  if (!result) co_return result.error();
  co_return Result<void>();
}

Task<Result<void>> remote_set_limit(ControlClient& server, std::string volume,
                                    std::optional<std::uint64_t> bytes) {
  std::string args = encode_volume_args({volume, std::string(), bytes.value_or(0)});
  auto result = co_await call_quietly(server, "limit", std::move(args));
  if (!result) co_return result.error();
  co_return Result<void>();
}

Task<Result<ServerStat>> remote_stat(ControlClient& server, std::string volume,
                                     std::chrono::seconds patience) {
  std::string args = encode_volume_args({volume, std::string(), 0});
  Progress limited;
  const auto end = std::chrono::steady_clock::now() + patience;
  limited.cancelled = [end] { return std::chrono::steady_clock::now() >= end; };
  auto result = co_await server.call("stat", std::move(args), limited);
  if (!result) co_return result.error();
  co_return decode_stat(*result);
}

Task<Result<std::string>> remote_export(ControlClient& server, std::string name) {
  std::string args = encode_volume_args({std::string(), name, 0});
  auto result = co_await call_quietly(server, "export", std::move(args));
  if (!result) co_return result.error();
  co_return decode_uri(*result);
}

Task<Result<attach::Attachment>> remote_attach(ControlClient& server, DeviceWish wish) {
  auto result = co_await call_quietly(server, "attach", encode_device_wish(wish));
  if (!result) co_return result.error();
  auto made = attach::decode_attachment(*result);
  if (!made) co_return Error(ErrorCode::kProtocol, "the server did not say what it has attached");
  co_return std::move(*made);
}

Task<Result<void>> remote_detach(ControlClient& server, std::string device) {
  std::string args = encode_volume_args({std::string(), std::move(device), 0});
  auto result = co_await call_quietly(server, "detach", std::move(args));
  if (!result) co_return result.error();
  co_return Result<void>();
}

Task<Result<void>> remote_reconnect(ControlClient& server, std::string device) {
  std::string args = encode_volume_args({std::string(), std::move(device), 0});
  auto result = co_await call_quietly(server, "reconnect", std::move(args));
  if (!result) co_return result.error();
  co_return Result<void>();
}

Task<Result<void>> remote_release(ControlClient& server, std::string volume) {
  std::string args = encode_volume_args({volume, std::string(), 0});
  auto result = co_await call_quietly(server, "release", std::move(args));
  if (!result) co_return result.error();
  co_return Result<void>();
}

Task<Result<void>> remote_stop(ControlClient& server) {
  // Opened before the process is asked to go: afterwards its pid may be another's.
  const UniqueFd process(static_cast<int>(::syscall(SYS_pidfd_open, server.server().pid, 0)));
  if (!process) {
    co_return Error::from_errno(errno,
                                "watch the server with pid " + std::to_string(server.server().pid));
  }
  auto result = co_await call_quietly(server, "stop", "{}");
  if (!result) co_return result.error();
  IoOp gone;
  gone.opcode = IoOpcode::kPoll;
  gone.fd = process.get();
  gone.flags = POLLIN;
  auto waited = co_await gone;
  if (!waited) co_return waited.error();
  co_return Result<void>();
}

}  // namespace snap::server
