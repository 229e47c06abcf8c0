// VolumeRecord <-> volume.json (docs/format.md, Store, volumes). The decoder takes hostile bytes:
// every field is checked, every count bounded, a checksum over the rest finds any flipped bit.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "snap/result.h"
#include "snap/store.h"

namespace snap {

/// A volume's record and how often it was replaced.
struct StoredVolume {
  VolumeRecord record;
  std::uint64_t generation = 0;
};

/// InvalidArgument for what the decoder would refuse.
Result<std::string> encode_volume(const StoredVolume& volume);
/// `name` is the folder's: the record inside must agree.
Result<StoredVolume> decode_volume(std::string_view name, std::string_view json);

}  // namespace snap
