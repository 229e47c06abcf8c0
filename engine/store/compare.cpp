// See compare.h.
#include "engine/store/compare.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "engine/base/checksum.h"
#include "engine/delta/delta.h"
#include "engine/volume/layer_stack.h"

namespace snap {

namespace {

constexpr std::uint64_t kWindowChunks = 16;       // read and compared in one go: 1 MiB of each
constexpr std::size_t kChunksBeforeYield = 4096;  // that are passed over

/// One side: its sources, top first, and what it shares with the other side.
struct Side {
  Volume* volume = nullptr;
  Volume::Parts parts;
  std::vector<Delta*> own;  ///< deltas that the other side does not read through in the same way
};

std::vector<Volume::Sealed> deltas_of_chain(const Volume::Parts& parts) {
  std::vector<Volume::Sealed> out;
  if (parts.delta) out.push_back({parts.delta, parts.floor});
  out.insert(out.end(), parts.sealed.begin(), parts.sealed.end());
  return out;
}

bool same_layer(const Layer& a, const Layer& b) {
  return &a == &b || a.info().content == b.info().content;
}

/// How many layers, from the bottom, both stacks have in common.
std::size_t common_layers(const LayerStack& a, const LayerStack& b) {
  const auto& x = a.layers();
  const auto& y = b.layers();
  std::size_t n = 0;
  while (n < x.size() && n < y.size() && same_layer(*x[n], *y[n]))
    ++n;
  return n;
}

class Comparer {
 public:
  Comparer(Volume& a, Volume& b, CompareOptions options, const Progress& progress)
      : a_(make_side(a)), b_(make_side(b)), options_(std::move(options)), progress_(progress) {
    split();
  }

  Task<Result<Comparison>> run();

 private:
  static Side make_side(Volume& volume) { return Side{&volume, volume.parts(), {}}; }
  void split();
  Task<Result<ChunkIndex>> next_candidate(ChunkIndex from);
  Task<Result<bool>> must_read(ChunkIndex chunk);
  Task<Result<void>> read_side(Side& side, std::uint64_t at, std::span<std::byte> out);
  Task<Result<bool>> compare_window(ChunkIndex first, std::uint64_t chunks);
  bool add_difference(std::uint64_t at, std::uint64_t length);
  bool tell_pending();

