// Images of a store: look up, tag, remove.
#include <algorithm>

#include "engine/store/names.h"
#include "engine/store/space.h"
#include "engine/store/store_impl.h"
#include "engine/store/sweep.h"

namespace snap {

namespace {

/// What `rmi NAME` asks for.
struct Target {
  BlobDigest manifest;
  std::optional<Reference> reference;  ///< only this tag; none: the image with all its tags
};

bool named_by(const IndexEntry& entry, const Target& target) {
  if (target.reference) return entry.reference == target.reference;
  return entry.manifest == target.manifest;
}

std::string join(const std::vector<std::string>& parts) {
  std::string out;
  for (const std::string& part : parts)
    out += (out.empty() ? "" : ", ") + part;
  return out;
}

/// Busy if a volume or snapshot reads through the image, naming them.
Task<Result<void>> check_unused(VolumeStore& volumes, BlobDigest manifest, std::string name) {
  auto all = co_await volumes.list();
  if (!all) co_return all.error();
  std::vector<std::string> users;
  for (const StoredVolume& volume : *all) {
    const auto manifests = manifests_of(volume.record);
    if (std::find(manifests.begin(), manifests.end(), manifest) != manifests.end())
      users.push_back(volume.record.name);
  }
  if (users.empty()) co_return Result<void>();
  co_return Error(ErrorCode::kBusy,
                  "image " + shown(name) + " is used by volume" + (users.size() == 1 ? " " : "s ") +
                      join(users) + "; remove " + (users.size() == 1 ? "it" : "them") + " first");
}

/// By tag without reading the image, so that a damaged one can be removed; else by ID.
Task<Result<Target>> find_target(ImageStore& images, std::string name_or_id,
                                 const std::vector<IndexEntry>& entries, bool force) {
  auto reference = Reference::parse(name_or_id);
  if (reference) {
    for (const IndexEntry& entry : entries) {
      if (entry.reference == *reference) co_return Target{entry.manifest, *reference};
    }
  }
  auto image = co_await images.find(name_or_id);
  if (!image) co_return image.error();
  if (image->tags.size() > 1 && !force) {
    std::vector<std::string> tags;
    for (const Reference& tag : image->tags)
      tags.push_back(tag.str());
    co_return Error(ErrorCode::kBusy, "image " + shown(name_or_id) + " has several tags (" +
                                          join(tags) + "): remove them one by one, or force");
  }
  co_return Target{image->manifest, std::nullopt};
}

/// The blobs of the image that nothing else uses. `rest` is the index without it. Nothing, and why
/// in `kept`, if that cannot be known.
Task<Result<Garbage>> garbage_of(Store::Impl& store, BlobDigest manifest,
                                 std::vector<IndexEntry> rest, std::optional<Error>* kept) {
  Candidates candidates;
  candidates.deltas.emplace();
  candidates.blobs.emplace(1, manifest);
  auto text = co_await store.blobs.read_json(manifest);
  if (text) {
    auto parts = decode_manifest(*text);
    if (parts) {
      candidates.blobs->push_back(parts->config.digest);
      for (const ManifestParts::Blob& layer : parts->layers)
        candidates.blobs->push_back(layer.digest);
    }
  }
  auto& blobs = *candidates.blobs;
  std::sort(blobs.begin(), blobs.end());
  blobs.erase(std::unique(blobs.begin(), blobs.end()), blobs.end());
  auto marks = co_await mark_used(store, std::move(rest));
  // Another image is damaged: the tag goes all the same, and the blobs wait for prune, which says
  // what is wrong. Else two damaged images would keep each other.
  if (!marks) {
    *kept = marks.error();
    co_return Garbage{};
  }
  auto garbage = co_await find_garbage(store, *marks, std::move(candidates));
  co_return garbage;
}

}  // namespace

Task<Result<Image>> image_behind(ImageStore& images, BlobDigest manifest, std::string user) {
  auto image = co_await images.of_manifest(manifest);
  if (image) co_return image;
  const Error error = image.error().with_context("the image of " + user);
  if (error.code() != ErrorCode::kNotFound && error.code() != ErrorCode::kUnsupported)
    co_return error;
  co_return error.with_code(ErrorCode::kCorrupt);
}

Task<Result<std::vector<Image>>> Store::images(std::vector<Error>* damaged) {
  auto out = co_await impl_->images.list(damaged);
  co_return out;
}

Task<Result<Image>> Store::image(std::string_view name_or_id) {
  auto out = co_await impl_->images.find(std::string(name_or_id));
  co_return out;
}

Task<Result<Image>> Store::image_of_manifest(BlobDigest manifest) {
  auto out = co_await impl_->images.of_manifest(manifest);
  if (!out) co_return out;
  auto tagged = co_await impl_->images.with_tags(std::move(*out));
  co_return tagged;
}

Task<Result<void>> Store::tag(std::string_view source, Reference target) {
  const std::string name(source);
  auto checked = Reference::parse(target.str());
  if (!checked) co_return checked.error();
  auto held = co_await impl_->lock.shared("tag " + shown(name));
  if (!held) co_return held.error();
  auto image = co_await impl_->images.find(name);
  if (!image) co_return image.error();
  auto tagged = co_await impl_->images.tag(image->manifest, std::move(target));
  co_return tagged;
}

Task<Result<Store::Removed>> Store::remove_image(std::string_view name_or_id, bool force,
                                                 bool dry_run) {
  const std::string name(name_or_id);
  auto held = co_await impl_->lock.exclusive("remove image " + shown(name));
  if (!held) co_return held.error();
  auto entries = co_await impl_->images.read_index();
  if (!entries) co_return entries.error();
  auto target = co_await find_target(impl_->images, name, *entries, force);
  if (!target) co_return target.error();

  Removed out;
  std::vector<IndexEntry> rest;
  bool last = true;
  for (const IndexEntry& entry : *entries) {
    if (named_by(entry, *target)) {
      if (entry.reference) out.untagged.push_back(entry.reference->str());
      continue;
    }
    if (entry.manifest == target->manifest) last = false;
    rest.push_back(entry);
  }
  Garbage garbage;
  if (last) {
    auto unused = co_await check_unused(impl_->volumes, target->manifest, name);
    if (!unused) co_return unused.error();
    auto found = co_await garbage_of(*impl_, target->manifest, std::move(rest), &out.kept);
    if (!found) co_return found.error();
    garbage = std::move(*found);
  }
  if (garbage.kept) out.kept = garbage.kept;
  Removed removed = describe(garbage);
  if (!dry_run) {
    // docs/durability.md, Publish: the name goes first, durably; then what it named.
    Result<ImageStore::Untagged> untagged = ImageStore::Untagged{};
    if (target->reference) {
      untagged = co_await impl_->images.untag(*target->reference);
    } else {
      untagged = co_await impl_->images.drop(target->manifest);
    }
    if (!untagged) co_return untagged.error();
    auto disposed = co_await dispose(*impl_, std::move(garbage), std::move(*held));
    if (!disposed) co_return disposed.error();
    co_await note_room(*this);
  }
  out.deleted = std::move(removed.deleted);
  out.freed = removed.freed;
  co_return out;
}

}  // namespace snap
