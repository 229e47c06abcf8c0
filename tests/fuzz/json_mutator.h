// Mutates JSON as JSON: a value becomes one of another kind, goes, or takes another's place. Bytes
// that are changed one by one seldom do that. For the sources that define a target alone.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <string_view>
#include <vector>

extern "C" std::size_t LLVMFuzzerMutate(std::uint8_t* data, std::size_t size, std::size_t room);

namespace snap::fuzz {

inline void collect_values(nlohmann::json& value, std::vector<nlohmann::json*>& out) {
  out.push_back(&value);
  if (!value.is_structured()) return;
  for (auto& inner : value)
    collect_values(inner, out);
}

/// Nothing of what is no JSON.
inline std::string mutated_json(std::string_view text, unsigned seed) {
  using nlohmann::json;
  json value = json::parse(text, nullptr, false);
  if (!value.is_structured()) return std::string();
  std::minstd_rand random(seed);
  std::vector<json*> all;
  collect_values(value, all);
  json& chosen = *all[random() % all.size()];
  static const std::vector<json> kOthers{
      nullptr, true, 0, -1, 1.5, 18446744073709551615u, "", "x", json::array(), json::object()};
  const std::size_t pick = random() % (kOthers.size() + 3);
  if (pick < kOthers.size()) {
    chosen = kOthers[pick];
  } else if (pick == kOthers.size()) {
    const json other = *all[random() % all.size()];
    chosen = other;
  } else if (chosen.is_structured() && !chosen.empty()) {
    auto inner = chosen.begin();
    std::advance(inner, static_cast<std::ptrdiff_t>(random() % chosen.size()));
    if (chosen.is_array() && pick % 2 == 0) {
      const json again = *inner;
      chosen.push_back(again);
    } else {
      chosen.erase(inner);
    }
  }
  return value.dump(-1, ' ', false, json::error_handler_t::replace);
}

/// Mutates the JSON of one part of the text, in which `end` ends a part; false if that is none, or
/// there is no room. Changes `size` to the new one.
inline bool mutate_part(std::uint8_t* data, std::size_t& size, std::size_t room, char end,
                        unsigned seed) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  if (text.empty()) return false;
  const std::size_t inside = seed % text.size();
  const std::size_t before = text.rfind(end, inside == 0 ? 0 : inside - 1);
  const std::size_t begin = before == std::string_view::npos ? 0 : before + 1;
  const std::size_t stop = std::min(text.find(end, begin), text.size());
  const std::string part = mutated_json(text.substr(begin, stop - begin), seed);
  if (part.empty() || size - (stop - begin) + part.size() > room) return false;
  const std::string whole =
      std::string(text.substr(0, begin)) + part + std::string(text.substr(stop));
  std::copy(whole.begin(), whole.end(), data);
  size = whole.size();
  return true;
}

/// A target's mutator: of an input of one byte of flags, and parts of JSON that `end` ends.
inline std::size_t mutate_json_or_bytes(std::uint8_t* data, std::size_t size, std::size_t room,
                                        char end, unsigned seed) {
  std::size_t text = size == 0 ? 0 : size - 1;
  if (seed % 2 == 0 && text != 0 && mutate_part(data + 1, text, room - 1, end, seed / 2))
    return text + 1;
  return LLVMFuzzerMutate(data, size, room);
}

}  // namespace snap::fuzz
