#include "engine/server/volume_server.h"

#include <unistd.h>

#include <utility>

#include "engine/base/uuid.h"
#include "engine/delta/delta.h"
#include "engine/nbd/volume_export.h"
#include "engine/server/control.h"
#include "engine/server/log.h"
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

std::string export_name_of(const ServeItem& item) {
  if (!item.export_name.empty()) return item.export_name;
  return item.kind == ServeItem::Kind::kSnapshot ? item.name + "@" + item.snapshot : item.name;
}

/// What client tools show beside the name.
std::string description_of(const ServeItem& item) {
  switch (item.kind) {
    case ServeItem::Kind::kVolume:
      return "volume " + item.name;
    case ServeItem::Kind::kImage:
      return "image " + item.name;
    case ServeItem::Kind::kSnapshot:
      return "snapshot " + item.snapshot + " of volume " + item.name;
  }
  return {};
}

}  // namespace

class VolumeServer::Impl {
 public:
  explicit Impl(Options options) : options_(std::move(options)) {}

  Task<Result<void>> run(std::function<void(const Ready&)> ready);

 private:
  Task<Result<void>> open_all();
  Task<Result<std::string>> choose_id();
  Task<Result<std::shared_ptr<Volume>>> open_item(ServeItem item);
  Task<Result<std::shared_ptr<Volume>>> open_volume(std::string name);
  Task<Result<void>> start_servers();
  Task<Result<std::vector<Listener>>> listen();
  Task<void> serve_control();
  Task<void> stop_on_signals();
  Task<void> watch_space();
  void stop();
  Task<Result<void>> close_all();

  Options options_;
  std::string dir_;  ///< of sockets
  std::string id_;   ///< short: names the sockets
  Served served_;
  nbd::FixedExports exports_;
  std::unique_ptr<ControlServer> control_;
  std::unique_ptr<Server> server_;
  std::optional<StopSignals> signals_;
  std::optional<SpaceMonitor> monitor_;
  PendingOps signal_wait_;
  WaitGroup helpers_;  ///< the tasks beside run()
};

VolumeServer::VolumeServer(Options options) : impl_(std::make_unique<Impl>(std::move(options))) {}
VolumeServer::~VolumeServer() = default;

Task<Result<void>> VolumeServer::run(std::function<void(const Ready&)> ready) {
  return impl_->run(std::move(ready));
}

