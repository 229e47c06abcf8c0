// Commands attach, detach, restart: volumes and images as block devices of this machine.
#include <fmt/format.h>
#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "engine/server/remote.h"
#include "engine/server/volume_server.h"
#include "tools/snapctl/commands.h"
#include "tools/snapctl/context.h"
#include "tools/snapctl/device_access.h"
#include "tools/snapctl/exit_code.h"
#include "tools/snapctl/json_output.h"

namespace snap::cli {

namespace {

using attach::Attachment;

// ---- attach

struct AttachCommand {
  std::string object, device, via = "auto";
  unsigned connections = 0;
  unsigned timeout = 30, dead_timeout = 300;
  bool read_only = false, reconnect = false, if_needed = false;
};

void print_device(Context& context, const Attachment& device) {
  if (!context.options().json) {
    context.print(device.device + "\n");
    return;
  }
  Json out = Json::parse(attach::encode_attachment(device), nullptr, false);
  print_json(context, std::move(out));
}

/// The one that is named, or all that have lost their server.
Task<Result<int>> reconnect(Context& context, std::string text) {
  if (!text.empty()) {
    auto device = co_await find_attachment(context, text, Wanted::kAny);
    if (!device) co_return device.error();
    auto done = co_await reconnect_device(context, *device);
    if (!done) co_return done.error();
    print_device(context, *device);
    co_return kExitOk;
  }
  auto store = co_await context.store();
  if (!store) co_return store.error();
  auto all = co_await attachments_of(**store);
  if (!all) co_return all.error();
  std::vector<Error> errors;
  for (const Attachment& device : *all) {
    if (device.via != attach::Via::kNbd) continue;
    auto done = co_await reconnect_device(context, device);
    if (done) {
      print_device(context, device);
    } else {
      errors.push_back(done.error());
    }
  }
  co_return context.report_all(errors);
}

Task<Result<int>> run_attach(Context& context, AttachCommand command) {
  if (command.reconnect) co_return co_await reconnect(context, command.object);
  if (command.object.empty())
    co_return Error(ErrorCode::kInvalidArgument, "attach: name a volume or an image");
  if (!command.device.empty() && !command.device.starts_with("/dev/"))
    co_return Error(ErrorCode::kInvalidArgument,
                    "attach: '" + command.device + "' is no device; name one as /dev/nbd0");
  AttachOptions options;
  options.via = command.via;
  options.device = command.device;
  options.connections = command.connections;
  options.read_only = command.read_only;
  options.if_needed = command.if_needed;
  options.timeout = std::chrono::seconds(command.timeout);
  options.dead_timeout = std::chrono::seconds(command.dead_timeout);
  auto attached = co_await attach_object(context, command.object, std::move(options));
  if (!attached) co_return attached.error().with_context("attach " + command.object);
  print_device(context, *attached);
  co_return kExitOk;
}

void add_attach(CLI::App& app, Context& context) {
  auto command = std::make_shared<AttachCommand>();
  CLI::App* attach =
      app.add_subcommand("attach", "Make a volume or an image a block device")->group(kAccessGroup);
  attach->add_option("object", command->object, "A volume, an image, or VOL@SNAP")
      ->type_name("OBJ");
  attach->add_option("device", command->device, "The device; else one that is free")
      ->type_name("/dev/nbdN");
  attach->add_option("--via", command->via, "How: nbd, or FUSE and a loop device; else what works")
      ->check(CLI::IsMember({"auto", "nbd", "fuse"}))
      ->type_name("auto|nbd|fuse");
  attach->add_flag("--read-only", command->read_only, "Refuse writes");
  attach
      ->add_option("--connections", command->connections,
                   "Connections of nbd; else one a processor, at most 4")
      ->check(CLI::Range(1, 16))
      ->type_name("N");
  attach
      ->add_option("--timeout", command->timeout,
                   "A request of nbd without an answer for so long goes to another connection")
      ->capture_default_str()
      ->type_name("SEC");
  attach
      ->add_option("--dead-timeout", command->dead_timeout,
                   "Without a server for so long requests of nbd fail; until then they wait")
      ->capture_default_str()
      ->type_name("SEC");
  attach->add_flag("--if-needed", command->if_needed,
                   "A volume that is attached already will do as it is");
  attach->add_flag("--reconnect", command->reconnect,
                   "Give a device that has lost its server another; without OBJ all of the store");
  attach->footer(
      "Prints the device once it can be used. It is served by 'serve' where that runs, by the\n"
      "process that exports the volume, or by one of its own, which 'detach' ends.\n"
      "Examples:\n"
      "  " SNAPCTL_PROGRAM_NAME
      " attach web\n"
      "  " SNAPCTL_PROGRAM_NAME
      " attach base:1 /dev/nbd5 --read-only\n"
      "  " SNAPCTL_PROGRAM_NAME " attach --reconnect web");
  set_action(attach, context, command, run_attach);
}

// ---- detach

struct DetachCommand {
  std::vector<std::string> objects;
  bool force = false;
};

Task<Result<int>> run_detach(Context& context, DetachCommand command) {
  std::vector<Error> errors;
  for (const std::string& text : command.objects) {
    auto device = co_await find_attachment(context, text, Wanted::kAny);
    Result<void> done;
    if (device) done = co_await detach_device(context, *device, command.force);
    if (!device || !done)
      errors.push_back((device ? done.error() : device.error()).with_context("detach " + text));
  }
  co_return context.report_all(errors);
}

void add_detach(CLI::App& app, Context& context) {
  auto command = std::make_shared<DetachCommand>();
  CLI::App* detach = app.add_subcommand("detach", "Take block devices away")->group(kAccessGroup);
  detach->add_option("objects", command->objects, "What is attached, or its device")
      ->required()
      ->type_name("OBJ|DEV...");
  detach->add_flag("-f,--force", command->force, "Although it is in use: its users get errors");
  detach->footer(
      "Brings everything to the volume, durably, then cuts the device off and ends the server "
      "that\n"
      "was started for it. Refuses a device that is mounted or otherwise in use, or whose server "
      "does\n"
      "not answer. Where the server has died, what it had answered is made durable.\n"
      "Example:\n  " SNAPCTL_PROGRAM_NAME " detach web");
  set_action(detach, context, command, run_detach);
}

// ---- restart

struct RestartCommand {
  std::string object;
};

Task<Result<int>> run_restart(Context& context, RestartCommand command) {
  auto device = co_await find_attachment(context, command.object);
  if (!device) co_return device.error();
  if (device->via != attach::Via::kNbd)
    co_return Error(ErrorCode::kUnsupported,
                    fmt::format("restart: {} is a loop device, which does not outlive its server; "
                                "detach it and attach it again",
                                device->device));
  auto client = co_await server::ControlClient::connect(device->control);
  if (client && !device->own_server)
    co_return Error(
        ErrorCode::kBusy,
        fmt::format("restart: the server of {} was not started by attach (pid {}); restart it as "
                    "it was started: the device waits, and has its connections back by itself",
                    device->device, (*client)->server().pid));
  // Without a server that can take its place the old one stays.
  auto exported = co_await find_attached(context, *device);
  if (!exported) co_return exported.error().with_context("restart");
  if (client) {
    auto stopped = co_await server::remote_stop(**client);
    if (!stopped) co_return stopped.error().with_context("restart");
  }
  auto done = co_await reconnect_device(context, *device);
  if (!done) co_return done.error().with_context("restart");
  co_return kExitOk;
}

void add_restart(CLI::App& app, Context& context) {
  auto command = std::make_shared<RestartCommand>();
  CLI::App* restart =
      app.add_subcommand("restart", "Replace the server of a device, which waits meanwhile")
          ->group(kAccessGroup);
  restart->add_option("object", command->object, "What is attached, or its device")
      ->required()
      ->type_name("OBJ|DEV");
  restart->footer(
      "For an upgrade of the program: file systems on the device stay mounted, and their requests\n"
      "wait for the new server.\n"
      "Example:\n  " SNAPCTL_PROGRAM_NAME " restart web");
  set_action(restart, context, command, run_restart);
}

}  // namespace

void add_attach_commands(CLI::App& app, Context& context) {
  add_attach(app, context);
  add_detach(app, context);
  add_restart(app, context);
}

}  // namespace snap::cli
