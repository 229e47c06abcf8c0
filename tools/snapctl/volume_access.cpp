// See volume_access.h.
#include "tools/snapctl/volume_access.h"

#include <fmt/format.h>
#include <unistd.h>

#include "engine/server/control_client.h"
#include "engine/server/remote.h"
#include "engine/server/volume_server.h"
#include "tools/snapctl/names.h"

namespace snap::cli {

namespace {

Task<Result<std::unique_ptr<server::ControlClient>>> connect_to_holder(VolumeSummary volume) {
  auto client = co_await server::ControlClient::connect(volume.holder->control_socket);
  if (!client) {
    co_return client.error().with_context(fmt::format("reach pid {}, which serves volume '{}'",
                                                      volume.holder->pid, volume.record.name));
  }
  co_return client;
}

}  // namespace

Task<std::unique_ptr<server::ControlClient>> store_server(std::string store) {
  auto path = co_await server::store_control_socket(store);
  if (!path) co_return nullptr;
  auto client = co_await server::ControlClient::connect(*path);
  if (!client) co_return nullptr;
  co_return std::move(*client);
}

Task<Error> given_back(VolumeAccess volume, Error failure) {
  // An error of the end adds nothing to why it ends.
  (void)co_await volume.close();
  co_return failure;
}

Task<void> release_idle(VolumeSummary* volume) {
  if (!volume->holder || volume->holder->control_socket.empty()) co_return;
  auto client = co_await server::ControlClient::connect(volume->holder->control_socket);
  if (!client) co_return;  // who needs the volume says that it is in use
  auto released = co_await server::remote_release(**client, volume->record.name);
  if (released) volume->holder.reset();
}

Task<Result<VolumeAccess>> VolumeAccess::open(Store& store, std::string text) {
  auto volume = co_await find_volume(store, text);
  if (!volume) co_return volume.error();
  if (volume->holder && !volume->holder->control_socket.empty()) {
    auto client = co_await connect_to_holder(*volume);
    if (!client) co_return client.error();
    co_return VolumeAccess(store, std::move(*volume), std::move(*client));
  }
  if (!volume->holder) {
    auto client = co_await store_server(store.path());
    if (client) co_return VolumeAccess(store, std::move(*volume), std::move(client));
  }
  Holder self;
  self.pid = getpid();
  auto opened = co_await store.open_volume(volume->record.name, self);
  if (!opened) co_return opened.error();
  co_return VolumeAccess(store, std::move(*volume), std::move(*opened));
}

Task<Result<std::chrono::microseconds>> VolumeAccess::snapshot(std::string snapshot_name) {
  if (opened_ != nullptr) {
    auto pause = co_await store_->snapshot(*opened_, snapshot_name);
    if (!pause) co_return pause.error();
    co_return pause->writes;
  }
  auto pause = co_await server::remote_snapshot(*server_, name(), snapshot_name);
  if (!pause) co_return pause.error();
  co_return pause->writes;
}

Task<Result<void>> VolumeAccess::make_room(Store::CommitOptions how) {
  Result<void> made;
  if (opened_ != nullptr) {
    made = co_await store_->make_room(*opened_, std::move(how));
  } else {
    made = co_await server::remote_make_room(*server_, name(), std::move(how));
  }
  co_return made;
}

Task<Result<void>> VolumeAccess::freeze() {
  Result<Volume::Pause> frozen = Volume::Pause{};
  if (opened_ != nullptr) {
    frozen = co_await store_->freeze(*opened_);
  } else {
    frozen = co_await server::remote_freeze(*server_, name());
  }
  if (!frozen) co_return frozen.error();
  co_return Result<void>();
}

Task<Result<void>> VolumeAccess::clone(std::string new_name) {
  if (opened_ != nullptr) {
    auto record = co_await store_->clone(*opened_, new_name);
    if (!record) co_return record.error();
    co_return Result<void>();
  }
  auto record = co_await server::remote_clone(*server_, name(), new_name);
  if (!record) co_return record.error();
  co_return Result<void>();
}

Task<Result<void>> VolumeAccess::resize(std::uint64_t size) {
  if (opened_ != nullptr) co_return co_await store_->resize(*opened_, size);
  co_return co_await server::remote_resize(*server_, name(), size);
}

Task<Result<void>> VolumeAccess::set_limit(std::optional<std::uint64_t> bytes) {
  if (opened_ != nullptr) co_return co_await store_->set_volume_limit(*opened_, bytes);
  co_return co_await server::remote_set_limit(*server_, name(), bytes);
}

Task<Result<VolumeAccess::Committed>> VolumeAccess::commit(Store::CommitOptions options,
                                                           Progress progress) {
  Committed out;
  Result<Store::Committed> committed = Error(ErrorCode::kCancelled, "commit: not begun");
  if (opened_ != nullptr) {
    committed = co_await store_->commit(*opened_, options, progress);
  } else {
    committed = co_await server::remote_commit(*server_, name(), options, progress);
  }
  if (!committed) co_return committed.error();
  // What comes over the control socket lacks layers and history.
  auto image = co_await store_->image_of_manifest(committed->image.manifest);
  if (!image) co_return image.error();
  out.image = std::move(*image);
  out.pause = committed->pause;
  out.total = committed->total;
  out.packed = committed->packed;
  co_return out;
}

Task<Result<void>> VolumeAccess::close() {
  if (opened_ == nullptr) co_return Result<void>();
  auto closed = co_await opened_->close();
  opened_.reset();
  co_return closed;
}

}  // namespace snap::cli
