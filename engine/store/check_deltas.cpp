// Deltas: map and journal as recovery would read them, nothing of them changed. A volume that is
// being served has its delta left alone but for the map, whose segments are made whole one by one.
#include <algorithm>

#include "engine/store/check_impl.h"
#include "engine/store/names.h"

namespace snap {

namespace {

constexpr std::uint64_t kPieceBytes = 1u << 20;
constexpr std::uint64_t kAllChunks = kMaxVolumeSize / kChunkSize;
constexpr int kLooks = 5;  // at a map that is being written to
constexpr std::chrono::milliseconds kBetweenLooks{50};

}  // namespace

Task<void> StoreCheck::check_deltas() {
  for (const auto& [uuid, named] : roots_.deltas) {
    if (cancelled()) co_return;
    co_await check_delta(uuid);
  }
}

Task<void> StoreCheck::check_delta(std::string uuid) {
  auto seen = co_await look_at(uuid);
  if (seen && !*seen) co_return;  // removed meanwhile
  if (!seen && seen.error().code() == ErrorCode::kCancelled) co_return;
  ++report_.deltas;
  if (seen) {
    if (options_.data) co_await read_data(uuid, **seen);
    co_return;
  }
  Subject subject;
  subject.delta = uuid;
  Finding finding;
  finding.object = "delta " + uuid;
  finding.what = seen.error().message();
  finding.kind = kind_of(seen.error().code());
  if (finding.kind == Finding::Kind::kDamage) {
    // What it holds is not known: it may be any block.
    std::vector<LostBlocks> all{{ChunkIndex(0), kAllChunks, kAllBlocks}};
    finding.lost = co_await lost_of_delta(uuid, std::move(all));
  }
  add(std::move(finding), subject);
}

Task<Result<std::optional<VerifiedDelta>>> StoreCheck::look_at(std::string uuid) {
  using Seen = std::optional<VerifiedDelta>;
  for (int i = 0; i < kLooks; ++i) {
    // Held while map and journal are read: nobody begins to write to them meanwhile.
    auto standing = co_await where_is(uuid);
    if (!standing) co_return standing.error();
    if (!standing->named) co_return Seen();
    auto seen = co_await look_once(uuid, standing->use);
    if (seen) co_return Seen(std::move(*seen));
    const bool damaged = kind_of(seen.error().code()) == Finding::Kind::kDamage;
    // A sealed one changes no more; whether it is named still is seen at the end, for all at once.
    const bool changes_not = standing->use == DeltaUse::kSealed || standing->still != nullptr;
    if (!damaged || changes_not) co_return seen.error();
    // Was it removed, sealed, opened or closed under our eyes?
    auto after = co_await where_is(uuid);
    if (!after) co_return after.error();
    const bool same = after->named && after->use == standing->use && after->still == nullptr;
    if (same) co_return seen.error();
  }
  co_return Error(ErrorCode::kBusy,
                  "delta " + uuid + ": its volume changes hands all the time; try again");
}

Task<Result<VerifiedDelta>> StoreCheck::look_once(std::string uuid, DeltaUse use) {
  if (use == DeltaUse::kServing) {
    auto seen = co_await look_while_serving(uuid);
    co_return seen;
  }
  auto dir = co_await store_.volumes.deltas_dir().open_dir(uuid);
  if (!dir) co_return dir.error();
  auto verified = co_await verify_delta(std::move(*dir), use);
  if (!verified) co_return verified.error();
  if (verified->id.str() == uuid) co_return std::move(*verified);
  co_return Error(ErrorCode::kCorrupt,
                  "delta " + uuid + ": its files are of delta " + verified->id.str());
}

/// Damage stays where it is; what is being written is whole at another look.
Task<Result<VerifiedDelta>> StoreCheck::look_while_serving(std::string uuid) {
  std::string last;
  Result<VerifiedDelta> seen = Error(ErrorCode::kCancelled, "");
  int same = 0;
  for (int i = 0; i < kLooks || same > 0; ++i) {
    auto dir = co_await store_.volumes.deltas_dir().open_dir(uuid);
    if (!dir) co_return dir.error();
    seen = co_await verify_delta(std::move(*dir), DeltaUse::kServing);
    if (seen) {
      if (seen->id.str() != uuid) {
        co_return Error(ErrorCode::kCorrupt,
                        "delta " + uuid + ": its files are of delta " + seen->id.str());
      }
      co_return std::move(*seen);
    }
    same = seen.error().message() == last ? same + 1 : 0;
    if (same == kLooks) co_return seen.error();
    last = seen.error().message();
    co_await Sleep(kBetweenLooks);
    if (cancelled()) co_return Error(ErrorCode::kCancelled, "cancelled");
  }
  co_return Error(ErrorCode::kBusy, "delta " + uuid + " is written to all the time; try again");
}

/// The data has no checksums: what the disk cannot read is found, and nothing else.
Task<void> StoreCheck::read_data(std::string uuid, const VerifiedDelta& delta) {
  auto dir = co_await store_.volumes.deltas_dir().open_dir(uuid);
  if (!dir) co_return;  // removed meanwhile
  auto file = co_await (*dir)->open("data", OpenFlags{});
  if (!file) co_return;
  std::vector<LostBlocks> lost;
  std::optional<Error> first;
  std::uint64_t at = 0;
  while (true) {
    auto extent = co_await (*file)->next_data(at);
    if (!extent || !*extent) break;
    for (std::uint64_t begin = (*extent)->begin; begin < (*extent)->end;) {
      const std::uint64_t end = std::min(begin + kPieceBytes, (*extent)->end);
      auto read = co_await read_paced(**file, begin, end, nullptr);
      if (!read && read.error().code() == ErrorCode::kCancelled) co_return;
      if (!read && read.error().code() == ErrorCode::kIo) {
        if (!first) first = read.error();
        for (std::uint64_t b = round_down(begin, kBlockSize); b < end; b += kBlockSize) {
          auto one = co_await read_paced(**file, b, std::min(b + kBlockSize, end), nullptr);
          const ByteOffset offset(b);
          const BlockMask bit = block_range(block_in_chunk(offset), 1);
          const bool holds = (data_of(delta.blocks->word(chunk_of(offset))) & bit) != 0;
          if (!one && holds) lost.push_back({chunk_of(offset), 1, bit});
        }
      }
      begin = end;
    }
    at = (*extent)->end;
  }
  if (lost.empty()) co_return;
  Finding finding;
  finding.object = "delta " + uuid;
  finding.what = first->message();
  finding.lost = co_await lost_of_delta(uuid, std::move(lost));
  Subject subject;
  subject.delta = uuid;
  add(std::move(finding), subject);
}

}  // namespace snap
