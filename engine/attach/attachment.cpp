#include "engine/attach/attachment.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <filesystem>
#include <fstream>
#include <string_view>

#include "engine/attach/loop_device.h"
#include "engine/base/json_value.h"

namespace snap::attach {

namespace {

using nlohmann::json;

constexpr std::string_view kEnd = ".json";
constexpr std::size_t kMaxRecord = 64u << 10;

/// A small file, or what there is of it; nothing if it cannot be read.
std::optional<std::string> content_of(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) return std::nullopt;
  std::string text(kMaxRecord, '\0');
  in.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<std::size_t>(in.gcount()));
  return text;
}

std::string base_name(const std::string& device) {
  return device.substr(device.rfind('/') + 1);
}

Result<void> write_whole(const std::string& path, const std::string& text) {
  const UniqueFd fd(::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
  if (!fd) return Error::from_errno(errno, "make " + path);
  const ssize_t n = ::write(fd.get(), text.data(), text.size());
  if (n < 0) return Error::from_errno(errno, "write " + path);
  if (static_cast<std::size_t>(n) != text.size())
    return Error(ErrorCode::kNoSpace, "write " + path + ": no space");
  return {};
}

}  // namespace

const char* via_name(Via via) noexcept {
  return via == Via::kNbd ? "nbd" : "fuse";
}

std::string encode_attachment(const Attachment& a) {
  const json out{{"device", a.device},
                 {"via", via_name(a.via)},
                 {"store", a.store},
                 {"name", a.name},
                 {"content", a.content},
                 {"backend", a.backend},
                 {"control", a.control},
                 {"size", a.size},
                 {"read_only", a.read_only},
                 {"connections", a.connections},
                 {"own_server", a.own_server},
                 {"for_mount", a.for_mount},
                 {"since", a.since}};
  return out.dump(2, ' ', false, json::error_handler_t::replace) + "\n";
}

std::optional<Attachment> decode_attachment(const std::string& text) {
  const json value = json::parse(text, nullptr, false);
  if (!value.is_object()) return std::nullopt;
  Attachment a;
  a.device = json_field(value, "device", std::string());
  a.via = json_field(value, "via", std::string()) == "fuse" ? Via::kFuse : Via::kNbd;
  a.store = json_field(value, "store", std::string());
  a.name = json_field(value, "name", std::string());
  a.content = json_field(value, "content", std::string());
  a.backend = json_field(value, "backend", std::string());
  a.control = json_field(value, "control", std::string());
  a.size = json_field(value, "size", a.size);
  a.read_only = json_field(value, "read_only", a.read_only);
  a.connections = json_field(value, "connections", a.connections);
  a.own_server = json_field(value, "own_server", a.own_server);
  a.for_mount = json_field(value, "for_mount", a.for_mount);
  a.since = json_field(value, "since", std::string());
  if (!a.device.starts_with("/dev/") || a.name.empty()) return std::nullopt;
  return a;
}

std::string Attachments::path_of(const std::string& device) const {
  return dir_ + "/" + base_name(device) + std::string(kEnd);
}

Result<void> Attachments::make_dir() const {
  if (::mkdir(dir_.c_str(), 0700) != 0 && errno != EEXIST)
    return Error::from_errno(errno, "make " + dir_);
  return {};
}

Result<Attachments::Files> Attachments::read_all() const {
  Files out;
  std::error_code failed;
  std::filesystem::directory_iterator entries(dir_, failed);
  if (failed.value() == ENOENT) return out;
  if (failed) return Error::from_errno(failed.value(), "list " + dir_);
  for (const auto& entry : entries) {
    const std::string path = entry.path().string();
    if (!path.ends_with(kEnd)) continue;
    const auto text = content_of(path);
    if (!text) continue;  // removed since it was listed
    auto record = decode_attachment(*text);
    if (!record || path_of(record->device) != path) {
      out.damaged.push_back(path);
    } else {
      out.records.push_back(std::move(*record));
    }
  }
  std::sort(out.records.begin(), out.records.end(),
            [](const Attachment& a, const Attachment& b) { return a.device < b.device; });
  return out;
}

