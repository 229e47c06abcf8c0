#include "engine/nbd/reply_queue.h"

namespace snap::nbd {

void ReplyQueue::push(Request* request) noexcept {
  request->next = nullptr;
  if (first_ == nullptr) {
    first_ = last_ = request;
  } else {
    last_->next = request;
    last_ = request;
  }
}

std::span<iovec> ReplyQueue::gather() noexcept {
  std::size_t count = 0;
  std::size_t piece = pieces_sent_;
  for (const Request* r = first_; r != nullptr; r = r->next, piece = 0) {
    for (; piece < r->pieces.size() && count < gathered_.size(); ++piece)
      gathered_[count++] = r->pieces[piece];
    if (count == gathered_.size()) break;
  }
  if (count != 0 && piece_offset_ != 0) {
    gathered_[0].iov_base = static_cast<std::byte*>(gathered_[0].iov_base) + piece_offset_;
    gathered_[0].iov_len -= piece_offset_;
  }
  return std::span(gathered_).first(count);
}

ReplyQueue::Finished ReplyQueue::advance(std::size_t n) noexcept {
  Finished finished;
  while (n != 0) {
    const std::size_t left = first_->pieces[pieces_sent_].iov_len - piece_offset_;
    if (n < left) {
      piece_offset_ += n;
      break;
    }
    n -= left;
    piece_offset_ = 0;
    if (++pieces_sent_ == first_->pieces.size()) pop(finished);
  }
  return finished;
}

ReplyQueue::Finished ReplyQueue::drop_all() noexcept {
  Finished finished;
  while (first_ != nullptr)
    pop(finished);
  return finished;
}

void ReplyQueue::pop(Finished& finished) noexcept {
  Request* request = first_;
  first_ = request->next;
  pieces_sent_ = 0;
  piece_offset_ = 0;
  ++finished.requests;
  finished.bytes += request->charged;
  pool_.give_back(request);
}

}  // namespace snap::nbd
