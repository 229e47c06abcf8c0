// See names.h.
#include "tools/snapctl/names.h"

#include <fmt/chrono.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <ctime>
#include <random>

#include "engine/store/names.h"
#include "snap/limits.h"

namespace snap::cli {

namespace {

/// Names of every volume; empty if they cannot be listed, for this only feeds a suggestion.
Task<std::vector<std::string>> volume_names(Store& store) {
  std::vector<std::string> names;
  std::vector<Error> damaged;
  auto volumes = co_await store.volumes(&damaged);
  if (!volumes) co_return names;
  for (const VolumeSummary& v : *volumes)
    names.push_back(v.record.name);
  co_return names;
}

Task<std::vector<std::string>> image_names(Store& store) {
  std::vector<std::string> names;
  std::vector<Error> damaged;
  auto images = co_await store.images(&damaged);
  if (!images) co_return names;
  for (const Image& image : *images) {
    for (const Reference& tag : image.tags) {
      names.push_back(tag.str());
      if (tag.tag == "latest") names.push_back(tag.name);
    }
  }
  co_return names;
}

bool is_missing(const Error& error) {
  // A name that is no valid volume name (or no valid reference) may still be the other thing.
  return error.code() == ErrorCode::kNotFound || error.code() == ErrorCode::kInvalidArgument;
}

bool is_exact_reference(const Image& image, std::string_view text) {
  auto reference = Reference::parse(text);
  return reference.has_value() &&
         std::find(image.tags.begin(), image.tags.end(), *reference) != image.tags.end();
}

}  // namespace

ObjectName parse_object_name(std::string_view text) {
  ObjectName out;
  if (text.starts_with("volume:")) {
    out.kind = ObjectName::Kind::kVolume;
    text.remove_prefix(7);
  } else if (text.starts_with("image:")) {
    out.kind = ObjectName::Kind::kImage;
    text.remove_prefix(6);
  }
  auto at = text.rfind('@');
  if (out.kind != ObjectName::Kind::kImage && at != std::string_view::npos) {
    out.kind = ObjectName::Kind::kVolume;
    out.snapshot = text.substr(at + 1);
    text = text.substr(0, at);
  }
  out.name = text;
  return out;
}

Task<Result<VolumeSummary>> find_volume(Store& store, std::string text) {
  ObjectName wanted = parse_object_name(text);
  if (wanted.kind == ObjectName::Kind::kImage || !wanted.snapshot.empty()) {
    co_return Error(ErrorCode::kInvalidArgument,
                    fmt::format("'{}' names no volume; give the name of a volume", text));
  }
  auto found = co_await store.volume(wanted.name);
  if (found || !is_missing(found.error())) co_return found;
  auto image = co_await store.image(wanted.name);
  if (image) {
    co_return Error(ErrorCode::kNotFound,
                    fmt::format("no volume '{0}': that is an image; make a volume of it with "
                                "'" SNAPCTL_PROGRAM_NAME " create NAME --from {0}'",
                                wanted.name));
  }
  if (found.error().code() != ErrorCode::kNotFound) co_return found;
  auto names = co_await volume_names(store);
  co_return Error(ErrorCode::kNotFound,
                  fmt::format("no volume '{}'{}", wanted.name, did_you_mean(wanted.name, names)));
}

Task<Result<Image>> find_image(Store& store, std::string text) {
  ObjectName wanted = parse_object_name(text);
  if (wanted.kind == ObjectName::Kind::kVolume) {
    co_return Error(ErrorCode::kInvalidArgument,
                    fmt::format("'{}' names no image; give the name or id of an image", text));
  }
  auto found = co_await store.image(wanted.name);
  if (found || found.error().code() != ErrorCode::kNotFound) co_return found;
  auto volume = co_await store.volume(wanted.name);
  if (volume && volume->record.name == wanted.name) {
    co_return Error(ErrorCode::kNotFound,
                    fmt::format("no image '{0}': that is a volume; make an image of it with "
                                "'" SNAPCTL_PROGRAM_NAME " commit {0} NAME'",
                                wanted.name));
  }
  auto names = co_await image_names(store);
  co_return Error(ErrorCode::kNotFound,
                  fmt::format("no image '{}'{}", wanted.name, did_you_mean(wanted.name, names)));
}

Task<Result<Object>> find_object(Store& store, std::string text) {
  ObjectName wanted = parse_object_name(text);
  Object out;
  out.snapshot = wanted.snapshot;
  if (wanted.kind == ObjectName::Kind::kVolume) {
    auto volume = co_await find_volume(store, "volume:" + wanted.name);
    if (!volume) co_return volume.error();
    out.volume = std::move(*volume);
    co_return out;
  }
  if (wanted.kind == ObjectName::Kind::kImage) {
    auto image = co_await find_image(store, text);
    if (!image) co_return image.error();
    out.image = std::move(*image);
    co_return out;
  }

  auto volume = co_await store.volume(wanted.name);
  if (volume && volume->record.name == wanted.name) {
    out.volume = std::move(*volume);
    co_return out;
  }
  auto image = co_await store.image(wanted.name);
  if (image && (is_exact_reference(*image, wanted.name) || !volume)) {
    out.image = std::move(*image);
    co_return out;
  }
  if (image && volume) {
    co_return Error(ErrorCode::kInvalidArgument,
                    fmt::format("'{0}' begins the id of a volume and of an image; give more of it, "
                                "or say volume:{0} or image:{0}",
                                wanted.name));
  }
  if (volume) {
    out.volume = std::move(*volume);
    co_return out;
  }
  if (!is_missing(volume.error())) co_return volume.error();
  if (!is_missing(image.error())) co_return image.error();
  auto known = co_await volume_names(store);
  auto images = co_await image_names(store);
  known.insert(known.end(), images.begin(), images.end());
  co_return Error(ErrorCode::kNotFound, fmt::format("no volume or image '{}'{}", wanted.name,
                                                    did_you_mean(wanted.name, known)));
}

std::string made_up_name(const std::vector<std::string>& taken) {
  constexpr std::array kFirst = {
      "amber",  "brave", "brisk",  "calm",   "clear",  "coral", "crisp", "dusky", "eager", "early",
      "fleet",  "fresh", "gentle", "golden", "happy",  "hazel", "ivory", "jolly", "keen",  "light",
      "lively", "lucid", "merry",  "mild",   "misty",  "noble", "opal",  "plain", "proud", "quick",
      "quiet",  "rapid", "ready",  "silver", "steady", "sunny", "swift", "tidy",  "vivid", "warm"};
  constexpr std::array kSecond = {
      "acorn",  "badger", "bay",  "beech", "birch",  "brook",  "cedar", "cliff",  "cloud", "cove",
      "crane",  "delta",  "dune", "elm",   "falcon", "fern",   "field", "finch",  "fjord", "glade",
      "grove",  "harbor", "hawk", "heron", "hill",   "island", "lake",  "lark",   "maple", "marsh",
      "meadow", "otter",  "pine", "reef",  "ridge",  "river",  "robin", "spring", "stone", "wren"};
  std::random_device random;
  std::string name;
  // 1,600 pairs; a store that has used them up gets a number behind.
  for (int attempt = 0; attempt < 1000; ++attempt) {
    name =
        fmt::format("{}-{}", kFirst[random() % kFirst.size()], kSecond[random() % kSecond.size()]);
    if (attempt >= 20) name += fmt::format("-{}", random() % 100000);
    if (std::find(taken.begin(), taken.end(), name) == taken.end()) break;
  }
  return name;
}

std::string name_of_now() {
  return fmt::format("{:%Y%m%d-%H%M%S}", fmt::gmtime(std::time(nullptr)));
}

Result<Labels> parse_labels(const std::vector<std::string>& pairs) {
  Labels labels;
  for (const std::string& pair : pairs) {
    auto equals = pair.find('=');
    std::string key = pair.substr(0, equals);
    if (key.empty()) {
      return Error(ErrorCode::kInvalidArgument,
                   fmt::format("label '{}' has no name; write --label NAME=VALUE", pair));
    }
    std::string value = equals == std::string::npos ? "" : pair.substr(equals + 1);
    if (key.size() + value.size() > kMaxLabelBytes) {
      return Error(ErrorCode::kTooLarge, fmt::format("label '{}' is longer than {} bytes",
                                                     key.substr(0, 80), kMaxLabelBytes));
    }
    labels[key] = value;
  }
  if (labels.size() > kMaxLabels)
    return Error(ErrorCode::kTooLarge, fmt::format("more than {} labels", kMaxLabels));
  return labels;
}

}  // namespace snap::cli