Task<Result<void>> VolumeServer::Impl::run(std::function<void(const Ready&)> ready) {
  auto opened = co_await open_all();
  Result<void> started = opened;
  if (opened) started = co_await start_servers();
  if (started) {
    helpers_.add(3);
    EventLoop::current()->spawn(watch_space());
    EventLoop::current()->spawn(serve_control());
    EventLoop::current()->spawn(stop_on_signals());
    Ready how;
    const bool has_tls = options_.tls.mode != nbd::TlsPolicy::Mode::kOff;
    for (const Served::View& view : served_.views)
      how.uris.push_back(nbd_uri(server_->listeners().front(), view.name, has_tls));
    how.control_socket = control_->path();
    ready(how);
    co_await server_->run();
    control_->stop();
    signal_wait_.stop();
    monitor_->stop();
    co_await helpers_.wait();
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
  served_.store = std::move(*store);
  auto dir = co_await runtime_dir();
  if (!dir) co_return dir.error();
  dir_ = std::move(*dir);
  auto id = co_await choose_id();
  if (!id) co_return id.error();
  id_ = std::move(*id);

  for (const ServeItem& item : options_.items) {
    auto volume = co_await open_item(item);
    if (!volume) co_return volume.error();
    const bool read_only = options_.read_only || (*volume)->read_only();
    const std::string name = export_name_of(item);
    served_.views.push_back({name, *volume, read_only});
    exports_.add(std::make_shared<nbd::VolumeExport>(std::move(*volume), name, description_of(item),
                                                     read_only));
  }
  co_return Result<void>();
}

/// Sockets of a volume are named by its id, so that they keep their names; the lock of the volume
/// sees to it that no one else has them. Of read-only things there may be many servers.
Task<Result<std::string>> VolumeServer::Impl::choose_id() {
  for (const ServeItem& item : options_.items) {
    if (item.kind != ServeItem::Kind::kVolume) continue;
    auto found = co_await served_.store->volume(item.name);
    if (!found) co_return found.error();
    co_return short_id(found->record.id);
  }
  SystemRandom random;
  co_return short_id(Uuid::make(random).str());
}

Task<Result<std::shared_ptr<Volume>>> VolumeServer::Impl::open_item(ServeItem item) {
  if (item.kind == ServeItem::Kind::kVolume) co_return co_await open_volume(item.name);
  if (item.kind == ServeItem::Kind::kSnapshot)
    co_return co_await served_.store->open_snapshot(item.name, item.snapshot);
  auto image = co_await served_.store->image(item.name);
  if (!image) co_return image.error();
  co_return co_await served_.store->open_image(*image);
}

Task<Result<std::shared_ptr<Volume>>> VolumeServer::Impl::open_volume(std::string name) {
  Holder holder;
  holder.pid = ::getpid();
  holder.control_socket = dir_ + "/" + id_ + ".control";
  auto opened = co_await served_.store->open_volume(name, holder);
  if (!opened) co_return opened.error();
  std::shared_ptr<Volume> volume = (*opened)->shared_volume();
  if (const auto& trouble = volume->parts().delta->live_trouble()) {
    log_warning("volume " + name +
                ": should this process be killed, answered writes that were not flushed may be "
                "lost: " +
                trouble->message());
  }
  // By its whole name, also if it was asked for by a prefix of its id.
  const std::string full_name = (*opened)->record().name;
  served_.volumes[full_name] = std::move(*opened);
  co_return volume;
}

// ---- Serving

Task<Result<void>> VolumeServer::Impl::start_servers() {
  auto signals = StopSignals::open();
  if (!signals) co_return signals.error();
  signals_ = std::move(*signals);
  // Named: g++ 12 destroys temporaries of aggregates in the operand of co_await twice.
  UnixEndpoint control_endpoint{.path = dir_ + "/" + id_ + ".control"};
  auto control = co_await listen_on(std::move(control_endpoint));
  if (!control) co_return control.error();
  control_ = std::make_unique<ControlServer>(std::move(*control));
  auto listeners = co_await listen();
  if (!listeners) co_return listeners.error();
  Server::Options options;
  options.workers.threads = options_.threads;
  options.workers.tls = options_.tls;
  auto server = Server::start(exports_, std::move(*listeners), options);
  if (!server) co_return server.error();
  server_ = std::move(*server);
  monitor_.emplace(*served_.store, served_.volumes);
  // The store's limit holds from the first request on.
  auto watching = monitor_->prepare();
  auto watched = co_await std::move(watching);
  if (!watched) co_return watched.error();
  served_.connections = [this] { return server_->connections(); };
  served_.stop = [this] { stop(); };
  add_volume_ops(*control_, served_);
  co_return Result<void>();
}

Task<Result<std::vector<Listener>>> VolumeServer::Impl::listen() {
  std::vector<Listener> listeners = std::move(options_.inherited);
  if (options_.socket) {
    auto unix_socket = co_await listen_on(*options_.socket);
    if (!unix_socket) co_return unix_socket.error();
    listeners.push_back(std::move(*unix_socket));
  }
  if (options_.tcp) {
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

Task<void> VolumeServer::Impl::serve_control() {
  co_await control_->run();
  helpers_.done();
}

Task<void> VolumeServer::Impl::watch_space() {
  co_await monitor_->run();
  helpers_.done();
}

Task<void> VolumeServer::Impl::stop_on_signals() {
  bool stopping = false;
  for (;;) {
    auto signal = co_await signals_->next(signal_wait_);
    if (!signal) break;
    if (stopping) {
      log_warning("a second signal: clients are cut off");
      server_->cut();
    } else {
      log_info("stopping on " + *signal);
      stop();
    }
    stopping = true;
  }
  helpers_.done();
}

void VolumeServer::Impl::stop() {
  server_->request_stop();
  // Commands that run are cancelled now; a commit must not outlive the clients' drain.
  control_->stop();
}

// ---- The end

Task<Result<void>> VolumeServer::Impl::close_all() {
  Result<void> first;
  for (auto& [name, volume] : served_.volumes) {
    // close() flushes: whatever clients wrote and did not flush is kept all the same.
    auto closed = co_await volume->close();
    if (closed) continue;
    const Error error = closed.error().with_context("close volume " + name);
    log_error(error.message());
    if (first) first = error;
  }
  served_.views.clear();
  exports_ = nbd::FixedExports();
  served_.volumes.clear();
  served_.store.reset();
  co_return first;
}

}  // namespace snap::server
