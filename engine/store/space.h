// Refusing early what the store's limit, or its disk, cannot hold.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "snap/file.h"
#include "snap/result.h"
#include "snap/store.h"
#include "snap/task.h"

namespace snap {

/// What a layer file of so many bytes of data takes at most: table, index and footer included.
constexpr std::uint64_t layer_bytes(std::uint64_t data) {
  return data + data / 64 + (16u << 10);
}
/// What a new volume takes at least.
inline constexpr std::uint64_t kNewVolumeBytes = 16u << 10;

/// "999 bytes", "1.5 GiB".
std::string in_units(std::uint64_t bytes);
/// Bytes on disk of all files in `dir`, and in so many levels of folders below it. What goes
/// meanwhile is passed over, and so is what a sweep has moved out (kSweptFolder).
Task<Result<std::uint64_t>> allocated_below(Directory& dir, int depth);
/// NoSpace: which of limit and disk is short, what is needed, what there is, what to do, `hint`.
Error no_room(std::string_view needed, const Store::Room& room, std::string_view path,
              std::string_view hint = {});
/// Store::room() for who is about to take space. What it shows is noted as watch_room() does: what
/// is refused ends here, and must not leave a crossing untold.
Task<Result<Store::Room>> noted_room(Store& store);
/// NoSpace, as above, if there is less room than that.
Task<Result<void>> require_room(Store& store, std::uint64_t needed, std::string_view hint = {});
/// watch_room() after a command that took or freed space, or changed the limits.
Task<void> note_room(Store& store);

}  // namespace snap
