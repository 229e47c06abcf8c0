#include "engine/store/json_fields.h"

#include "engine/base/uuid.h"
#include "engine/store/names.h"
#include "snap/limits.h"

namespace snap {

namespace {

// Deeper than any file of ours or of OCI; printing a value recurses once a level.
constexpr int kMaxDepth = 32;

const Json& empty_object() {
  static const Json empty = Json::object();
  return empty;
}
const Json& empty_array() {
  static const Json empty = Json::array();
  return empty;
}

}  // namespace

Result<Json> parse_json(std::string_view text) {
  bool too_deep = false;
  const Json::parser_callback_t limit_depth = [&too_deep](int depth, Json::parse_event_t, Json&) {
    if (depth > kMaxDepth) too_deep = true;
    return depth <= kMaxDepth;
  };
  try {
    Json value = Json::parse(text.begin(), text.end(), limit_depth);
    if (too_deep) {
      return Error(ErrorCode::kCorrupt,
                   "JSON is nested deeper than " + std::to_string(kMaxDepth) + " levels");
    }
    if (!value.is_object()) return Error(ErrorCode::kCorrupt, "JSON is not an object");
    return value;
  } catch (const Json::parse_error& e) {
    return Error(ErrorCode::kCorrupt, "not JSON: error at byte " + std::to_string(e.byte) + " of " +
                                          std::to_string(text.size()));
  } catch (const Json::exception& e) {
    return Error(ErrorCode::kCorrupt, std::string("not JSON: ") + e.what());
  }
}

Result<std::string> dump_json(const Json& value, int indent) {
  try {
    return value.dump(indent);
  } catch (const Json::exception&) {
    return Error(ErrorCode::kInvalidArgument, "a text is not valid UTF-8");
  }
}

JsonFields::JsonFields(const Json& value, std::string where, std::optional<Error>& first_error)
    : value_(&value), where_(std::move(where)), error_(&first_error) {
  if (value.is_object()) return;
  value_ = &empty_object();
  if (!first_error) {
    first_error = Error(ErrorCode::kCorrupt,
                        (where_.empty() ? std::string("the file") : where_) + " is not an object");
  }
}

const Json* JsonFields::find(const char* key) const {
  const auto it = value_->find(key);
  return it == value_->end() ? nullptr : &*it;
}

bool JsonFields::has(const char* key) const {
  return find(key) != nullptr;
}

void JsonFields::fail(const char* key, std::string_view what) {
  if (*error_) return;
  *error_ = Error(ErrorCode::kCorrupt, path_of(key) + " " + std::string(what));
}

std::string JsonFields::text(const char* key, std::size_t max_bytes) {
  if (!has(key)) fail(key, "is missing");
  return optional_text(key, max_bytes);
}

std::string JsonFields::optional_text(const char* key, std::size_t max_bytes) {
  const Json* value = find(key);
  if (value == nullptr) return "";
  if (!value->is_string()) {
    fail(key, "is not a string");
    return "";
  }
  const auto& text = value->get_ref<const std::string&>();
  if (text.size() <= max_bytes) return text;
  fail(key, "is longer than " + std::to_string(max_bytes) + " bytes");
  return "";
}

std::uint64_t JsonFields::number(const char* key, std::uint64_t max) {
  const Json* value = find(key);
  if (value == nullptr || !value->is_number_unsigned()) {
    fail(key, value == nullptr ? "is missing" : "is not a whole number");
    return 0;
  }
  const auto number = value->get<std::uint64_t>();
  if (number <= max) return number;
  fail(key, "is " + std::to_string(number) + ", more than " + std::to_string(max));
  return 0;
}

bool JsonFields::flag(const char* key) {
  const Json* value = find(key);
  if (value == nullptr) return false;
  if (!value->is_boolean()) {
    fail(key, "is neither true nor false");
    return false;
  }
  return value->get<bool>();
}

std::string JsonFields::optional_time(const char* key) {
  std::string time = optional_text(key, 64);
  if (!time.empty() && !is_rfc3339(time)) fail(key, "is not an RFC 3339 time");
  return time;
}

std::string JsonFields::uuid(const char* key) {
  std::string id = text(key, 36);
  if (!Uuid::parse(id)) fail(key, "is not a UUID");
  return id;
}

Labels JsonFields::labels(const char* key) {
  Labels out;
  if (!has(key) || find(key)->is_null()) return out;
  const Json& all = object(key);
  if (all.size() > kMaxLabels) {
    fail(key, "holds more than " + std::to_string(kMaxLabels) + " labels");
    return out;
  }
  JsonFields fields(all, path_of(key), *error_);
  for (const auto& [name, value] : all.items()) {
    if (name.size() > kMaxLabelBytes) fail(key, "holds a label with a name that is too long");
    out.emplace(name, fields.text(name.c_str(), kMaxLabelBytes));
  }
  return out;
}

const Json& JsonFields::array(const char* key, std::size_t max) {
  const Json* value = find(key);
  if (value == nullptr || !value->is_array()) {
    fail(key, value == nullptr ? "is missing" : "is not an array");
    return empty_array();
  }
  if (value->size() <= max) return *value;
  fail(key, "holds " + std::to_string(value->size()) + " entries; at most " + std::to_string(max) +
                " are allowed");
  return empty_array();
}

const Json& JsonFields::object(const char* key) {
  const Json* value = find(key);
  if (value == nullptr || !value->is_object()) {
    fail(key, value == nullptr ? "is missing" : "is not an object");
    return empty_object();
  }
  return *value;
}

Json features_json(const Features& features) {
  return {{"version", features.version},
          {"compat", features.compat},
          {"ro_compat", features.ro_compat},
          {"incompat", features.incompat},
          {"needs", features.needs}};
}

Features read_features(const Json& value, std::optional<Error>& error) {
  JsonFields fields(value, "format", error);
  Features out;
  out.version = static_cast<std::uint32_t>(fields.number("version", 0xffffffff));
  out.compat = fields.number("compat");
  out.ro_compat = fields.number("ro_compat");
  out.incompat = fields.number("incompat");
  out.needs = fields.text("needs", 64);
  return out;
}

}  // namespace snap
