#include "engine/io/sim_bytes.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "engine/base/checksum.h"

namespace snap {

void SparseBytes::read(std::uint64_t at, std::span<std::byte> out) const {
  for (std::size_t done = 0; done < out.size();) {
    const std::uint64_t inside = (at + done) % kPage;
    const std::size_t n = std::min<std::size_t>(out.size() - done, kPage - inside);
    auto page = pages_.find((at + done) / kPage);
    if (page == pages_.end()) {
      std::memset(out.data() + done, 0, n);
    } else {
      std::memcpy(out.data() + done, page->second->bytes.data() + inside, n);
    }
    done += n;
  }
}

SparseBytes::Page& SparseBytes::own_page(std::uint64_t number) {
  std::shared_ptr<Page>& page = pages_[number];
  if (page == nullptr) {
    page = std::make_shared<Page>();
  } else if (page.use_count() > 1) {
    page = std::make_shared<Page>(*page);
  }
  page->hash = 0;
  return *page;
}

void SparseBytes::write(std::uint64_t at, std::span<const std::byte> in) {
  for (std::size_t done = 0; done < in.size();) {
    const std::uint64_t inside = (at + done) % kPage;
    const std::size_t n = std::min<std::size_t>(in.size() - done, kPage - inside);
    std::memcpy(own_page((at + done) / kPage).bytes.data() + inside, in.data() + done, n);
    done += n;
  }
}

void SparseBytes::zero(std::uint64_t at, std::uint64_t length) {
  // A length up to the end of all files must not overflow.
  const std::uint64_t end =
      length > std::numeric_limits<std::uint64_t>::max() - at ? ~std::uint64_t{0} : at + length;
  for (auto page = pages_.lower_bound(at / kPage); page != pages_.end();) {
    const std::uint64_t start = page->first * kPage;
    if (start >= end) break;
    const std::uint64_t from = std::max(start, at) - start;
    const std::uint64_t to = std::min(start + kPage, end) - start;
    if (from == 0 && to == kPage) {
      page = pages_.erase(page);
      continue;
    }
    std::memset(own_page(page->first).bytes.data() + from, 0, to - from);
    ++page;
  }
}

void SparseBytes::copy_range(const SparseBytes& other, std::uint64_t at, std::uint64_t length) {
  zero(at, length);
  const std::uint64_t end = at + length;
  for (auto page = other.pages_.lower_bound(at / kPage); page != other.pages_.end(); ++page) {
    const std::uint64_t start = page->first * kPage;
    if (start >= end) break;
    const std::uint64_t from = std::max(start, at);
    const std::uint64_t to = std::min(start + kPage, end);
    write(from, std::span<const std::byte>(page->second->bytes.data() + (from - start), to - from));
  }
}

std::uint64_t SparseBytes::hash() const {
  std::uint64_t sum = 0;
  for (const auto& [number, page] : pages_) {
    if (page->hash == 0) {
      page->hash = xxh3(page->bytes) | 1;
      page->zero = is_zero(page->bytes);
    }
    if (page->zero) continue;
    const std::uint64_t placed[] = {number, page->hash};
    sum += xxh3(std::as_bytes(std::span(placed)));
  }
  return sum;
}

std::optional<std::uint64_t> SparseBytes::next_page(std::uint64_t page) const {
  auto found = pages_.lower_bound(page);
  if (found == pages_.end()) return std::nullopt;
  return found->first;
}

}  // namespace snap
