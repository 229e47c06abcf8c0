#include "engine/store/image_store.h"

#include <algorithm>

#include "engine/store/names.h"
#include "engine/store/store_lock.h"
#include "snap/limits.h"

namespace snap {

namespace {

constexpr const char* kIndexName = "index.json";
// An Image of a thousand layers takes about 100 KiB; beyond this many the cache starts anew.
constexpr std::size_t kMaxCachedImages = 256;

bool is_image_entry(const IndexEntry& entry) {
  return entry.media_type == kManifestMediaType;
}

/// The hex digits of an ID prefix, or nothing if it cannot be one.
std::optional<std::string> id_prefix(std::string_view text) {
  if (text.starts_with("sha256:")) text.remove_prefix(7);
  if (text.empty() || text.size() > 64) return std::nullopt;
  if (text.find_first_not_of("0123456789abcdef") != std::string_view::npos) return std::nullopt;
  return std::string(text);
}

std::vector<std::string> tag_names(const std::vector<IndexEntry>& entries) {
  std::vector<std::string> out;
  for (const IndexEntry& entry : entries) {
    if (entry.reference) out.push_back(entry.reference->str());
  }
  return out;
}

/// "no image 'x' (did you mean 'y'?)". A tag of the same name is nearer than any other.
Error no_such_image(std::string_view name, const std::vector<IndexEntry>& entries) {
  std::string hint;
  auto wanted = Reference::parse(name);
  std::vector<std::string> same_name;
  if (wanted) {
    for (const IndexEntry& entry : entries) {
      if (entry.reference && entry.reference->name == wanted->name)
        same_name.push_back(entry.reference->str());
    }
  }
  if (!same_name.empty()) {
    hint = " (did you mean '" + same_name.back() + "'?)";
  } else {
    hint = did_you_mean(wanted ? wanted->str() : std::string(name), tag_names(entries));
  }
  return Error(ErrorCode::kNotFound, "no image " + shown(name) + hint);
}

/// A blob that the index names and that is not there is damage.
Error as_damage(const Error& error) {
  if (error.code() != ErrorCode::kNotFound) return error;
  return error.with_code(ErrorCode::kCorrupt);
}

void add_tags(Image& image, const std::vector<IndexEntry>& entries) {
  image.tags.clear();
  for (const IndexEntry& entry : entries) {
    if (entry.manifest == image.manifest && entry.reference) image.tags.push_back(*entry.reference);
  }
  std::sort(image.tags.begin(), image.tags.end());
}

std::span<const std::byte> bytes_of(const std::string& text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

std::string name_of(const IndexEntry& entry) {
  return entry.ref_name ? "image " + shown(*entry.ref_name) : "image without a tag";
}

}  // namespace

bool point_tag(std::vector<IndexEntry>& entries, BlobDigest manifest, std::uint64_t size,
               std::optional<Reference> reference) {
  const auto names_manifest = [&](const IndexEntry& entry) { return entry.manifest == manifest; };
  if (!reference) {
    if (std::any_of(entries.begin(), entries.end(), names_manifest)) return false;
    entries.push_back(make_index_entry(manifest, size, std::nullopt));
    return true;
  }
  const auto old = std::find_if(entries.begin(), entries.end(), [&](const IndexEntry& entry) {
    return entry.reference == reference;
  });
  if (old != entries.end()) {
    if (old->manifest == manifest) return false;
    const IndexEntry loser = *old;
    entries.erase(old);
    const bool named_elsewhere =
        std::any_of(entries.begin(), entries.end(),
                    [&](const IndexEntry& entry) { return entry.manifest == loser.manifest; });
    // Losing a tag to another image is no wish to delete: it stays, without a tag. (What is not an
    // image of ours has no other name to stay under.)
    if (!named_elsewhere && is_image_entry(loser))
      entries.push_back(make_index_entry(loser.manifest, loser.size, std::nullopt));
  }
  std::erase_if(entries, [&](const IndexEntry& entry) {
    return entry.manifest == manifest && !entry.ref_name;
  });
  entries.push_back(make_index_entry(manifest, size, std::move(reference)));
  return true;
}

Task<Result<std::vector<IndexEntry>>> ImageStore::read_index() {
  auto bytes = co_await read_whole(*root_, kIndexName, kMaxJsonBytes);
  if (!bytes) co_return as_damage(bytes.error());
  auto entries =
      decode_index(std::string_view(reinterpret_cast<const char*>(bytes->data()), bytes->size()));
  if (!entries) co_return entries.error().with_context(root_->path());
  co_return entries;
}

Task<Result<void>> ImageStore::edit_index(Edit edit) {
  if (denied_) co_return *denied_;
  auto lock = co_await lock_file(*root_, kIndexLockName, true, "change the tags");
  if (!lock) co_return lock.error();
  auto entries = co_await read_index();
  if (!entries) co_return entries.error();
  const std::string before = encode_index(*entries);
  auto changed = edit(*entries);
  if (!changed) co_return changed.error();
  if (!*changed) co_return Result<void>();
  if (entries->size() > kMaxIndexEntries) {
    co_return Error(ErrorCode::kTooLarge,
                    "a store holds at most " + std::to_string(kMaxIndexEntries) + " tags");
  }
  const std::string text = encode_index(*entries);
  if (text.size() > kMaxJsonBytes) {
    co_return Error(ErrorCode::kTooLarge,
                    "index.json would grow beyond " + std::to_string(kMaxJsonBytes) + " bytes");
  }
  // docs/durability.md, Publish: what the entries name is durable before the index is replaced.
  auto replaced = co_await replace_file(*root_, kIndexName, bytes_of(text), 0600);
  if (replaced) co_return Result<void>();
  // The new one may stand although its last sync failed; what failed is not to have happened.
  auto now = co_await read_whole(*root_, kIndexName, kMaxJsonBytes);
  if (now && !std::ranges::equal(*now, bytes_of(text))) co_return replaced;
  auto undone = co_await replace_file(*root_, kIndexName, bytes_of(before), 0600);
  if (undone) co_return replaced;
  co_return replaced.error().with_context(
      "it is not certain whether the old or the new index.json of " + root_->path() + " stands");
}

Task<Result<Image>> ImageStore::of_manifest(BlobDigest manifest) {
  const auto cached = cache_.find(manifest);
  if (cached != cache_.end()) co_return Image(*cached->second);
  auto text = co_await blobs_->read_json(manifest);
  if (!text) co_return text.error();
  auto parts = decode_manifest(*text);
  if (!parts) co_return parts.error().with_context("blob " + manifest.str());
  if (parts->config.size > kMaxJsonBytes) {
    co_return Error(ErrorCode::kTooLarge, "the config of manifest " + manifest.str() +
                                              " is larger than " + std::to_string(kMaxJsonBytes) +
                                              " bytes");
  }
  auto config = co_await blobs_->read_json(parts->config.digest);
  if (!config) co_return as_damage(config.error()).with_context("manifest " + manifest.str());
  auto image = decode_image(manifest, *parts, *config);
  if (!image) co_return image.error();
  if (cache_.size() >= kMaxCachedImages) cache_.clear();
  cache_[manifest] = std::make_shared<const Image>(*image);
  co_return image;
}

Task<Result<Image>> ImageStore::with_tags(Image image) {
  auto entries = co_await read_index();
  if (!entries) co_return entries.error();
  add_tags(image, *entries);
  co_return image;
}

Task<Result<Image>> ImageStore::publish(Image image, std::optional<Reference> tag) {
  for (const LayerRef& layer : image.layers) {
    auto stat = co_await blobs_->stat(layer.blob);
    if (!stat) co_return stat.error().with_context("publish an image");
    if (stat->size == layer.file_size) continue;
    co_return Error(ErrorCode::kCorrupt, "publish an image: layer " + layer.blob.str() + " has " +
                                             std::to_string(stat->size) +
                                             " bytes in the store, not " +
                                             std::to_string(layer.file_size));
  }
  auto encoded = encode_image(image);
  if (!encoded) co_return encoded.error();
  image.id = encoded->id;
  image.manifest = encoded->manifest_digest;
  const std::uint64_t manifest_size = encoded->manifest.size();
  auto config = co_await blobs_->put(std::move(encoded->config));
  if (!config) co_return config.error();
  auto manifest = co_await blobs_->put(std::move(encoded->manifest));
  if (!manifest) co_return manifest.error();
  std::vector<IndexEntry> after;
  Edit edit = [&](std::vector<IndexEntry>& entries) -> Result<bool> {
    const bool changed = point_tag(entries, image.manifest, manifest_size, tag);
    after = entries;
    return changed;
  };
  auto edited = co_await edit_index(std::move(edit));
  if (!edited) co_return edited.error();
  add_tags(image, after);
  co_return image;
}

Task<Result<std::vector<Image>>> ImageStore::list(std::vector<Error>* damaged) {
  auto entries = co_await read_index();
  if (!entries) co_return entries.error();
  std::vector<Image> out;
  std::set<BlobDigest> seen;
  for (const IndexEntry& entry : *entries) {
    if (!is_image_entry(entry) || !seen.insert(entry.manifest).second) continue;
    auto image = co_await of_manifest(entry.manifest);
    if (!image) {
      if (image.error().code() == ErrorCode::kUnsupported) continue;  // not of block layers
      const Error damage = as_damage(image.error()).with_context(name_of(entry));
      if (damaged == nullptr) co_return damage;
      damaged->push_back(damage);
      continue;
    }
    add_tags(*image, *entries);
    out.push_back(std::move(*image));
  }
  // The index has them in the order in which they came, which decides within a second.
  std::reverse(out.begin(), out.end());
  std::stable_sort(out.begin(), out.end(),
                   [](const Image& a, const Image& b) { return a.created > b.created; });
  co_return out;
}

Task<Result<Image>> ImageStore::find(std::string name_or_id) {
  auto entries = co_await read_index();
  if (!entries) co_return entries.error();
  auto reference = Reference::parse(name_or_id);
  if (reference) {
    for (const IndexEntry& entry : *entries) {
      if (entry.reference != *reference) continue;
      auto image = co_await of_manifest(entry.manifest);
      if (!image) co_return as_damage(image.error()).with_context(name_of(entry));
      add_tags(*image, *entries);
      co_return image;
    }
  }
  const auto prefix = id_prefix(name_or_id);
  if (!prefix) {
    if (!reference) co_return reference.error();
    co_return no_such_image(name_or_id, *entries);
  }
  std::vector<Error> damaged;
  auto images = co_await list(&damaged);
  if (!images) co_return images.error();
  const Image* found = nullptr;
  for (const Image& image : *images) {
    if (!image.id.hex().starts_with(*prefix)) continue;
    if (found != nullptr && found->id != image.id) {
      co_return Error(ErrorCode::kInvalidArgument,
                      "image ID " + shown(name_or_id) + " is ambiguous: it begins " +
                          found->id.hex().substr(0, 12) + " and " + image.id.hex().substr(0, 12) +
                          "; give more digits");
    }
    found = &image;
  }
  if (found == nullptr && !damaged.empty()) co_return damaged.front();  // perhaps it is that one
  if (found == nullptr) co_return no_such_image(name_or_id, *entries);
  co_return Image(*found);
}

Task<Result<void>> ImageStore::tag(BlobDigest manifest, std::optional<Reference> target) {
  auto stat = co_await blobs_->stat(manifest);
  if (!stat) co_return stat.error().with_context("tag an image");
  const std::uint64_t size = stat->size;
  Edit edit = [&](std::vector<IndexEntry>& entries) -> Result<bool> {
    return point_tag(entries, manifest, size, target);
  };
  auto edited = co_await edit_index(std::move(edit));
  co_return edited;
}

namespace {

/// Puts `entry` in the place of the one with its reference; an image that loses its last name so
/// stays, without one.
void take_over(std::vector<IndexEntry>& entries, const IndexEntry& entry) {
  const auto names_it = [&entry](const IndexEntry& e) { return e.manifest == entry.manifest; };
  if (!entry.ref_name) {
    if (std::none_of(entries.begin(), entries.end(), names_it)) entries.push_back(entry);
    return;
  }
  const auto old = std::find_if(entries.begin(), entries.end(), [&entry](const IndexEntry& e) {
    return e.ref_name == entry.ref_name;
  });
  if (old != entries.end() && old->manifest == entry.manifest) {
    *old = entry;
    return;
  }
  if (old != entries.end()) {
    const IndexEntry loser = *old;
    entries.erase(old);
    const bool named = std::any_of(entries.begin(), entries.end(), [&loser](const IndexEntry& e) {
      return e.manifest == loser.manifest;
    });
    if (!named && is_image_entry(loser))
      entries.push_back(make_index_entry(loser.manifest, loser.size, std::nullopt));
  }
  std::erase_if(entries, [&names_it](const IndexEntry& e) { return names_it(e) && !e.ref_name; });
  entries.push_back(entry);
}

}  // namespace

Task<Result<void>> ImageStore::mirror(std::vector<IndexEntry> from, bool remove) {
  Edit edit = [&from, remove](std::vector<IndexEntry>& entries) -> Result<bool> {
    const std::string before = encode_index(entries);
    if (remove) entries.clear();
    for (const IndexEntry& entry : from)
      take_over(entries, entry);
    return encode_index(entries) != before;
  };
  auto edited = co_await edit_index(std::move(edit));
  co_return edited;
}

Task<Result<ImageStore::Untagged>> ImageStore::untag(Reference reference) {
  Untagged out;
  Edit edit = [&](std::vector<IndexEntry>& entries) -> Result<bool> {
    const auto it = std::find_if(entries.begin(), entries.end(), [&](const IndexEntry& entry) {
      return entry.reference == reference;
    });
    if (it == entries.end()) return no_such_image(reference.str(), entries);
    const BlobDigest manifest = it->manifest;
    entries.erase(it);
    out.references.push_back(reference);
    out.last = std::none_of(entries.begin(), entries.end(),
                            [&](const IndexEntry& entry) { return entry.manifest == manifest; });
    return true;
  };
  auto edited = co_await edit_index(std::move(edit));
  if (!edited) co_return edited.error();
  co_return out;
}

Task<Result<ImageStore::Untagged>> ImageStore::drop(BlobDigest manifest) {
  Untagged out;
  out.last = true;
  Edit edit = [&](std::vector<IndexEntry>& entries) -> Result<bool> {
    for (const IndexEntry& entry : entries) {
      if (entry.manifest == manifest && entry.reference) out.references.push_back(*entry.reference);
    }
    return std::erase_if(entries,
                         [&](const IndexEntry& entry) { return entry.manifest == manifest; }) != 0;
  };
  auto edited = co_await edit_index(std::move(edit));
  if (!edited) co_return edited.error();
  co_return out;
}

}  // namespace snap
