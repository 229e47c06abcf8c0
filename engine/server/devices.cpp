#include "engine/server/devices.h"

#include <sys/socket.h>

#include <cerrno>
#include <thread>
#include <utility>

#include "engine/attach/block_device.h"
#include "engine/attach/fuse_disk.h"
#include "engine/attach/fuse_requests.h"
#include "engine/attach/loop_device.h"
#include "engine/attach/nbd_netlink.h"
#include "engine/nbd/handshake.h"
#include "engine/server/export_desk.h"
#include "engine/server/log.h"
#include "engine/server/protect.h"
#include "engine/store/names.h"

namespace snap::server {

namespace {

constexpr std::chrono::seconds kLongestTimeout{86400};
// What a loop device's last user needs to go.
constexpr int kGoneTries = 100;
constexpr std::chrono::milliseconds kGonePause{10};
// From the end of a connection until it is replaced, and from one attempt to the next.
constexpr std::chrono::milliseconds kLostPause{300};
constexpr std::chrono::seconds kRetryPause{1};
// For a named device that no one has, and someone has open.
constexpr int kBusyTries = 20;
constexpr std::chrono::milliseconds kBusyPause{50};

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

Error another(const attach::Attachment& record) {
  return Error(ErrorCode::kExists,
               record.device + " was made of another '" + record.name +
                   "' than there is now, and must not go on with this one; 'detach -f' it");
}

std::vector<int> numbers_of(const std::vector<UniqueFd>& fds) {
  std::vector<int> out;
  for (const UniqueFd& fd : fds)
    out.push_back(fd.get());
  return out;
}

/// A device that was just let go of is busy as long as someone (udev) still looks at it.
Result<unsigned> connect_kernel(const attach::NbdNetlink::Device& device,
                                const std::vector<UniqueFd>& sockets) {
  auto netlink = attach::NbdNetlink::open();
  if (!netlink) return netlink.error();
  const std::vector<int> fds = numbers_of(sockets);
  for (int left = kBusyTries;; --left) {
    auto index = netlink->connect(device, fds);
    const bool busy = !index && index.error().code() == ErrorCode::kBusy && device.index;
    if (!busy || left == 0 || !attach::nbd_backend(*device.index).empty()) return index;
    std::this_thread::sleep_for(kBusyPause);
  }
}

/// Has the kernel change a device of its own: calls `change` with its nbd and the device's number.
template <class Change>
Result<void> change_kernel(const std::string& device, Change change) {
  const auto index = attach::nbd_index(device);
  if (!index) return Error(ErrorCode::kInvalidArgument, device + " is no nbd device");
  auto netlink = attach::NbdNetlink::open();
  if (!netlink) return netlink.error();
  return change(*netlink, *index);
}

Result<void> reconnect_kernel(const attach::Attachment& record,
                              const std::vector<UniqueFd>& sockets) {
  return change_kernel(record.device, [&](attach::NbdNetlink& netlink, unsigned index) {
    return netlink.reconnect(index, record.backend, numbers_of(sockets));
  });
}

Result<void> resize_kernel(const attach::Attachment& record, std::uint64_t size) {
  return change_kernel(record.device, [&](attach::NbdNetlink& netlink, unsigned index) {
    return netlink.resize(index, record.backend, size);
  });
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

Task<Result<Devices::Opened>> Devices::open(ServedItem item, bool read_only) {
  Opened out;
  out.content = item.content;
  auto from = co_await open_export(open_, std::move(item), read_only || options_.read_only);
  if (!from) co_return from.error();
  out.from = std::move(*from);
  co_return out;
}

/// The kernel's ends of new connections; ours are with the workers already.
Result<std::vector<UniqueFd>> Devices::connect_workers(unsigned connections,
                                                       const std::shared_ptr<nbd::Export>& from,
                                                       const std::shared_ptr<Link>& link) {
  if (stopping_) return stopping_error();
  std::vector<UniqueFd> out;
  for (unsigned i = 0; i < connections; ++i) {
    auto pair = make_pair();
    if (!pair) return pair.error();
    Worker::Device device;
    device.from = from;
    device.lost = [this, link] {
      link->lost = true;
      lost_.set();
    };
    if (!workers_.give(Socket(std::move(pair->ours), "block device"), std::move(device)))
      return Error(ErrorCode::kBusy, "the server has no room for the connections of a device");
    out.push_back(std::move(pair->theirs));
  }
  return out;
}

// ---- There

Task<Result<attach::Attachment>> Devices::attach(DeviceWish wish) {
  if (wish.connections == 0 || wish.connections > kMaxConnections)
    co_return Error(ErrorCode::kInvalidArgument,
                    "a device has 1 to " + std::to_string(kMaxConnections) + " connections");
  for (const std::chrono::seconds time : {wish.timeout, wish.dead_timeout}) {
    if (time.count() < 0 || time > kLongestTimeout)
      co_return Error(ErrorCode::kInvalidArgument,
                      "a timeout has 0 to " + std::to_string(kLongestTimeout.count()) + " seconds");
  }
  auto item = co_await catalogue_.find(wish.name);
  if (!item) co_return item.error();
  auto opened = co_await open(std::move(*item), wish.read_only);
  if (!opened) co_return opened.error();
  const bool nbd = wish.via == attach::Via::kNbd;
  attach::Attachment record;
  record.via = wish.via;
  record.store = options_.store;
  record.name = opened->from->name();
  record.content = opened->content;
  record.control = options_.control;
  record.size = opened->from->size();
  record.read_only = opened->from->read_only();
  record.connections = nbd ? wish.connections : 1;
  record.own_server = wish.own_server;
  record.for_mount = wish.for_mount;
  record.since = now_rfc3339();
  auto making = nbd ? attach_nbd(std::move(wish), std::move(opened->from), std::move(record))
                    : attach_fuse(std::move(wish), std::move(opened->from), std::move(record));
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
  record.backend = attach::kBackendPrefix + options_.store + " " + record.name;
  device.size = record.size;
  device.flags = nbd::transmission_flags(*from, nbd::Headers::kSimple);
  device.timeout = wish.timeout;
  device.dead_timeout = wish.dead_timeout;
  device.backend = record.backend;
  auto link = std::make_shared<Link>();
  auto sockets = connect_workers(wish.connections, from, link);
  if (!sockets) co_return sockets.error();
  auto index = co_await offload([&] { return connect_kernel(device, *sockets); });
  if (!index) co_return index.error();
  record.device = "/dev/nbd" + std::to_string(*index);
  auto written = co_await offload([&] { return records_.put(record); });
  if (!written) {
    (void)co_await offload([&] { return attach::cut_off(record.device); });
    co_return written.error();
  }
  links_[record.device] = std::move(link);
  co_return record;
}

Task<Result<attach::Attachment>> Devices::attach_fuse(DeviceWish wish,
                                                      std::shared_ptr<nbd::Export> from,
                                                      attach::Attachment record) {
  if (!wish.device.empty() && !wish.device.starts_with("/dev/loop"))
    co_return Error(ErrorCode::kInvalidArgument,
                    wish.device + " is no loop device: name one as /dev/loop0");
  auto serving = std::make_shared<FuseServing>();
  serving->from = from;
  serving->own_server = record.own_server;
  auto disk = co_await offload([&] { return attach::FuseDisk::mount(from, options_.runtime_dir); });
  if (!disk) co_return disk.error();
  serving->disk = std::move(*disk);
  record.backend = attach::disk_file_name(*from);
  if (stopping_) {  // the workers may have gone
    (void)co_await offload([&] { return serving->disk->hide(); });
    co_return stopping_error();
  }
  serving->running.add(workers_.threads());
  workers_.run_on_all([serving] { return serve_part(serving); });
  auto device =
      co_await offload([&] { return make_loop(*serving->disk, wish.device, record.read_only); });
  Result<void> written;
  if (device) {
    record.device = serving->device = *device;
    written = co_await offload([&] { return records_.put(record); });
    if (!written) (void)co_await offload([&] { return attach::release_loop_device(*device); });
  }
  if (!device || !written) {
    serving->disk->stop();
    co_await serving->running.wait();
    co_return device ? written.error() : device.error();
  }
  fuse_[*device] = serving;
  watchers_.add();
  EventLoop::current()->spawn(watch(serving));
  if (stopping_) {
    watchers_.add();
    EventLoop::current()->spawn(end(serving));
  }
  co_return record;
}

// ---- And back

/// Until the loop device has let go of its file, whoever asked it to.
Task<void> Devices::watch(std::shared_ptr<FuseServing> serving) {
  co_await serving->running.wait();
  log_info(serving->from->name() + " is no longer " + serving->device);
  fuse_.erase(serving->device);
  // A device that is still in use has lost its server: who comes later is to know whose it was.
  const bool in_use = co_await offload([&] { return !attach::loop_file(serving->device).empty(); });
  if (!in_use) {
    auto removed = co_await offload([&] { return records_.remove(serving->device); });
    if (!removed) log_warning(removed.error().message());
  }
  // The last descriptor of /dev/fuse: closing it may wait for the kernel.
  std::unique_ptr<attach::FuseDisk> disk = std::move(serving->disk);
  co_await offload([&] { disk.reset(); });
  if (serving->own_server && !serving->detaching) options_.not_needed();
  watchers_.done();
}

/// On a shutdown. The loop device writes what it has, as long as there is someone to write to.
Task<void> Devices::end(std::shared_ptr<FuseServing> serving) {
  auto released = co_await offload([&] { return attach::release_loop_device(serving->device); });
  const bool in_use = co_await offload([&] { return !attach::loop_file(serving->device).empty(); });
  if (!released || in_use)
    log_warning(serving->device +
                " is in use and loses its server: what is on it fails from now on");
  if (serving->disk != nullptr) serving->disk->stop();  // else watch() saw it end meanwhile
  watchers_.done();
}

Task<Result<std::vector<attach::Attachment>>> Devices::records_of_store() {
  co_return co_await offload([this] { return records_.list_of(options_.store); });
}

Task<Result<attach::Attachment>> Devices::find(std::string device) {
  auto records = co_await records_of_store();
  if (!records) co_return records.error();
  for (attach::Attachment& record : *records) {
    if (record.device == device) co_return std::move(record);
  }
  co_return Error(ErrorCode::kNotFound, device + " is no device of this store");
}

Task<Result<void>> Devices::detach(std::string device) {
  auto record = co_await find(device);
  if (!record) co_return record.error();
  const bool there = co_await offload([&] { return attach::in_place(*record); });
  links_.erase(device);
  if (!there) co_return co_await offload([&] { return records_.remove(device); });
  if (record->via == attach::Via::kNbd) {
    auto done = co_await offload([&] { return attach::cut_off(device); });
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

// ---- Devices that have lost connections

Task<Result<void>> Devices::reconnect(std::string device) {
  auto record = co_await find(std::move(device));
  if (!record) co_return record.error();
  co_return co_await reconnect_one(std::move(*record));
}

/// The kernel takes as many as it has lost. Those that it still has go on telling the link that
/// they were made with, so that is the new ones' too.
Task<Result<void>> Devices::offer_connections(attach::Attachment record,
                                              std::shared_ptr<nbd::Export> from) {
  const auto known = links_.find(record.device);
  const auto link = known != links_.end() ? known->second : std::make_shared<Link>();
  const bool lost = link->lost.exchange(false);  // before: what is lost from here on counts
  auto sockets = connect_workers(record.connections, from, link);
  Result<void> done;
  if (!sockets) {
    done = sockets.error();
  } else {
    done = co_await offload([&] { return reconnect_kernel(record, *sockets); });
  }
  if (done) {
    links_[record.device] = link;
  } else if (lost) {
    link->lost = true;
  }
  co_return done;
}

Task<Result<void>> Devices::reconnect_one(attach::Attachment record) {
  if (record.via != attach::Via::kNbd)
    co_return Error(ErrorCode::kUnsupported,
                    record.device +
                        " is a loop device, which does not outlive its server: detach "
                        "it and attach it again");
  auto item = co_await catalogue_.find_again(record.name, record.content);
  if (!item && item.error().code() == ErrorCode::kExists) co_return another(record);
  if (!item) co_return item.error();
  auto opened = co_await open(std::move(*item), record.read_only);
  if (!opened) co_return opened.error();
  const std::uint64_t size = opened->from->size();  // the catalogue's may be that of the start
  if (size < record.size) co_return another(record);
  auto offered = co_await offer_connections(record, opened->from);
  if (!offered) co_return offered;
  // It may have grown while no server had the device, or one that died before it told the kernel.
  const bool grown = size > record.size;
  if (grown) {
    record.size = size;
    auto resized = co_await offload([&] { return resize_kernel(record, size); });
    if (!resized) co_return resized;
  }
  if (grown || record.control != options_.control) {
    record.control = options_.control;
    auto written = co_await offload([&] { return records_.put(record); });
    if (!written) co_return written;
  }
  spare_from_oom_killer();
  log_info(record.device + " was given new connections to " + record.name);
  co_return Result<void>();
}

/// Reconnects all nbd devices of this server, or those that have lost a connection. False: some
/// could not be.
Task<bool> Devices::look_after(bool all) {
  auto records = co_await offload([this] { return records_.list(); });
  if (!records) {
    log_warning(records.error().message());
    co_return false;
  }
  bool done = true;
  for (const attach::Attachment& record : *records) {
    if (record.control != options_.control || record.via != attach::Via::kNbd) continue;
    const auto link = links_.find(record.device);
    if (!all && link != links_.end() && !link->second->lost) continue;
    const bool there = co_await offload([&record] { return attach::in_place(record); });
    if (!there) {
      // Taken away by another program, or given up by the kernel.
      log_info(record.device + " is gone, without a detach");
      links_.erase(record.device);
      (void)co_await offload([&] { return records_.remove(record.device); });
      if (record.own_server) options_.not_needed();
      continue;
    }
    auto reconnected = co_await reconnect_one(record);
    if (reconnected) continue;
    done = false;
    log_limited(complaints_, "reconnect " + record.device + ": " + reconnected.error().message());
  }
  co_return done;
}

Task<void> Devices::run() {
  bool again = !co_await look_after(true);
  while (!stopping_) {
    if (!again) co_await lost_.wait();
    lost_.reset();
    // A device that is being detached takes its connections down first.
    Sleep pause(again ? kRetryPause : kLostPause);
    retry_ = &pause;
    if (!stopping_) co_await pause;
    retry_ = nullptr;
    if (stopping_) co_return;
    again = !co_await look_after(false);
  }
}

// ---- Their size

Task<Result<void>> Devices::allow_resize(std::string name, std::uint64_t size) {
  auto records = co_await records_of_store();
  if (!records) co_return records.error();
  for (const attach::Attachment& record : *records) {
    if (record.name != name || size >= record.size) continue;
    const bool there = co_await offload([&record] { return attach::in_place(record); });
    if (there)
      co_return Error(ErrorCode::kBusy, "volume " + name + " is attached as " + record.device +
                                            ", which cannot be made smaller: detach it first");
  }
  co_return Result<void>();
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
  if (retry_ != nullptr) retry_->wake();
  for (const auto& [device, serving] : fuse_) {
    watchers_.add();
    EventLoop::current()->spawn(end(serving));
  }
}

Task<void> Devices::ended() {
  co_await watchers_.wait();
}

}  // namespace snap::server
