// Replies leave in the order and with the bytes in which they were pushed, however they are cut.
#include <algorithm>
#include <catch2/catch.hpp>
#include <random>

#include "engine/nbd/reply_queue.h"

namespace snap::nbd {
namespace {

using Bytes = std::vector<std::byte>;

/// Pushes a reply of that many pieces, which go on where the bytes of `expected` end.
void push_reply(RequestPool& pool, ReplyQueue& queue, std::size_t pieces, Bytes& expected,
                std::mt19937_64& random) {
  Request* request = pool.take();
  request->head.clear();
  request->pieces.clear();
  std::vector<std::size_t> lengths(pieces);
  for (std::size_t& length : lengths) {
    length = 1 + random() % 40;
    for (std::size_t i = 0; i < length; ++i)
      request->head.push_back(static_cast<std::byte>(random()));
  }
  expected.insert(expected.end(), request->head.begin(), request->head.end());
  std::byte* next = request->head.data();
  for (const std::size_t length : lengths) {
    request->pieces.push_back({next, length});
    next += length;
  }
  queue.push(request);
}

/// What a peer gets that takes at most `most` bytes at a time.
Bytes received(ReplyQueue& queue, std::size_t most, std::size_t* replies, std::mt19937_64& random) {
  Bytes out;
  while (!queue.empty()) {
    std::size_t left = 1 + random() % most, sent = 0;
    for (const iovec& piece : queue.gather()) {
      const std::size_t n = std::min(left, piece.iov_len);
      const auto* bytes = static_cast<const std::byte*>(piece.iov_base);
      out.insert(out.end(), bytes, bytes + n);
      left -= n;
      sent += n;
      if (left == 0) break;
    }
    *replies += queue.advance(sent).requests;
  }
  return out;
}

}  // namespace

TEST_CASE("replies arrive whole, however many pieces they have and wherever a send ends") {
  for (std::uint64_t seed = 1; seed <= 40; ++seed) {
    INFO("seed " << seed);
    std::mt19937_64 random(seed);
    RequestPool pool;
    ReplyQueue queue(pool);
    Bytes expected;
    const std::size_t count = 1 + random() % 40;
    for (std::size_t i = 0; i < count; ++i)
      push_reply(pool, queue, 1 + random() % (seed % 2 == 0 ? 4 : 200), expected, random);
    std::size_t replies = 0;
    const bool same = received(queue, 1 + random() % 20000, &replies, random) == expected;
    CHECK(same);
    CHECK(replies == count);
  }
}

}  // namespace snap::nbd
