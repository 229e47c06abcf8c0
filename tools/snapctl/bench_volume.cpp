// See bench_volume.h.
#include "tools/snapctl/bench_volume.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>

#include "engine/server/remote.h"
#include "snap/event_loop.h"
#include "snap/limits.h"
#include "tools/snapctl/interrupt.h"
#include "tools/snapctl/names.h"
#include "tools/snapctl/volume_access.h"

namespace snap::cli {

namespace {

constexpr int kNameTries = 10;
// A server may count a client for a moment that has gone.
constexpr int kReleaseTries = 200;
constexpr std::chrono::milliseconds kReleasePause{10};
/// A thousand layers cover a volume once, as long as that is no more than 2 GiB.
constexpr std::uint64_t kLayersToCover = 1000;
constexpr std::uint64_t kMinLayerBlocks = 16, kMaxLayerBlocks = 512;

Task<Result<std::string>> clone_of(Store& store, std::string volume) {
  auto access = co_await VolumeAccess::open(store, volume);
  if (!access) co_return access.error();
  std::string name;
  Result<void> cloned = Error(ErrorCode::kExists, "no name is free");
  for (int left = kNameTries; left > 0; --left) {
    name = "bench-" + made_up_name({});
    cloned = co_await access->clone(name);
    if (cloned || cloned.error().code() != ErrorCode::kExists) break;
  }
  auto closed = co_await access->close();
  if (!cloned) co_return cloned.error();
  if (closed) co_return name;
  auto removed = co_await store.remove_volume(name, false);
  static_cast<void>(removed);  // why it could not be closed comes first
  co_return closed.error();
}

}  // namespace

BenchVolume::BenchVolume(Context& context, VolumeSummary clone, std::string volume)
    : context_(&context),
      volume_(std::move(volume)),
      name_(clone.record.name),
      uncommitted_(!clone.record.sealed.empty()) {}

Task<Result<BenchVolume>> BenchVolume::make(Context& context, std::string volume) {
  auto store = co_await context.store();
  if (!store) co_return store.error();
  auto source = co_await find_volume(**store, volume);
  if (!source) co_return source.error();
  auto name = co_await clone_of(**store, source->record.name);
  if (!name) co_return name.error();
  VolumeSummary made;
  made.record.name = *name;
  auto clone = co_await (*store)->volume(*name);
  if (clone) made = *clone;
  BenchVolume out(context, std::move(made), source->record.name);
  Result<void> known;
  if (!clone) known = clone.error();
  if (clone && clone->record.manifest) {
    auto image = co_await (*store)->image_of_manifest(*clone->record.manifest);
    if (image) out.layers_ = image->layers.size();
    if (!image) known = image.error();
  }
  if (known) co_return out;
  auto removed = co_await out.remove();
  static_cast<void>(removed);  // what is wrong with it comes first
  co_return known.error();
}

// ---- Clients

Task<Result<BenchVolume::Served>> BenchVolume::serve(bool device) {
  Served out;
  if (device) {
    AttachOptions options;  // named: g++ 12 destroys temporaries of aggregates in a co_await twice
    auto attached = co_await attach_object(*context_, "volume:" + name_, std::move(options));
    if (!attached) co_return attached.error();
    out.device = *attached;
    auto client = co_await server::ControlClient::connect(attached->control);
    if (client) {
      out.pid = (*client)->server().pid;
      co_return out;
    }
    auto detached = co_await detach_device(*context_, *attached, true);
    static_cast<void>(detached);  // its server has gone
    co_return client.error();
  }
  auto store = co_await context_->store();
  if (!store) co_return store.error();
  auto exported = co_await find_exported(**store, "volume:" + name_);
  if (!exported) co_return exported.error();
  auto server = co_await server_for(*context_, *exported);
  if (!server) co_return server.error();
  out.server = std::move(*server);
  out.pid = out.server.client->server().pid;
  auto uri = co_await server::remote_export(*out.server.client, out.server.name);
  if (uri) {
    out.uri = *uri;
    co_return out;
  }
  auto stopped = co_await stop_unused(std::move(out.server));
  static_cast<void>(stopped);  // why it could not be had comes first
  co_return uri.error();
}

Task<Result<void>> BenchVolume::stop(Served served) {
  if (served.device) co_return co_await detach_device(*context_, *served.device, false);
  co_return co_await stop_unused(std::move(served.server));
}

// ---- Layers

std::size_t BenchVolume::least_depth() const noexcept {
  return std::max<std::size_t>(layers_ + (uncommitted_ ? 1 : 0), 1);
}

Task<Result<void>> BenchVolume::write_blocks(Volume& volume) {
  const std::uint64_t blocks = volume.size() / kBlockSize;
  if (blocks == 0)
    co_return Error(ErrorCode::kInvalidArgument, "volume '" + volume_ + "' has not one block");
  const std::uint64_t count = std::clamp(blocks / kLayersToCover, kMinLayerBlocks, kMaxLayerBlocks);
  std::array<std::byte, kBlockSize> bytes;
  const Volume::WriteOptions options;
  for (std::uint64_t i = 0; i < count; ++i) {
    random_.fill(bytes);
    auto written =
        co_await volume.write(ByteOffset(random_.below(blocks) * kBlockSize), bytes, options);
    if (!written) co_return written.error();
  }
  co_return Result<void>();
}

Task<Result<void>> BenchVolume::add_layer(OpenVolume& open) {
  auto store = co_await context_->store();
  if (!store) co_return store.error();
  auto written = co_await write_blocks(open.volume());
  if (!written) co_return written.error();
  Store::CommitOptions options;
  options.comment = "made by bench";
  options.created_by = command_line();
  Progress progress;
  progress.cancelled = [] { return interrupted(); };
  auto committed = co_await (*store)->commit(open, std::move(options), std::move(progress));
  if (!committed) co_return committed.error();
  images_.push_back(committed->image.id);
  layers_ = committed->image.layers.size();
  uncommitted_ = false;
  // One image of a thousand layers is a large file: of a thousand such only the last is kept.
  while (images_.size() > 1) {
    auto removed = co_await (*store)->remove_image(images_.front().hex(), true, false);
    if (!removed) co_return removed.error();
    images_.erase(images_.begin());
  }
  co_return Result<void>();
}

Task<Result<void>> BenchVolume::grow(std::size_t depth) {
  if (!uncommitted_ && layers_ >= depth) co_return Result<void>();
  auto rests = co_await wait_for_rest();
  if (!rests) co_return rests.error();
  auto store = co_await context_->store();
  if (!store) co_return store.error();
  Holder self;
  self.pid = ::getpid();
  auto open = co_await (*store)->open_volume(name_, self);
  if (!open) co_return open.error();
  Result<void> grown;
  while (grown && (uncommitted_ || layers_ < depth)) {
    grown = co_await add_layer(**open);
    if (grown && interrupted()) grown = Error(ErrorCode::kCancelled, "interrupted");
  }
  auto closed = co_await (*open)->close();
  if (!grown) co_return grown;
  co_return closed;
}

// ---- The end

Task<Result<void>> BenchVolume::wait_for_rest() {
  auto store = co_await context_->store();
  if (!store) co_return store.error();
  for (int left = kReleaseTries; left > 0; --left) {
    auto volume = co_await (*store)->volume(name_);
    if (!volume) co_return volume.error();
    co_await release_idle(&*volume);
    if (!volume->holder) break;
    Sleep pause(kReleasePause);
    co_await pause;
  }
  co_return Result<void>();  // who needs it says who has it
}

Task<Result<void>> BenchVolume::remove() {
  auto store = co_await context_->store();
  if (!store) co_return store.error();
  auto rests = co_await wait_for_rest();
  if (!rests) co_return rests.error();
  auto removed = co_await (*store)->remove_volume(name_, false);
  if (!removed) co_return removed.error().with_context("volume '" + name_ + "' is still there");
  for (const ImageId& image : images_) {
    auto gone = co_await (*store)->remove_image(image.hex(), true, false);
    if (!gone) co_return gone.error().with_context("image " + image.hex() + " is still there");
  }
  co_return Result<void>();
}

}  // namespace snap::cli
