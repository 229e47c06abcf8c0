// See bench_profiles.h.
#include "tools/snapctl/bench_profiles.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>

#include "engine/store/names.h"
#include "profile_folders.h"  // made by meson

namespace snap::cli {

namespace {

namespace fs = std::filesystem;

constexpr std::string_view kSuffix = ".fio";

std::string_view prefix_of(bool device) {
  return device ? "device-" : "nbd-";
}

std::string folder() {
  if (const char* chosen = std::getenv("SNAPCTL_PROFILES"); chosen != nullptr && *chosen != '\0')
    return chosen;
  std::error_code error;
  const std::string self = fs::read_symlink("/proc/self/exe", error).string();
  const bool in_build_tree = self.starts_with(std::string(kBuildTree) + "/");
  return in_build_tree ? kSourceProfiles : kInstalledProfiles;
}

/// Without what a file of that kind has around it.
std::string bare_name(std::string name, bool device) {
  if (name.ends_with(kSuffix)) name.resize(name.size() - kSuffix.size());
  if (name.starts_with(prefix_of(device))) name.erase(0, prefix_of(device).size());
  return name;
}

}  // namespace

Result<Profiles> Profiles::open(bool device) {
  Profiles out;
  out.device_ = device;
  out.folder_ = folder();
  std::error_code error;
  for (fs::directory_iterator entry(out.folder_, error), end; !error && entry != end;
       entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    if (name.starts_with(prefix_of(device)) && name.ends_with(kSuffix))
      out.all_.push_back({bare_name(name, device), entry->path().string()});
  }
  if (error)
    return Error::from_errno(error.value(), "list the fio profiles in " + out.folder_ +
                                                " (SNAPCTL_PROFILES names another folder)");
  std::sort(out.all_.begin(), out.all_.end(),
            [](const Profile& a, const Profile& b) { return a.name < b.name; });
  return out;
}

Result<Profile> Profiles::find(const std::string& text) const {
  const bool path = text.find('/') != std::string::npos;
  const std::string name = bare_name(text, device_);
  for (const Profile& profile : all_)
    if (!path && profile.name == name) return profile;
  if (::access(text.c_str(), R_OK) == 0) return Profile{fs::path(text).stem().string(), text};
  if (path) return Error::from_errno(errno, "read the job file " + text);
  if (text.starts_with(prefix_of(!device_)))
    return Error(ErrorCode::kInvalidArgument,
                 fmt::format("{} is for {}", shown(text),
                             device_ ? "NBD: leave --device away" : "a device: give --device"));
  std::vector<std::string> names;
  for (const Profile& profile : all_)
    names.push_back(profile.name);
  return Error(ErrorCode::kNotFound,
               fmt::format("no profile {}{}; in {} there are: {}", shown(text),
                           did_you_mean(name, names), folder_, fmt::join(names, ", ")));
}

std::vector<std::string> default_profiles() {
  return {"randread-4k-qd1",         "randread-4k-qd32", "randwrite-4k-qd1", "randwrite-4k-qd32",
          "randwrite-4k-qd1-fsync1", "seqread-256k-qd8", "seqwrite-256k-qd8"};
}

}  // namespace snap::cli
