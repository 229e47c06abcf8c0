// Command run: a throw-away volume for as long as a program runs.
#include <fmt/format.h>
#include <signal.h>
#include <CLI/CLI.hpp>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>

#include "engine/server/remote.h"
#include "snap/event_loop.h"
#include "tools/snapctl/child_process.h"
#include "tools/snapctl/commands.h"
#include "tools/snapctl/context.h"
#include "tools/snapctl/device_access.h"
#include "tools/snapctl/exit_code.h"
#include "tools/snapctl/interrupt.h"
#include "tools/snapctl/new_volume.h"
#include "tools/snapctl/volume_access.h"

namespace snap::cli {

namespace {

struct RunCommand {
  std::string image, name;
  std::vector<std::string> command;
  bool device = false, keep = false;
};

// ---- The program

std::atomic<pid_t> g_child{0};  // for the handler

void pass_on(int signal_number) {
  const pid_t child = g_child;
  if (child > 0) ::kill(child, signal_number);
}

/// While the program runs, Ctrl-C is its business, and what others send to us is passed on to it.
class SignalsPassedOn {
 public:
  SignalsPassedOn() {
    struct sigaction action {};
    sigemptyset(&action.sa_mask);
    action.sa_handler = SIG_IGN;
    sigaction(SIGINT, &action, &before_[0]);
    sigaction(SIGQUIT, &action, &before_[1]);
    action.sa_handler = pass_on;
    action.sa_flags = SA_RESTART;
    sigaction(SIGTERM, &action, &before_[2]);
    sigaction(SIGHUP, &action, &before_[3]);
  }
  SignalsPassedOn(const SignalsPassedOn&) = delete;
  SignalsPassedOn& operator=(const SignalsPassedOn&) = delete;
  ~SignalsPassedOn() {
    sigaction(SIGINT, &before_[0], nullptr);
    sigaction(SIGQUIT, &before_[1], nullptr);
    sigaction(SIGTERM, &before_[2], nullptr);
    sigaction(SIGHUP, &before_[3], nullptr);
  }

 private:
  struct sigaction before_[4];
};

/// Its exit code, 128 + signal if one ended it. Blocks.
Result<int> run_to_the_end(std::vector<std::string> argv) {
  // A signal that came before is not the program's, and its ten seconds must not end in the middle.
  hold_interrupts(true);
  if (interrupted()) return kExitCancelled;
  const SignalsPassedOn passed_on;
  auto program = ChildProcess::start(std::move(argv), {});
  if (!program) {
    // As shells have it, so that it is not taken for what the program says of itself.
    std::fprintf(stderr, "%s\n", error_line(program.error().message()).c_str());
    return program.error().sys_errno() == ENOENT ? 127 : 126;
  }
  g_child = program->pid();
  auto code = program->wait();
  g_child = 0;
  if (code) hold_interrupts(false);
  return code;
}

// ---- The volume

Task<Result<VolumeRecord>> make_volume(Context& context, RunCommand command) {
  auto store = co_await context.store();
  if (!store) co_return store.error();
  Store::CreateOptions options;
  options.name = command.name;
  auto taken = co_await take_image(**store, command.image, &options);
  if (!taken) co_return taken.error();
  co_return co_await create_named(**store, std::move(options));
}

Task<Result<void>> remove_volume(Context& context, std::string name) {
  auto store = co_await context.store();
  if (!store) co_return store.error();
  auto volume = co_await (*store)->volume(name);
  if (!volume) co_return volume.error();
  co_await release_idle(&*volume);
  auto removed = co_await (*store)->remove_volume(name, false);
  if (!removed) co_return removed.error();
  co_return Result<void>();
}

Task<Result<int>> run_served(Context& context, RunCommand command, std::string volume) {
  auto store = co_await context.store();
  if (!store) co_return store.error();
  auto exported = co_await find_exported(**store, "volume:" + volume);
  if (!exported) co_return exported.error();
  auto server = co_await server_for(context, *exported);
  if (!server) co_return server.error();
  Result<int> code = 0;
  auto uri = co_await server::remote_export(*server->client, server->name);
  if (!uri) {
    code = uri.error();
  } else {
    ::setenv("uri", uri->c_str(), 1);
    ::setenv("volume", volume.c_str(), 1);
    code = co_await offload([&command] { return run_to_the_end(command.command); });
  }
  auto stopped = co_await stop_unused(std::move(*server));
  if (code && !stopped) co_return stopped.error();
  co_return code;
}

Task<Result<int>> run_attached(Context& context, RunCommand command, std::string volume) {
  AttachOptions options;  // named: g++ 12 destroys temporaries of aggregates in a co_await twice
  auto device = co_await attach_object(context, "volume:" + volume, std::move(options));
  if (!device) co_return device.error();
  ::setenv("device", device->device.c_str(), 1);
  auto code = co_await run_served(context, command, volume);
  auto gone = co_await detach_device(context, *device, false);
  if (!gone) co_return gone.error();
  co_return code;
}

Task<Result<int>> run_run(Context& context, RunCommand command) {
  command.command = context.program();
  if (command.command.empty())
    co_return Error(ErrorCode::kInvalidArgument, "run: name a program, behind --");
  auto volume = co_await make_volume(context, command);
  if (!volume) co_return volume.error().with_context("run");
  auto running = command.device ? run_attached(context, command, volume->name)
                                : run_served(context, command, volume->name);
  auto code = co_await std::move(running);
  if (command.keep) {
    context.note("kept volume " + volume->name);
  } else {
    auto removed = co_await remove_volume(context, volume->name);
    // What the program has left behind (a mount, a client) keeps the volume; that comes first.
    if (!removed) {
      if (!code) context.report(code.error());
      co_return removed.error().with_context("run: volume '" + volume->name + "' is still there");
    }
  }
  if (!code) co_return code.error().with_context("run");
  co_return code;
}

}  // namespace

void add_run_commands(CLI::App& app, Context& context) {
  auto command = std::make_shared<RunCommand>();
  CLI::App* run = app.add_subcommand("run", "Run a program with a throw-away volume of an image")
                      ->group(kAccessGroup);
  run->add_option("image", command->image, "The image")->required()->type_name("IMAGE -- CMD...");
  run->add_flag("--device", command->device, "Attach it as a block device, $device");
  run->add_option("--name", command->name, "Name of the volume; else one is made up")
      ->type_name("NAME");
  run->add_flag("--keep", command->keep, "Do not remove the volume in the end");
  run->footer(
      "The volume is served over NBD while the program runs, which finds it by $uri, and its name\n"
      "in $volume. Gives the program's exit code; 127 if there is no such program.\n"
      "Examples:\n"
      "  " SNAPCTL_PROGRAM_NAME
      " run base:1 -- sh -c 'nbdinfo \"$uri\"'\n"
      "  " SNAPCTL_PROGRAM_NAME
      " run base:1 -- sh -c 'exec qemu-system-x86_64 -drive file=\"$uri\",format=raw'\n"
      "  " SNAPCTL_PROGRAM_NAME " run base:1 --device -- sh -c 'fsck -n $device'");
  set_action(run, context, command, run_run);
}

}  // namespace snap::cli
