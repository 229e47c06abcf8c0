// Creation, and the data path: read and write. A write of present blocks takes no lock and
// allocates nothing but coroutine frames.
#include "engine/delta/delta.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "engine/delta/delta_impl.h"
#include "engine/io/cached_io.h"

namespace snap {

namespace {
/// Pieces of one large write that are in flight at a time.
constexpr std::size_t kPiecesInFlight = 8;

BlockMask blocks_of(ByteOffset at, std::size_t length) {
  const unsigned first = block_in_chunk(at);
  const unsigned last = block_in_chunk(at + (length - 1));
  return block_range(first, last - first + 1);
}
}  // namespace

struct DeltaImpl::Piece {
  Piece(ByteOffset at, std::size_t length) : chunk(chunk_of(at)), mask(blocks_of(at, length)) {}
  /// The blocks that it takes beyond those that are there.
  unsigned needs() const noexcept {
    return static_cast<unsigned>(std::popcount(mask & ~std::uint32_t{data_of(before)}));
  }

  const ChunkIndex chunk;
  const BlockMask mask;
  MapWord before = 0;   ///< of the chunk, when it was held
  unsigned taken = 0;   ///< blocks, from the quotas
  bool claims = false;  ///< has counted a chunk that held nothing
};

struct DeltaImpl::Pieces {
  ByteOffset at;
  std::span<const std::byte> bytes;
  BlockSource* below;
  bool brief;
  std::optional<Error> error;
  WaitGroup workers;
};

Task<Result<std::unique_ptr<Delta>>> Delta::create(std::unique_ptr<Directory> dir,
                                                   CreateOptions options) {
  if (options.size > kMaxVolumeSize) {
    co_return Error(ErrorCode::kTooLarge, "a volume of " + std::to_string(options.size) +
                                              " bytes; the limit is " +
                                              std::to_string(kMaxVolumeSize));
  }
  OpenFlags flags;
  flags.write = true;
  flags.create = true;
  flags.exclusive = true;
  auto data = co_await dir->open(kDataName, flags);
  SNAP_CO_RETURN_IF_ERROR(data);
  auto sized = co_await (*data)->truncate(data_file_size(options.size));
  SNAP_CO_RETURN_IF_ERROR(sized);
  auto journal = co_await Journal::open(*dir, kJournalName, flags);
  SNAP_CO_RETURN_IF_ERROR(journal);
  auto blocks = BlockMap::make();
  SNAP_CO_RETURN_IF_ERROR(blocks);
  ChecksumSecret secret;
  SystemRandom random;
  random.fill(secret);
  MapFile::Point point;
  point.volume_size = options.size;
  auto map = co_await MapFile::write_new(*dir, kMapName, options.id, secret, 1, {}, point);
  SNAP_CO_RETURN_IF_ERROR(map);
  // Rule Publish: the names are durable before the delta is named. data and journal are empty and
  // need no sync of their own: opening gives data its size, and a journal begins with its header.
  auto synced = co_await dir->sync();
  SNAP_CO_RETURN_IF_ERROR(synced);
  auto log = std::make_unique<Journal>(std::move(*journal), options.id, secret, 0);
  DeltaImpl::Files files{std::move(dir), std::move(*data), std::move(*blocks), std::move(*map),
                         std::move(log)};
  auto delta = std::make_unique<DeltaImpl>(std::move(files));
  auto ready = co_await delta->go_live(std::move(options.live_folder));
  SNAP_CO_RETURN_IF_ERROR(ready);
  std::unique_ptr<Delta> out = std::move(delta);
  co_return std::move(out);
}

DeltaImpl::DeltaImpl(Files files)
    : dir_(std::move(files.dir)),
      data_(std::move(files.data)),
      blocks_(std::move(files.blocks)),
      map_(std::move(files.map)),
      journal_(std::move(files.journal)),
      id_(map_.id()),
      size_(map_.point().volume_size) {
  claimed_ = blocks_->present_chunks();
  // Guest I/O is random: readahead only fills the cache with large folios, which are slow to
  // overwrite.
  data_->advise_random();
}

BlockState DeltaImpl::lookup(ChunkIndex chunk) const noexcept {
  const MapWord w = blocks_->word(chunk);
  return {data_of(w), zero_of(w)};
}

std::optional<ChunkIndex> DeltaImpl::next_present(ChunkIndex from) const noexcept {
  return blocks_->next_present(from);
}

Delta::Stats DeltaImpl::stats() const {
  Stats s;
  s.data_blocks = blocks_->data_blocks();
  s.zero_blocks = blocks_->zero_blocks();
  s.dirty_chunks = blocks_->dirty_chunks();
  s.flushes = flushes_.load();
  s.syncs = syncs_.load();
  s.records = records_.load();
  s.checkpoints = checkpoints_.load();
  s.limit_hits = limit_hits_.load();
  s.shared_limit_hits = shared_limit_hits_.load();
  s.disk_full_hits = disk_full_hits_.load();
  return s;
}

// ---- Space

void DeltaImpl::set_limit(std::optional<std::uint64_t> bytes) {
  quota_.set_bound(bytes ? static_cast<std::int64_t>(*bytes / kBlockSize) : BlockQuota::kEndless);
}

Result<void> DeltaImpl::take_blocks(unsigned blocks) {
  if (!quota_.take(blocks)) {
    limit_hits_.fetch_add(1);
    return Error(ErrorCode::kNoSpace,
                 "no space left: delta " + id_.str() + " holds " +
                     std::to_string(blocks_->data_blocks() * kBlockSize) + " bytes and may hold " +
                     std::to_string(static_cast<std::uint64_t>(quota_.bound()) * kBlockSize) +
                     ", the volume's limit; discard what is not needed, or raise the limit");
  }
  if (shared_quota_ != nullptr && !shared_quota_->take(blocks)) {
    quota_.give(blocks);
    shared_limit_hits_.fetch_add(1);
    return Error(
        ErrorCode::kNoSpace,
        "no space left: the store's limit is reached; free some of it, or raise the limit");
  }
  return {};
}

bool DeltaImpl::take_blocks_now(unsigned blocks) noexcept {
  if (!quota_.take(blocks)) return false;
  if (shared_quota_ == nullptr || shared_quota_->take(blocks)) return true;
  quota_.give(blocks);
  return false;
}

void DeltaImpl::give_blocks(std::uint64_t blocks) noexcept {
  if (blocks == 0) return;
  quota_.give(blocks);
  if (shared_quota_ != nullptr) shared_quota_->give(blocks);
}

Error DeltaImpl::counted(const Error& error) {
  if (error.code() == ErrorCode::kNoSpace) disk_full_hits_.fetch_add(1);
  return error;
}

// ---- Read

Task<Result<void>> DeltaImpl::read(ByteOffset at, std::span<std::byte> out) {
  while (!out.empty()) {
    const auto piece = out.first(std::min(out.size(), kMaxReadPiece));
    auto op = read_cached(*data_, piece, at);
    auto n = co_await op;
    SNAP_CO_RETURN_IF_ERROR(n);
    if (*n < piece.size()) {
      auto rest = co_await read_exact(*data_, piece.subspan(*n), at + *n);
      SNAP_CO_RETURN_IF_ERROR(rest);
    }
    at = at + piece.size();
    out = out.subspan(piece.size());
    if (!out.empty()) co_await yield_now();
  }
  co_return Result<void>();
}

bool DeltaImpl::read_now(ByteOffset at, std::span<std::byte> out) noexcept {
  return data_->read_now(out, at);
}

// ---- Write

Result<void> DeltaImpl::check_change(ByteOffset at, std::uint64_t length) const {
  if (journal_ == nullptr) {
    return Error(ErrorCode::kReadOnly, "delta " + id_.str() + " is sealed and takes no writes");
  }
  if (closed_.load(std::memory_order_relaxed))
    return Error(ErrorCode::kReadOnly, "delta " + id_.str() + " is closed and takes no writes");
  if (failed_.load(std::memory_order_acquire)) {
    return Error(ErrorCode::kReadOnly,
                 "delta " + id_.str() +
                     " takes no writes until it is opened again: " + failure()->message());
  }
  if (at.value > size() || length > size() - at.value) {
    return Error(ErrorCode::kInvalidArgument,
                 std::to_string(length) + " bytes at " + std::to_string(at.value) +
                     " end beyond the volume's " + std::to_string(size()) + " bytes");
  }
  return {};
}

Task<Result<void>> DeltaImpl::flush_if(Durability durability) {
  if (durability == Durability::kDurable) {
    auto flushed = co_await flush();
    SNAP_CO_RETURN_IF_ERROR(flushed);
  }
  co_return Result<void>();
}

Task<Result<void>> DeltaImpl::write(ByteOffset at, std::span<const std::byte> bytes,
                                    BlockSource& below, WriteMode mode) {
  auto allowed = check_change(at, bytes.size());
  SNAP_CO_RETURN_IF_ERROR(allowed);
  if (bytes.empty()) co_return Result<void>();
  // A worker's waking up takes half as long as its copy: worth it if this thread has work
  // meanwhile.
  const bool brief = bytes.size() < kLongBytes || !mode.others_wait;
  if (chunk_of(at) == chunk_of(at + (bytes.size() - 1))) {
    auto written = co_await write_piece(at, bytes, below, brief);
    SNAP_CO_RETURN_IF_ERROR(written);
  } else {
    auto written = co_await write_pieces(at, bytes, below, brief);
    SNAP_CO_RETURN_IF_ERROR(written);
  }
  if (mode.durability == Durability::kDurable) {
    auto flushed = co_await flush_write(at, bytes.size());
    SNAP_CO_RETURN_IF_ERROR(flushed);
  }
  co_return Result<void>();
}

Task<void> DeltaImpl::work_on(Pieces* pieces) {
  while (!pieces->bytes.empty() && !pieces->error) {
    const ByteOffset at = pieces->at;
    const std::size_t room = kChunkSize - at.value % kChunkSize;
    const auto piece = pieces->bytes.first(std::min(pieces->bytes.size(), room));
    pieces->at = at + piece.size();
    pieces->bytes = pieces->bytes.subspan(piece.size());
    auto written = co_await write_piece(at, piece, *pieces->below, pieces->brief);
    if (!written && !pieces->error) pieces->error = written.error();
    if (!pieces->bytes.empty()) co_await yield_now();  // others have their turn
  }
  pieces->workers.done();
}

Task<Result<void>> DeltaImpl::write_pieces(ByteOffset at, std::span<const std::byte> bytes,
                                           BlockSource& below, bool brief) {
  static_assert(kMaxWritePiece == kChunkSize, "a piece is what one chunk has of a write");
  Pieces pieces;
  pieces.at = at;
  pieces.bytes = bytes;
  pieces.below = &below;
  pieces.brief = brief;
  const std::size_t count = chunk_of(at + (bytes.size() - 1)) - chunk_of(at) + std::uint64_t{1};
  const std::size_t workers = std::min(count, kPiecesInFlight);
  pieces.workers.add(workers);
  for (std::size_t i = 1; i < workers; ++i)
    EventLoop::current()->spawn(work_on(&pieces));
  co_await work_on(&pieces);
  co_await pieces.workers.wait();
  if (pieces.error) co_return *pieces.error;
  co_return Result<void>();
}

void DeltaImpl::give_up(const Piece& piece) noexcept {
  if (piece.claims) claimed_.fetch_sub(1);
  give_blocks(piece.taken);
  blocks_->release(piece.chunk, piece.mask);
}

void DeltaImpl::half_written(const Piece& piece) noexcept {
  // Rule Fault: this request alone fails. No bit is set; blocks that were present may hold old
  // and new sectors, as after any write that was not answered. The next flush makes stable what a
  // reader may see of it.
  if (piece.claims) claimed_.fetch_sub(1);
  give_blocks(piece.taken);
  const BlockMask present = piece.mask & data_of(piece.before);
  blocks_->release(piece.chunk, static_cast<BlockMask>(piece.mask & ~present));
  if (present != 0) (void)blocks_->publish_data(piece.chunk, present);
  mark(written_);
}

void DeltaImpl::written(const Piece& piece) noexcept {
  // Rule Bits: the data bit is set after the bytes were written.
  const bool first = blocks_->publish_data(piece.chunk, piece.mask);
  if (piece.claims && !first) claimed_.fetch_sub(1);
  mark(written_);
}

std::optional<Result<void>> DeltaImpl::write_now(ByteOffset at, std::span<const std::byte> bytes) {
  if (bytes.empty() || bytes.size() >= kLongBytes || !check_change(at, bytes.size()))
    return std::nullopt;
  if (chunk_of(at) != chunk_of(at + (bytes.size() - 1))) return std::nullopt;
  // A punch keeps the inode's lock for long: no loop waits for that.
  if (punching_.load(std::memory_order_relaxed) != 0) return std::nullopt;
  Piece piece(at, bytes.size());
  if (!blocks_->touch(piece.chunk)) return std::nullopt;
  const auto before = blocks_->hold_now(piece.chunk, piece.mask);
  if (!before) return std::nullopt;
  piece.before = *before;
  const unsigned needs = piece.needs();
  const bool whole = (at.value | bytes.size()) % kBlockSize == 0;
  bool ready = needs == 0 || (whole && take_blocks_now(needs));
  if (ready && needs != 0) {
    piece.taken = needs;
    piece.claims = (data_of(piece.before) | zero_of(piece.before)) == 0;
    ready = has_space(piece.before);
  }
  auto done = ready ? data_->write_now(bytes, at) : std::nullopt;
  if (!done) {
    give_up(piece);
    return std::nullopt;
  }
  if (!*done) {
    half_written(piece);
    return counted(done->error());
  }
  if (**done < bytes.size()) {
    half_written(piece);
    return std::nullopt;
  }
  written(piece);
  return Result<void>();
}

Task<Result<void>> DeltaImpl::write_piece(ByteOffset at, std::span<const std::byte> bytes,
                                          BlockSource& below, bool brief) {
  Piece piece(at, bytes.size());
  auto touched = blocks_->touch(piece.chunk);
  SNAP_CO_RETURN_IF_ERROR(touched);
  // Rule Order: writes of one block are ordered by its busy bit, so that no read-modify-write
  // meets another write of its block.
  piece.before = co_await blocks_->hold(piece.chunk, piece.mask);
  const unsigned needs = piece.needs();
  if (needs != 0) {
    auto taken = take_blocks(needs);
    if (!taken) {
      give_up(piece);
      co_return taken.error();
    }
    piece.taken = needs;
    piece.claims = (data_of(piece.before) | zero_of(piece.before)) == 0;
    if (!has_space(piece.before)) {
      auto reserved = co_await reserve_more();
      if (!reserved) {
        give_up(piece);
        co_return counted(reserved.error());
      }
    }
  }
  const bool whole = (at.value | bytes.size()) % kBlockSize == 0;
  std::optional<Error> error;
  if (whole || needs == 0) {
    // A punch keeps the inode's lock for long: no loop waits for that.
    const bool punches = punching_.load(std::memory_order_relaxed) != 0;
    auto write = write_cached(*data_, bytes, at, brief && !punches);
    auto got = co_await write;
    if (!got) {
      error = got.error();
    } else if (*got < bytes.size()) {
      auto rest = co_await write_all(*data_, bytes.subspan(*got), at + *got);
      if (!rest) error = rest.error();
    }
  } else {
    auto held = co_await write_held(at, bytes, piece.before, below);
    if (!held) error = held.error();
  }
  if (error) {
    half_written(piece);
    co_return counted(*error);
  }
  written(piece);
  co_return Result<void>();
}

Task<Result<void>> DeltaImpl::write_held(ByteOffset at, std::span<const std::byte> bytes,
                                         MapWord before, BlockSource& below) {
  const std::uint64_t end = at.value + bytes.size();
  const auto lacks = [before](std::uint64_t byte) {
    return byte % kBlockSize != 0 &&
           (data_of(before) & block_range(block_in_chunk(ByteOffset(byte)), 1)) == 0;
  };
  const bool head = lacks(at.value);
  const bool tail = lacks(end);
  const std::uint64_t start = head ? round_down(at.value, kBlockSize) : at.value;
  const std::uint64_t stop = tail ? round_up(end, kBlockSize) : end;
  std::vector<std::byte> buffer(stop - start);
  const std::uint64_t edges[] = {round_down(at.value, kBlockSize), round_down(end, kBlockSize)};
  const bool wanted[] = {head, tail && !(head && edges[0] == edges[1])};
  for (std::size_t i = 0; i < 2; ++i) {
    if (!wanted[i]) continue;
    const ByteOffset edge(edges[i]);
    if ((zero_of(before) & block_range(block_in_chunk(edge), 1)) != 0) continue;  // zeros already
    auto filled =
        co_await below.read_blocks(edge, std::span(buffer).subspan(edge.value - start, kBlockSize));
    SNAP_CO_RETURN_IF_ERROR(filled);
  }
  std::memcpy(buffer.data() + (at.value - start), bytes.data(), bytes.size());
  auto written = co_await write_all(*data_, buffer, ByteOffset(start));
  SNAP_CO_RETURN_IF_ERROR(written);
  co_return Result<void>();
}

}  // namespace snap