Result<std::vector<Attachment>> Attachments::list_of(const std::string& store) const {
  auto all = list();
  if (all) std::erase_if(*all, [&](const Attachment& one) { return !is_of_store(one, store); });
  return all;
}

Result<std::vector<Attachment>> Attachments::list() const {
  auto files = read_all();
  if (!files) return files.error();
  if (!files->damaged.empty())
    return Error(ErrorCode::kCorrupt, files->damaged.front() +
                                          " is no record of an attached device; 'doctor --fix' "
                                          "removes it");
  return std::move(files->records);
}

std::vector<std::string> Attachments::damaged() const {
  auto files = read_all();
  return files ? std::move(files->damaged) : std::vector<std::string>();
}

Result<void> Attachments::put(const Attachment& attachment) const {
  auto made = make_dir();
  if (!made) return made;
  const std::string path = path_of(attachment.device);
  const std::string fresh = path + ".new";
  auto written = write_whole(fresh, encode_attachment(attachment));
  if (!written) return written;
  if (::rename(fresh.c_str(), path.c_str()) != 0) return Error::from_errno(errno, "make " + path);
  return {};
}

Result<void> Attachments::remove(const std::string& device) const {
  const std::string path = path_of(device);
  if (::unlink(path.c_str()) != 0 && errno != ENOENT)
    return Error::from_errno(errno, "remove " + path);
  return {};
}

Result<UniqueFd> Attachments::lock() const {
  auto made = make_dir();
  if (!made) return made.error();
  const std::string path = dir_ + "/lock";
  UniqueFd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  if (!fd) return Error::from_errno(errno, "open " + path);
  while (::flock(fd.get(), LOCK_EX) != 0) {
    if (errno != EINTR) return Error::from_errno(errno, "lock " + path);
  }
  return fd;
}

std::optional<unsigned> nbd_index(const std::string& device) {
  constexpr std::string_view kPrefix = "/dev/nbd";
  if (!device.starts_with(kPrefix)) return std::nullopt;
  unsigned index = 0;
  const char* begin = device.data() + kPrefix.size();
  const char* end = device.data() + device.size();
  const auto parsed = std::from_chars(begin, end, index);
  if (begin == end || parsed.ec != std::errc() || parsed.ptr != end) return std::nullopt;
  return index;
}

std::string nbd_backend(unsigned index) {
  auto text = content_of("/sys/block/nbd" + std::to_string(index) + "/backend");
  if (!text) return {};
  while (!text->empty() && text->back() == '\n')
    text->pop_back();
  return *text;
}

bool in_place(const Attachment& attachment) {
  if (attachment.via == Via::kFuse)
    return loop_file(attachment.device).ends_with("/" + attachment.backend);
  const auto index = nbd_index(attachment.device);
  return index && nbd_backend(*index) == attachment.backend;
}

bool is_of_store(const Attachment& attachment, const std::string& store) {
  if (attachment.store == store) return true;
  std::error_code unknown;  // it may have been removed since, or mounted elsewhere
  return std::filesystem::equivalent(attachment.store, store, unknown);
}

std::vector<Orphan> find_orphans(const std::vector<Attachment>& known) {
  std::vector<Orphan> out;
  std::error_code failed;
  for (const auto& entry : std::filesystem::directory_iterator("/sys/block", failed)) {
    const std::string device = "/dev/" + entry.path().filename().string();
    const auto index = nbd_index(device);
    std::string backend = index ? nbd_backend(*index) : loop_file(device);
    if (!index) backend.erase(0, backend.rfind('/') + 1);
    if (!backend.starts_with(kBackendPrefix)) continue;
    const bool is_known = std::any_of(known.begin(), known.end(), [&](const Attachment& a) {
      return a.device == device && a.backend == backend;
    });
    if (!is_known) out.push_back({device, backend});
  }
  return out;
}

}  // namespace snap::attach
