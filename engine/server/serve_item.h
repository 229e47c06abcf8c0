// ServeItem: one thing of the store that is served under a name: a volume, an image or a snapshot.
#pragma once

#include <cstdint>
#include <string>

namespace snap::server {

struct ServeItem {
  enum class Kind { kVolume, kImage, kSnapshot };
  Kind kind = Kind::kVolume;
  std::string name;         ///< of the volume, or the image's reference or id
  std::string snapshot;     ///< of that volume
  std::string export_name;  ///< empty: `name`, or "volume@snapshot"
};

/// A ServeItem as it is now.
struct ServedItem {
  ServeItem item;
  std::string name;         ///< of the export
  std::string description;  ///< what client tools show beside the name
  std::uint64_t size = 0;   ///< bytes
  /// Tells it from everything else that has had, or will have, this name: an image that was tagged
  /// anew, a snapshot that was made again.
  std::string identity;
  /// What it is, whatever it is called now: of a volume its id, of an image its digest.
  std::string content;
};

std::string export_name_of(const ServeItem& item);
/// "volume", "image", "snapshot"
const char* kind_name(ServeItem::Kind kind) noexcept;

}  // namespace snap::server
