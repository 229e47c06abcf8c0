#include "engine/server/volume_server.h"

#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "engine/base/uuid.h"
#include "engine/server/catalogue.h"
#include "engine/server/control.h"
#include "engine/server/devices.h"
#include "engine/server/export_desk.h"
#include "engine/server/export_stat.h"
#include "engine/server/log.h"
#include "engine/server/metrics.h"
#include "engine/server/metrics_server.h"
#include "engine/server/open_items.h"
#include "engine/server/server.h"
#include "engine/server/signals.h"
#include "engine/server/space_monitor.h"
#include "engine/server/volume_ops.h"

namespace snap::server {

namespace {

constexpr std::size_t kShortId = 12;

/// The first digits of a UUID, without its dashes.
std::string short_id(std::string uuid) {
  std::erase(uuid, '-');
  return uuid.substr(0, kShortId);
}

/// Names the sockets of the server of a whole store: the same for every path to it.
Result<std::string> store_id(const std::string& path) {
  struct stat s {};
  if (::stat(path.c_str(), &s) != 0) return Error::from_errno(errno, "look at store " + path);
  return "store-" + std::to_string(s.st_dev) + "-" + std::to_string(s.st_ino);
}

}  // namespace

class VolumeServer::Impl {
 public:
  explicit Impl(Options options) : options_(std::move(options)) {}

  Task<Result<void>> run(std::function<void(const Ready&)> ready);

 private:
  bool whole_store() const noexcept { return options_.items.empty(); }
  Task<Result<void>> open_all();
  Task<Result<std::string>> choose_id();
  Task<Result<void>> open_items();
  Task<Result<void>> start_servers();
  Task<Result<void>> start_metrics();
  Task<Result<std::vector<Listener>>> listen();
  std::string control_path() const { return dir_ + "/" + id_ + ".control"; }

  Ready how_to_reach() const;
  std::string uri_of(const std::string& name) const;
  bool has_tls() const { return options_.tls.mode != nbd::TlsPolicy::Mode::kOff; }
  ServerStat stat(const std::string& volume, bool counts) const;
  std::vector<std::shared_ptr<OpenVolume>> writable() const;

  void spawn(Task<void> helper);
  Task<void> run_helper(Task<void> helper);
  Task<void> handle_signals();
  Task<void> feed_watchdog();
  void hang_up();
  void stop(const std::string& why);
  void stop_unless_used();
  Task<void> end_helpers();
  Task<Result<void>> close_all();

  Options options_;
  std::string dir_;  ///< of sockets
  std::string id_;   ///< short: names the sockets
  const std::chrono::steady_clock::time_point started_ = std::chrono::steady_clock::now();

  std::unique_ptr<Store> store_;
  std::optional<Catalogue> catalogue_;
  std::optional<OpenItems> open_;
  std::vector<OpenItems::Lease> pinned_;  ///< what is open from start to end
  std::optional<ExportDesk> desk_;
  std::optional<SpaceMonitor> monitor_;
  Served served_;
  std::unique_ptr<ControlServer> control_;
  std::unique_ptr<Server> server_;
  std::optional<Devices> devices_;  ///< served by the server's workers
  std::unique_ptr<MetricsServer> metrics_;
  std::vector<std::string> addresses_;  ///< on which the server listens
  std::vector<std::string> base_uris_;  ///< the same, for an export without a name

