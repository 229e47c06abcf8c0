#include "engine/server/export_stat.h"

#include "engine/delta/delta.h"

namespace snap::server {

namespace {

ServedStat stat_of(const OpenItem& item, const Volume::Stats& counts, bool read_only) {
  ServedStat out;
  out.name = item.served.name;
  out.kind = kind_name(item.served.item.kind);
  out.size = item.volume->size();
  out.read_only = read_only || item.volume->read_only();
  out.connections = item.clients;
  out.stats = counts;
  if (const auto delta = item.volume->parts().delta) {
    const Delta::Stats stats = delta->stats();
    out.dirty = stats.dirty_chunks * kChunkSize;
    out.allocated = stats.data_blocks * kBlockSize;
  }
  return out;
}

ServedStat stat_of(const OpenItems::Remembered& closed, bool read_only) {
  ServedStat out;
  out.name = closed.served.name;
  out.kind = kind_name(closed.served.item.kind);
  out.size = closed.served.size;
  out.read_only = read_only || closed.served.item.kind != ServeItem::Kind::kVolume;
  out.open = false;
  out.stats = closed.stats;
  return out;
}

}  // namespace

std::vector<ServedStat> stat_of_exports(const OpenItems& open, const std::string& name, bool counts,
                                        bool read_only) {
  std::vector<ServedStat> out;
  for (const auto& item : open.all()) {
    if (!name.empty() && item->served.name != name) continue;
    out.push_back(stat_of(*item, counts ? open.stats(*item) : Volume::Stats(), read_only));
  }
  if (!counts) return out;
  for (const OpenItems::Remembered& closed : open.remembered()) {
    if (name.empty() || closed.served.name == name) out.push_back(stat_of(closed, read_only));
  }
  return out;
}

}  // namespace snap::server
