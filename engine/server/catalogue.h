// Catalogue: what a server exports under which name. Either the items that it was started with, or
// whatever volumes and images the store has at the moment of asking: then nothing is kept here, so
// what is created, removed, renamed or tagged shows at once.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "engine/server/serve_item.h"
#include "snap/result.h"
#include "snap/store.h"
#include "snap/task.h"

namespace snap::server {

/// What ServedItem::content begins with, before the id of the volume or image.
inline constexpr std::string_view kVolumeContent = "volume ";
inline constexpr std::string_view kImageContent = "image ";

/// Used on the loop of the store.
class Catalogue {
 public:
  /// The whole store: volumes as NAME, images as NAME:TAG, snapshots as VOL@SNAP (which are not
  /// listed). There is no default export.
  explicit Catalogue(Store& store) : store_(store), whole_store_(true) {}
  struct Fixed {};
  /// What add() is given. The first is the default export.
  Catalogue(Store& store, Fixed) : store_(store), whole_store_(false) {}
  Task<Result<ServedItem>> add(ServeItem item);

  bool whole_store() const noexcept { return whole_store_; }
  /// At most kMaxListedExports; what is damaged is left out.
  Task<Result<std::vector<ServedItem>>> list();
  /// By the exact name of the export; empty: the default one. NotFound if there is none.
  Task<Result<ServedItem>> find(std::string name);
  /// What had this name when it was `content`: an image also if its tag is another's by now. Exists
  /// if the name has something else, and this is nowhere.
  Task<Result<ServedItem>> find_again(std::string name, std::string content);

 private:
  Task<Result<ServedItem>> look_at(ServeItem item);
  Task<Result<ServedItem>> find_in_store(std::string name);

  Store& store_;
  const bool whole_store_;
  std::vector<ServedItem> items_;
};

}  // namespace snap::server
