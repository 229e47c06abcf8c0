// Command doctor: finds what servers and devices that died have left behind.
#include <dirent.h>
#include <fmt/format.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/statfs.h>
#include <sys/un.h>
#include <unistd.h>
#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>

#include "engine/attach/attachment.h"
#include "engine/attach/block_device.h"
#include "engine/attach/fuse_disk.h"
#include "engine/server/control_client.h"
#include "engine/server/endpoint.h"
#include "snap/event_loop.h"
#include "tools/snapctl/commands.h"
#include "tools/snapctl/context.h"
#include "tools/snapctl/device_access.h"
#include "tools/snapctl/exit_code.h"
#include "tools/snapctl/json_output.h"
#include "tools/snapctl/table.h"

namespace snap::cli {

namespace {

using attach::Attachment;
using attach::Attachments;

struct DoctorCommand {
  bool fix = false;
};

/// One thing that is not as it should be.
struct Finding {
  std::string what;     ///< "/dev/nbd0", or the path of a file
  std::string trouble;  ///< in words
  std::string cure;     ///< what --fix does
  std::function<Task<Result<void>>()> mend;
};

// ---- Sockets and records

/// A socket file that nobody listens on.
bool is_stale_socket(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) return false;
  std::memcpy(address.sun_path, path.data(), path.size());
  const UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd) return false;
  return ::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0 &&
         errno == ECONNREFUSED;
}

std::vector<std::string> stale_sockets(const std::string& dir) {
  std::vector<std::string> out;
  std::error_code failed;
  for (const auto& entry : std::filesystem::directory_iterator(dir, failed)) {
    const std::string path = entry.path().string();
    if (entry.is_socket(failed) && is_stale_socket(path)) out.push_back(path);
  }
  std::sort(out.begin(), out.end());
  return out;
}

/// Places where a server that died had a disk mounted, for the moment before its loop device took
/// it over.
std::vector<std::string> dead_mounts(const std::string& dir) {
  std::vector<std::string> out;
  std::error_code failed;
  for (const auto& entry : std::filesystem::directory_iterator(dir, failed)) {
    const std::string path = entry.path().string();
    struct statfs s {};
    const bool ours = entry.path().filename().string().starts_with(attach::FuseDisk::kDirPrefix);
    if (ours && ::statfs(path.c_str(), &s) != 0 && errno == ENOTCONN) out.push_back(path);
  }
  return out;
}

Task<Result<void>> unmount_later(std::string path) {
  co_return co_await offload([&path]() -> Result<void> {
    if (::umount2(path.c_str(), MNT_DETACH) != 0)
      return Error::from_errno(errno, "unmount " + path);
    if (::rmdir(path.c_str()) != 0) return Error::from_errno(errno, "remove " + path);
    return {};
  });
}

Result<void> remove_file(const std::string& path) {
  if (::unlink(path.c_str()) != 0 && errno != ENOENT)
    return Error::from_errno(errno, "remove " + path);
  return {};
}

Task<Result<void>> remove_later(std::string path) {
  co_return co_await offload([&path] { return remove_file(path); });
}

/// A server that was just started for a device has sockets of the same names.
Task<Result<void>> remove_stale(std::string path) {
  co_return co_await offload([&path]() -> Result<void> {
    if (!is_stale_socket(path)) return {};
    return remove_file(path);
  });
}

Finding file_finding(std::string path, std::string trouble) {
  Finding out;
  out.what = path;
  out.trouble = std::move(trouble);
  out.cure = "remove the file";
  out.mend = [path = std::move(path)] { return remove_later(path); };
  return out;
}

// ---- Devices

/// A new server where the kernel still waits for one, else it is detached: nothing is lost that is
/// not lost already.
Task<Result<void>> revive(Context& context, Attachment device) {
  if (device.via == attach::Via::kNbd) co_return co_await reconnect_device(context, device);
  co_return co_await detach_device(context, device, true);
}

/// Looks again, for by now it may be known, or in use.
Result<void> cut_off_orphan(const Attachments& records, const attach::Orphan& orphan) {
  auto lock = records.lock();
  if (!lock) return lock.error();
  auto known = records.list();
  if (!known) return known.error();
  const auto orphans = attach::find_orphans(*known);
  const auto is_it = [&orphan](const attach::Orphan& o) {
    return o.device == orphan.device && o.backend == orphan.backend;
  };
  if (std::none_of(orphans.begin(), orphans.end(), is_it)) return {};
  auto users = attach::users_of(orphan.device);
  if (!users) return users.error();
  if (!users->empty())
    return Error(ErrorCode::kBusy,
                 fmt::format("it is in use: {}; end that first", fmt::join(*users, ", ")));
  return attach::cut_off(orphan.device);
}

Task<Result<void>> disconnect(Attachments records, attach::Orphan orphan) {
  co_return co_await offload([&] { return cut_off_orphan(records, orphan); });
}