  Side a_, b_;
  CompareOptions options_;
  const Progress& progress_;
  std::size_t common_layers_ = 0;
  std::uint64_t shared_limit_ = 0;  // bytes below which what is shared shows on both sides alike
  std::uint64_t end_ = 0;           // the larger size
  std::vector<std::byte> a_bytes_, b_bytes_;
  Difference pending_;
  Comparison out_;
};

/// Finds what the two chains share: the same layers, from the bottom; and, if all layers are the
/// same, the same sealed deltas above them.
void Comparer::split() {
  auto x = deltas_of_chain(a_.parts);
  auto y = deltas_of_chain(b_.parts);
  end_ = std::max(a_.parts.size, b_.parts.size);
  shared_limit_ = std::min(a_.parts.size, b_.parts.size);
  for (const auto* side : {&x, &y}) {
    for (const Volume::Sealed& link : *side)
      shared_limit_ = std::min(shared_limit_, link.floor);
  }
  common_layers_ = common_layers(*a_.parts.layers, *b_.parts.layers);
  for (const Side* side : {&a_, &b_}) {
    const auto& layers = side->parts.layers->layers();
    for (std::size_t n = common_layers_; n < layers.size(); ++n)
      shared_limit_ = std::min(shared_limit_, layers[n]->info().virtual_size);
  }
  const bool all_layers = common_layers_ == a_.parts.layers->layers().size() &&
                          common_layers_ == b_.parts.layers->layers().size();
  while (all_layers && !x.empty() && !y.empty() && x.back().delta->id() == y.back().delta->id()) {
    x.pop_back();
    y.pop_back();
  }
  for (const auto& link : x)
    a_.own.push_back(link.delta.get());
  for (const auto& link : y)
    b_.own.push_back(link.delta.get());
}

/// The first chunk at or after `from` that some source of either side mentions; the end if none.
Task<Result<ChunkIndex>> Comparer::next_candidate(ChunkIndex from) {
  ChunkIndex next(chunk_count(end_));
  const bool layers_shared = common_layers_ == a_.parts.layers->layers().size() &&
                             common_layers_ == b_.parts.layers->layers().size();
  for (const Side* side : {&a_, &b_}) {
    // Where every layer is shared only the deltas matter, as long as nothing hides the layers.
    const bool only_own = layers_shared && offset_of(from).value < shared_limit_;
    if (only_own) {
      for (const Delta* delta : side->own) {
        if (const auto present = delta->next_present(from)) next = std::min(next, *present);
      }
      continue;
    }
    for (const Volume::Sealed& link : deltas_of_chain(side->parts)) {
      if (const auto present = link.delta->next_present(from)) next = std::min(next, *present);
    }
    auto mentioned = co_await side->parts.layers->next_mentioned(from);
    if (!mentioned) co_return mentioned.error();
    if (mentioned->value < chunk_count(side->parts.layers->size()))
      next = std::min(next, *mentioned);
  }
  // Past the limit the layers may be hidden on one side alone: begin to look there again.
  const ChunkIndex limit(shared_limit_ / kChunkSize);
  if (from < limit) next = std::min(next, limit);
  co_return next;
}

/// False if the chunk is known to be the same without reading it.
Task<Result<bool>> Comparer::must_read(ChunkIndex chunk) {
  if (offset_of(chunk + 1).value > shared_limit_) co_return true;
  for (const Side* side : {&a_, &b_}) {
    for (const Delta* delta : side->own) {
      const BlockState state = delta->lookup(chunk);
      if ((state.data | state.zero) != 0) co_return true;
    }
  }
  auto x = co_await a_.parts.layers->owners(chunk);
  if (!x) co_return x.error();
  auto y = co_await b_.parts.layers->owners(chunk);
  if (!y) co_return y.error();
  for (unsigned block = 0; block < kBlocksPerChunk; ++block) {
    const int owner = (*x)[block];
    if (owner != (*y)[block] || owner >= static_cast<int>(common_layers_)) co_return true;
  }
  co_return false;
}

Task<Result<void>> Comparer::read_side(Side& side, std::uint64_t at, std::span<std::byte> out) {
  const std::uint64_t size = side.volume->size();
  const std::uint64_t have = at < size ? std::min<std::uint64_t>(out.size(), size - at) : 0;
  std::memset(out.data() + have, 0, out.size() - have);
  if (have == 0) co_return Result<void>();
  auto read = co_await side.volume->read(ByteOffset(at), out.first(have));
  co_return read;
}

bool Comparer::tell_pending() {
  if (pending_.length == 0) return true;
  ++out_.extents;
  out_.bytes += pending_.length;
  const Difference difference = std::exchange(pending_, Difference{});
  return !options_.on_difference || options_.on_difference(difference);
}

bool Comparer::add_difference(std::uint64_t at, std::uint64_t length) {
  if (pending_.length != 0 && pending_.offset.value + pending_.length == at) {
    pending_.length += length;
    return true;
  }
  if (!tell_pending()) return false;
  pending_ = {ByteOffset(at), length};
  return true;
}

/// Reads and compares; false to end here.
Task<Result<bool>> Comparer::compare_window(ChunkIndex first, std::uint64_t chunks) {
  const std::uint64_t at = offset_of(first).value;
  const std::uint64_t length = std::min(chunks * kChunkSize, end_ - at);
  a_bytes_.resize(kWindowChunks * kChunkSize);
  b_bytes_.resize(kWindowChunks * kChunkSize);
  auto read = co_await read_side(a_, at, std::span(a_bytes_).first(length));
  if (!read) co_return read.error();
  read = co_await read_side(b_, at, std::span(b_bytes_).first(length));
  if (!read) co_return read.error();
  for (std::uint64_t done = 0; done < length; done += kBlockSize) {
    const std::uint64_t n = std::min(kBlockSize, length - done);
    if (std::memcmp(a_bytes_.data() + done, b_bytes_.data() + done, n) == 0) continue;
    if (!add_difference(at + done, n)) co_return false;
  }
  co_return true;
}

Task<Result<Comparison>> Comparer::run() {
  out_.same_size = a_.parts.size == b_.parts.size;
  const ChunkIndex end(chunk_count(end_));
  ChunkIndex window;              // of chunks that must be read
  std::uint64_t window_size = 0;  // 0: none yet
  std::size_t passed = 0;
  for (ChunkIndex chunk; chunk < end;) {
    auto next = co_await next_candidate(chunk);
    if (!next) co_return next.error();
    bool read = false;
    if (*next < end) {
      auto must = co_await must_read(*next);
      if (!must) co_return must.error();
      read = *must;
    }
    if (window_size != 0 &&
        (!read || *next != window + window_size || window_size == kWindowChunks)) {
      auto go_on = co_await compare_window(window, std::exchange(window_size, 0));
      if (!go_on) co_return go_on.error();
      if (!*go_on) co_return out_;
      progress_.tell("compare", std::min(offset_of(*next).value, end_), end_);
      if (progress_.is_cancelled()) co_return Error(ErrorCode::kCancelled, "compare: cancelled");
    }
    if (read) {
      if (window_size == 0) window = *next;
      ++window_size;
    } else if (++passed % kChunksBeforeYield == 0) {
      if (progress_.is_cancelled()) co_return Error(ErrorCode::kCancelled, "compare: cancelled");
      co_await yield_now();
    }
    chunk = *next < end ? *next + 1 : end;
  }
  if (window_size != 0) {
    auto go_on = co_await compare_window(window, window_size);
    if (!go_on) co_return go_on.error();
    if (!*go_on) co_return out_;
  }
  tell_pending();
  progress_.tell("compare", end_, end_);
  co_return out_;
}

}  // namespace

Task<Result<Comparison>> compare_volumes(Volume& a, Volume& b, CompareOptions options,
                                         Progress progress) {
  Comparer comparer(a, b, std::move(options), progress);
  auto compared = co_await comparer.run();
  co_return compared;
}

}  // namespace snap
