#include "engine/nbd/reply.h"

#include <algorithm>
#include <cassert>
#include <cstring>

#include "engine/base/codec.h"
#include "snap/units.h"

namespace snap::nbd {

namespace {

// A reply that tells of a hole saves the copy of its zeros; looking costs next to nothing on data.
constexpr std::size_t kHoleGrain = kChunkSize;
constexpr std::size_t kMaxErrorWords = 1024;

void add_piece(Request& r, std::span<const std::byte> bytes) {
  r.pieces.push_back({const_cast<std::byte*>(bytes.data()), bytes.size()});
}

template <std::size_t N>
void append(std::vector<std::byte>& out, const std::array<std::byte, N>& bytes) {
  out.insert(out.end(), bytes.begin(), bytes.end());
}

bool all_zero(std::span<const std::byte> bytes) {
  return bytes[0] == std::byte{0} &&
         std::memcmp(bytes.data(), bytes.data() + 1, bytes.size() - 1) == 0;
}

/// A run of the read range that goes out as one chunk.
struct Run {
  std::size_t begin = 0;
  std::size_t length = 0;
  bool hole = false;
};

/// The first run at or after `begin`; pieces end at multiples of kHoleGrain in the export.
Run next_run(std::span<const std::byte> data, std::size_t begin, std::uint64_t offset) {
  Run run{begin, 0, false};
  std::size_t at = begin;
  while (at < data.size()) {
    const std::size_t to_boundary =
        kHoleGrain - static_cast<std::size_t>((offset + at) % kHoleGrain);
    const std::size_t n = std::min(data.size() - at, to_boundary);
    const bool hole = all_zero(data.subspan(at, n));
    if (at != begin && hole != run.hole) break;
    run.hole = hole;
    at += n;
  }
  run.length = at - begin;
  return run;
}

constexpr std::size_t kHoleBody = 12;
constexpr std::size_t kDataBody = 8;

void append_chunk_head(Request& r, Headers headers, const Run& run, bool done) {
  const RequestHeader& h = r.header;
  if (run.hole) {
    append_chunk_header(r.head, headers, ChunkType::kOffsetHole, done, h, kHoleBody);
    append_u64(r.head, h.offset.value + run.begin);
    append_u32(r.head, static_cast<std::uint32_t>(run.length));
  } else {
    append_chunk_header(r.head, headers, ChunkType::kOffsetData, done, h,
                        static_cast<std::uint32_t>(kDataBody + run.length));
    append_u64(r.head, h.offset.value + run.begin);
  }
}

void build_read_chunks(Request& r, Headers headers) {
  const auto data = r.data.bytes();
  if ((r.header.flags & kCmdDf) != 0) {
    append_chunk_head(r, headers, Run{0, data.size(), false}, true);
    add_piece(r, r.head);
    add_piece(r, data);
    return;
  }
  const Run first = next_run(data, 0, r.header.offset.value);
  if (first.length == data.size()) {  // nearly always
    append_chunk_head(r, headers, first, true);
    add_piece(r, r.head);
    if (!first.hole) add_piece(r, data);
    return;
  }
  // Heads go one after the other into r.head; pieces are cut only when it no longer moves.
  struct Mark {
    Run run;
    std::size_t head_end;
  };
  std::vector<Mark> marks;
  for (std::size_t at = 0; at < data.size();) {
    const Run run = next_run(data, at, r.header.offset.value);
    at += run.length;
    append_chunk_head(r, headers, run, at == data.size());
    marks.push_back({run, r.head.size()});
  }
  std::size_t head_begin = 0;
  for (const Mark& mark : marks) {
    if (mark.run.hole) continue;  // its head goes out with the next piece of head
    add_piece(r, std::span(r.head).subspan(head_begin, mark.head_end - head_begin));
    add_piece(r, data.subspan(mark.run.begin, mark.run.length));
    head_begin = mark.head_end;
  }
  if (head_begin != r.head.size()) add_piece(r, std::span(r.head).subspan(head_begin));
}

}  // namespace

void build_done(Request& r, Headers headers) {
  if (headers == Headers::kExtended) {
    append_chunk_header(r.head, headers, ChunkType::kNone, true, r.header, 0);
  } else {
    append(r.head, encode_simple_reply(WireError::kNone, r.header.cookie));
  }
  add_piece(r, r.head);
}

void build_error(Request& r, WireError error, std::string_view words, Headers headers) {
  if (headers == Headers::kSimple) {
    append(r.head, encode_simple_reply(error, r.header.cookie));
  } else {
    words = words.substr(0, kMaxErrorWords);
    append_chunk_header(r.head, headers, ChunkType::kError, true, r.header,
                        static_cast<std::uint32_t>(6 + words.size()));
    append_u32(r.head, static_cast<std::uint32_t>(error));
    append_u16(r.head, static_cast<std::uint16_t>(words.size()));
    append_text(r.head, words);
  }
  add_piece(r, r.head);
}

void build_read(Request& r, Headers headers) {
  const bool empty = !r.data;
  if (headers == Headers::kSimple) {
    append(r.head, encode_simple_reply(WireError::kNone, r.header.cookie));
    add_piece(r, r.head);
    if (!empty) add_piece(r, r.data.bytes());
  } else if (empty) {
    append_chunk_header(r.head, headers, ChunkType::kNone, true, r.header, 0);
    add_piece(r, r.head);
  } else {
    build_read_chunks(r, headers);
  }
}

namespace {

struct Descriptor {
  std::uint64_t length;
  std::uint32_t flags;
};

std::vector<Descriptor> descriptors(const Request& r, std::span<const Extent> extents,
                                    MetaContext context) {
  std::vector<Descriptor> merged;
  std::uint64_t left = r.header.length;
  for (const Extent& e : extents) {
    const std::uint32_t flags = extent_flags(context, e);
    const std::uint64_t length = std::min(e.length, left);
    if (length == 0) continue;
    left -= length;
    if (!merged.empty() && merged.back().flags == flags) {
      merged.back().length += length;
    } else if (!merged.empty() && (r.header.flags & kCmdReqOne) != 0) {
      break;
    } else {
      merged.push_back({length, flags});
    }
  }
  assert(!merged.empty());
  return merged;
}

}  // namespace

void build_block_status(Request& r, std::span<const Extent> extents, MetaContexts contexts,
                        Headers headers) {
  const bool extended = headers == Headers::kExtended;
  std::size_t left = contexts.size();
  for (const MetaContextName& known : kMetaContexts) {
    if (!contexts.has(known.context)) continue;
    const auto list = descriptors(r, extents, known.context);
    const std::size_t body = extended ? 8 + 16 * list.size() : 4 + 8 * list.size();
    append_chunk_header(r.head, headers,
                        extended ? ChunkType::kBlockStatusExt : ChunkType::kBlockStatus,
                        --left == 0, r.header, static_cast<std::uint32_t>(body));
    append_u32(r.head, wire_id(known.context));
    if (extended) append_u32(r.head, static_cast<std::uint32_t>(list.size()));
    for (const Descriptor& d : list) {
      if (extended) {
        append_u64(r.head, d.length);
        append_u64(r.head, d.flags);
      } else {
        append_u32(r.head, static_cast<std::uint32_t>(d.length));
        append_u32(r.head, d.flags);
      }
    }
  }
  add_piece(r, r.head);
}

}  // namespace snap::nbd
