// Fields of JSON that others wrote: what is missing or of another type is the default. Only for
// source files: it pulls in nlohmann/json.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <type_traits>

namespace snap {

template <class T>
T json_field(const nlohmann::json& object, const char* name, T otherwise) {
  const auto found = object.find(name);
  if (found == object.end()) return otherwise;
  if constexpr (std::is_same_v<T, std::string>) {
    if (found->is_string()) return found->template get<std::string>();
  } else if constexpr (std::is_same_v<T, bool>) {
    if (found->is_boolean()) return found->template get<bool>();
  } else if constexpr (std::is_unsigned_v<T>) {
    if (found->is_number_unsigned()) return found->template get<T>();
  } else {
    if (found->is_number_integer()) return found->template get<T>();
  }
  return otherwise;
}

/// On one line. What is no UTF-8 (names of files) is replaced: it must not throw.
inline std::string json_text(const nlohmann::json& value) {
  return value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

}  // namespace snap
