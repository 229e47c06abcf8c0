#include "engine/server/volume_ops.h"

#include <utility>

#include "engine/server/remote_codec.h"

namespace snap::server {

namespace {

// Plain coroutines: arguments by value, `served` outlives them.

/// Opens it if it is not open, and keeps it so. The lease has a volume that is open to write.
Task<Result<OpenItems::Lease>> use_volume(Served* served, std::string name) {
  auto item = co_await served->catalogue->find(name);
  const bool missing = item ? item->item.kind != ServeItem::Kind::kVolume || item->name != name
                            : item.error().code() == ErrorCode::kNotFound;
  if (missing) co_return Error(ErrorCode::kNotFound, "this server does not serve a volume " + name);
  if (!item) co_return item.error();
  auto lease = co_await served->open->open(std::move(*item), OpenItems::For::kCommand);
  co_return lease;
}

Task<Result<std::string>> do_commit(Served* served, std::string json, Progress progress) {
  auto args = decode_commit_args(json);
  if (!args) co_return args.error();
  auto lease = co_await use_volume(served, args->volume);
  if (!lease) co_return lease.error();
  OpenVolume& volume = *(*lease)->writable;
  auto done = co_await served->store->commit(volume, std::move(args->options), progress);
  if (!done) co_return done.error();
  co_return encode_committed(*done);
}

Task<Result<std::string>> do_snapshot(Served* served, std::string json) {
  auto args = decode_volume_args(json);
  if (!args) co_return args.error();
  auto lease = co_await use_volume(served, args->volume);
  if (!lease) co_return lease.error();
  OpenVolume& volume = *(*lease)->writable;
  auto done = co_await served->store->snapshot(volume, args->name);
  if (!done) co_return done.error();
  co_return encode_pause(*done);
}

Task<Result<std::string>> do_make_room(Served* served, std::string json) {
  auto args = decode_commit_args(json);
  if (!args) co_return args.error();
  auto lease = co_await use_volume(served, args->volume);
  if (!lease) co_return lease.error();
  OpenVolume& volume = *(*lease)->writable;
  auto done = co_await served->store->make_room(volume, std::move(args->options));
  if (!done) co_return done.error();
  co_return std::string("{}");
}

Task<Result<std::string>> do_freeze(Served* served, std::string json) {
  auto args = decode_volume_args(json);
  if (!args) co_return args.error();
  auto lease = co_await use_volume(served, args->volume);
  if (!lease) co_return lease.error();
  OpenVolume& volume = *(*lease)->writable;
  auto done = co_await served->store->freeze(volume);
  if (!done) co_return done.error();
  co_return encode_pause(*done);
}

Task<Result<std::string>> do_clone(Served* served, std::string json) {
  auto args = decode_volume_args(json);
  if (!args) co_return args.error();
  auto lease = co_await use_volume(served, args->volume);
  if (!lease) co_return lease.error();
  OpenVolume& volume = *(*lease)->writable;
  auto done = co_await served->store->clone(volume, args->name);
  if (!done) co_return done.error();
  co_return encode_record(*done);
}

Task<Result<std::string>> do_resize(Served* served, std::string json) {
  auto args = decode_volume_args(json);
  if (!args) co_return args.error();
  auto lease = co_await use_volume(served, args->volume);
  if (!lease) co_return lease.error();
  OpenVolume& volume = *(*lease)->writable;
  auto allowed = co_await served->devices->allow_resize(args->volume, args->size);
  if (!allowed) co_return allowed.error();
  auto done = co_await served->store->resize(volume, args->size);
  if (!done) co_return done.error();
  auto told = co_await served->devices->resized(args->volume);
  if (!told)
    co_return told.error().with_context("the volume has its new size, but its device has not");
  co_return encode_volume_args({args->volume, std::string(), volume.volume().size()});
}

Task<Result<std::string>> do_limit(Served* served, std::string json) {
  auto args = decode_volume_args(json);
  if (!args) co_return args.error();
  auto lease = co_await use_volume(served, args->volume);
  if (!lease) co_return lease.error();
  OpenVolume& volume = *(*lease)->writable;
  std::optional<std::uint64_t> limit;
  if (args->size != 0) limit = args->size;
  auto done = co_await served->store->set_volume_limit(volume, limit);
  if (!done) co_return done.error();
  co_return std::string("{}");
}

Task<Result<std::string>> do_stat(Served* served, std::string json) {
  auto args = decode_volume_args(json);
  if (!args) co_return args.error();
  const ServerStat stat = served->stat(args->volume);
  if (!args->volume.empty() && stat.volumes.empty()) {
    // What was never asked for may be served all the same.
    auto item = co_await served->catalogue->find(args->volume);
    if (!item) co_return item.error();
  }
  co_return encode_stat(stat, !args->volume.empty());
}

Task<Result<std::string>> do_export(Served* served, std::string json) {
  auto args = decode_volume_args(json);
  if (!args) co_return args.error();
  auto item = co_await served->catalogue->find(args->name);
  if (!item) co_return item.error();
  const std::string name = item->name;
  auto lease = co_await served->open->open(std::move(*item), OpenItems::For::kCommand);
  if (!lease) co_return lease.error();
  co_return encode_uri(served->uri(name));
}

Task<Result<std::string>> do_release(Served* served, std::string json) {
  auto args = decode_volume_args(json);
  if (!args) co_return args.error();
  auto gone = co_await served->open->let_go(args->volume);
  if (!gone) co_return gone.error();
  co_return std::string("{}");
}

Task<Result<std::string>> do_attach(Served* served, std::string json) {
  auto wish = decode_device_wish(json);
  if (!wish) co_return wish.error();
  auto made = co_await served->devices->attach(std::move(*wish));
  if (!made) co_return made.error();
  co_return attach::encode_attachment(*made);
}

Task<Result<std::string>> do_detach(Served* served, std::string json) {
  auto args = decode_volume_args(json);
  if (!args) co_return args.error();
  auto done = co_await served->devices->detach(args->name);
  if (!done) co_return done.error();
  co_return std::string("{}");
}

Task<Result<std::string>> do_reconnect(Served* served, std::string json) {
  auto args = decode_volume_args(json);
  if (!args) co_return args.error();
  auto done = co_await served->devices->reconnect(args->name);
  if (!done) co_return done.error();
  co_return std::string("{}");
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
  control.add("stat",
              [served](std::string args, Progress) { return do_stat(served, std::move(args)); });
  control.add("export",
              [served](std::string args, Progress) { return do_export(served, std::move(args)); });
  control.add("release",
              [served](std::string args, Progress) { return do_release(served, std::move(args)); });
  control.add("attach",
              [served](std::string args, Progress) { return do_attach(served, std::move(args)); });
  control.add("detach",
              [served](std::string args, Progress) { return do_detach(served, std::move(args)); });
  control.add("reconnect", [served](std::string args, Progress) {
    return do_reconnect(served, std::move(args));
  });
  control.add("commit", [served](std::string args, Progress progress) {
    return do_commit(served, std::move(args), std::move(progress));
  });
  control.add("snapshot", [served](std::string args, Progress) {
    return do_snapshot(served, std::move(args));
  });
  control.add("make-room", [served](std::string args, Progress) {
    return do_make_room(served, std::move(args));
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
