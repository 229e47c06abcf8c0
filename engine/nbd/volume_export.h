// A Volume as an Export.
#pragma once

#include <memory>
#include <string>
#include <utility>

#include "engine/nbd/export.h"
#include "snap/volume.h"

namespace snap::nbd {

/// Serves `volume`, which it keeps alive. `force_read_only` refuses writes to a writable one.
class VolumeExport final : public Export {
 public:
  VolumeExport(std::shared_ptr<Volume> volume, std::string name, std::string description,
               bool force_read_only)
      : volume_(std::move(volume)),
        name_(std::move(name)),
        description_(std::move(description)),
        force_read_only_(force_read_only) {}

  const std::string& name() const noexcept override { return name_; }
  const std::string& description() const noexcept override { return description_; }
  std::uint64_t size() const noexcept override { return volume_->size(); }
  bool read_only() const noexcept override { return force_read_only_ || volume_->read_only(); }

  bool read_now(ByteOffset at, std::span<std::byte> out) noexcept override {
    return volume_->read_now(at, out);
  }
  std::optional<Result<void>> write_now(ByteOffset at, std::span<const std::byte> bytes) override {
    return volume_->write_now(at, bytes);
  }
  // None of these is a coroutine: the volume's own task is handed on, without another frame.
  Task<Result<void>> read(ByteOffset at, std::span<std::byte> out) override {
    return volume_->read(at, out);
  }
  Task<Result<void>> write(ByteOffset at, std::span<const std::byte> bytes,
                           Volume::WriteOptions options) override {
    return volume_->write(at, bytes, options);
  }
  Task<Result<void>> write_zeroes(ByteOffset at, std::uint64_t length,
                                  Volume::ZeroOptions options) override {
    return volume_->write_zeroes(at, length, options);
  }
  Task<Result<void>> trim(ByteOffset at, std::uint64_t length,
                          Volume::WriteOptions options) override {
    return volume_->trim(at, length, options);
  }
  Task<Result<void>> flush() override { return volume_->flush(); }
  Task<Result<std::vector<Extent>>> extents(ByteOffset at, std::uint64_t length,
                                            std::size_t max) override {
    return volume_->extents(at, length, max);
  }
  Task<Result<void>> prefetch(ByteOffset at, std::uint64_t length) override {
    return volume_->prefetch(at, length);
  }

 private:
  std::shared_ptr<Volume> volume_;
  std::string name_;
  std::string description_;
  bool force_read_only_;
};

}  // namespace snap::nbd
