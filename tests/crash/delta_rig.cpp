// The rig on a bare Delta, over a source whose every sector is its own.
#include "engine/delta/delta.h"

#include "tests/crash/rig.h"
#include "tests/crash/rigs.h"

namespace snap::crash {

namespace {

class Below final : public BlockSource {
 public:
  Task<Result<void>> read_blocks(ByteOffset at, std::span<std::byte> out) override {
    fill_sectors(kBelow, at, out);
    co_return Result<void>();
  }
};

class DeltaRig final : public Rig {
 public:
  explicit DeltaRig(SimDisk& disk) : disk_(disk) {}

  Task<Result<void>> format(std::uint64_t size) override {
    auto root = disk_.root();
    auto made = co_await root->make_dir("d");
    SNAP_CO_RETURN_IF_ERROR(made);
    auto dir = co_await root->open_dir("d");
    SNAP_CO_RETURN_IF_ERROR(dir);
    Delta::CreateOptions options;
    options.id.bytes = {1, 2, 3, 4};
    options.size = size;
    auto delta = co_await Delta::create(std::move(*dir), options);
    SNAP_CO_RETURN_IF_ERROR(delta);
    auto synced = co_await root->sync();
    co_return synced;
  }

  Task<Result<void>> open() override {
    auto root = disk_.root();
    auto dir = co_await root->open_dir("d");
    SNAP_CO_RETURN_IF_ERROR(dir);
    auto delta = co_await Delta::open(std::move(*dir), Delta::Mode::kReadWrite);
    SNAP_CO_RETURN_IF_ERROR(delta);
    delta_ = std::move(*delta);
    co_return Result<void>();
  }

  Task<Result<void>> run(Op op, WriteId id) override {
    const bool fua = op.verb == Verb::kFuaWrite || op.verb == Verb::kFuaTrim;
    const auto durability = fua ? Delta::Durability::kDurable : Delta::Durability::kCached;
    const ByteOffset at(op.at);
    switch (op.verb) {
      case Verb::kWrite:
      case Verb::kFuaWrite: {
        std::vector<std::byte> bytes(op.length);
        fill_sectors(id, at, bytes);
        // Both ways to write, in turns.
        if (!fua && ++writes_ % 2 == 0) {
          if (auto written = delta_->write_now(at, bytes)) co_return std::move(*written);
        }
        auto done = co_await delta_->write(at, bytes, below_, durability);
        co_return done;
      }
      case Verb::kTrim:
      case Verb::kFuaTrim: {
        auto done = co_await delta_->trim(at, op.length, durability);
        co_return done;
      }
      case Verb::kZero:
      case Verb::kZeroKeep: {
        const bool keep = op.verb == Verb::kZeroKeep;
        auto done = co_await delta_->write_zeroes(at, op.length, below_, keep, durability);
        co_return done;
      }
      case Verb::kFlush: {
        auto done = co_await delta_->flush();
        co_return done;
      }
      case Verb::kResize: {
        auto done = co_await delta_->resize(op.length);
        co_return done;
      }
      default:
        co_return Error(ErrorCode::kUnsupported, verb_name(op.verb));
    }
  }

  Task<Result<void>> close() override {
    if (delta_ == nullptr) co_return Result<void>();
    auto closed = co_await delta_->close();
    delta_.reset();
    co_return closed;
  }

  Task<Result<Content>> read_all() override {
    std::vector<std::byte> bytes(delta_->size());
    for (std::uint64_t at = 0; at < bytes.size(); at += kBlockSize) {
      const BlockState state = delta_->lookup(chunk_of(ByteOffset(at)));
      const BlockMask bit = block_range(block_in_chunk(ByteOffset(at)), 1);
      const auto block = std::span(bytes).subspan(at, kBlockSize);
      if ((state.data & bit) != 0) {
        auto read = co_await delta_->read(ByteOffset(at), block);
        SNAP_CO_RETURN_IF_ERROR(read);
      } else if ((state.zero & bit) == 0) {
        fill_sectors(kBelow, ByteOffset(at), block);
      }
    }
    Content content;
    content[kVolume] = identify_sectors(ByteOffset(0), bytes);
    co_return content;
  }

  Task<Result<void>> tidy() override { co_return Result<void>(); }
  // What runs in the background may still use it, and fails.
  void abandon() override {
    if (delta_ != nullptr) dead_.push_back(std::move(delta_));
  }

 private:
  SimDisk& disk_;
  Below below_;
  std::size_t writes_ = 0;  ///< without FUA
  std::unique_ptr<Delta> delta_;
  std::vector<std::unique_ptr<Delta>> dead_;
};

}  // namespace

std::unique_ptr<Rig> make_delta_rig(SimDisk& disk) {
  return std::make_unique<DeltaRig>(disk);
}

}  // namespace snap::crash
