// Names people type: the nearest one for "did you mean", unique prefixes, times.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace snap {

/// The candidate nearest to `name` by edit distance, if it is near enough to be meant (at most a
/// third of its letters differ).
std::optional<std::string> nearest_name(std::string_view name,
                                        const std::vector<std::string>& candidates);
/// " (did you mean 'x'?)", or nothing.
std::string did_you_mean(std::string_view name, const std::vector<std::string>& candidates);

/// `text` for a message: quoted, control characters as \xNN, at most 80 characters.
std::string shown(std::string_view text);

/// The time now, RFC 3339 in UTC, to the second: "2024-05-01T12:00:00Z".
std::string now_rfc3339();
/// Is `text` an RFC 3339 time as we or other tools write it?
bool is_rfc3339(std::string_view text);

}  // namespace snap
