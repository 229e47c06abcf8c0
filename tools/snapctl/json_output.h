// JSON as --json prints it: one object with "schema" and what was asked for; bytes are integers,
// times RFC 3339, keys stay. A change that breaks a reader raises kJsonSchema.
#pragma once

#include <nlohmann/json_fwd.hpp>

#include "snap/store.h"

namespace snap::cli {

class Context;

inline constexpr int kJsonSchema = 1;

using Json = nlohmann::ordered_json;

Json image_json(const Image& image);
Json volume_json(const VolumeSummary& volume);
Json record_json(const VolumeRecord& record);
Json snapshot_json(const SnapshotRecord& snapshot);
Json history_json(const HistoryEntry& entry);
Json removed_json(const Store::Removed& removed);

/// Prints {"schema": 1, "<key>": value}. Bytes that are no UTF-8 become U+FFFD.
void print_json(Context& context, const char* key, Json value);
/// Prints the object `value` with "schema" in front.
void print_json(Context& context, Json value);
/// Prints any value as it is.
void print_bare_json(Context& context, const Json& value);

}  // namespace snap::cli
