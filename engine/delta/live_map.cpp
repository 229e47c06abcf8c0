#include "engine/delta/live_map.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <vector>

#include "engine/base/private_directory.h"
#include "engine/delta/identity.h"
#include "snap/units.h"

namespace snap {

namespace {

constexpr std::uint64_t kMagic = 0x70616d6576696c73;  // "slivemap"
constexpr std::uint64_t kVersion = 1;
constexpr std::uint64_t kHeaderBytes = 4096;

Error failed(const std::string& what, const LivePlace& place) {
  return Error::from_errno(errno, what + " " + place.path);
}

}  // namespace

/// In the machine's own byte order: no other machine reads it.
struct LiveMap::Header {
  std::uint64_t magic;
  std::uint64_t version;
  std::uint64_t leaf_bytes;
  Uuid boot;
  Uuid delta;
  Token token;
  std::atomic<std::uint64_t> counts;
};

Result<LivePlace> live_place(const std::string& folder, const Uuid& delta, const File& data) {
  auto made = make_private_directory(folder);
  SNAP_RETURN_IF_ERROR(made);
  auto file = identity_of(data);
  SNAP_RETURN_IF_ERROR(file);
  char name[128];
  std::snprintf(name, sizeof name, "-%x.%x-%llx-%llx.%x", file->device_major, file->device_minor,
                static_cast<unsigned long long>(file->inode),
                static_cast<unsigned long long>(file->birth_seconds), file->birth_nanoseconds);
  return LivePlace{folder + "/" + delta.str() + name, delta};
}

Result<std::unique_ptr<LiveMap>> LiveMap::make(const LivePlace& place, Token token,
                                               std::uint64_t leaves, std::size_t leaf_bytes) {
  const auto boot = boot_id();
  if (!boot) return Error(ErrorCode::kUnsupported, "the kernel does not tell its boot id");
  LiveMap::remove(place);
  UniqueFd fd(::open(place.path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!fd) return failed("make", place);
  const std::size_t length = kHeaderBytes + leaves * leaf_bytes;
  if (::ftruncate(fd.get(), static_cast<off_t>(length)) != 0) return failed("size", place);
  if (::fallocate(fd.get(), 0, 0, kHeaderBytes) != 0) return failed("take space for", place);
  void* base = ::mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
  if (base == MAP_FAILED) return failed("map", place);
  std::unique_ptr<LiveMap> map(
      new LiveMap(place, std::move(fd), static_cast<std::byte*>(base), length, leaf_bytes));
  Header* h = map->header();
  h->version = kVersion;
  h->leaf_bytes = leaf_bytes;
  h->boot = *boot;
  h->delta = place.delta;
  h->token = token;
  h->magic = kMagic;
  return map;
}

Result<bool> LiveMap::read(const LivePlace& place, Token token, std::uint64_t leaves,
                           std::size_t leaf_bytes, const EachLeaf& each) {
  const auto boot = boot_id();
  if (!boot) return false;
  const UniqueFd fd(::open(place.path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
  if (!fd) {
    if (errno == ENOENT) return false;
    return failed("open", place);
  }
  const auto read_at = [&](void* to, std::size_t n, std::uint64_t at) {
    return ::pread(fd.get(), to, n, static_cast<off_t>(at)) == static_cast<ssize_t>(n);
  };
  Header h{};
  if (!read_at(&h, sizeof h, 0)) return false;
  if (h.magic != kMagic || h.version != kVersion || h.leaf_bytes != leaf_bytes || h.boot != *boot ||
      h.delta != place.delta || h.token != token || h.counts.load() == 0)
    return false;
  std::vector<std::byte> leaf(leaf_bytes);
  std::uint64_t next = 0;
  for (off_t at = kHeaderBytes;;) {
    const off_t begin = ::lseek(fd.get(), at, SEEK_DATA);
    if (begin < 0 && errno == ENXIO) return true;
    const off_t end = begin < 0 ? begin : ::lseek(fd.get(), begin, SEEK_HOLE);
    if (end < 0) return failed("look for what is in", place);
    // Neighbours share pages.
    const std::uint64_t stop = std::min<std::uint64_t>(
        leaves, round_up(static_cast<std::uint64_t>(end) - kHeaderBytes, leaf_bytes) / leaf_bytes);
    next = std::max(next, (static_cast<std::uint64_t>(begin) - kHeaderBytes) / leaf_bytes);
    for (; next < stop; ++next) {
      if (!read_at(leaf.data(), leaf_bytes, kHeaderBytes + next * leaf_bytes))
        return failed("read", place);
      auto taken = each(next, leaf.data());
      SNAP_RETURN_IF_ERROR(taken);
    }
    at = end;
  }
}

void LiveMap::remove(const LivePlace& place) noexcept {
  // One that cannot be removed names a token that no one looks for.
  (void)::unlink(place.path.c_str());
}

LiveMap::LiveMap(LivePlace place, UniqueFd fd, std::byte* base, std::size_t length,
                 std::size_t leaf_bytes)
    : place_(std::move(place)),
      fd_(std::move(fd)),
      base_(base),
      length_(length),
      leaf_bytes_(leaf_bytes) {}

LiveMap::~LiveMap() {
  ::munmap(base_, length_);
}

void* LiveMap::leaf(std::uint64_t index) noexcept {
  const std::uint64_t at = kHeaderBytes + index * leaf_bytes_;
  if (::fallocate(fd_.get(), 0, static_cast<off_t>(at), static_cast<off_t>(leaf_bytes_)) != 0) {
    discount();
    return nullptr;
  }
  return base_ + at;
}

bool LiveMap::owns(const void* address) const noexcept {
  const auto* p = static_cast<const std::byte*>(address);
  return p >= base_ && p < base_ + length_;
}

void LiveMap::count() noexcept {
  header()->counts.store(1);
}
void LiveMap::discount() noexcept {
  header()->counts.store(0);
}
bool LiveMap::counts() const noexcept {
  return header()->counts.load() != 0;
}

}  // namespace snap
