// The rig on a Store: one volume of an image, and what the operations make of it.
#include "snap/store.h"
#include "tests/crash/rig.h"
#include "tests/crash/rigs.h"

namespace snap::crash {

namespace {

/// The image that the volume is of: data in its first half, nothing in the rest.
class BaseSource final : public ImportSource {
 public:
  explicit BaseSource(std::uint64_t size) : size_(size) {}
  std::optional<std::uint64_t> size() const override { return size_; }
  Task<Result<std::optional<Piece>>> next(std::span<std::byte> buffer) override {
    if (at_ >= size_ / 2) co_return std::optional<Piece>();
    Piece piece{at_, std::min<std::uint64_t>(kChunkSize, size_ - at_)};
    fill_sectors(kBelow, ByteOffset(at_), buffer.first(piece.length));
    at_ += piece.length;
    co_return std::optional<Piece>(piece);
  }

 private:
  std::uint64_t size_;
  std::uint64_t at_ = 0;
};

Task<Result<std::vector<WriteId>>> ids_of(Volume& volume) {
  std::vector<std::byte> bytes(volume.size());
  auto read = co_await volume.read(ByteOffset(0), bytes);
  SNAP_CO_RETURN_IF_ERROR(read);
  co_return identify_sectors(ByteOffset(0), bytes);
}

class StoreRig final : public Rig {
 public:
  explicit StoreRig(SimDisk& disk) : disk_(disk) {}

  Task<Result<void>> format(std::uint64_t size) override {
    auto store = co_await Store::open(disk_.root(), Store::OpenOptions{});
    SNAP_CO_RETURN_IF_ERROR(store);
    BaseSource source(size);
    Store::ImportOptions import;
    import.name = Reference{"base", "1"};
    import.created_by = "test";
    const Progress silent;
    auto image = co_await (*store)->import(source, import, silent);
    SNAP_CO_RETURN_IF_ERROR(image);
    Store::CreateOptions options;
    options.name = kVolume;
    options.image = *image;
    auto volume = co_await (*store)->create_volume(options);
    SNAP_CO_RETURN_IF_ERROR(volume);
    co_return Result<void>();
  }

  Task<Result<void>> open() override {
    auto store = co_await Store::open(disk_.root(), Store::OpenOptions{});
    SNAP_CO_RETURN_IF_ERROR(store);
    store_ = std::move(*store);
    const Holder nobody{1, ""};
    auto volume = co_await store_->open_volume(kVolume, nobody);
    if (!volume && volume.error().code() == ErrorCode::kNotFound) co_return Result<void>();
    SNAP_CO_RETURN_IF_ERROR(volume);
    volume_ = std::move(*volume);
    co_return Result<void>();
  }

  Task<Result<void>> run(Op op, WriteId id) override {
    if (volume_ == nullptr) co_return Error(ErrorCode::kNotFound, "no volume");
    switch (op.verb) {
      case Verb::kWrite:
      case Verb::kFuaWrite:
      case Verb::kTrim:
      case Verb::kFuaTrim:
      case Verb::kZero:
      case Verb::kZeroKeep:
      case Verb::kFlush: {
        auto done = co_await data(std::move(op), id);
        co_return done;
      }
      default: {
        auto done = co_await command(std::move(op));
        co_return done;
      }
    }
  }

  Task<Result<void>> close() override {
    Result<void> closed;
    if (volume_ != nullptr) closed = co_await volume_->close();
    abandon();
    co_return closed;
  }

  Task<Result<Content>> read_all() override {
    Content content;
    auto volumes = co_await store_->volumes();
    SNAP_CO_RETURN_IF_ERROR(volumes);
    for (const VolumeSummary& summary : *volumes) {
      const std::string& name = summary.record.name;
      auto ids = co_await read_volume(name);
      SNAP_CO_RETURN_IF_ERROR(ids);
      content[name] = std::move(*ids);
      for (const SnapshotRecord& snapshot : summary.record.snapshots) {
        auto view = co_await store_->open_snapshot(name, snapshot.name);
        SNAP_CO_RETURN_IF_ERROR(view);
        auto frozen = co_await ids_of(**view);
        SNAP_CO_RETURN_IF_ERROR(frozen);
        content[name + "@" + snapshot.name] = std::move(*frozen);
      }
    }
    auto images = co_await store_->images();
    SNAP_CO_RETURN_IF_ERROR(images);
    for (const Image& image : *images) {
      for (const Reference& tag : image.tags) {
        auto view = co_await store_->open_image(image);
        SNAP_CO_RETURN_IF_ERROR(view);
        auto ids = co_await ids_of(**view);
        SNAP_CO_RETURN_IF_ERROR(ids);
        content[tag.str()] = std::move(*ids);
      }
    }
    co_return content;
  }

