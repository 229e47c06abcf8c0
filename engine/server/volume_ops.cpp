#include "engine/server/volume_ops.h"

#include <utility>

#include "engine/server/remote_codec.h"

namespace snap::server {

namespace {

// Plain coroutines: arguments by value, `served` outlives them.

Result<OpenVolume*> find_volume(Served* served, const std::string& name) {
  const auto found = served->volumes.find(name);
  if (found == served->volumes.end())
    return Error(ErrorCode::kNotFound, "this server does not serve a volume " + name);
  return found->second.get();
}

Task<Result<std::string>> do_commit(Served* served, std::string json, Progress progress) {
  auto args = decode_commit_args(json);
  if (!args) co_return args.error();
  auto volume = find_volume(served, args->volume);
  if (!volume) co_return volume.error();
  auto done = co_await served->store->commit(**volume, std::move(args->options), progress);
  if (!done) co_return done.error();
  co_return encode_committed(*done);
}

Task<Result<std::string>> do_snapshot(Served* served, std::string json) {
  auto args = decode_volume_args(json);
  if (!args) co_return args.error();
  auto volume = find_volume(served, args->volume);
  if (!volume) co_return volume.error();
  auto done = co_await served->store->snapshot(**volume, args->name);
  if (!done) co_return done.error();
  co_return encode_pause(*done);
}

Task<Result<std::string>> do_freeze(Served* served, std::string json) {
  auto args = decode_volume_args(json);
  if (!args) co_return args.error();
  auto volume = find_volume(served, args->volume);
  if (!volume) co_return volume.error();
  auto done = co_await served->store->freeze(**volume);
  if (!done) co_return done.error();
  co_return encode_pause(*done);
}

Task<Result<std::string>> do_clone(Served* served, std::string json) {
  auto args = decode_volume_args(json);
  if (!args) co_return args.error();
  auto volume = find_volume(served, args->volume);
  if (!volume) co_return volume.error();
  auto done = co_await served->store->clone(**volume, args->name);
  if (!done) co_return done.error();
  co_return encode_record(*done);
}

Task<Result<std::string>> do_resize(Served* served, std::string json) {
  auto args = decode_volume_args(json);
  if (!args) co_return args.error();
  auto volume = find_volume(served, args->volume);
  if (!volume) co_return volume.error();
  auto done = co_await served->store->resize(**volume, args->size);
  if (!done) co_return done.error();
  co_return encode_volume_args({args->volume, std::string(), (*volume)->volume().size()});
}

Task<Result<std::string>> do_limit(Served* served, std::string json) {
  auto args = decode_volume_args(json);
  if (!args) co_return args.error();
  auto volume = find_volume(served, args->volume);
  if (!volume) co_return volume.error();
  std::optional<std::uint64_t> limit;
  if (args->size != 0) limit = args->size;
  auto done = co_await served->store->set_volume_limit(**volume, limit);
  if (!done) co_return done.error();
  co_return std::string("{}");
}

Task<Result<std::string>> do_stat(Served* served) {
  ServerStat stat;
  stat.connections = served->connections();
  for (const Served::View& view : served->views)
    stat.volumes.push_back({view.name, view.volume->size(), view.read_only, view.volume->stats()});
  co_return encode_stat(stat);
}

Task<Result<std::string>> do_volumes(Served* served) {
  std::vector<VolumeRecord> records;
  for (const auto& [name, volume] : served->volumes)
    records.push_back(volume->record());
  co_return encode_records(records);
}

Task<Result<std::string>> do_ping() {
  co_return std::string("{}");
}

Task<Result<std::string>> do_stop(Served* served) {
  served->stop();
  co_return std::string("{}");
}

}  // namespace

void add_volume_ops(ControlServer& control, Served& all) {
  Served* served = &all;
  control.add("ping", [](std::string, Progress) { return do_ping(); });
  control.add("stop", [served](std::string, Progress) { return do_stop(served); });
  control.add("stat", [served](std::string, Progress) { return do_stat(served); });
  control.add("volumes", [served](std::string, Progress) { return do_volumes(served); });
  control.add("commit", [served](std::string args, Progress progress) {
    return do_commit(served, std::move(args), std::move(progress));
  });
  control.add("snapshot", [served](std::string args, Progress) {
    return do_snapshot(served, std::move(args));
  });
  control.add("freeze",
              [served](std::string args, Progress) { return do_freeze(served, std::move(args)); });
  control.add("clone",
              [served](std::string args, Progress) { return do_clone(served, std::move(args)); });
  control.add("resize",
              [served](std::string args, Progress) { return do_resize(served, std::move(args)); });
  control.add("limit",
              [served](std::string args, Progress) { return do_limit(served, std::move(args)); });
}

}  // namespace snap::server
