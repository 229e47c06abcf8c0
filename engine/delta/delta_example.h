// The files of the example in docs/format.md, Delta, made by this code. For tests only.
#pragma once

#include <vector>

#include "engine/delta/delta_format.h"

namespace snap::delta_test {

using Bytes = std::vector<std::byte>;

inline constexpr std::uint64_t kExampleSize = 330000;

inline Uuid example_id() {
  return *Uuid::parse("6f1d2c3b-4a59-4687-9796-a5b4c3d2e1f0");
}

/// The secret of the example: byte i is i.
inline ChecksumSecret example_secret() {
  ChecksumSecret secret;
  for (std::size_t i = 0; i < secret.size(); ++i)
    secret[i] = static_cast<std::byte>(i);
  return secret;
}

inline void append(Bytes& file, FrameHead& head, const std::vector<Change>& changes) {
  const Uuid id = example_id();
  const ChecksumSecret secret = example_secret();
  const Bytes frame = encode_frame(head, changes, {id, secret, file.size()});
  file.insert(file.end(), frame.begin(), frame.end());
}

/// An empty base, and a segment that covers record 1.
inline Bytes example_map() {
  Bytes file = encode_map_header({example_id(), example_secret(), 8192});
  FrameHead base;
  base.kind = FrameKind::kSegment;
  base.number = 1;
  base.volume_size = kExampleSize;
  append(file, base, {});
  FrameHead second = base;
  second.number = 2;
  second.through = 1;
  second.previous = base.checksum;
  append(file, second, {{0, 0x0003, 0x0000}, {2, 0x8000, 0x00f0}});
  return file;
}

inline constexpr ChunkIndex kExampleChunk{4};
inline constexpr std::byte kExampleByte{0x5a};

/// Record 2: block 1 of chunk 0 was trimmed, the last block of the volume written. Record 3, with
/// its block: block 2 of chunk 4 was written.
inline Bytes example_journal() {
  Bytes file = encode_journal_header({example_id(), kJournalAreaInitial});
  FrameHead record;
  record.kind = FrameKind::kChanges;
  record.number = 2;
  record.through = 1;
  record.previous = 0x1122334455667788;
  append(file, record, {{0, 0x0000, 0x0002}, {5, 0x0001, 0x0000}});
  FrameHead third;
  third.kind = FrameKind::kBlocks;
  third.number = 3;
  third.previous = record.checksum;
  const std::vector<Change> changes{
      {static_cast<std::uint32_t>(kExampleChunk.value), 0x0004, 0x0000}};
  const std::uint64_t offset = file.size();
  file.resize(offset + kFrameAlign + kBlockSize, kExampleByte);
  const Uuid id = example_id();
  const ChecksumSecret secret = example_secret();
  encode_frame_into(std::span(file).subspan(offset), third, changes, {id, secret, offset});
  return file;
}

}  // namespace snap::delta_test
