#include "engine/store/settings.h"

#include "engine/store/json_fields.h"
#include "engine/store/text_sum.h"

namespace snap {

namespace {

constexpr const char* kSettingsName = "settings.json";
constexpr std::size_t kMaxSettingsBytes = 4096;
constexpr std::uint64_t kMaxStoreLimit = std::uint64_t{1} << 60;

std::optional<std::uint64_t> read_bytes(JsonFields& fields, const char* key) {
  if (!fields.has(key)) return std::nullopt;
  return fields.number(key);
}

}  // namespace

Result<void> check_limits(const Store::Limits& limits) {
  for (const auto& bytes : {limits.limit, limits.low_water}) {
    if (bytes && (*bytes == 0 || *bytes > kMaxStoreLimit)) {
      return Error(ErrorCode::kInvalidArgument,
                   std::to_string(*bytes) +
                       " bytes are no limit and no low-water mark of a store: give at least 1 and "
                       "at most 1048576T, or none");
    }
  }
  if (limits.limit && limits.low_water && *limits.low_water >= *limits.limit) {
    return Error(ErrorCode::kInvalidArgument,
                 "a low-water mark of " + std::to_string(*limits.low_water) +
                     " bytes is not below the store's limit of " + std::to_string(*limits.limit) +
                     ": it is how many bytes are left when the warning comes");
  }
  return {};
}

std::string encode_settings(const StoredSettings& settings) {
  Json value = {{"format", features_json(settings.features)}};
  if (settings.limits.limit) value["limit"] = *settings.limits.limit;
  if (settings.limits.low_water) value["low_water"] = *settings.limits.low_water;
  value["checksum"] = checksum_hex(value.dump());
  return value.dump(1) + "\n";
}

Result<StoredSettings> decode_settings(std::string_view json) {
  const std::string what = std::string("the store's ") + kSettingsName;
  auto value = parse_json(json);
  if (!value) return value.error().with_context(what);
  std::optional<Error> error;
  JsonFields fields(*value, "", error);
  StoredSettings out;
  out.features = read_features(fields.object("format"), error);
  if (error) return error->with_context(what);
  auto writable = check_features(out.features, what);
  SNAP_RETURN_IF_ERROR(writable);
  out.read_only = *writable;
  const std::string checksum = fields.text("checksum", 16);
  Json rest = *value;
  rest.erase("checksum");
  if (!error && checksum != checksum_hex(rest.dump()))
    fields.fail("checksum", "does not fit: the file is damaged or was edited by hand");
  out.limits.limit = read_bytes(fields, "limit");
  out.limits.low_water = read_bytes(fields, "low_water");
  if (error) return error->with_context(what);
  auto checked = check_limits(out.limits);
  if (!checked) return checked.error().with_code(ErrorCode::kCorrupt).with_context(what);
  return out;
}

Task<Result<StoredSettings>> read_settings(Directory& root) {
  auto bytes = co_await read_whole(root, kSettingsName, kMaxSettingsBytes);
  if (!bytes) {
    if (bytes.error().code() == ErrorCode::kNotFound) co_return StoredSettings();
    if (bytes.error().code() == ErrorCode::kTooLarge)
      co_return bytes.error().with_code(ErrorCode::kCorrupt);
    co_return bytes.error();
  }
  const std::string_view text(reinterpret_cast<const char*>(bytes->data()), bytes->size());
  co_return decode_settings(text);
}

Task<Result<void>> write_settings(Directory& root, const StoredSettings& settings) {
  if (settings.read_only) co_return *settings.read_only;
  const std::string text = encode_settings(settings);
  auto replaced = co_await replace_file(root, kSettingsName,
                                        std::as_bytes(std::span(text.data(), text.size())));
  co_return replaced;
}

}  // namespace snap
