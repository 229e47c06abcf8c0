#include "engine/server/devices.h"

#include <sys/socket.h>

#include <cerrno>
#include <ctime>
#include <utility>

#include "engine/attach/fuse_disk.h"
#include "engine/attach/loop_device.h"
#include "engine/attach/nbd_netlink.h"
#include "engine/nbd/handshake.h"
#include "engine/nbd/volume_export.h"
#include "engine/server/log.h"
#include "engine/server/protect.h"

namespace snap::server {

namespace {

// What a loop device's last user needs to go.
constexpr int kGoneTries = 100;
constexpr std::chrono::milliseconds kGonePause{10};
// From the end of a connection until it is replaced.
constexpr std::chrono::milliseconds kLostPause{300};

std::string rfc3339_now() {
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  ::gmtime_r(&now, &utc);
  char text[32];
  (void)std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &utc);
  return text;
}

struct SocketPair {
  UniqueFd ours, theirs;
};
Result<SocketPair> make_pair() {
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0)
    return Error::from_errno(errno, "make a connection for a block device");
  return SocketPair{UniqueFd(ends[0]), UniqueFd(ends[1])};
}

Error stopping_error() {
  return Error(ErrorCode::kCancelled, "the server is shutting down");
}

std::vector<int> numbers_of(const std::vector<UniqueFd>& fds) {
  std::vector<int> out;
  for (const UniqueFd& fd : fds)
    out.push_back(fd.get());
  return out;
}

Result<unsigned> connect_kernel(const attach::NbdNetlink::Device& device,
                                const std::vector<UniqueFd>& sockets) {
  auto netlink = attach::NbdNetlink::open();
  if (!netlink) return netlink.error();
  const std::vector<int> fds = numbers_of(sockets);
  return netlink->connect(device, fds);
}

Result<void> reconnect_kernel(const attach::Attachment& record,
                              const std::vector<UniqueFd>& sockets) {
  const auto index = attach::nbd_index(record.device);
  if (!index) return Error(ErrorCode::kInvalidArgument, record.device + " is no nbd device");
  auto netlink = attach::NbdNetlink::open();
  if (!netlink) return netlink.error();
  const std::vector<int> fds = numbers_of(sockets);
  return netlink->reconnect(*index, record.backend, fds);
}

Result<void> disconnect_kernel(const std::string& device) {
  const auto index = attach::nbd_index(device);
  if (!index) return Error(ErrorCode::kInvalidArgument, device + " is no nbd device");
  auto netlink = attach::NbdNetlink::open();
  if (!netlink) return netlink.error();
  return netlink->disconnect(*index);
}

Result<void> resize_kernel(const attach::Attachment& record, std::uint64_t size) {
  const auto index = attach::nbd_index(record.device);
  if (!index) return Error(ErrorCode::kInvalidArgument, record.device + " is no nbd device");
  auto netlink = attach::NbdNetlink::open();
  if (!netlink) return netlink.error();
  return netlink->resize(*index, record.backend, size);
}

/// The whole way from the mounted disk to the loop device; on failure nothing of it is left but the
/// disk, for the caller to stop.
Result<std::string> make_loop(attach::FuseDisk& disk, const std::string& device, bool read_only) {
  auto file = disk.open_file();
  auto made = file ? attach::make_loop_device(file->get(), device, read_only)
                   : Result<std::string>(file.error());
  auto hidden = disk.hide();
  if (made && !hidden) {
    (void)attach::release_loop_device(*made);
    return hidden.error();
  }
  return made;
}

}  // namespace

/// One disk that the workers serve.
struct Devices::FuseServing {
  std::unique_ptr<attach::FuseDisk> disk;
  std::shared_ptr<nbd::Export> from;
  std::string device;
  bool own_server = false;
  bool detaching = false;  ///< asked for; else the device goes by itself
  WaitGroup running;       ///< loops that serve it
};

namespace {

template <class Serving>
Task<void> serve_part(std::shared_ptr<Serving> serving) {
  co_await serving->disk->serve();
  serving->running.done();
}

}  // namespace

Devices::Devices(Catalogue& catalogue, OpenItems& open, WorkerPool& workers, Options options)
    : catalogue_(catalogue),
      open_(open),
      workers_(workers),
      options_(std::move(options)),
      records_(options_.runtime_dir) {}

Devices::~Devices() = default;

Task<Result<std::shared_ptr<nbd::Export>>> Devices::open_export(std::string name, bool read_only) {
  using Out = std::shared_ptr<nbd::Export>;
  auto item = co_await catalogue_.find(std::move(name));
  if (!item) co_return item.error();
  const bool refuses_writes =
      read_only || options_.read_only || item->item.kind != ServeItem::Kind::kVolume;
  const std::string export_name = item->name;
  const std::string description = item->description;
  auto lease = co_await open_.open(std::move(*item), OpenItems::For::kClient);
  if (!lease) co_return lease.error();
  std::shared_ptr<Volume> volume(*lease, (*lease)->volume.get());
  Out out = std::make_shared<nbd::VolumeExport>(std::move(volume), export_name, description,
                                                refuses_writes);
  co_return out;
}

