// Names of images and volumes: what is allowed (docs/format.md, Store, names).
#include <string>
#include <string_view>

#include "engine/store/names.h"
#include "snap/limits.h"
#include "snap/store.h"

namespace snap {

namespace {

bool is_lower_or_digit(char c) {
  return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9');
}
bool is_alphanumeric(char c) {
  return is_lower_or_digit(c) || (c >= 'A' && c <= 'Z');
}

/// [a-z0-9]+((\.|_|__|-+)[a-z0-9]+)* of the OCI distribution spec.
bool is_path_component(std::string_view text) {
  std::size_t i = 0;
  while (true) {
    const std::size_t word = i;
    while (i < text.size() && is_lower_or_digit(text[i]))
      ++i;
    if (i == word) return false;
    if (i == text.size()) return true;
    const std::size_t gap = i;
    while (i < text.size() && !is_lower_or_digit(text[i]))
      ++i;
    const std::string_view separator = text.substr(gap, i - gap);
    const bool dashes = separator.find_first_not_of('-') == std::string_view::npos;
    if (!dashes && separator != "." && separator != "_" && separator != "__") return false;
  }
}

/// host or host:port
bool is_host(std::string_view text) {
  const std::size_t colon = text.find(':');
  if (colon != std::string_view::npos) {
    const std::string_view port = text.substr(colon + 1);
    if (port.empty() || port.size() > 5) return false;
    if (port.find_first_not_of("0123456789") != std::string_view::npos) return false;
  }
  const std::string_view host = text.substr(0, colon);
  if (host.empty() || !is_alphanumeric(host.front()) || !is_alphanumeric(host.back())) return false;
  for (const char c : host) {
    if (!is_alphanumeric(c) && c != '.' && c != '-') return false;
  }
  return true;
}

/// As docker tells them apart: the first component is a host if it looks like one.
bool looks_like_host(std::string_view first) {
  return first == "localhost" || first.find_first_of(".:") != std::string_view::npos;
}

bool is_name(std::string_view name) {
  const std::size_t slash = name.find('/');
  if (slash != std::string_view::npos && looks_like_host(name.substr(0, slash))) {
    if (!is_host(name.substr(0, slash))) return false;
    name = name.substr(slash + 1);
  }
  while (true) {
    const std::size_t end = name.find('/');
    if (!is_path_component(name.substr(0, end))) return false;
    if (end == std::string_view::npos) return true;
    name = name.substr(end + 1);
  }
}

bool is_tag(std::string_view tag) {
  constexpr std::size_t kMaxTag = 128;
  if (tag.empty() || tag.size() > kMaxTag) return false;
  if (!is_alphanumeric(tag.front()) && tag.front() != '_') return false;
  for (const char c : tag) {
    if (!is_alphanumeric(c) && c != '_' && c != '.' && c != '-') return false;
  }
  return true;
}

}  // namespace

Result<Reference> Reference::parse(std::string_view text) {
  if (text.size() > kMaxReference) {
    return Error(ErrorCode::kInvalidArgument, "image name " + shown(text) + " is longer than " +
                                                  std::to_string(kMaxReference) + " characters");
  }
  if (text.find('@') != std::string_view::npos) {
    return Error(ErrorCode::kInvalidArgument,
                 "image name " + shown(text) + " holds a digest; give name[:tag]");
  }
  Reference out;
  const std::size_t slash = text.rfind('/');
  const std::size_t colon = text.find(':', slash == std::string_view::npos ? 0 : slash);
  out.name = text.substr(0, colon);
  if (colon != std::string_view::npos) out.tag = text.substr(colon + 1);
  if (!is_name(out.name)) {
    return Error(ErrorCode::kInvalidArgument,
                 shown(text) + " is not an image name: use name[:tag] with lower-case letters, " +
                     "digits and single . _ - between them, parts separated by /");
  }
  if (!is_tag(out.tag)) {
    return Error(ErrorCode::kInvalidArgument,
                 shown(text) + " has no valid tag: 1 to 128 letters, digits, _ . -, the first " +
                     "neither . nor -");
  }
  return out;
}

Result<void> check_volume_name(std::string_view name) {
  const auto refuse = [&](std::string_view why) {
    return Error(ErrorCode::kInvalidArgument,
                 "volume name " + shown(name) + " " + std::string(why));
  };
  if (name.empty()) return refuse("is empty");
  if (name.size() > kMaxVolumeName)
    return refuse("is longer than " + std::to_string(kMaxVolumeName) + " characters");
  if (!is_lower_or_digit(name.front())) return refuse("does not begin with a-z or 0-9");
  for (const char c : name) {
    if (!is_lower_or_digit(c) && c != '_' && c != '.' && c != '-')
      return refuse("holds something else than a-z 0-9 _ . -");
  }
  return {};
}

std::uint64_t Image::stored_size() const {
  std::uint64_t sum = 0;
  for (const LayerRef& layer : layers)
    sum += layer.file_size;
  return sum;
}

}  // namespace snap
