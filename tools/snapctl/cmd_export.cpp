// Command export: serves volumes, images and snapshots over NBD until stopped, in the foreground or
// detached.
//
// Forking and the blocking of signals come before the first thread, so they are in the command's
// preparation, which runs before the event loop is made.
#include <signal.h>
#include <sys/un.h>
#include <unistd.h>

#include <fmt/format.h>
#include <CLI/CLI.hpp>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <optional>
#include <variant>

#include "engine/server/daemonize.h"
#include "engine/server/log.h"
#include "engine/server/signals.h"
#include "engine/server/volume_server.h"
#include "tools/snapctl/commands.h"
#include "tools/snapctl/context.h"
#include "tools/snapctl/exit_code.h"
#include "tools/snapctl/json_output.h"
#include "tools/snapctl/names.h"
#include "tools/snapctl/tls_options.h"

namespace snap::cli {

namespace {

/// What fits into a sockaddr_un, without the zero at its end.
constexpr std::size_t kMaxSocketPath = sizeof(sockaddr_un::sun_path) - 1;

struct ExportCommand {
  std::vector<std::string> objects;
  std::string socket, socket_mode, socket_group, tcp, log;
  bool read_only = false;
  bool detach = false;
  std::size_t threads = 0;
  TlsOptions tls;
  std::shared_ptr<server::Readiness> background;  ///< of the detached process
};

Error looks_like_a_file(const ExportCommand& command, const std::string& word) {
  return Error(
      ErrorCode::kInvalidArgument,
      fmt::format("export: there is no volume or image '{0}'; export serves NBD until it "
                  "is stopped, dump writes a file: '" SNAPCTL_PROGRAM_NAME " dump {1} {0}'",
                  word, command.objects.front()));
}

server::ServeItem item_of(const Object& object, const std::string& text) {
  server::ServeItem item;
  if (object.volume) {
    item.name = object.volume->record.name;
    item.snapshot = object.snapshot;
    if (!object.snapshot.empty()) item.kind = server::ServeItem::Kind::kSnapshot;
    return item;
  }
  item.kind = server::ServeItem::Kind::kImage;
  item.name = object.image->id.hex();
  item.export_name = parse_object_name(text).name;
  return item;
}

Task<Result<std::vector<server::ServeItem>>> find_items(Context& context, ExportCommand command) {
  auto store = co_await context.store();
  if (!store) co_return store.error();
  std::vector<server::ServeItem> items;
  for (const std::string& text : command.objects) {
    auto object = co_await find_object(**store, text);
    if (!object) {
      auto code = object.error().code();
      bool missing = code == ErrorCode::kNotFound || code == ErrorCode::kInvalidArgument;
      if (missing && !items.empty() && text.find_first_of("./") != std::string::npos)
        co_return looks_like_a_file(command, text);
      co_return object.error();
    }
    items.push_back(item_of(*object, text));
  }
  co_return items;
}

/// "600" and the like, octal.
Result<unsigned> parse_mode(const std::string& text) {
  char* end = nullptr;
  unsigned long mode = std::strtoul(text.c_str(), &end, 8);
  if (text.empty() || *end != '\0' || mode > 0777) {
    return Error(ErrorCode::kInvalidArgument,
                 fmt::format("--socket-mode takes an octal mode such as 660, not '{}'", text));
  }
  return static_cast<unsigned>(mode);
}

Result<server::VolumeServer::Options> server_options(const ExportCommand& command) {
  server::VolumeServer::Options options;
  options.read_only = command.read_only;
  options.threads = command.threads;
  if (!command.socket.empty()) {
    if (command.socket.size() > kMaxSocketPath) {
      return Error(ErrorCode::kInvalidArgument,
                   fmt::format("export: clients can reach a unix socket by a path of at most {} "
                               "bytes, and --socket {} has {}; choose a shorter one",
                               kMaxSocketPath, command.socket, command.socket.size()));
    }
    options.socket.emplace();
    options.socket->path = command.socket;
    options.socket->group = command.socket_group;
    if (!command.socket_mode.empty()) {
      auto mode = parse_mode(command.socket_mode);
      if (!mode) return mode.error();
      options.socket->mode = *mode;
    }
  } else if (!command.socket_mode.empty() || !command.socket_group.empty()) {
    return Error(ErrorCode::kInvalidArgument,
                 "export: --socket-mode and --socket-group go with --socket PATH");
  }
  if (!command.tcp.empty()) {
    auto endpoint = server::parse_tcp_endpoint(command.tcp);
    if (!endpoint) return endpoint.error();
    options.tcp = *endpoint;
    options.tcp->insecure = command.tls.insecure;
  }
  return options;
}

std::string ready_text(const Context& context, const std::vector<server::ServeItem>& items,
                       const server::VolumeServer::Ready& ready) {
  if (!context.options().json) return fmt::format("{}\n", fmt::join(ready.uris, "\n"));
  Json exports = Json::array();
  for (std::size_t i = 0; i < ready.uris.size() && i < items.size(); ++i)
    exports.push_back({{"name", items[i].name}, {"uri", ready.uris[i]}});
  Json out{{"schema", kJsonSchema},
           {"exports", exports},
           {"pid", getpid()},
           {"control_socket", ready.control_socket}};
  return out.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

Task<Result<int>> serve(Context& context, ExportCommand command) {
  auto options = server_options(command);
  if (!options) co_return options.error();
  auto items = co_await find_items(context, command);
  if (!items) co_return items.error();
  auto tls = co_await load_tls(command.tls);
  if (!tls) co_return tls.error();
  if (options->tcp) options->tcp->tls = tls->mode == nbd::TlsPolicy::Mode::kRequired;
  options->tls = std::move(*tls);
  options->store = context.store_path();
  options->items = *items;
  server::VolumeServer server(std::move(*options));
  auto on_ready = [&context, &items, &command](const server::VolumeServer::Ready& ready) {
    std::string text = ready_text(context, *items, ready);
    if (command.background) {
      command.background->ready(text);
      return;
    }
    context.print(text);
    // Who reads the URI may have gone; the volumes are served all the same.
    auto flushed = context.finish_output();
    if (!flushed) server::log_warning(flushed.error().message());
  };
  auto served = co_await server.run(on_ready);
  if (!served) co_return served.error();
  co_return kExitOk;
}

Task<Result<int>> run_export(Context& context, ExportCommand command) {
  auto served = co_await serve(context, command);
  if (!served && command.background) command.background->failed(served.error());
  co_return served;
}

/// Goes to the background, or stays; gives an exit code where this process has nothing more to do.
std::optional<int> prepare(Context& context, ExportCommand& command) {
  if (command.detach) {
    const char* from_environment = std::getenv("SNAPCTL_LOG");
    std::string log = command.log;
    if (log.empty()) log = from_environment == nullptr ? "/dev/null" : from_environment;
    auto detached = server::detach(log);
    if (!detached) {
      context.report(detached.error());
      return exit_code_of(detached.error().code());
    }
    if (auto* text = std::get_if<std::string>(&*detached)) {
      context.print(*text);
      auto flushed = context.finish_output();
      return flushed ? kExitOk : exit_code_of(flushed.error().code());
    }
    command.background =
        std::make_shared<server::Readiness>(std::move(std::get<server::Readiness>(*detached)));
    signal(SIGHUP, SIG_IGN);
  } else {
    signal(SIGHUP, SIG_DFL);
    if (!command.log.empty()) {
      auto logged = server::log_to_file(command.log);
      if (!logged) {
        context.report(logged.error());
        return exit_code_of(logged.error().code());
      }
    }
  }
  auto blocked = server::block_stop_signals();
  if (blocked) return std::nullopt;
  context.report(blocked.error());
  return exit_code_of(blocked.error().code());
}

}  // namespace

void add_export_commands(CLI::App& app, Context& context) {
  auto command = std::make_shared<ExportCommand>();
  CLI::App* serve =
      app.add_subcommand("export", "Serve volumes or images over NBD until stopped; prints the URI")
          ->group(kAccessGroup);
  serve->add_option("objects", command->objects, "Volumes, images, or VOL@SNAP for snapshots")
      ->required()
      ->type_name("OBJ...");
  auto* socket = serve
                     ->add_option("--socket", command->socket,
                                  "Listen on this unix socket; else on one of our own")
                     ->type_name("PATH");
  serve->add_option("--socket-mode", command->socket_mode, "Its mode; else 600")->type_name("MODE");
  serve->add_option("--socket-group", command->socket_group, "Its group")->type_name("GROUP");
  serve->add_option("--tcp", command->tcp, "Listen on this address; beyond loopback with TLS")
      ->type_name("HOST:PORT")
      ->excludes(socket);
  add_tls_options(*serve, command->tls);
  serve->add_flag("--read-only", command->read_only, "Refuse writes");
  serve->add_flag("--detach", command->detach, "Return once clients can connect, and serve on");
  serve->add_option("--threads", command->threads, "Worker threads; else one a core, at most 4")
      ->check(CLI::Range(1, 64))
      ->type_name("N");
  serve->add_option("--log", command->log, "Log to this file; else to standard error")
      ->type_name("FILE");
  serve->footer(
      "Stops on SIGTERM or SIGINT, after what is in flight is answered and all is durable.\n"
      "Images and snapshots are served read-only. --detach logs nowhere without --log.\n"
      "With TLS clients need a certificate signed by ca-cert.pem, or a name and key of the file.\n"
      "Examples:\n"
      "  " SNAPCTL_PROGRAM_NAME
      " export web\n"
      "  " SNAPCTL_PROGRAM_NAME
      " export web base:1 --socket /run/web.sock --detach\n"
      "  " SNAPCTL_PROGRAM_NAME
      " export web --tcp 127.0.0.1:10809 --read-only\n"
      "  " SNAPCTL_PROGRAM_NAME
      " export web --tcp 0.0.0.0:10809 --tls-certificates /etc/pki/snapctl");
  serve->callback([&context, command] {
    context.set_preparation([command](Context& c) { return prepare(c, *command); });
    context.set_action([command](Context& c) { return run_export(c, *command); });
  });
}

}  // namespace snap::cli
