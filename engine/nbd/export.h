// Export: what a connection serves: one block device by name. Volumes are the real ones
// (engine/nbd/volume_export.h); tests have one in memory.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "snap/result.h"
#include "snap/task.h"
#include "snap/units.h"
#include "snap/volume.h"

namespace snap::nbd {

/// Thread-safe: many connections on many loops use one at once. The data calls are those of
/// Volume, with its contract: requests lie within size(), errors are its codes.
class Export {
 public:
  virtual ~Export() = default;

  /// What clients ask for; at most kMaxNbdName bytes, as is the description.
  virtual const std::string& name() const noexcept = 0;
  virtual const std::string& description() const noexcept = 0;
  virtual std::uint64_t size() const noexcept = 0;
  virtual bool read_only() const noexcept = 0;

  virtual Task<Result<void>> read(ByteOffset at, std::span<std::byte> out) = 0;
  /// As Volume::read_now.
  virtual bool read_now(ByteOffset at, std::span<std::byte> out) noexcept {
    (void)at, (void)out;
    return false;
  }
  virtual Task<Result<void>> write(ByteOffset at, std::span<const std::byte> bytes,
                                   Volume::WriteOptions options) = 0;
  /// As Volume::write_now.
  virtual std::optional<Result<void>> write_now(ByteOffset at, std::span<const std::byte> bytes) {
    (void)at, (void)bytes;
    return std::nullopt;
  }
  virtual Task<Result<void>> write_zeroes(ByteOffset at, std::uint64_t length,
                                          Volume::ZeroOptions options) = 0;
  virtual Task<Result<void>> trim(ByteOffset at, std::uint64_t length,
                                  Volume::WriteOptions options) = 0;
  virtual Task<Result<void>> flush() = 0;
  virtual Task<Result<std::vector<Extent>>> extents(ByteOffset at, std::uint64_t length,
                                                    std::size_t max) = 0;
  virtual Task<Result<void>> prefetch(ByteOffset at, std::uint64_t length) = 0;
};

/// What an option of the handshake is about to ask a table for.
struct Lookup {
  enum class Kind {
    kNothing,
    kList,
    kDescribe,  ///< to tell of it: an export that no request will reach is enough
    kUse,
  };
  Kind kind = Kind::kNothing;
  std::string name;
};

/// The exports of a server, by name. Thread-safe.
class ExportTable {
 public:
  virtual ~ExportTable() = default;
  /// The export called `name`; the empty name is the default export, if there is one. Null if there
  /// is none.
  virtual std::shared_ptr<Export> find(std::string_view name) = 0;
  virtual std::vector<std::shared_ptr<Export>> list() = 0;

  // For tables whose exports are opened when they are asked for.

  /// A table for one connection, which knows what was looked up for that one; null: this table
  /// serves all.
  virtual std::unique_ptr<ExportTable> for_connection() { return nullptr; }
  /// Brings in what find() or list() are asked for next.
  virtual Task<void> look_up(Lookup) { co_return; }
  /// Why find() gave nothing, in words for the client's user.
  virtual std::string refusal() const { return "no such export"; }
};

/// A table that is filled before it is used and does not change afterwards. The first export added
/// is the default one.
class FixedExports final : public ExportTable {
 public:
  void add(std::shared_ptr<Export> e) { exports_.push_back(std::move(e)); }
  std::shared_ptr<Export> find(std::string_view name) override {
    for (const auto& e : exports_) {
      if (name.empty() || e->name() == name) return e;
    }
    return nullptr;
  }
  std::vector<std::shared_ptr<Export>> list() override { return exports_; }

 private:
  std::vector<std::shared_ptr<Export>> exports_;
};

}  // namespace snap::nbd
