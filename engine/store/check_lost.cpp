// Which bytes of which image, volume and snapshot a damaged part of a layer or delta stands for:
// those that no source above it in the chain hides.
#include <algorithm>
#include <bit>

#include "engine/store/check_impl.h"

namespace snap {

namespace {

constexpr std::uint64_t kAllChunks = kMaxVolumeSize / kChunkSize;

bool is_everything(const LostBlocks& lost) {
  return lost.chunks >= kAllChunks;
}

/// Takes what `present(chunk)` names away from `blocks`. Runs of whole chunks stay as they are: for
/// what is not known, no block is said to be safe.
template <class Present>
void hide(std::vector<LostBlocks>& blocks, const Present& present) {
  for (LostBlocks& lost : blocks) {
    if (lost.chunks == 1) lost.blocks = static_cast<BlockMask>(lost.blocks & ~present(lost.chunk));
  }
  std::erase_if(blocks, [](const LostBlocks& lost) { return lost.blocks == 0; });
}

/// Byte ranges within `size`, neighbours merged.
void add_ranges(const std::string& object, std::optional<std::uint64_t> size,
                const std::vector<LostBlocks>& blocks, std::vector<Finding::Lost>& out) {
  const auto add = [&](std::uint64_t begin, std::uint64_t end) {
    end = std::min(end, size.value_or(kMaxVolumeSize));
    if (begin >= end) return;
    if (!out.empty() && out.back().object == object &&
        out.back().offset + *out.back().length == begin) {
      *out.back().length += end - begin;
    } else {
      out.push_back({object, begin, end - begin});
    }
  };
  for (const LostBlocks& lost : blocks) {
    const std::uint64_t base = offset_of(lost.chunk).value;
    if (is_everything(lost) || lost.chunks > 1) {
      add(base, base + std::min(lost.chunks, kAllChunks - lost.chunk.value) * kChunkSize);
      continue;
    }
    for (unsigned b = 0; b < kBlocksPerChunk; ++b) {
      if ((lost.blocks >> b & 1) != 0) add(base + b * kBlockSize, base + (b + 1) * kBlockSize);
    }
  }
}

}  // namespace

void StoreCheck::name_users(Finding& finding, const Subject& subject) {
  std::set<std::string> users;
  if (subject.blob) users = roots_.blobs[*subject.blob].users;
  if (!subject.delta.empty()) users = roots_.deltas[subject.delta].users;
  if (!subject.volume.empty()) users.insert("volume " + subject.volume);
  finding.users.assign(users.begin(), users.end());
  if (subject.opener && finding.kind == Finding::Kind::kDamage)
    finding.lost = lost_without(subject);
}

std::vector<Finding::Lost> StoreCheck::lost_without(const Subject& subject) const {
  std::vector<Finding::Lost> out;
  if (!subject.volume.empty()) out.push_back({"volume " + subject.volume, 0, std::nullopt});
  if (!subject.blob) return out;
  for (const CheckedChain& chain : roots_.chains) {
    if (chain.manifest == subject.blob || chain.config == subject.blob)
      out.push_back({chain.name, 0, chain.size});
  }
  return out;
}

Task<void> StoreCheck::hide_by_delta(std::string uuid, std::vector<LostBlocks>& blocks) {
  auto delta = co_await look_at(uuid);
  if (!delta || !*delta) co_return;
  hide(blocks, [&delta](ChunkIndex chunk) {
    const MapWord word = (*delta)->blocks->word(chunk);
    return static_cast<BlockMask>(data_of(word) | zero_of(word));
  });
}

Task<void> StoreCheck::hide_by_layer(LayerRef ref, std::vector<LostBlocks>& blocks) {
  auto layer = co_await store_.chains.layer(ref);
  if (!layer) co_return;
  std::map<std::uint64_t, BlockMask> present;
  for (const LostBlocks& lost : blocks) {
    if (lost.chunks != 1) continue;
    auto entry = co_await (*layer)->find(lost.chunk);
    if (entry && *entry)
      present[lost.chunk.value] = static_cast<BlockMask>((*entry)->data | (*entry)->zero);
  }
  hide(blocks, [&present](ChunkIndex chunk) {
    const auto found = present.find(chunk.value);
    return found == present.end() ? BlockMask{0} : found->second;
  });
}

Task<std::vector<Finding::Lost>> StoreCheck::lost_of_layer(BlobDigest layer,
                                                           std::vector<LostBlocks> blocks) {
  std::vector<Finding::Lost> out;
  for (const CheckedChain& chain : roots_.chains) {
    const auto found = std::find_if(chain.layers.begin(), chain.layers.end(),
                                    [&layer](const LayerRef& ref) { return ref.blob == layer; });
    if (found == chain.layers.end()) continue;
    std::vector<LostBlocks> left = blocks;
    for (const std::string& delta : chain.deltas)
      co_await hide_by_delta(delta, left);
    for (auto above = found + 1; above != chain.layers.end(); ++above)
      co_await hide_by_layer(*above, left);
    add_ranges(chain.name, chain.size, left, out);
  }
  co_return out;
}

Task<std::vector<Finding::Lost>> StoreCheck::lost_of_delta(std::string uuid,
                                                           std::vector<LostBlocks> blocks) {
  std::vector<Finding::Lost> out;
  for (const CheckedChain& chain : roots_.chains) {
    const auto found = std::find(chain.deltas.begin(), chain.deltas.end(), uuid);
    if (found == chain.deltas.end()) continue;
    std::vector<LostBlocks> left = blocks;
    for (auto above = chain.deltas.begin(); above != found; ++above)
      co_await hide_by_delta(*above, left);
    add_ranges(chain.name, chain.size, left, out);
  }
  co_return out;
}

}  // namespace snap