Result<void> remove_stale_record(const Attachments& records, const Attachment& device) {
  auto lock = records.lock();
  if (!lock) return lock.error();
  auto known = records.list();
  if (!known) return known.error();
  for (const Attachment& one : *known) {
    if (one.device == device.device && attach::in_place(one)) return {};
  }
  return records.remove(device.device);
}

Task<Result<void>> forget(Attachments records, Attachment device) {
  co_return co_await offload([&] { return remove_stale_record(records, device); });
}

Task<Result<void>> look_at_devices(Context& context, Attachments records,
                                   std::vector<Finding>* findings) {
  // Who attaches is between the kernel's device and its record for a moment.
  auto lock = co_await offload([&] { return records.lock(); });
  if (!lock) co_return lock.error();
  auto known = co_await offload([&] { return records.list(); });
  if (!known) co_return known.error();
  for (const Attachment& device : *known) {
    Finding found;
    found.what = device.device;
    const bool there = co_await offload([&] { return attach::in_place(device); });
    if (!there) {
      found.what = records.path_of(device.device);
      found.trouble = "tells of " + device.device + ", which the kernel has given up";
      found.cure = "remove the file";
      found.mend = [records, device] { return forget(records, device); };
      findings->push_back(std::move(found));
      continue;
    }
    auto client = co_await server::ControlClient::connect(device.control);
    if (client || !server::nobody_listens(client.error())) continue;
    const bool nbd = device.via == attach::Via::kNbd;
    found.trouble =
        fmt::format("'{}' has no server: {}", device.name, nbd ? "requests wait" : "requests fail");
    found.cure = nbd ? "give it a new server" : "detach it";
    found.mend = [&context, device] { return revive(context, device); };
    findings->push_back(std::move(found));
  }
  for (const attach::Orphan& orphan :
       co_await offload([&] { return attach::find_orphans(*known); })) {
    Finding found;
    found.what = orphan.device;
    found.trouble = "is connected to '" + orphan.backend + "', and no record tells of it";
    found.cure = "disconnect it";
    found.mend = [records, orphan] { return disconnect(records, orphan); };
    findings->push_back(std::move(found));
  }
  co_return Result<void>();
}

// ---- The command

Task<Result<int>> run_doctor(Context& context, DoctorCommand command) {
  auto dir = co_await server::runtime_dir();
  if (!dir) co_return dir.error();
  const Attachments records(*dir);
  std::vector<Finding> findings;
  for (const std::string& path : co_await offload([&] { return records.damaged(); }))
    findings.push_back(file_finding(path, "is no record of an attached device"));
  if (findings.empty()) {
    auto looked = co_await look_at_devices(context, records, &findings);
    if (!looked) co_return looked.error();
  }
  for (const std::string& path : co_await offload([&dir] { return stale_sockets(*dir); })) {
    Finding found = file_finding(path, "is a socket of a server that has died");
    found.mend = [path] { return remove_stale(path); };
    findings.push_back(std::move(found));
  }

  for (const std::string& path : co_await offload([&dir] { return dead_mounts(*dir); })) {
    Finding found;
    found.what = path;
    found.trouble = "is mounted, and its server has died";
    found.cure = "unmount it";
    found.mend = [path] { return unmount_later(path); };
    findings.push_back(std::move(found));
  }

  Json listed = Json::array();
  std::vector<Error> errors;
  for (const Finding& found : findings) {
    bool mended = false;
    if (command.fix) {
      auto done = co_await found.mend();
      mended = done.has_value();
      if (!done) errors.push_back(done.error().with_context(found.what));
    }
    listed.push_back({{"what", found.what},
                      {"trouble", found.trouble},
                      {"cure", found.cure},
                      {"mended", mended}});
    if (!context.options().json)
      context.print(printable(fmt::format("{} {}{}", found.what, found.trouble,
                                          mended ? ": mended" : "; --fix would " + found.cure)) +
                    "\n");
  }
  if (context.options().json) {
    print_json(context, "findings", std::move(listed));
  } else if (findings.empty()) {
    context.note("nothing is wrong");
  }
  if (!errors.empty()) co_return context.report_all(errors);
  co_return findings.empty() || command.fix ? kExitOk : kExitLeaks;
}

}  // namespace

void add_doctor_commands(CLI::App& app, Context& context) {
  auto command = std::make_shared<DoctorCommand>();
  CLI::App* doctor =
      app.add_subcommand("doctor", "Find devices without servers, and what dead servers left")
          ->group(kAccessGroup);
  doctor->add_flag("--fix", command->fix, "Mend what is found");
  doctor->footer(
      "Exit code 3 if something was found and not mended.\n"
      "Example:\n  " SNAPCTL_PROGRAM_NAME " doctor --fix");
  set_action(doctor, context, command, run_doctor);
}

}  // namespace snap::cli
