#include "engine/nbd/contexts.h"

namespace snap::nbd {

MetaContexts MetaContexts::chosen_by(const std::vector<std::uint32_t>& ids) const {
  MetaContexts chosen;
  for (const std::uint32_t id : ids) {
    if (id == 0 || id > kMetaContexts.size()) return {};
    const auto context = static_cast<MetaContext>(id - 1);
    if (!has(context) || chosen.has(context)) return {};
    chosen.add(context);
  }
  return chosen;
}

MetaContexts contexts_of_query(std::string_view query, bool list) {
  MetaContexts found;
  for (const MetaContextName& known : kMetaContexts) {
    if (query == known.name || (list && query == known.space)) found.add(known.context);
  }
  return found;
}

std::uint32_t extent_flags(MetaContext context, const Extent& extent) {
  switch (context) {
    case MetaContext::kBaseAllocation:
      return extent.data ? 0 : kStateHole | kStateZero;
    case MetaContext::kAllocationDepth:
      return static_cast<std::uint32_t>(extent.depth + 1);
    case MetaContext::kDelta:
      return extent.in_delta ? kStateChanged : 0;
  }
  return 0;
}

}  // namespace snap::nbd
