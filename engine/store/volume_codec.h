// VolumeRecord <-> volume.json (docs/format.md, Store, volumes). The decoder takes hostile bytes:
// every field is checked, every count bounded, a checksum over the rest finds any flipped bit.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "engine/store/feature_masks.h"
#include "snap/result.h"
#include "snap/store.h"

namespace snap {

/// A volume's record and how often it was replaced.
struct StoredVolume {
  VolumeRecord record;  ///< its name is that of the folder; the file does not hold it
  std::uint64_t generation = 0;
  Features features = own_features();
  std::optional<Error> read_only;  ///< why it must not be replaced, if so
};

/// InvalidArgument for what the decoder would refuse.
Result<std::string> encode_volume(const StoredVolume& volume);
/// `name` is the folder's. Unsupported names the release that is needed; Corrupt what is wrong.
Result<StoredVolume> decode_volume(std::string_view name, std::string_view json);

}  // namespace snap