/// The kernel's ends of new connections; ours are with the workers already.
Result<std::vector<UniqueFd>> Devices::connect_workers(unsigned connections,
                                                       const std::shared_ptr<nbd::Export>& from) {
  if (stopping_) return stopping_error();
  std::vector<UniqueFd> out;
  for (unsigned i = 0; i < connections; ++i) {
    auto pair = make_pair();
    if (!pair) return pair.error();
    Worker::Device device{from, [this] { lost_.set(); }};
    if (!workers_.give(Socket(std::move(pair->ours), "block device"), std::move(device)))
      return Error(ErrorCode::kBusy, "the server has no room for the connections of a device");
    out.push_back(std::move(pair->theirs));
  }
  return out;
}

Task<Result<attach::Attachment>> Devices::attach(DeviceWish wish) {
  if (wish.connections == 0 || wish.connections > kMaxConnections)
    co_return Error(ErrorCode::kInvalidArgument,
                    "a device has 1 to " + std::to_string(kMaxConnections) + " connections");
  auto from = co_await open_export(wish.name, wish.read_only);
  if (!from) co_return from.error();
  attach::Attachment record;
  record.via = wish.via;
  record.store = options_.store;
  record.name = (*from)->name();
  record.backend = attach::kBackendPrefix + options_.store + " " + record.name;
  record.control = options_.control;
  record.size = (*from)->size();
  record.read_only = (*from)->read_only();
  record.connections = wish.via == attach::Via::kNbd ? wish.connections : 1;
  record.own_server = wish.own_server;
  record.for_mount = wish.for_mount;
  record.since = rfc3339_now();
  const bool nbd = wish.via == attach::Via::kNbd;
  auto making = nbd ? attach_nbd(std::move(wish), std::move(*from), std::move(record))
                    : attach_fuse(std::move(wish), std::move(*from), std::move(record));
  auto made = co_await std::move(making);
  if (!made) co_return made.error();
  spare_from_oom_killer();
  log_info(made->name + " is attached as " + made->device);
  co_return made;
}

Task<Result<attach::Attachment>> Devices::attach_nbd(DeviceWish wish,
                                                     std::shared_ptr<nbd::Export> from,
                                                     attach::Attachment record) {
  attach::NbdNetlink::Device device;
  if (!wish.device.empty()) {
    device.index = attach::nbd_index(wish.device);
    if (!device.index)
      co_return Error(ErrorCode::kInvalidArgument,
                      wish.device + " is no nbd device: name one as /dev/nbd0");
  }
  device.size = record.size;
  device.flags = nbd::transmission_flags(*from, nbd::Headers::kSimple);
  device.timeout = wish.timeout;
  device.dead_timeout = wish.dead_timeout;
  device.backend = record.backend;
  auto sockets = connect_workers(wish.connections, from);
  if (!sockets) co_return sockets.error();
  auto index = co_await offload([&] { return connect_kernel(device, *sockets); });
  if (!index) co_return index.error();
  record.device = "/dev/nbd" + std::to_string(*index);
  auto written = co_await offload([&] { return records_.put(record); });
  if (!written) {
    (void)co_await offload([&] { return disconnect_kernel(record.device); });
    co_return written.error();
  }
  co_return record;
}

Task<Result<attach::Attachment>> Devices::attach_fuse(DeviceWish wish,
                                                      std::shared_ptr<nbd::Export> from,
                                                      attach::Attachment record) {
  auto serving = std::make_shared<FuseServing>();
  serving->from = from;
  auto disk = co_await offload([&] { return attach::FuseDisk::mount(from, options_.runtime_dir); });
  if (!disk) co_return disk.error();
  serving->disk = std::move(*disk);
  if (stopping_) {  // the workers may have gone
    (void)co_await offload([&] { return serving->disk->hide(); });
    co_return stopping_error();
  }
  serving->running.add(workers_.threads());
  workers_.run_on_all([serving] { return serve_part(serving); });
  auto device =
      co_await offload([&] { return make_loop(*serving->disk, wish.device, record.read_only); });
  if (!device) {
    serving->disk->stop();
    co_await serving->running.wait();
    co_return device.error();
  }
  record.device = serving->device = *device;
  serving->own_server = record.own_server;
  fuse_[*device] = serving;
  watchers_.add();
  EventLoop::current()->spawn(watch(serving));
  if (stopping_) serving->disk->stop();
  auto written = co_await offload([&] { return records_.put(record); });
  if (!written) {
    (void)co_await offload([&] { return attach::release_loop_device(record.device); });
    co_return written.error();
  }
  co_return record;
}

/// Until the loop device has let go of its file, whoever asked it to.
Task<void> Devices::watch(std::shared_ptr<FuseServing> serving) {
  co_await serving->running.wait();
  log_info(serving->from->name() + " is no longer " + serving->device);
  fuse_.erase(serving->device);
  auto removed = co_await offload([&] { return records_.remove(serving->device); });
  if (!removed) log_warning(removed.error().message());
  // The last descriptor of /dev/fuse: closing it may wait for the kernel.
  co_await offload([&] { serving->disk.reset(); });
  if (serving->own_server && !serving->detaching) options_.not_needed();
  watchers_.done();
}

