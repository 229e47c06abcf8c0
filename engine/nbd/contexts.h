// The metadata contexts that BLOCK_STATUS can tell of: their names, their ids on the wire, and what
// an extent's flags are in each.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "snap/volume.h"

namespace snap::nbd {

/// The id under which a context is sent is 1 + its place here.
enum class MetaContext : std::uint8_t {
  kBaseAllocation,   ///< base:allocation: hole and zero
  kAllocationDepth,  ///< qemu:allocation-depth: 0 nothing, else 1 + the source's place in the chain
  kDelta,            ///< snap:delta: changed since the image
};

struct MetaContextName {
  MetaContext context;
  std::string_view space;  ///< with its colon
  std::string_view name;   ///< whole
};
inline constexpr std::array<MetaContextName, 3> kMetaContexts{{
    {MetaContext::kBaseAllocation, "base:", "base:allocation"},
    {MetaContext::kAllocationDepth, "qemu:", "qemu:allocation-depth"},
    {MetaContext::kDelta, "snap:", "snap:delta"},
}};

// Flags of base:allocation.
inline constexpr std::uint32_t kStateHole = 1 << 0;
inline constexpr std::uint32_t kStateZero = 1 << 1;
// Flag of snap:delta: the volume's own, whether data or zeros; without it, as the image has it.
inline constexpr std::uint32_t kStateChanged = 1 << 0;

constexpr std::uint32_t wire_id(MetaContext context) {
  return static_cast<std::uint32_t>(context) + 1;
}

/// A set of contexts.
class MetaContexts {
 public:
  constexpr void add(MetaContext context) { bits_ |= bit(context); }
  constexpr bool has(MetaContext context) const { return (bits_ & bit(context)) != 0; }
  constexpr bool empty() const { return bits_ == 0; }
  constexpr std::size_t size() const { return static_cast<std::size_t>(__builtin_popcount(bits_)); }
  constexpr bool operator==(const MetaContexts&) const = default;

  /// The part of this set that `ids` name. Empty if one of them is not in it, or is there twice.
  MetaContexts chosen_by(const std::vector<std::uint32_t>& ids) const;

 private:
  static constexpr unsigned bit(MetaContext context) {
    return 1u << static_cast<unsigned>(context);
  }
  unsigned bits_ = 0;
};

/// What `query` of a LIST_META_CONTEXT (where a bare name space stands for all in it) or a
/// SET_META_CONTEXT asks for.
MetaContexts contexts_of_query(std::string_view query, bool list);

/// What `context` says of `extent`.
std::uint32_t extent_flags(MetaContext context, const Extent& extent);

}  // namespace snap::nbd
