#include "engine/store/format_file.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <set>

#include "engine/store/image_codec.h"
#include "engine/store/names.h"
#include "engine/store/store_lock.h"
#include "engine/store/text_sum.h"

namespace snap {

namespace {

constexpr const char* kFormatName = "format";
constexpr const char* kIndexName = "index.json";
constexpr const char* kLayoutName = "oci-layout";
constexpr const char* kLayoutText = R"({"imageLayoutVersion":"1.0.0"})";
// There from the first moment of a creation to its end, so that one that was cut short is told from
// a store that lost its files.
constexpr const char* kMarkerName = "creating";
constexpr std::size_t kMaxFormatBytes = 4096;

std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

std::string hex64(std::uint64_t value) {
  std::array<char, 20> text{};
  std::snprintf(text.data(), text.size(), "%016llx", static_cast<unsigned long long>(value));
  return text.data();
}

/// Takes "<key> <value>\n" off the text.
std::optional<std::string_view> take_line(std::string_view& text, std::string_view key) {
  if (!text.starts_with(key) || text.size() <= key.size() || text[key.size()] != ' ')
    return std::nullopt;
  const std::size_t end = text.find('\n');
  if (end == std::string_view::npos) return std::nullopt;
  const std::string_view value = text.substr(key.size() + 1, end - key.size() - 1);
  text.remove_prefix(end + 1);
  return value;
}

/// In the one form in which it is written.
bool parse_version(std::string_view text, std::uint32_t& out) {
  (void)std::from_chars(text.data(), text.data() + text.size(), out);
  return text == std::to_string(out);
}

bool parse_hex64(std::string_view text, std::uint64_t& out) {
  (void)std::from_chars(text.data(), text.data() + text.size(), out, 16);
  return text == hex64(out);
}

Error damaged(std::string_view what) {
  return Error(ErrorCode::kCorrupt, "the store's file 'format' is damaged: " + std::string(what));
}

constexpr std::array<const char*, 4> kFolders = {"blobs", "volumes", "deltas", "tmp"};

Task<Result<void>> ensure_dir(Directory& parent, std::string name) {
  auto made = co_await parent.make_dir(name);
  if (!made && made.error().code() != ErrorCode::kExists) co_return made;
  co_return Result<void>();
}

/// Durable, with what the root held before.
Task<Result<void>> make_contents(Directory& root) {
  for (const char* folder : kFolders) {
    auto made = co_await ensure_dir(root, folder);
    if (!made) co_return made;
  }
  auto blobs = co_await root.open_dir("blobs");
  if (!blobs) co_return blobs.error();
  auto made = co_await ensure_dir(**blobs, "sha256");
  if (!made) co_return made;
  auto synced = co_await (*blobs)->sync();
  if (!synced) co_return synced;
  auto layout = co_await replace_file(root, kLayoutName, bytes_of(kLayoutText));
  if (!layout) co_return layout;
  auto index = co_await replace_file(root, kIndexName, bytes_of(encode_index({})));
  co_return index;
}

Task<Result<void>> create_store(Directory& root) {
  OpenFlags flags;
  flags.write = flags.create = true;
  auto marker = co_await root.open(kMarkerName, flags);
  if (!marker) co_return marker.error();
  auto contents = co_await make_contents(root);
  if (!contents) co_return contents;
  // docs/durability.md, Publish: "format" is what makes it a store, and comes when all is durable.
  auto format = co_await replace_file(root, kFormatName, bytes_of(encode_format(own_features())));
  if (!format) co_return format;
  auto unmarked = co_await root.unlink(kMarkerName);
  co_return unmarked;
}

/// Nothing but what a creation that was cut short leaves?
bool may_become_store(const std::vector<DirEntry>& entries) {
  bool marker = false, other = false;
  for (const DirEntry& entry : entries) {
    if (entry.name == kMarkerName) {
      marker = true;
    } else if (entry.name != kStoreLockName && entry.name != "lost+found") {
      other = true;
    }
  }
  return marker || !other;
}

/// What a store has, but its format is gone?
bool was_store(const std::vector<DirEntry>& entries) {
  const auto there = [&entries](std::string_view name) {
    return std::ranges::any_of(entries, [name](const DirEntry& e) { return e.name == name; });
  };
  return there("volumes") && there("deltas") && there(kIndexName);
}

Task<Result<std::optional<Features>>> read_format(Directory& root) {
  auto bytes = co_await read_whole(root, kFormatName, kMaxFormatBytes);
  if (!bytes) {
    if (bytes.error().code() == ErrorCode::kNotFound) co_return std::optional<Features>();
    if (bytes.error().code() == ErrorCode::kTooLarge) co_return damaged("it is too large");
    co_return bytes.error();
  }
  auto features =
      decode_format(std::string_view(reinterpret_cast<const char*>(bytes->data()), bytes->size()));
  if (!features) co_return features.error().with_context(root.path());
  co_return std::optional<Features>(*features);
}

Task<Result<void>> check_contents(Directory& root) {
  auto entries = co_await root.list();
  if (!entries) co_return entries.error();
  std::set<std::string> names;
  for (const DirEntry& entry : *entries)
    names.insert(entry.name);
  for (const char* needed : {"blobs", "volumes", "deltas", kIndexName, kLayoutName}) {
    if (names.contains(needed)) continue;
    co_return Error(ErrorCode::kCorrupt, "store " + root.path() + " is damaged: " + needed +
                                             " is missing; restore it from a copy");
  }
  auto tmp = co_await ensure_dir(root, "tmp");  // holds nothing that lasts
  if (!tmp) co_return tmp;
  if (names.contains(kMarkerName)) {
    // Whoever created it may have died before the name of "format" was stable.
    auto synced = co_await root.sync();
    if (!synced) co_return synced;
    auto unmarked = co_await root.unlink(kMarkerName);
    (void)unmarked;  // "format" decides; the marker says nothing any more
  }
  co_return Result<void>();
}

}  // namespace

std::string encode_format(const Features& features) {
  std::string text = "snapctl-store " + std::to_string(features.version) + "\n";
  text += "compat " + hex64(features.compat) + "\n";
  text += "ro-compat " + hex64(features.ro_compat) + "\n";
  text += "incompat " + hex64(features.incompat) + "\n";
  text += "needs " + features.needs + "\n";
  return text + "checksum " + checksum_hex(text) + "\n";
}

Result<Features> decode_format(std::string_view text) {
  const std::string_view whole = text;
  Features out;
  const auto head = take_line(text, "snapctl-store");
  if (!head || !parse_version(*head, out.version))
    return damaged("its first line is not 'snapctl-store <version>'");
  struct Mask {
    const char* key;
    std::uint64_t* value;
  };
  for (const Mask& mask : {Mask{"compat", &out.compat}, Mask{"ro-compat", &out.ro_compat},
                           Mask{"incompat", &out.incompat}}) {
    const auto line = take_line(text, mask.key);
    if (!line || !parse_hex64(*line, *mask.value))
      return damaged("no line '" + std::string(mask.key) + " <16 lower-case hex digits>'");
  }
  const auto needs = take_line(text, "needs");
  if (!needs) return damaged("no line 'needs <release>'");
  out.needs = *needs;
  const std::string expected = checksum_hex(whole.substr(0, whole.size() - text.size()));
  const auto checksum = take_line(text, "checksum");
  if (!checksum || *checksum != expected) return damaged("its checksum does not fit");
  if (!text.empty()) return damaged("something follows its checksum");
  return out;
}

Task<Result<Features>> open_format(Directory& root, bool create) {
  auto known = co_await read_format(root);
  if (!known) co_return known.error();
  if (!*known) {
    auto entries = co_await root.list();
    if (!entries) co_return entries.error();
    if (!may_become_store(*entries)) {
      if (was_store(*entries)) {
        co_return Error(ErrorCode::kCorrupt, "store " + root.path() +
                                                 " is damaged: " + kFormatName +
                                                 " is missing; restore it from a copy");
      }
      co_return Error(ErrorCode::kInvalidArgument,
                      root.path() + " is not a snapctl store and not empty (it holds " +
                          shown(entries->front().name) +
                          "): give an empty or a new directory for a store");
    }
    if (!create) {
      co_return Error(ErrorCode::kNotFound,
                      "there is no store at " + root.path() + "; make one with init");
    }
    auto lock = co_await lock_file(root, kStoreLockName, true, "create a store");
    if (!lock) co_return lock.error();
    known = co_await read_format(root);  // another process may have been first
    if (!known) co_return known.error();
    if (!*known) {
      auto created = co_await create_store(root);
      if (!created) co_return created.error().with_context("create a store at " + root.path());
      co_return own_features();
    }
  }
  const Features features = **known;
  auto usable = check_features(features, "store " + root.path(), kUnfinishedBackup);
  if (!usable) co_return usable.error();
  auto checked = co_await check_contents(root);
  if (!checked) co_return checked.error();
  co_return features;
}

Task<Result<void>> mark_unfinished(Directory& root, bool unfinished) {
  auto known = co_await read_format(root);
  if (!known) co_return known.error();
  Features features = known->value_or(own_features());
  const std::uint64_t before = features.incompat;
  features.incompat = unfinished ? before | kUnfinishedBackup : before & ~kUnfinishedBackup;
  if (features.incompat == before) {
    // Who made it so may have died before that was stable.
    auto synced = co_await root.sync();
    co_return synced;
  }
  const std::string text = encode_format(features);
  auto replaced = co_await replace_file(root, kFormatName, bytes_of(text));
  co_return replaced;
}

Result<void> refuse_network(const std::string& path, const std::string& file_system) {
  static constexpr std::array<const char*, 8> kNetwork = {"nfs", "smb",  "cifs",   "smb2",
                                                          "afs", "ceph", "lustre", "9p"};
  for (const char* name : kNetwork) {
    if (file_system != name) continue;
    return Error(ErrorCode::kUnsupported,
                 "store " + path + " is on a network file system (" + file_system +
                     "), whose locks and syncs cannot be relied on; use a local disk, or --force");
  }
  return {};
}

}  // namespace snap
