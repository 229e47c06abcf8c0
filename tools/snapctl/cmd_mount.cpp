// Commands mount and umount: attached and mounted in one step, and back.
#include <blkid/blkid.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include <cerrno>

#include "engine/attach/block_device.h"
#include "engine/store/program.h"
#include "snap/event_loop.h"
#include "tools/snapctl/commands.h"
#include "tools/snapctl/context.h"
#include "tools/snapctl/device_access.h"
#include "tools/snapctl/exit_code.h"
#include "tools/snapctl/json_output.h"

namespace snap::cli {

namespace {

using attach::Attachment;

struct MountCommand {
  std::string object, dir, options, via = "auto";
  unsigned partition = 0;
  bool read_only = false;
};

// ---- What is on the device

struct Content {
  std::string type;  ///< of the file system: "ext4"; empty: none
  std::string uuid;
  int partitions = 0;
};

std::string value_of(blkid_probe probe, const char* name) {
  const char* text = nullptr;
  return blkid_probe_lookup_value(probe, name, &text, nullptr) == 0 ? text : std::string();
}

/// Ambivalent content (traces of two file systems) has no type: nobody should guess.
Result<Content> content_of(const std::string& device) {
  const std::unique_ptr<blkid_struct_probe, void (*)(blkid_probe)> probe(
      blkid_new_probe_from_filename(device.c_str()), &blkid_free_probe);
  if (!probe) return Error::from_errno(errno, "look at what is on " + device);
  blkid_probe_enable_superblocks(probe.get(), 1);
  blkid_probe_set_superblocks_flags(probe.get(), BLKID_SUBLKS_TYPE | BLKID_SUBLKS_UUID);
  blkid_probe_enable_partitions(probe.get(), 1);
  Content out;
  const int found = blkid_do_safeprobe(probe.get());
  if (found == -2)
    return Error(ErrorCode::kUnsupported,
                 device + " has traces of more than one file system; mount it by hand, with -t");
  if (found < 0) return Error::from_errno(EIO, "look at what is on " + device);
  out.type = value_of(probe.get(), "TYPE");
  out.uuid = value_of(probe.get(), "UUID");
  blkid_partlist partitions = blkid_probe_get_partitions(probe.get());
  if (partitions != nullptr) out.partitions = blkid_partlist_numof_partitions(partitions);
  return out;
}

std::string partition_device(const std::string& device, unsigned partition) {
  return partition == 0 ? device : device + "p" + std::to_string(partition);
}

/// btrfs knows a file system by its UUID alone: a second device with the same one would be taken
/// for a part of the first.
Result<void> refuse_second_btrfs(const std::string& device, const std::string& uuid) {
  auto mounted = attach::mounted_sources("btrfs");
  if (!mounted) return mounted.error();
  for (const std::string& other : *mounted) {
    if (other == device) continue;
    auto content = content_of(other);
    if (content && content->uuid == uuid)
      return Error(ErrorCode::kBusy,
                   fmt::format("{} holds the same btrfs (UUID {}) as {}, which is mounted, and "
                               "btrfs would take one for the other; unmount that one first, or "
                               "give this one a new UUID with 'btrfstune -u {}'",
                               device, uuid, other, device));
  }
  return {};
}

Result<void> run_mount(const std::vector<std::string>& arguments) {
  const auto program = find_program("mount");
  if (!program) return Error(ErrorCode::kNotFound, "mount(8) is not installed");
  std::vector<std::string> argv = {*program};
  argv.insert(argv.end(), arguments.begin(), arguments.end());
  auto ran = run_program(argv);
  if (!ran) return ran.error();
  if (ran->exit_code != 0) return Error(ErrorCode::kIo, ran->errors);
  return {};
}

/// The options that a file system needs on a device that may be a twin of another.
std::string options_for(const Content& content, bool device_read_only, bool read_only,
                        bool replay) {
  std::string out = read_only ? "ro" : "rw";
  // An image may come from anywhere; -o suid,dev trusts it.
  if (device_read_only) out += ",nosuid,nodev";
  if (content.type == "xfs") out += ",nouuid";
  if (!replay && content.type == "xfs") out += ",norecovery";
  if (!replay && content.type.starts_with("ext")) out += ",noload";
  if (!replay && content.type == "btrfs") out += ",nologreplay";
  return out;
}

enum class Mounted { kWhole, kWithoutJournal };
Result<Mounted> mount_device(const std::string& device, const std::string& dir,
                             const MountCommand& command, bool device_read_only) {
  auto content = content_of(device);
  if (!content) return content.error();
  if (content->type.empty()) {
    if (content->partitions > 0 && command.partition == 0)
      return Error(ErrorCode::kInvalidArgument,
                   fmt::format("it has {} partitions and no file system of its own; choose one "
                               "with --partition N",
                               content->partitions));
    return Error(
        ErrorCode::kUnsupported,
        fmt::format("there is no file system on {}; make one: attach it, then mkfs", device));
  }
  if (content->type == "btrfs") {
    auto alone = refuse_second_btrfs(device, content->uuid);
    if (!alone) return alone.error();
  }
  const bool read_only = command.read_only || device_read_only;
  const auto mount_with = [&](bool replay) {
    std::string options = options_for(*content, device_read_only, read_only, replay);
    if (!command.options.empty()) options += "," + command.options;
    return run_mount({"-t", content->type, "-o", options, device, dir});
  };
  auto mounted = mount_with(true);
  if (mounted) return Mounted::kWhole;
  // What was not unmounted wants its journal replayed, which a read-only device cannot do.
  if (device_read_only && mount_with(false)) return Mounted::kWithoutJournal;
  return mounted.error();
}

// ---- mount

Result<void> check_directory(const std::string& dir) {
  struct stat s {};
  if (::stat(dir.c_str(), &s) != 0) return Error::from_errno(errno, "mount on " + dir);
  if (!S_ISDIR(s.st_mode))
    return Error(ErrorCode::kInvalidArgument, "mount on " + dir + ": it is no directory");
  return {};
}

Task<Result<int>> mount(Context& context, MountCommand command) {
  auto there = co_await offload([&] { return check_directory(command.dir); });
  if (!there) co_return there.error();
  // One that is attached already is mounted, and stays attached in the end.
  auto device = co_await find_attachment(context, command.object);
  const bool attached_before = device.has_value();
  if (!attached_before) {
    AttachOptions options;
    options.via = command.via;
    options.read_only = command.read_only;
    options.for_mount = true;
    device = co_await attach_object(context, command.object, std::move(options));
    if (!device) co_return device.error();
  }
  const std::string part = partition_device(device->device, command.partition);
  auto mounted =
      co_await offload([&] { return mount_device(part, command.dir, command, device->read_only); });
  if (!mounted) {
    if (!attached_before) (void)co_await detach_device(context, *device, false);
    co_return mounted.error();
  }
  if (*mounted == Mounted::kWithoutJournal)
    context.note(
        fmt::format("'{}' was taken while its file system was in use (without --pause): "
                    "what only its journal has is not shown; a volume of it has all",
                    device->name));
  if (context.options().json) {
    Json out = Json::parse(attach::encode_attachment(*device), nullptr, false);
    out["mounted_on"] = command.dir;
    print_json(context, std::move(out));
  } else {
    context.print(part + "\n");
  }
  co_return kExitOk;
}

Task<Result<int>> run_mount_command(Context& context, MountCommand command) {
  auto done = co_await mount(context, command);
  if (!done) co_return done.error().with_context("mount " + command.object);
  co_return done;
}

// ---- umount

struct UmountCommand {
  std::vector<std::string> dirs;
};

Result<void> umount_dir(const std::string& dir) {
  const auto program = find_program("umount");
  if (!program) return Error(ErrorCode::kNotFound, "umount(8) is not installed");
  auto ran = run_program({*program, dir});
  if (!ran) return ran.error();
  if (ran->exit_code != 0) return Error(ErrorCode::kBusy, ran->errors);
  return {};
}

Task<Result<void>> umount(Context& context, std::string dir) {
  auto device = co_await offload([&dir] { return attach::mounted_device(dir); });
  if (!device) co_return device.error();
  auto attached = co_await find_attachment(context, *device);
  if (!attached) co_return attached.error();
  auto done = co_await offload([&dir] { return umount_dir(dir); });
  if (!done || !attached->for_mount) co_return done;
  auto left = co_await offload([&device] { return attach::mounts_of(*device); });
  if (!left) co_return left.error();
  if (!left->empty()) co_return Result<void>();  // the last one takes it away
  co_return co_await detach_device(context, *attached, false);
}

Task<Result<int>> run_umount_command(Context& context, UmountCommand command) {
  std::vector<Error> errors;
  for (const std::string& dir : command.dirs) {
    auto done = co_await umount(context, dir);
    if (!done) errors.push_back(done.error().with_context("umount " + dir));
  }
  co_return context.report_all(errors);
}

}  // namespace

void add_mount_commands(CLI::App& app, Context& context) {
  auto command = std::make_shared<MountCommand>();
  CLI::App* mount =
      app.add_subcommand("mount", "Attach a volume or an image and mount what is on it")
          ->group(kAccessGroup);
  mount->add_option("object", command->object, "A volume, an image, or VOL@SNAP")
      ->required()
      ->type_name("OBJ");
  mount->add_option("dir", command->dir, "Where")->required()->type_name("DIR");
  mount->add_option("-o,--options", command->options, "Options of mount(8)")->type_name("OPTS");
  mount->add_option("--partition", command->partition, "Mount this partition")
      ->check(CLI::Range(1, 255))
      ->type_name("N");
  mount->add_option("--via", command->via, "As attach has it")
      ->check(CLI::IsMember({"auto", "nbd", "fuse"}))
      ->type_name("auto|nbd|fuse");
  mount->add_flag("-r,--read-only", command->read_only, "Read-only, as images always are");
  mount->footer(
      "Two volumes of one image can be mounted together: xfs gets nouuid by itself; btrfs cannot\n"
      "tell them apart and is refused. An image whose file system was not unmounted is shown as "
      "it\n"
      "is on the disk, without a replay of its journal.\n"
      "Examples:\n"
      "  " SNAPCTL_PROGRAM_NAME
      " mount web /mnt\n"
      "  " SNAPCTL_PROGRAM_NAME " mount base:1 /mnt --partition 1");
  set_action(mount, context, command, run_mount_command);

  auto back = std::make_shared<UmountCommand>();
  CLI::App* umount = app.add_subcommand("umount", "Unmount, and detach what mount has attached")
                         ->group(kAccessGroup);
  umount->add_option("dirs", back->dirs, "Where it is mounted")->required()->type_name("DIR...");
  set_action(umount, context, back, run_umount_command);
}

}  // namespace snap::cli
