#include "engine/attach/block_device.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>
#include <thread>

#include "engine/attach/attachment.h"
#include "engine/attach/loop_device.h"
#include "engine/attach/nbd_netlink.h"
#include "engine/io/unique_fd.h"

namespace snap::attach {

namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kPause{1};
// A request to the server; the kernel's own default for nbd is 128 KiB.
constexpr unsigned kRequestKib = 1024;

std::string sys_dir(const std::string& device) {
  return "/sys/block/" + device.substr(device.rfind('/') + 1);
}

std::string first_line(const std::string& path) {
  std::ifstream in(path);
  std::string line;
  std::getline(in, line);
  return line;
}

/// "8:0" of the device and of each of its partitions, and their names.
struct Numbers {
  std::set<std::string> numbers;
  std::set<std::string> names;
};
Numbers numbers_of(const std::string& device) {
  Numbers out;
  const std::string dir = sys_dir(device);
  const auto add = [&out](const fs::path& at) {
    const std::string number = first_line((at / "dev").string());
    if (number.empty()) return;
    out.numbers.insert(number);
    out.names.insert(at.filename().string());
  };
  add(dir);
  std::error_code failed;
  for (const auto& entry : fs::directory_iterator(dir, failed)) {
    if (fs::exists(entry.path() / "partition", failed)) add(entry.path());
  }
  return out;
}

/// "\040" and the like of mountinfo.
std::string unescape(const std::string& text) {
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\\' && i + 3 < text.size()) {
      out += static_cast<char>(std::strtol(text.substr(i + 1, 3).c_str(), nullptr, 8));
      i += 3;
    } else {
      out += text[i];
    }
  }
  return out;
}

struct MountLine {
  std::string number;  ///< "8:0"; btrfs has one of its own
  std::string source;  ///< "/dev/sda"
  MountPoint at;

  bool is_of(const Numbers& device) const {
    if (device.numbers.contains(number)) return true;
    return source.starts_with("/dev/") && device.names.contains(source.substr(5));
  }
};
/// All of /proc/self/mountinfo (proc(5)).
Result<std::vector<MountLine>> all_mounts() {
  std::ifstream in("/proc/self/mountinfo");
  if (!in) return Error::from_errno(errno, "read /proc/self/mountinfo");
  std::vector<MountLine> out;
  for (std::string line; std::getline(in, line);) {
    std::istringstream words(line);
    std::string id, parent, root, path, options, word;
    MountLine one;
    words >> id >> parent >> one.number >> root >> path >> options;
    while (words >> word && word != "-") {
    }
    words >> one.at.type >> one.source;
    one.source = unescape(one.source);
    one.at.path = unescape(path);
    one.at.read_only = options == "ro" || options.starts_with("ro,");
    out.push_back(std::move(one));
  }
  return out;
}

void find_holders(const Numbers& device, const std::string& dir, std::vector<std::string>& out) {
  std::error_code failed;
  std::vector<std::string> places{dir};
  for (const std::string& name : device.names)
    places.push_back(dir + "/" + name);
  for (const std::string& place : places) {
    for (const auto& entry : fs::directory_iterator(place + "/holders", failed))
      out.push_back("in use by " + entry.path().filename().string());
  }
}

void find_swap(const Numbers& device, std::vector<std::string>& out) {
  std::ifstream in("/proc/swaps");
  std::string line;
  std::getline(in, line);
  while (std::getline(in, line)) {
    const std::string path = line.substr(0, line.find_first_of(" \t"));
    if (device.names.contains(path.substr(path.rfind('/') + 1))) out.push_back("used as swap");
  }
}

bool is_number(const std::string& text) {
  return !text.empty() && std::all_of(text.begin(), text.end(),
                                      [](unsigned char c) { return c >= '0' && c <= '9'; });
}

/// Processes that have it open, this one aside. Others' are seen by root alone.
void find_openers(const Numbers& device, std::vector<std::string>& out) {
  std::error_code failed;
  for (const auto& process : fs::directory_iterator("/proc", failed)) {
    const std::string pid = process.path().filename().string();
    if (!is_number(pid) || pid == std::to_string(::getpid())) continue;
    for (const auto& fd : fs::directory_iterator(process.path() / "fd", failed)) {
      struct stat s {};
      if (::stat(fd.path().c_str(), &s) != 0 || !S_ISBLK(s.st_mode)) continue;
      const std::string number =
          std::to_string(major(s.st_rdev)) + ":" + std::to_string(minor(s.st_rdev));
      if (!device.numbers.contains(number)) continue;
      out.push_back("open in " + first_line((process.path() / "comm").string()) + " (pid " + pid +
                    ")");
      break;
    }
  }
}

/// The kernel lets one exclusive opener in: a file system, device mapper, or us.
bool held_by_kernel(const std::string& device) {
  const UniqueFd fd(::open(device.c_str(), O_RDONLY | O_EXCL | O_CLOEXEC | O_NONBLOCK));
  return !fd && errno == EBUSY;
}

