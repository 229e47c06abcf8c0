// The directory that is backed up to: whether it may be, and whether it is whole.
//
// The file "backup" says whose backup it is. Until the first run has come to its end the store's
// format has the feature bit "unfinished", so that nothing takes what is there for a whole store.
#include <filesystem>
#include <nlohmann/json.hpp>
#include <system_error>

#include "engine/store/backup_target.h"
#include "engine/store/format_file.h"
#include "engine/store/names.h"

namespace snap {

namespace {

constexpr std::size_t kMaxMarkerBytes = 64u << 10;

Error not_ours(const std::string& dir, const std::string& why) {
  return Error(ErrorCode::kInvalidArgument,
               "back up to " + dir + ": " + why + "; give a new or empty directory");
}

/// The path of the store whose backup it is; nothing if it is no backup.
Task<Result<std::optional<std::string>>> read_marker(Directory& root) {
  auto bytes = co_await read_whole(root, kBackupMarker, kMaxMarkerBytes);
  if (!bytes) {
    if (bytes.error().code() == ErrorCode::kNotFound) co_return std::optional<std::string>();
    co_return bytes.error();
  }
  const auto* text = reinterpret_cast<const char*>(bytes->data());
  const auto json = nlohmann::json::parse(text, text + bytes->size(), nullptr, false);
  if (json.is_object() && json.contains("source") && json["source"].is_string())
    co_return std::optional<std::string>(json["source"].get<std::string>());
  co_return Error(ErrorCode::kCorrupt, root.path() + "/" + kBackupMarker +
                                           R"( is damaged: it should be {"source":"PATH"})");
}

Task<Result<bool>> is_empty(Store::Impl& store) {
  auto entries = co_await store.images.read_index();
  if (!entries) co_return entries.error();
  auto volumes = co_await store.volumes.names();
  if (!volumes) co_return volumes.error();
  co_return entries->empty() && volumes->empty();
}

Task<Result<void>> begin_backup(Store::Impl& target, std::string source) {
  auto marked = co_await mark_unfinished(*target.root, true);
  if (!marked) co_return marked;
  const std::string text = nlohmann::json{{"source", source}}.dump(
      -1, ' ', false, nlohmann::json::error_handler_t::replace);
  auto written = co_await replace_file(*target.root, kBackupMarker,
                                       std::as_bytes(std::span(text.data(), text.size())));
  co_return written;
}

}  // namespace

Task<Result<void>> finish_backup(Store::Impl& target) {
  auto finished = co_await mark_unfinished(*target.root, false);
  co_return finished;
}

Task<Result<void>> claim_backup(Store& target, const Store& source) {
  Store::Impl& impl = target.impl();
  std::error_code unknown;  // of paths that the system does not know
  if (impl.path == source.path() || std::filesystem::equivalent(impl.path, source.path(), unknown))
    co_return not_ours(impl.path, "that is the store itself");
  if (impl.denied) co_return *impl.denied;
  auto of = co_await read_marker(*impl.root);
  if (!of) co_return of.error();
  // It may be named by another path than it was then.
  if (*of && **of != source.path() && !std::filesystem::equivalent(**of, source.path(), unknown))
    co_return not_ours(impl.path, "it is a backup of the store " + shown(**of));
  if (*of) co_return Result<void>();
  auto empty = co_await is_empty(impl);
  if (!empty) co_return empty.error();
  if (!*empty) co_return not_ours(impl.path, "it is a store with images or volumes of its own");
  auto begun = co_await begin_backup(impl, source.path());
  co_return begun;
}

Task<Result<std::unique_ptr<Store>>> open_backup(std::string dir, const Store& source) {
  Store::OpenOptions options;
  options.unfinished_backup = true;
  options.live_folder = "";  // nothing is served from here
  auto target = co_await Store::open(dir, options);
  if (!target) co_return target.error();
  auto claimed = co_await claim_backup(**target, source);
  if (!claimed) co_return claimed.error();
  co_return std::move(*target);
}

}  // namespace snap
