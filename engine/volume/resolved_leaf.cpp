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

/// True if a raw entry can stand in 8 bytes: its whole data is what is visible, uncut.
bool fits_raw(const MixedPart& part) {
  const ChunkEntry& e = part.entry;
  return e.encoding == Encoding::kRaw && part.zero == 0 && part.data == e.data &&
         e.offset % kBlockSize == 0 && LeafEntry::fits(e.offset / kBlockSize) &&
         offset_of(e.chunk).value + kChunkSize <= part.limit;
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
         (verified_.words.size() + part_verified_.words.size()) * sizeof(std::uint64_t);
}

LeafRun ResolvedLeaf::run_in_mixed(const MixedChunk& chunk, ByteOffset at,
                                   LeafRun run) const noexcept {
  const unsigned block = block_in_chunk(at);
  if ((chunk.data & bit_of(block)) == 0) return run;
  const std::size_t number = chunk.first_part + chunk.part_of[block];
  const MixedPart& part = parts_[number];
  if (at.value >= part.limit) return run;  // the rest of a block that the layer's end cuts
  run.length = std::min(run.length, part.limit - at.value);
  run.layer = part.layer;
  if (part.entry.encoding != Encoding::kRaw) {
    run.kind = LeafRun::Kind::kPacked;
    run.packed = &part;
    return run;
  }
  run.kind = LeafRun::Kind::kRaw;
  run.verified = part_verified_.get(number);
  run.file_offset =
      part.entry.offset + rank_of(part.entry.data, block) * kBlockSize + at.value % kBlockSize;
  return run;
}

LeafRun ResolvedLeaf::run_in_block(ByteOffset at) const noexcept {
  LeafRun run;
  run.length = kBlockSize - at.value % kBlockSize;
  const std::size_t slot = slot_of(chunk_of(at));
  const LeafEntry entry = entries_[slot];
  const unsigned block = block_in_chunk(at);
  if (entry.kind() == LeafEntry::Kind::kMixed) return run_in_mixed(mixed_[entry.value()], at, run);
  if (entry.kind() == LeafEntry::Kind::kRaw && (entry.mask() & bit_of(block)) != 0) {
    run.kind = LeafRun::Kind::kRaw;
    run.layer = entry.layer();
    run.verified = verified_.get(slot);
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
  if (entry.kind() == LeafEntry::Kind::kRaw && !verified_.get(slot)) {
    out.push_back(Unverified{.layer = entry.layer()});
  } else if (entry.kind() == LeafEntry::Kind::kMixed) {
    const MixedChunk& mixed = mixed_[entry.value()];
    for (std::size_t p = mixed.first_part; p < mixed.first_part + mixed.part_count; ++p) {
      const MixedPart& part = parts_[p];
      if (part.data == 0 || part.entry.encoding != Encoding::kRaw || part_verified_.get(p))
        continue;
      out.push_back({part.layer, p, part.slice, part.index});
    }
  }
  return out;
}

void ResolvedLeaf::mark_verified(ChunkIndex chunk, std::size_t part) const noexcept {
  if (part == kWholeEntry) {
    verified_.set(slot_of(chunk));
  } else {
    part_verified_.set(part);
  }
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
    if (parts_[i].verified) leaf.part_verified_.set(leaf.parts_.size());
    leaf.parts_.push_back(part);
  }
  leaf.entries_[slot] = LeafEntry::mixed(leaf.mixed_.size());
  leaf.mixed_.push_back(mixed);
}

std::shared_ptr<const ResolvedLeaf> LeafBuilder::finish() {
  std::stable_sort(parts_.begin(), parts_.end(),
                   [](const Part& a, const Part& b) { return a.slot < b.slot; });
  std::shared_ptr<ResolvedLeaf> leaf(new ResolvedLeaf(first_, parts_.size()));
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
      if (parts_[begin].verified) leaf->verified_.set(slot);
    } else {
      add_mixed(*leaf, slot, begin, end);
    }
    begin = end;
  }
  leaf->parts_.shrink_to_fit();
  leaf->mixed_.shrink_to_fit();
  return leaf;
}

}  // namespace snap