  Task<Result<void>> tidy() override {
    auto pruned = co_await store_->prune(false);
    SNAP_CO_RETURN_IF_ERROR(pruned);
    co_return Result<void>();
  }

  // What runs in the background may still use them, and fails.
  void abandon() override {
    if (store_ != nullptr) dead_.emplace_back(std::move(store_), std::move(volume_));
  }

 private:
  Task<Result<std::vector<WriteId>>> read_volume(std::string name) {
    if (name == kVolume && volume_ != nullptr) {
      auto ids = co_await ids_of(volume_->volume());
      co_return ids;
    }
    const Holder nobody{1, ""};
    auto volume = co_await store_->open_volume(name, nobody);
    SNAP_CO_RETURN_IF_ERROR(volume);
    auto ids = co_await ids_of((*volume)->volume());
    auto closed = co_await (*volume)->close();
    SNAP_CO_RETURN_IF_ERROR(closed);
    co_return ids;
  }

  Task<Result<void>> data(Op op, WriteId id) {
    Volume& volume = volume_->volume();
    const ByteOffset at(op.at);
    Volume::WriteOptions write;
    write.fua = op.verb == Verb::kFuaWrite || op.verb == Verb::kFuaTrim;
    if (op.verb == Verb::kWrite || op.verb == Verb::kFuaWrite) {
      std::vector<std::byte> bytes(op.length);
      fill_sectors(id, at, bytes);
      // Both ways to write, in turns.
      if (!write.fua && ++writes_ % 2 == 0) {
        if (auto written = volume.write_now(at, bytes)) co_return std::move(*written);
      }
      auto done = co_await volume.write(at, bytes, write);
      co_return done;
    }
    if (op.verb == Verb::kTrim || op.verb == Verb::kFuaTrim) {
      auto done = co_await volume.trim(at, op.length, write);
      co_return done;
    }
    if (op.verb == Verb::kFlush) {
      auto done = co_await volume.flush();
      co_return done;
    }
    Volume::ZeroOptions zero;
    zero.no_hole = op.verb == Verb::kZeroKeep;
    auto done = co_await volume.write_zeroes(at, op.length, zero);
    co_return done;
  }

  Task<Result<void>> command(Op op) {
    switch (op.verb) {
      case Verb::kResize: {
        auto done = co_await store_->resize(*volume_, op.length);
        co_return done;
      }
      case Verb::kSnapshot: {
        auto done = co_await store_->snapshot(*volume_, op.name);
        SNAP_CO_RETURN_IF_ERROR(done);
        co_return Result<void>();
      }
      case Verb::kClone: {
        auto done = co_await store_->clone(*volume_, op.name);
        SNAP_CO_RETURN_IF_ERROR(done);
        co_return Result<void>();
      }
      case Verb::kCommit: {
        auto reference = Reference::parse(op.name);
        SNAP_CO_RETURN_IF_ERROR(reference);
        Store::CommitOptions options;
        options.name = *reference;
        options.created_by = "test";
        const Progress silent;
        auto done = co_await store_->commit(*volume_, options, silent);
        SNAP_CO_RETURN_IF_ERROR(done);
        co_return Result<void>();
      }
      case Verb::kPrune: {
        auto done = co_await tidy();
        co_return done;
      }
      default: {
        // What is done to a volume at rest.
        auto closed = co_await volume_->close();
        volume_.reset();
        SNAP_CO_RETURN_IF_ERROR(closed);
        if (op.verb == Verb::kRemoveVolume) {
          auto removed = co_await store_->remove_volume(kVolume, false);
          SNAP_CO_RETURN_IF_ERROR(removed);
          co_return Result<void>();
        }
        if (op.verb != Verb::kRemoveSnapshot) co_return Error(ErrorCode::kUnsupported, op.name);
        auto removed = co_await store_->remove_snapshot(kVolume, op.name);
        SNAP_CO_RETURN_IF_ERROR(removed);
        const Holder nobody{1, ""};
        auto volume = co_await store_->open_volume(kVolume, nobody);
        SNAP_CO_RETURN_IF_ERROR(volume);
        volume_ = std::move(*volume);
        co_return Result<void>();
      }
    }
  }

  SimDisk& disk_;
  std::unique_ptr<Store> store_;
  std::unique_ptr<OpenVolume> volume_;
  std::size_t writes_ = 0;  ///< without FUA
  std::vector<std::pair<std::unique_ptr<Store>, std::unique_ptr<OpenVolume>>> dead_;
};

}  // namespace

std::unique_ptr<Rig> make_store_rig(SimDisk& disk) {
  return std::make_unique<StoreRig>(disk);
}

std::unique_ptr<Rig> make_rig(Level level, SimDisk& disk) {
  return level == Level::kDelta ? make_delta_rig(disk) : make_store_rig(disk);
}

}  // namespace snap::crash