Task<Result<attach::Attachment>> Devices::find(std::string device) {
  auto records = co_await offload([this] { return records_.list(); });
  if (!records) co_return records.error();
  for (attach::Attachment& record : *records) {
    if (record.device == device && record.store == options_.store) co_return std::move(record);
  }
  co_return Error(ErrorCode::kNotFound, device + " is no device of this store");
}

Task<Result<void>> Devices::detach(std::string device) {
  auto record = co_await find(device);
  if (!record) co_return record.error();
  if (record->via == attach::Via::kNbd) {
    auto done = co_await offload([&] { return disconnect_kernel(device); });
    if (!done) co_return done;
    log_info(record->name + " is no longer " + device);
    co_return co_await offload([&] { return records_.remove(device); });
  }
  if (const auto serving = fuse_.find(device); serving != fuse_.end())
    serving->second->detaching = true;
  auto released = co_await offload([&] { return attach::release_loop_device(device); });
  if (!released) co_return released;
  for (int left = kGoneTries; fuse_.contains(device); --left) {
    if (left == 0)
      co_return Error(ErrorCode::kBusy, device + " is open, and goes once its last user closes it");
    Sleep pause(kGonePause);
    co_await pause;
  }
  co_return Result<void>();
}

Task<Result<void>> Devices::reconnect(std::string device) {
  auto record = co_await find(std::move(device));
  if (!record) co_return record.error();
  co_return co_await reconnect_one(std::move(*record));
}

Task<Result<void>> Devices::reconnect_one(attach::Attachment record) {
  if (record.via != attach::Via::kNbd)
    co_return Error(ErrorCode::kUnsupported,
                    record.device +
                        " is a loop device, which does not outlive its server: detach "
                        "it and attach it again");
  auto from = co_await open_export(record.name, record.read_only);
  if (!from) co_return from.error();
  auto sockets = connect_workers(record.connections, *from);
  if (!sockets) co_return sockets.error();
  auto done = co_await offload([&] { return reconnect_kernel(record, *sockets); });
  if (!done) co_return done;
  if (record.control != options_.control) {
    record.control = options_.control;
    auto written = co_await offload([&] { return records_.put(record); });
    if (!written) co_return written;
  }
  spare_from_oom_killer();
  log_info(record.device + " was given new connections to " + record.name);
  co_return Result<void>();
}

Task<void> Devices::reconnect_all() {
  auto records = co_await offload([this] { return records_.list(); });
  if (!records) {
    log_warning(records.error().message());
    co_return;
  }
  for (const attach::Attachment& record : *records) {
    if (record.control != options_.control || record.via != attach::Via::kNbd) continue;
    const bool there = co_await offload([&record] { return attach::in_place(record); });
    if (!there) {
      // Taken from the kernel, or given up by it, while no server ran.
      log_info(record.device + " is gone, without a detach");
      (void)co_await offload([&] { return records_.remove(record.device); });
      if (record.own_server) options_.not_needed();
      continue;
    }
    auto done = co_await reconnect_one(record);
    if (!done) log_error("reconnect " + record.device + ": " + done.error().message());
  }
}

Task<void> Devices::run() {
  co_await reconnect_all();
  for (;;) {
    co_await lost_.wait();
    // A device that is being detached takes its connections down first.
    Sleep pause(kLostPause);
    if (!stopping_) co_await pause;
    if (stopping_) co_return;
    lost_.reset();
    co_await reconnect_all();
  }
}

Task<Result<void>> Devices::resized(std::string name) {
  auto records = co_await offload([this] { return records_.list(); });
  if (!records) co_return records.error();
  for (attach::Attachment& record : *records) {
    if (record.control != options_.control || record.name != name) continue;
    auto item = co_await catalogue_.find(name);
    if (!item) co_return item.error();
    const auto open = open_.peek(item->identity);
    record.size = open ? open->volume->size() : item->size;
    Result<void> done;
    if (record.via == attach::Via::kNbd) {
      done = co_await offload([&] { return resize_kernel(record, record.size); });
    } else if (const auto serving = fuse_.find(record.device); serving != fuse_.end()) {
      const auto one = serving->second;
      done = co_await offload([&] { return one->disk->refresh_size(); });
      if (done) done = co_await offload([&] { return attach::refresh_loop_size(record.device); });
    }
    if (done) done = co_await offload([&] { return records_.put(record); });
    if (!done) co_return done;
  }
  co_return Result<void>();
}

void Devices::stop() {
  if (std::exchange(stopping_, true)) return;
  lost_.set();
  for (const auto& [device, serving] : fuse_) {
    log_warning(device + " loses its server: what is on it fails from now on");
    serving->disk->stop();
  }
}

Task<void> Devices::ended() {
  co_await watchers_.wait();
}

}  // namespace snap::server
