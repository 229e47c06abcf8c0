// See volume_access.h.
#include "tools/snapctl/volume_access.h"

#include <fmt/format.h>
#include <unistd.h>

#include "engine/server/control_client.h"
#include "engine/server/remote.h"
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

Task<Result<VolumeAccess>> VolumeAccess::open(Store& store, std::string text) {
  auto volume = co_await find_volume(store, text);
  if (!volume) co_return volume.error();
  if (volume->holder && !volume->holder->control_socket.empty())
    co_return VolumeAccess(store, std::move(*volume), nullptr);
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
  auto client = co_await connect_to_holder(summary_);
  if (!client) co_return client.error();
  auto pause = co_await server::remote_snapshot(**client, name(), snapshot_name);
  if (!pause) co_return pause.error();
  co_return pause->writes;
}

Task<Result<void>> VolumeAccess::freeze() {
  Result<Volume::Pause> frozen = Volume::Pause{};
  if (opened_ != nullptr) {
    frozen = co_await store_->freeze(*opened_);
  } else {
    auto client = co_await connect_to_holder(summary_);
    if (!client) co_return client.error();
    frozen = co_await server::remote_freeze(**client, name());
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
  auto client = co_await connect_to_holder(summary_);
  if (!client) co_return client.error();
  auto record = co_await server::remote_clone(**client, name(), new_name);
  if (!record) co_return record.error();
  co_return Result<void>();
}

Task<Result<void>> VolumeAccess::resize(std::uint64_t size) {
  if (opened_ != nullptr) co_return co_await store_->resize(*opened_, size);
  auto client = co_await connect_to_holder(summary_);
  if (!client) co_return client.error();
  co_return co_await server::remote_resize(**client, name(), size);
}

Task<Result<void>> VolumeAccess::set_limit(std::optional<std::uint64_t> bytes) {
  if (opened_ != nullptr) co_return co_await store_->set_volume_limit(*opened_, bytes);
  auto client = co_await connect_to_holder(summary_);
  if (!client) co_return client.error();
  co_return co_await server::remote_set_limit(**client, name(), bytes);
}

Task<Result<VolumeAccess::Committed>> VolumeAccess::commit(Store::CommitOptions options,
                                                           Progress progress) {
  Committed out;
  Result<Store::Committed> committed = Error(ErrorCode::kCancelled, "commit: not begun");
  if (opened_ != nullptr) {
    committed = co_await store_->commit(*opened_, options, progress);
  } else {
    auto client = co_await connect_to_holder(summary_);
    if (!client) co_return client.error();
    committed = co_await server::remote_commit(**client, name(), options, progress);
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