  std::optional<StopSignals> signals_;
  PendingOps signal_wait_;
  Sleep* watchdog_pause_ = nullptr;
  bool stopping_ = false;
  bool ended_ = false;  ///< every connection has
  WaitGroup helpers_;   ///< the tasks beside run()
};

VolumeServer::VolumeServer(Options options) : impl_(std::make_unique<Impl>(std::move(options))) {}
VolumeServer::~VolumeServer() = default;

Task<Result<void>> VolumeServer::run(std::function<void(const Ready&)> ready) {
  return impl_->run(std::move(ready));
}

Task<Result<std::string>> store_control_socket(std::string store) {
  auto dir = co_await runtime_dir();
  if (!dir) co_return dir.error();
  auto id = co_await offload([&store] { return store_id(store); });
  if (!id) co_return id.error();
  co_return *dir + "/" + *id + ".control";
}

Task<Result<void>> VolumeServer::Impl::run(std::function<void(const Ready&)> ready) {
  auto started = co_await open_all();
  if (started) started = co_await start_servers();
  if (started) {
    spawn(monitor_->run());
    spawn(control_->run());
    spawn(handle_signals());
    spawn(open_->run());
    spawn(desk_->run());
    if (metrics_) spawn(metrics_->run());
    spawn(devices_->run());
    if (options_.manager.watchdog()) spawn(feed_watchdog());
    ready(how_to_reach());
    options_.manager.notify("READY=1\nMAINPID=" + std::to_string(::getpid()) +
                            "\nSTATUS=serving on " + addresses_.front());
    co_await server_->run();
    co_await end_helpers();
  }
  auto closed = co_await close_all();
  if (!started) co_return started;
  if (closed) log_info("stopped");
  co_return closed;
}

// ---- Opening

Task<Result<void>> VolumeServer::Impl::open_all() {
  auto store = co_await Store::open(options_.store, options_.open);
  if (!store) co_return store.error();
  store_ = std::move(*store);
  auto dir = co_await runtime_dir();
  if (!dir) co_return dir.error();
  dir_ = std::move(*dir);
  auto id = co_await choose_id();
  if (!id) co_return id.error();
  id_ = std::move(*id);
  OpenItems::Options open;
  open.control_socket = control_path();
  open.close_idle = whole_store();
  open_.emplace(*store_, std::move(open));
  if (whole_store()) {
    catalogue_.emplace(*store_);
    co_return Result<void>();
  }
  catalogue_.emplace(*store_, Catalogue::Fixed());
  co_return co_await open_items();
}

Task<Result<void>> VolumeServer::Impl::open_items() {
  for (const ServeItem& item : options_.items) {
    auto served = co_await catalogue_->add(item);
    if (!served) co_return served.error();
    auto lease = co_await open_->open(std::move(*served), OpenItems::For::kCommand);
    if (!lease) co_return lease.error();
    pinned_.push_back(std::move(*lease));
  }
  co_return Result<void>();
}

/// Sockets of a volume are named by its id, so that they keep their names; the lock of the volume
/// sees to it that no one else has them. Of read-only things there may be many servers, of a store
/// as a whole one.
Task<Result<std::string>> VolumeServer::Impl::choose_id() {
  if (whole_store()) {
    auto id = co_await offload([this] { return store_id(options_.store); });
    co_return id;
  }
  for (const ServeItem& item : options_.items) {
    if (item.kind != ServeItem::Kind::kVolume) continue;
    auto found = co_await store_->volume(item.name);
    if (!found) co_return found.error();
    co_return short_id(found->record.id);
  }
  SystemRandom random;
  co_return short_id(Uuid::make(random).str());
}

// ---- Starting

Task<Result<void>> VolumeServer::Impl::start_servers() {
  EventLoop::current()->set_may_block(false);  // clients wait for it from here on
  auto signals = StopSignals::open();
  if (!signals) co_return signals.error();
  signals_ = std::move(*signals);
  // Named: g++ 12 destroys temporaries of aggregates in the operand of co_await twice.
  UnixEndpoint control_endpoint{.path = control_path()};
  auto control = co_await listen_on(std::move(control_endpoint));
  if (!control) {
    if (whole_store() && control.error().code() == ErrorCode::kBusy)
      co_return Error(ErrorCode::kBusy,
                      "another server has store " + options_.store +
                          ": use that one (ps tells its pid and socket), or stop it first");
    co_return control.error();
  }
  control_ = std::make_unique<ControlServer>(std::move(*control));
  auto metrics = co_await start_metrics();
  if (!metrics) co_return metrics.error();
  auto listeners = co_await listen();
  if (!listeners) co_return listeners.error();
  for (const Listener& listener : *listeners) {
    addresses_.push_back(listener.address());
    base_uris_.push_back(nbd_uri(listener, "", has_tls()));
  }
  desk_.emplace(*catalogue_, *open_, options_.read_only);
  Server::Options options;
  options.workers.threads = options_.threads;
  options.workers.tls = options_.tls;
  auto server = Server::start(*desk_, std::move(*listeners), options);
  if (!server) co_return server.error();
  server_ = std::move(*server);
  monitor_.emplace(*store_, [this] { return writable(); });
  // The store's limit holds from the first request on.
  auto watching = monitor_->prepare();
  auto watched = co_await std::move(watching);
  if (!watched) co_return watched.error();
  Devices::Options here{store_->path(), control_->path(), dir_, options_.read_only,
                        [this] { stop_unless_used(); }};
  devices_.emplace(*catalogue_, *open_, server_->workers(), std::move(here));
  served_.store = store_.get();
  served_.devices = &*devices_;
  served_.catalogue = &*catalogue_;
  served_.open = &*open_;
  served_.stat = [this](const std::string& volume) { return stat(volume, !volume.empty()); };
  served_.uri = [this](const std::string& name) { return uri_of(name); };
  served_.stop = [this] { stop("a command"); };
  add_volume_ops(*control_, served_);
  co_return Result<void>();
}

Task<Result<void>> VolumeServer::Impl::start_metrics() {
  if (!options_.metrics) co_return Result<void>();
  auto listener = co_await listen_on(*options_.metrics);
  if (!listener) co_return listener.error().with_context("metrics");
  metrics_ = std::make_unique<MetricsServer>(std::move(*listener),
                                             [this] { return metrics_text(stat("", true)); });
  co_return Result<void>();
}

Task<Result<std::vector<Listener>>> VolumeServer::Impl::listen() {
  std::vector<Listener> listeners = std::move(options_.inherited);
  const bool needs_tls = options_.tls.mode == nbd::TlsPolicy::Mode::kRequired;
  for (const Listener& listener : listeners) {
    if (!needs_tls && !options_.insecure && !is_local(listener))
      co_return not_safe(listener.address());
  }
  if (options_.socket) {
    auto unix_socket = co_await listen_on(*options_.socket);
    if (!unix_socket) co_return unix_socket.error();
    listeners.push_back(std::move(*unix_socket));
  }
  if (options_.tcp) {
    options_.tcp->tls = needs_tls;
    auto tcp = co_await listen_on(*options_.tcp);
    if (!tcp) co_return tcp.error();
    listeners.push_back(std::move(*tcp));
  }
  if (listeners.empty()) {
    UnixEndpoint endpoint{.path = dir_ + "/" + id_ + ".sock"};
    auto own = co_await listen_on(std::move(endpoint));
    if (!own) co_return own.error();
    listeners.push_back(std::move(*own));
  }
  co_return listeners;
}

// ---- What it tells of itself

VolumeServer::Ready VolumeServer::Impl::how_to_reach() const {
  Ready how;
  if (whole_store()) how.uris = base_uris_;
  for (const OpenItems::Lease& item : pinned_)
    how.uris.push_back(uri_of(item->served.name));
  how.control_socket = control_->path();
  if (metrics_) how.metrics = "http://" + metrics_->address() + "/metrics";
  return how;
}

std::string VolumeServer::Impl::uri_of(const std::string& name) const {
  return nbd_uri(server_->listeners().front(), name, has_tls());
}

ServerStat VolumeServer::Impl::stat(const std::string& volume, bool counts) const {
  ServerStat out;
  out.command = whole_store() ? "serve" : "export";
  out.store = store_->path();
  out.uptime =
      std::chrono::duration_cast<std::chrono::seconds>(std::chrono::steady_clock::now() - started_);
  out.addresses = addresses_;
  const WorkerShared& connections = server_->shared();
  out.connections = connections.connections;
  out.accepted = connections.accepted;
  out.turned_away = connections.turned_away;
  out.ended_badly = connections.ended_badly;
  out.volumes = stat_of_exports(*open_, volume, counts, options_.read_only);
  const auto now = std::chrono::steady_clock::now();
  for (const ClientInfo& client : connections.clients.all()) {
    if (!volume.empty() && client.export_name != volume) continue;
    out.clients.push_back({client.name, client.export_name, client.tls,
                           std::chrono::duration_cast<std::chrono::seconds>(now - client.since)});
  }
  return out;
}

std::vector<std::shared_ptr<OpenVolume>> VolumeServer::Impl::writable() const {
  std::vector<std::shared_ptr<OpenVolume>> out;
  for (const auto& item : open_->all()) {
    if (item->writable) out.push_back(item->writable);
  }
  return out;
}

// ---- The tasks beside run()

void VolumeServer::Impl::spawn(Task<void> helper) {
  helpers_.add();
  EventLoop::current()->spawn(run_helper(std::move(helper)));
}

Task<void> VolumeServer::Impl::run_helper(Task<void> helper) {
  co_await std::move(helper);
  helpers_.done();
}

Task<void> VolumeServer::Impl::handle_signals() {
  for (;;) {
    auto signal = co_await signals_->next(signal_wait_);
    if (!signal) break;
    if (*signal == SIGHUP && !options_.stop_on_hangup) {
      hang_up();
    } else if (stopping_) {
      log_warning("a second signal: clients are cut off");
      server_->cut();
    } else {
      const char* name = *signal == SIGINT ? "SIGINT" : *signal == SIGHUP ? "SIGHUP" : "SIGTERM";
      stop(name);
    }
  }
}

void VolumeServer::Impl::hang_up() {
  auto reopened = reopen_log();
  if (!reopened) log_error(reopened.error().message());
}

/// Says that this loop turns, twice as often as it has to.
Task<void> VolumeServer::Impl::feed_watchdog() {
  while (!ended_) {
    options_.manager.notify("WATCHDOG=1");
    Sleep pause(*options_.manager.watchdog() / 2);
    watchdog_pause_ = &pause;
    co_await pause;
    watchdog_pause_ = nullptr;
  }
}

void VolumeServer::Impl::stop(const std::string& why) {
  if (std::exchange(stopping_, true)) return;
  log_info("stopping on " + why);
  options_.manager.notify("STOPPING=1\nSTATUS=stopping: waiting for " +
                          std::to_string(server_->connections()) + " clients");
  devices_->stop();
  server_->request_stop();
  open_->stop();
  // Commands that run are cancelled now; a commit must not outlive the clients' drain.
  control_->stop();
}

/// The device that it was started for has gone.
void VolumeServer::Impl::stop_unless_used() {
  if (server_->connections() == 0 && !devices_->has_fuse()) stop("the end of its device");
}

// ---- The end

Task<void> VolumeServer::Impl::end_helpers() {
  ended_ = true;
  desk_->stop();
  control_->stop();
  signal_wait_.stop();
  monitor_->stop();
  if (metrics_) metrics_->stop();
  if (watchdog_pause_ != nullptr) watchdog_pause_->wake();
  co_await helpers_.wait();
  co_await devices_->ended();
}

Task<Result<void>> VolumeServer::Impl::close_all() {
  pinned_.clear();
  Result<void> closed;
  if (open_) {
    open_->stop();
    closed = co_await open_->close_all();
  }
  // What holds on to the store goes before it.
  devices_.reset();
  server_.reset();
  desk_.reset();
  monitor_.reset();
  open_.reset();
  catalogue_.reset();
  store_.reset();
  co_return closed;
}

}  // namespace snap::server
