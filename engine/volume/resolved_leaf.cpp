#include "engine/volume/resolved_leaf.h"

#include <algorithm>
#include <bit>

namespace snap {

namespace {

BlockMask bit_of(unsigned block) {
  return block_range(block, 1);
}

/// How many blocks of `data` are stored before `block`.
std::uint64_t rank_of(BlockMask data, unsigned block) {
  return static_cast<std::uint64_t>(
      std::popcount(static_cast<BlockMask>(data & (bit_of(block) - 1u))));
}

/// True if the chunk's blocks are raw, where 36 bits can say, and not cut by the layer's end.
bool is_plain(const MixedPart& part) {
  const ChunkEntry& e = part.entry;
  return e.encoding == Encoding::kRaw && e.offset % kBlockSize == 0 &&
         LeafEntry::fits(e.offset / kBlockSize + kBlocksPerChunk) &&
         offset_of(e.chunk).value + kChunkSize <= part.limit;
}

/// True if the whole chunk can stand in 8 bytes.
bool fits_raw(const MixedPart& part) {
  return is_plain(part) && part.zero == 0 && part.data == part.entry.data;
}

}  // namespace

BlockMask blocks_below(ChunkIndex chunk, std::uint64_t limit) noexcept {
  const std::uint64_t begin = offset_of(chunk).value;
  if (limit <= begin) return 0;
  const std::uint64_t blocks = (limit - begin + kBlockSize - 1) / kBlockSize;
  return block_range(0, static_cast<unsigned>(std::min<std::uint64_t>(blocks, kBlocksPerChunk)));
}

// ---- ResolvedLeaf

std::uint64_t ResolvedLeaf::memory() const noexcept {
  return sizeof *this + mixed_.size() * sizeof(MixedChunk) + parts_.size() * sizeof(MixedPart) +
         places_.size() * sizeof(std::uint64_t);
}

/// A block whose place has no room for all that matters.
LeafRun ResolvedLeaf::run_in_part(const MixedPart& part, ByteOffset at,
                                  LeafRun run) const noexcept {
  if (at.value >= part.limit) return run;  // the rest of a block that the layer's end cuts
  run.length = std::min(run.length, part.limit - at.value);
  run.layer = part.layer;
  run.kind = LeafRun::Kind::kPacked;
  run.packed = &part;
  return run;
}

LeafRun ResolvedLeaf::run_in_mixed(std::size_t mixed, ByteOffset at, LeafRun run) const noexcept {
  const auto place = LeafEntry::from_bits(
      places_[mixed * kBlocksPerChunk + block_in_chunk(at)].load(std::memory_order_acquire));
  if (place.kind() == LeafEntry::Kind::kMixed) return run_in_part(parts_[place.value()], at, run);
  if (place.kind() == LeafEntry::Kind::kNone) return run;
  run.kind = LeafRun::Kind::kRaw;
  run.layer = place.layer();
  run.verified = (place.mask() & kVerified) != 0;
  run.file_offset = place.value() * kBlockSize + at.value % kBlockSize;
  return run;
}

LeafRun ResolvedLeaf::run_in_block(ByteOffset at) const noexcept {
  LeafRun run;
  run.length = kBlockSize - at.value % kBlockSize;
  const std::size_t slot = slot_of(chunk_of(at));
  const LeafEntry entry = entries_[slot];
  const unsigned block = block_in_chunk(at);
  if (entry.kind() == LeafEntry::Kind::kMixed) return run_in_mixed(entry.value(), at, run);
  if (entry.kind() == LeafEntry::Kind::kRaw && (entry.mask() & bit_of(block)) != 0) {
    run.kind = LeafRun::Kind::kRaw;
    run.layer = entry.layer();
    run.verified = (verified_[slot / 64].load(std::memory_order_acquire) >> slot % 64 & 1) != 0;
    run.file_offset =
        (entry.value() + rank_of(entry.mask(), block)) * kBlockSize + at.value % kBlockSize;
  }
  return run;
}

LeafRun ResolvedLeaf::run_at(ByteOffset at, std::uint64_t max) const noexcept {
  LeafRun run = run_in_block(at);
  const std::uint64_t leaf_end = offset_of(end()).value;
  while (run.length < max && at.value + run.length < leaf_end) {
    const ByteOffset next_at = at + run.length;
    // A compressed chunk is unpacked on its own; a run that was cut inside a block ends there.
    if (run.kind == LeafRun::Kind::kPacked && chunk_of(next_at) != chunk_of(at)) break;
    const LeafRun next = run_in_block(next_at);
    if (next.kind != run.kind || next.packed != run.packed) break;
    if (run.kind == LeafRun::Kind::kRaw &&
        (next.layer != run.layer || next.file_offset != run.file_offset + run.length))
      break;
    run.length += next.length;
    run.verified = run.verified && next.verified;
  }
  run.length = std::min(run.length, max);
  return run;
}

StackState ResolvedLeaf::state(ChunkIndex chunk) const noexcept {
  const LeafEntry entry = entries_[slot_of(chunk)];
  switch (entry.kind()) {
    case LeafEntry::Kind::kNone:
      break;
    case LeafEntry::Kind::kRaw:
      return {entry.mask(), 0};
    case LeafEntry::Kind::kZero:
      return {0, entry.mask()};
    case LeafEntry::Kind::kMixed:
      return {mixed_[entry.value()].data, mixed_[entry.value()].zero};
  }
  return {};
}

std::array<int, kBlocksPerChunk> ResolvedLeaf::owners(ChunkIndex chunk) const noexcept {
  std::array<int, kBlocksPerChunk> out;
  out.fill(-1);
  const LeafEntry entry = entries_[slot_of(chunk)];
  if (entry.kind() == LeafEntry::Kind::kNone) return out;
  if (entry.kind() != LeafEntry::Kind::kMixed) {
    for (unsigned b = 0; b < kBlocksPerChunk; ++b)
      if ((entry.mask() & bit_of(b)) != 0) out[b] = static_cast<int>(entry.layer());
    return out;
  }
  const MixedChunk& mixed = mixed_[entry.value()];
  for (unsigned b = 0; b < kBlocksPerChunk; ++b)
    if (((mixed.data | mixed.zero) & bit_of(b)) != 0)
      out[b] = parts_[mixed.first_part + mixed.part_of[b]].layer;
  return out;
}

ChunkIndex ResolvedLeaf::next_mentioned(ChunkIndex from) const noexcept {
  ChunkIndex chunk = from;
  while (chunk < end() && entries_[slot_of(chunk)].kind() == LeafEntry::Kind::kNone)
    ++chunk;
  return chunk;
}

std::vector<ResolvedLeaf::Unverified> ResolvedLeaf::unverified(ChunkIndex chunk) const {
  std::vector<Unverified> out;
  const std::size_t slot = slot_of(chunk);
  const LeafEntry entry = entries_[slot];
  if (entry.kind() == LeafEntry::Kind::kRaw) {
    if ((verified_[slot / 64].load(std::memory_order_acquire) >> slot % 64 & 1) == 0)
      out.push_back(Unverified{.layer = entry.layer()});
  } else if (entry.kind() == LeafEntry::Kind::kMixed) {
    const MixedChunk& mixed = mixed_[entry.value()];
    for (std::size_t p = mixed.first_part; p < mixed.first_part + mixed.part_count; ++p) {
      const MixedPart& part = parts_[p];
      if (part.data == 0) continue;
      const auto block = static_cast<std::size_t>(std::countr_zero(part.data));
      const auto place = LeafEntry::from_bits(
          places_[entry.value() * kBlocksPerChunk + block].load(std::memory_order_acquire));
      if (place.kind() == LeafEntry::Kind::kRaw && (place.mask() & kVerified) == 0)
        out.push_back({part.layer, p, part.slice, part.index});
    }
  }
  return out;
}

void ResolvedLeaf::mark_verified(ChunkIndex chunk, std::size_t part) const noexcept {
  const std::size_t slot = slot_of(chunk);
  if (part == kWholeEntry) {
    verified_[slot / 64].fetch_or(std::uint64_t{1} << slot % 64, std::memory_order_release);
    return;
  }
  for (unsigned b = 0; b < kBlocksPerChunk; ++b)
    if ((parts_[part].data & bit_of(b)) != 0)
      places_[entries_[slot].value() * kBlocksPerChunk + b].fetch_or(kVerified,
                                                                     std::memory_order_release);
}

// ---- LeafBuilder

LeafBuilder::LeafBuilder(ChunkIndex first, std::uint64_t size) : first_(first) {
  // What lies beyond the size is as good as decided.
  for (std::size_t slot = 0; slot < kLeafChunks; ++slot)
    decided_[slot] = static_cast<BlockMask>(~blocks_below(first + slot, size));
}

bool LeafBuilder::open(ChunkIndex from, ChunkIndex to) const noexcept {
  const ChunkIndex begin = std::max(from, first_);
  const ChunkIndex end = std::min(to, first_ + kLeafChunks);
  for (ChunkIndex chunk = begin; chunk < end; ++chunk)
    if (decided_[chunk - first_] != kAllBlocks) return true;
  return false;
}

void LeafBuilder::add(const Layer& layer, std::size_t layer_index, std::uint64_t limit,
                      std::size_t slice, const std::vector<ChunkEntry>& entries) {
  for (std::size_t i = 0; i < entries.size(); ++i) {
    const ChunkEntry& e = entries[i];
    if (e.chunk < first_ || e.chunk >= first_ + kLeafChunks) continue;
    const std::size_t slot = e.chunk - first_;
    const auto wanted = static_cast<BlockMask>(blocks_below(e.chunk, limit) & ~decided_[slot]);
    Part p;
    p.slot = static_cast<std::uint16_t>(slot);
    p.part.data = e.data & wanted;
    p.part.zero = e.zero & wanted;
    if ((p.part.data | p.part.zero) == 0) continue;
    decided_[slot] = static_cast<BlockMask>(decided_[slot] | p.part.data | p.part.zero);
    p.verified = p.part.data != 0 && layer.verified(slice, i);
    p.part.entry = e;
    p.part.limit = limit;
    p.part.slice = static_cast<std::uint32_t>(slice);
    p.part.index = static_cast<std::uint16_t>(i);
    p.part.layer = static_cast<std::uint16_t>(layer_index);
    parts_.push_back(std::move(p));
  }
}

/// Part `number` of the leaf: where each of its blocks is.
void LeafBuilder::add_places(const Part& p, std::size_t number, std::size_t mixed) {
  const MixedPart& part = p.part;
  const ChunkEntry& e = part.entry;
  places_.resize((mixed + 1) * kBlocksPerChunk);
  for (unsigned b = 0; b < kBlocksPerChunk; ++b) {
    if ((part.data & bit_of(b)) == 0) continue;
    LeafEntry place = LeafEntry::mixed(number);
    if (is_plain(part))
      place = LeafEntry::raw(part.layer, e.offset / kBlockSize + rank_of(e.data, b),
                             p.verified ? ResolvedLeaf::kVerified : BlockMask{0});
    places_[mixed * kBlocksPerChunk + b] = place.bits();
  }
}

void LeafBuilder::add_mixed(ResolvedLeaf& leaf, std::size_t slot, std::size_t begin,
                            std::size_t end) {
  ResolvedLeaf::MixedChunk mixed;
  mixed.first_part = static_cast<std::uint32_t>(leaf.parts_.size());
  mixed.part_count = static_cast<std::uint8_t>(end - begin);
  for (std::size_t i = begin; i < end; ++i) {
    const MixedPart& part = parts_[i].part;
    mixed.data = static_cast<BlockMask>(mixed.data | part.data);
    mixed.zero = static_cast<BlockMask>(mixed.zero | part.zero);
    for (unsigned b = 0; b < kBlocksPerChunk; ++b)
      if (((part.data | part.zero) & bit_of(b)) != 0)
        mixed.part_of[b] = static_cast<std::uint8_t>(i - begin);
    add_places(parts_[i], leaf.parts_.size(), leaf.mixed_.size());
    leaf.parts_.push_back(part);
  }
  leaf.entries_[slot] = LeafEntry::mixed(leaf.mixed_.size());
  leaf.mixed_.push_back(mixed);
}

std::shared_ptr<const ResolvedLeaf> LeafBuilder::finish() {
  std::stable_sort(parts_.begin(), parts_.end(),
                   [](const Part& a, const Part& b) { return a.slot < b.slot; });
  std::shared_ptr<ResolvedLeaf> leaf(new ResolvedLeaf(first_));
  for (std::size_t begin = 0; begin < parts_.size();) {
    const std::size_t slot = parts_[begin].slot;
    std::size_t end = begin + 1;
    while (end < parts_.size() && parts_[end].slot == slot)
      ++end;
    const MixedPart& top = parts_[begin].part;
    if (end - begin == 1 && top.data == 0) {
      leaf->entries_[slot] = LeafEntry::zero(top.layer, top.zero);
    } else if (end - begin == 1 && fits_raw(top)) {
      leaf->entries_[slot] =
          LeafEntry::raw(top.layer, top.entry.offset / kBlockSize, top.entry.data);
      if (parts_[begin].verified) leaf->mark_verified(first_ + slot, ResolvedLeaf::kWholeEntry);
    } else {
      add_mixed(*leaf, slot, begin, end);
    }
    begin = end;
  }
  leaf->places_ = std::vector<std::atomic<std::uint64_t>>(places_.size());
  for (std::size_t i = 0; i < places_.size(); ++i)
    leaf->places_[i].store(places_[i], std::memory_order_relaxed);
  leaf->parts_.shrink_to_fit();
  leaf->mixed_.shrink_to_fit();
  return leaf;
}

}  // namespace snap
