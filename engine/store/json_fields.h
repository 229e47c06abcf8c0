// JsonFields: reads the fields of one JSON object from hostile bytes. For the codecs' .cpp files
// only: this is where nlohmann-json comes in.
//
// Like Decoder, it keeps the first error, gives empty values from then on, and is asked once at the
// end. Errors name the field by its path ("layers[3].digest is not a digest").
#pragma once

#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

#include "engine/store/feature_masks.h"
#include "snap/digest.h"
#include "snap/result.h"
#include "snap/store.h"

namespace snap {

using Json = nlohmann::json;

/// Parses text of bounded depth. Corrupt with the byte where it stops making sense.
Result<Json> parse_json(std::string_view text);
/// The text of `value`; InvalidArgument if a string in it is not UTF-8. Negative indent: no spaces.
Result<std::string> dump_json(const Json& value, int indent);

class JsonFields {
 public:
  /// `where` is "" for the outermost object.
  JsonFields(const Json& value, std::string where, std::optional<Error>& first_error);

  bool has(const char* key) const;
  std::string text(const char* key, std::size_t max_bytes);
  /// Missing is empty.
  std::string optional_text(const char* key, std::size_t max_bytes);
  std::uint64_t number(const char* key,
                       std::uint64_t max = std::numeric_limits<std::uint64_t>::max());
  bool flag(const char* key);  ///< missing is false
  /// RFC 3339; missing is empty.
  std::string optional_time(const char* key);
  template <class D>
  D digest(const char* key) {
    const auto out = parse_digest<D>(text(key, 71));
    if (!out) fail(key, "is not sha256:<64 hex digits>");
    return out.value_or(D{});
  }
  std::string uuid(const char* key);
  /// Strings by name.
  Labels labels(const char* key);  ///< missing is empty
  /// An array of at most `max` elements; missing or wrong: an empty one.
  const Json& array(const char* key, std::size_t max);
  /// An object; missing or wrong: an empty one.
  const Json& object(const char* key);
  std::string path_of(const char* key) const { return where_.empty() ? key : where_ + "." + key; }
  void fail(const char* key, std::string_view what);

 private:
  const Json* find(const char* key) const;

  const Json* value_;
  std::string where_;
  std::optional<Error>* error_;
};

/// Version and feature masks as the object "format" of a file.
Json features_json(const Features& features);
Features read_features(const Json& value, std::optional<Error>& first_error);

}  // namespace snap