Result<bool> has_size(const std::string& device, std::uint64_t size) {
  const UniqueFd fd(::open(device.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) {
    if (errno == ENOENT || errno == ENXIO || errno == EBUSY) return false;
    return Error::from_errno(errno, "open " + device);
  }
  std::uint64_t now = 0;
  if (::ioctl(fd.get(), BLKGETSIZE64, &now) != 0)
    return Error::from_errno(errno, "ask for the size of " + device);
  if (now != size) return false;
  if (::ioctl(fd.get(), BLKFLSBUF) != 0)
    return Error::from_errno(errno, "drop the cached pages of " + device);
  return true;
}

/// As the kernel says (NBD_CMD_STATUS), or shows where it does not answer.
bool nbd_connected(const std::string& device, unsigned index) {
  auto netlink = NbdNetlink::open();
  if (netlink) {
    auto connected = netlink->connected(index);
    if (connected) return *connected;
  }
  std::error_code failed;
  return fs::exists(sys_dir(device) + "/pid", failed);
}

/// Where sysfs may not be written (a container), requests stay small.
void raise_request_size(const std::string& device) {
  const std::string queue = sys_dir(device) + "/queue/";
  const unsigned long most =
      std::strtoul(first_line(queue + "max_hw_sectors_kb").c_str(), nullptr, 10);
  const unsigned long now = std::strtoul(first_line(queue + "max_sectors_kb").c_str(), nullptr, 10);
  const unsigned long wanted = std::min<unsigned long>(kRequestKib, most);
  if (now >= wanted) return;
  std::ofstream(queue + "max_sectors_kb") << wanted;
}

/// The kernel's own event came before it was known whose device it is.
void tell_udev(const std::string& device) {
  std::ofstream(sys_dir(device) + "/uevent") << "change";
}

}  // namespace

Result<void> make_usable(const std::string& device, std::uint64_t size,
                         std::chrono::milliseconds patience) {
  const auto end = Clock::now() + patience;
  for (;;) {
    auto usable = has_size(device, size);
    if (!usable) return usable.error();
    if (*usable) break;
    if (Clock::now() >= end) {
      std::error_code failed;
      if (fs::exists(device, failed))
        return Error(ErrorCode::kIo,
                     device + " does not get its size of " + std::to_string(size) + " bytes");
      std::string numbers = first_line(sys_dir(device) + "/dev");
      std::replace(numbers.begin(), numbers.end(), ':', ' ');
      return Error(ErrorCode::kNotFound, "the kernel has " + device +
                                             ", but there is no such file: run 'mknod " + device +
                                             " b " + numbers + "', or mount devtmpfs on /dev");
    }
    std::this_thread::sleep_for(kPause);
  }
  raise_request_size(device);
  tell_udev(device);
  return {};
}

Result<void> sync_device(const std::string& device) {
  auto mounts = mounts_of(device);
  if (!mounts) return mounts.error();
  for (const MountPoint& mount : *mounts) {
    const UniqueFd on(::open(mount.path.c_str(), O_RDONLY | O_CLOEXEC));
    if (on && ::syncfs(on.get()) != 0) return Error::from_errno(errno, "flush " + mount.path);
  }
  const UniqueFd fd(::open(device.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) return Error::from_errno(errno, "open " + device);
  if (::fsync(fd.get()) != 0) return Error::from_errno(errno, "flush " + device);
  return {};
}

Result<void> cut_off(const std::string& device) {
  const auto index = nbd_index(device);
  if (!index) return release_loop_device(device);
  auto netlink = NbdNetlink::open();
  if (!netlink) return netlink.error();
  return netlink->disconnect(*index);
}

Result<void> wait_until_gone(const std::string& device, std::chrono::milliseconds patience) {
  const auto end = Clock::now() + patience;
  const auto index = nbd_index(device);
  for (;;) {
    const bool there = index ? nbd_connected(device, *index) : !loop_file(device).empty();
    if (!there) return {};
    if (Clock::now() >= end)
      return Error(ErrorCode::kBusy, device + " is still connected; something has it open");
    std::this_thread::sleep_for(kPause);
  }
}

Result<std::vector<MountPoint>> mounts_of(const std::string& device) {
  const Numbers numbers = numbers_of(device);
  auto lines = all_mounts();
  if (!lines) return lines.error();
  std::vector<MountPoint> out;
  for (MountLine& line : *lines) {
    if (line.is_of(numbers)) out.push_back(std::move(line.at));
  }
  return out;
}

Result<std::string> mounted_device(const std::string& path) {
  std::error_code failed;
  const std::string whole = fs::weakly_canonical(path, failed).string();
  auto lines = all_mounts();
  if (!lines) return lines.error();
  std::string source;
  for (const MountLine& line : *lines) {
    if (line.at.path == whole) source = line.source;
  }
  fs::path link;
  if (source.starts_with("/dev/"))
    link = fs::canonical("/sys/class/block/" + source.substr(5), failed);
  if (link.empty() || failed)
    return Error(ErrorCode::kNotFound, "no block device is mounted on " + path);
  if (fs::exists(link / "partition", failed))
    return "/dev/" + link.parent_path().filename().string();
  return "/dev/" + link.filename().string();
}

Result<std::vector<std::string>> mounted_sources(const std::string& type) {
  auto lines = all_mounts();
  if (!lines) return lines.error();
  std::set<std::string> out;
  for (const MountLine& line : *lines) {
    if (line.at.type == type && line.source.starts_with("/dev/")) out.insert(line.source);
  }
  return std::vector<std::string>(out.begin(), out.end());
}

Result<std::vector<std::string>> users_of(const std::string& device) {
  const Numbers numbers = numbers_of(device);
  std::vector<std::string> out;
  auto mounts = mounts_of(device);
  if (!mounts) return mounts.error();
  for (const MountPoint& mount : *mounts)
    out.push_back("mounted on " + mount.path);
  find_swap(numbers, out);
  find_holders(numbers, sys_dir(device), out);
  if (out.empty() && held_by_kernel(device)) out.push_back("held by the kernel");
  find_openers(numbers, out);
  return out;
}

}  // namespace snap::attach
