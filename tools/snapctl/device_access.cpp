// See device_access.h.
#include "tools/snapctl/device_access.h"

#include <fmt/format.h>
#include <unistd.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <functional>
#include <thread>

#include "engine/attach/block_device.h"
#include "engine/attach/nbd_netlink.h"
#include "engine/base/json_value.h"
#include "engine/server/catalogue.h"
#include "engine/server/endpoint.h"
#include "engine/server/remote.h"
#include "engine/server/volume_server.h"
#include "engine/store/program.h"
#include "snap/event_loop.h"
#include "tools/snapctl/exit_code.h"
#include "tools/snapctl/volume_access.h"

namespace snap::cli {

namespace {

using attach::Attachment;
using attach::Attachments;
using attach::Via;

constexpr std::chrono::seconds kUsablePatience{30};
constexpr std::chrono::seconds kGonePatience{10};
// A process that has just read the device (udev looks at every new one) lets go of it by itself.
constexpr std::chrono::seconds kOpenersPatience{10};
constexpr std::chrono::milliseconds kOpenersPause{50};
constexpr int kUnusedTries = 100;
constexpr std::chrono::milliseconds kUnusedPause{10};
constexpr unsigned kMostConnections = 4;

Task<Result<Attachments>> attachments() {
  auto dir = co_await server::runtime_dir();
  if (!dir) co_return dir.error();
  co_return Attachments(std::move(*dir));
}

// ---- Servers

ErrorCode code_of_exit(int exit_code) {
  switch (exit_code) {
    case kExitNotFound:
      return ErrorCode::kNotFound;
    case kExitBusy:
      return ErrorCode::kBusy;
    case kExitNoSpace:
      return ErrorCode::kNoSpace;
    case kExitDamage:
      return ErrorCode::kCorrupt;
    default:
      return ErrorCode::kIo;
  }
}

/// What this program wrote to standard error, without its name.
std::string own_words(const std::string& errors) {
  constexpr std::string_view kName = SNAPCTL_PROGRAM_NAME ": ";
  return errors.starts_with(kName) ? errors.substr(kName.size()) : errors;
}

/// The file in `dir` that a server of its own logs to: "web_monday.log" for "web@monday".
std::string log_path(const std::string& dir, std::string name) {
  for (char& c : name) {
    const bool plain = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
                       c == '.' || c == '-' || c == '_';
    if (!plain) c = '_';
  }
  return dir + "/" + name + ".log";
}

/// Of this program, also if another version has taken its place on the disk.
std::string own_path() {
  char path[4096];
  const ssize_t n = ::readlink("/proc/self/exe", path, sizeof path);
  const std::string found(path, n < 0 ? 0 : static_cast<std::size_t>(n));
  return ::access(found.c_str(), X_OK) == 0 ? found : "/proc/self/exe";
}

Task<Result<DeviceServer>> start_server(Context& context, Exported exported) {
  auto dir = co_await server::runtime_dir();
  if (!dir) co_return dir.error();
  auto store = co_await context.store();
  if (!store) co_return store.error();
  const std::vector<std::string> argv = {own_path(), "--store", (*store)->path(),
                                         "--json",   "export",  exported.text,
                                         "--detach", "--log",   log_path(*dir, exported.name)};
  // It must not stand in a directory that someone wants to unmount.
  auto ran = co_await offload([&argv] { return run_program(argv, Output::kKept, "/"); });
  if (!ran) co_return ran.error();
  if (ran->exit_code != 0)
    co_return Error(code_of_exit(ran->exit_code), own_words(ran->errors))
        .with_context("start a server");
  const auto told = nlohmann::json::parse(ran->output, nullptr, false);
  const std::string socket =
      told.is_object() ? json_field(told, "control_socket", std::string()) : std::string();
  if (socket.empty())
    co_return Error(ErrorCode::kIo, "start a server: it does not say where it is");
  auto client = co_await server::ControlClient::connect(socket);
  if (!client) co_return client.error().with_context("start a server");
  DeviceServer out;
  out.client = std::move(*client);
  out.name = exported.name;
  out.control = socket;
  out.own = true;
  co_return out;
}

Task<Result<DeviceServer>> holder_of(Context& context, Exported exported) {
  auto store = co_await context.store();
  if (!store) co_return store.error();
  auto volume = co_await (*store)->volume(exported.name);
  if (!volume) co_return volume.error();
  DeviceServer out;
  out.name = exported.name;
  if (!volume->holder) co_return out;
  if (volume->holder->control_socket.empty())
    co_return Error(ErrorCode::kBusy, fmt::format("volume '{}' is in use by pid {}, which takes no "
                                                  "commands: wait for it, or stop it",
                                                  exported.name, volume->holder->pid));
  auto client = co_await server::ControlClient::connect(volume->holder->control_socket);
  if (!client)
    co_return client.error().with_context(
        fmt::format("reach pid {}, which serves volume '{}'", volume->holder->pid, exported.name));
  out.client = std::move(*client);
  co_return out;
}

// ---- Choosing the way

Result<void> load_nbd() {
  auto netlink = attach::NbdNetlink::open();
  if (netlink) return {};
  const auto modprobe = find_program("modprobe");
  if (!modprobe) return netlink.error();
  auto loaded = run_program({*modprobe, "-q", "nbd"});
  if (!loaded) return loaded.error();
  netlink = attach::NbdNetlink::open();
  if (!netlink) return netlink.error();
  return {};
}

Task<Result<Via>> choose_via(Context& context, AttachOptions options) {
  if (options.via == "auto" && options.device.starts_with("/dev/loop")) options.via = "fuse";
  if (options.via == "auto" && options.device.starts_with("/dev/nbd")) options.via = "nbd";
  if (options.via == "fuse") co_return Via::kFuse;
  auto loaded = co_await offload([] { return load_nbd(); });
  if (loaded) co_return Via::kNbd;
  if (options.via == "nbd") co_return loaded.error();
  context.note(
      "this kernel has no nbd: attached by FUSE and a loop device, which is slower and "
      "does not outlive its server");
  co_return Via::kFuse;
}

unsigned default_connections() {
  return std::clamp(std::thread::hardware_concurrency(), 1U, kMostConnections);
}

Error not_root() {
  return Error(ErrorCode::kPermission,
               "only root can make block devices: run it as root, or use 'export' and an NBD "
               "client such as nbdfuse");
}

}  // namespace

Task<Result<Exported>> find_exported(Store& store, std::string text) {
  auto object = co_await find_object(store, std::move(text));
  if (!object) co_return object.error();
  Exported out;
  if (object->volume) {
    out.name = object->volume->record.name;
    out.writable = object->snapshot.empty();
    if (!out.writable) out.name += "@" + object->snapshot;
    out.text = "volume:" + out.name;
    co_return out;
  }
  out.name =
      object->image->tags.empty() ? object->image->id.hex() : object->image->tags.front().str();
  out.text = "image:" + out.name;
  out.listed = !object->image->tags.empty();
  co_return out;
}

Task<Result<DeviceServer>> server_for(Context& context, Exported exported) {
  DeviceServer out;
  out.name = exported.name;
  if (exported.writable) {
    auto holder = co_await holder_of(context, exported);
    if (!holder || holder->client) co_return holder;
  }
  if (exported.listed) out.client = co_await store_server(context.store_path());
  if (out.client) co_return out;
  co_return co_await start_server(context, std::move(exported));
}

namespace {

/// A device that is served through FUSE is no connection.
Task<Result<bool>> has_devices(std::string control) {
  auto all = co_await all_attachments();
  if (!all) co_return all.error();
  co_return co_await offload([&] {
    return std::any_of(all->begin(), all->end(), [&](const Attachment& one) {
      return one.control == control && attach::in_place(one);
    });
  });
}

}  // namespace

Task<Result<void>> stop_unused(DeviceServer server) {
  if (!server.own) co_return Result<void>();
  for (int left = kUnusedTries; left > 0; --left) {
    auto stat = co_await server::remote_stat(*server.client, std::string());
    // It ends by itself when its device goes.
    const bool ended = !stat && (stat.error().code() == ErrorCode::kCancelled ||
                                 stat.error().sys_errno() == ECONNRESET);
    if (ended) co_return Result<void>();
    if (!stat) co_return stat.error();
    if (stat->connections == 0) {
      auto used = co_await has_devices(server.control);
      if (!used) co_return used.error();
      if (*used) co_return Result<void>();
      auto stopped = co_await server::remote_stop(*server.client);
      auto dir = co_await server::runtime_dir();
      if (stopped && dir) (void)::unlink(log_path(*dir, server.name).c_str());
      co_return stopped;
    }
    Sleep pause(kUnusedPause);
    co_await pause;
  }
  co_return Result<void>();  // someone else uses it
}

Task<Result<Attachment>> attach_object(Context& context, std::string text, AttachOptions options) {
  if (::geteuid() != 0) co_return not_root();
  auto store = co_await context.store();
  if (!store) co_return store.error();
  auto exported = co_await find_exported(**store, std::move(text));
  if (!exported) co_return exported.error();
  auto records = co_await attachments();
  if (!records) co_return records.error();
  auto lock = co_await offload([&] { return records->lock(); });
  if (!lock) co_return lock.error();
  auto known = co_await attachments_of(**store);
  if (!known) co_return known.error();
  for (const Attachment& one : *known) {
    if (one.name != exported->name) continue;
    const bool there = co_await offload([&one] { return attach::in_place(one); });
    if (!there) (void)co_await offload([&] { return records->remove(one.device); });
    if (!there || !exported->writable) continue;
    if (options.if_needed) co_return one;
    co_return Error(ErrorCode::kBusy,
                    fmt::format("'{}' is attached as {} already", one.name, one.device));
  }
  auto via = co_await choose_via(context, options);
  if (!via) co_return via.error();
  auto server = co_await server_for(context, *exported);
  if (!server) co_return server.error();
  server::DeviceWish wish;
  wish.name = server->name;
  wish.via = *via;
  wish.device = options.device;
  wish.connections = options.connections == 0 ? default_connections() : options.connections;
  wish.read_only = options.read_only;
  wish.timeout = options.timeout;
  wish.dead_timeout = options.dead_timeout;
  wish.own_server = server->own;
  wish.for_mount = options.for_mount;
  auto made = co_await server::remote_attach(*server->client, std::move(wish));
  if (made) {
    auto usable = co_await offload(
        [&] { return attach::make_usable(made->device, made->size, kUsablePatience); });
    if (usable) co_return made;
    (void)co_await server::remote_detach(*server->client, made->device);
    made = usable.error();
  }
  (void)co_await stop_unused(std::move(*server));
  co_return made.error();
}

// ---- What is attached

Task<Result<std::vector<Attachment>>> all_attachments() {
  auto records = co_await attachments();
  if (!records) co_return records.error();
  co_return co_await offload([&] { return records->list(); });
}

Task<Result<std::vector<Attachment>>> attachments_of(Store& store) {
  auto records = co_await attachments();
  if (!records) co_return records.error();
  co_return co_await offload([&] { return records->list_of(store.path()); });
}

namespace {

/// The one that is meant. Those that the kernel has, if there are any; else, if they will do, those
/// that it has given up.
Task<Result<Attachment>> choose(std::vector<Attachment> found, Wanted wanted, std::string text) {
  std::vector<Attachment> there;
  for (const Attachment& one : found) {
    if (co_await offload([&one] { return attach::in_place(one); })) there.push_back(one);
  }
  if (there.empty() && wanted == Wanted::kAny) there = std::move(found);
  if (there.empty()) co_return Error(ErrorCode::kNotFound, "'" + text + "' is not attached");
  if (there.size() == 1) co_return std::move(there.front());
  std::vector<std::string> devices;
  for (const Attachment& one : there)
    devices.push_back(one.device);
  co_return Error(
      ErrorCode::kInvalidArgument,
      fmt::format("'{}' is attached as {}: name the device", text, fmt::join(devices, " and ")));
}

}  // namespace

Task<Result<Attachment>> find_attachment(Context& context, std::string text, Wanted wanted) {
  std::vector<Attachment> found;
  if (text.starts_with("/dev/")) {
    auto all = co_await all_attachments();
    if (!all) co_return all.error();
    for (Attachment& one : *all)
      if (one.device == text) found.push_back(std::move(one));
    co_return co_await choose(std::move(found), wanted, std::move(text));
  }
  auto store = co_await context.store();
  if (!store) co_return store.error();
  auto all = co_await attachments_of(**store);
  if (!all) co_return all.error();
  std::string name = parse_object_name(text).name;
  auto exported = co_await find_exported(**store, text);
  if (exported) name = exported->name;
  for (Attachment& one : *all)
    if (one.name == name) found.push_back(std::move(one));
  if (found.empty() && !exported) co_return exported.error();
  co_return co_await choose(std::move(found), wanted, std::move(name));
}

namespace {

Task<Result<void>> refuse_in_place(Store& store, std::function<bool(const Attachment&)> meant) {
  auto all = co_await attachments_of(store);
  if (!all) co_return all.error();
  for (const Attachment& one : *all) {
    if (!meant(one)) continue;
    if (co_await offload([&one] { return attach::in_place(one); }))
      co_return Error(ErrorCode::kBusy,
                      fmt::format("'{}' is attached as {}; detach it first", one.name, one.device));
  }
  co_return Result<void>();
}

}  // namespace

Task<Result<void>> refuse_attached(Store& store, std::string volume) {
  return refuse_in_place(store, [volume = std::move(volume)](const Attachment& one) {
    return one.name == volume || one.name.starts_with(volume + "@");
  });
}

Task<Result<void>> refuse_attached_image(Store& store, ImageId image) {
  return refuse_in_place(store, [content = "image " + image.hex()](const Attachment& one) {
    return one.content == content;
  });
}

// ---- The way back

namespace {

/// Busy while anyone uses it; those who merely have it open are given a while to let go.
Task<Result<void>> wait_for_users(std::string device) {
  const auto end = std::chrono::steady_clock::now() + kOpenersPatience;
  for (;;) {
    auto users = co_await offload([&device] { return attach::users_of(device); });
    if (!users) co_return users.error();
    if (users->empty()) co_return Result<void>();
    const bool only_open = std::all_of(users->begin(), users->end(), [](const std::string& user) {
      return user.starts_with("open in ");
    });
    if (!only_open || std::chrono::steady_clock::now() >= end)
      co_return Error(ErrorCode::kBusy, fmt::format("{} is in use: {}; end that first, or give -f",
                                                    device, fmt::join(*users, ", ")));
    Sleep pause(kOpenersPause);
    co_await pause;
  }
}

/// For a device whose server has died, or does not answer.
Result<void> cut_off_here(const Attachment& device) {
  if (!attach::in_place(device)) return {};  // it is another's by now
  return attach::cut_off(device.device);
}

/// Opens the volume and closes it: what a server that died had answered is in it, but no flush has
/// made it durable.
Task<Result<void>> make_durable(Attachment device) {
  Store::OpenOptions options;
  options.create = false;
  auto store = co_await Store::open(device.store, options);
  if (!store) co_return store.error();
  auto volume = co_await (*store)->volume(device.name);
  if (!volume) co_return volume.error();
  if (std::string(server::kVolumeContent) + volume->record.id != device.content)
    co_return Error(ErrorCode::kNotFound, "there is another volume '" + device.name + "' now");
  Holder self;
  self.pid = ::getpid();
  auto open = co_await (*store)->open_volume(volume->record.name, self);
  if (!open) co_return open.error();
  co_return co_await (*open)->close();
}

/// The last of a device whose server has died. What the volume's next user does anyhow is no error
/// if it cannot be done here.
Task<Result<void>> settle_dead(Context& context, Attachment device, bool force) {
  if (!device.content.starts_with(server::kVolumeContent)) co_return Result<void>();
  auto durable = co_await make_durable(device);
  if (durable) {
    context.note(
        fmt::format("the server of {} had died: what it had answered is durable now, what "
                    "had not reached it is lost",
                    device.device));
    co_return durable;
  }
  const Error error = durable.error().with_context(
      fmt::format("the server of {} had died, and what it had answered could not be made durable",
                  device.device));
  const bool left_to_others =
      error.code() == ErrorCode::kBusy || error.code() == ErrorCode::kNotFound;
  if (!force && !left_to_others) co_return error;
  context.note(error.message());
  co_return Result<void>();
}

}  // namespace

Task<Result<void>> detach_device(Context& context, Attachment device, bool force) {
  if (::geteuid() != 0) co_return not_root();
  auto records = co_await attachments();
  if (!records) co_return records.error();
  auto lock = co_await offload([&] { return records->lock(); });
  if (!lock) co_return lock.error();
  DeviceServer server;
  server.name = device.name;
  server.control = device.control;
  server.own = device.own_server;
  auto client = co_await server::ControlClient::connect(device.control);
  if (client) server.client = std::move(*client);
  const bool dead = !client && server::nobody_listens(client.error());
  if (!client && !dead) {
    if (!force)
      co_return Error(client.error().code(),
                      client.error().message() +
                          "; wait for it, or end it, or give -f: then what is not in the volume "
                          "yet is lost");
    context.note(
        fmt::format("nothing of {} was flushed: {}", device.device, client.error().message()));
  }
  const bool there = co_await offload([&] { return attach::in_place(device); });
  if (there && !force) {
    auto unused = co_await wait_for_users(device.device);
    if (!unused) co_return unused;
  }
  // Without a server there is no one to bring anything to.
  if (there && server.client) {
    auto synced = co_await offload([&] { return attach::sync_device(device.device); });
    if (!synced && !force) co_return synced;
  }
  Result<void> done;
  if (server.client) done = co_await server::remote_detach(*server.client, device.device);
  if (!server.client || (!done && force))
    done = co_await offload([&] { return cut_off_here(device); });
  if (!done) co_return done;
  if (there) {
    auto gone =
        co_await offload([&] { return attach::wait_until_gone(device.device, kGonePatience); });
    if (!gone && !force) co_return gone;
    if (!gone) context.note(device.device + " goes when its last user closes it");
  }
  auto removed = co_await offload([&] { return records->remove(device.device); });
  if (!removed) co_return removed;
  if (dead) co_return co_await settle_dead(context, std::move(device), force);
  if (!server.client) co_return Result<void>();
  co_return co_await stop_unused(std::move(server));
}

Task<Result<Exported>> find_attached(Context& context, Attachment device) {
  auto store = co_await context.store();
  if (!store) co_return store.error();
  const std::string path = (*store)->path();
  const bool its = co_await offload([&] { return attach::is_of_store(device, path); });
  if (!its)
    co_return Error(
        ErrorCode::kInvalidArgument,
        fmt::format("{} is of another store: give --store {}", device.device, device.store));
  server::Catalogue catalogue(**store);
  auto item = co_await catalogue.find_again(device.name, device.content);
  if (!item) co_return item.error().with_context(device.device);
  auto named = co_await catalogue.find(device.name);
  if (named && named->content == device.content)
    co_return co_await find_exported(**store, device.name);
  co_return co_await find_exported(**store, "image:" + item->item.name);
}

Task<Result<void>> reconnect_device(Context& context, Attachment device) {
  if (::geteuid() != 0) co_return not_root();
  if (device.via != Via::kNbd)
    co_return Error(ErrorCode::kUnsupported,
                    device.device +
                        " is a loop device, which does not outlive its server: detach "
                        "it with -f and attach it again");
  auto records = co_await attachments();
  if (!records) co_return records.error();
  auto lock = co_await offload([&] { return records->lock(); });
  if (!lock) co_return lock.error();
  const bool there = co_await offload([&] { return attach::in_place(device); });
  if (!there)
    co_return Error(ErrorCode::kNotFound,
                    device.device +
                        " is no longer connected: the kernel has given it up; 'detach' "
                        "it, then attach it again");
  DeviceServer server;
  auto client = co_await server::ControlClient::connect(device.control);
  if (client) {
    server.client = std::move(*client);
    server.own = device.own_server;
  } else if (!server::nobody_listens(client.error())) {
    co_return client.error();
  } else {
    auto exported = co_await find_attached(context, device);
    if (!exported) co_return exported.error();
    auto found = co_await server_for(context, std::move(*exported));
    if (!found) co_return found.error();
    server = std::move(*found);
  }
  auto done = co_await server::remote_reconnect(*server.client, device.device);
  if (!done) {
    if (!client) (void)co_await stop_unused(std::move(server));
    co_return done;
  }
  if (server.own == device.own_server) co_return Result<void>();
  auto now = co_await offload([&] { return records->list(); });
  if (!now) co_return now.error();
  for (Attachment& one : *now) {
    if (one.device != device.device) continue;
    one.own_server = server.own;
    co_return co_await offload([&] { return records->put(one); });
  }
  co_return Result<void>();
}

}  // namespace snap::cli
