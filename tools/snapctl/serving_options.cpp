// See serving_options.h.
#include "tools/snapctl/serving_options.h"

#include <signal.h>
#include <stdio_ext.h>
#include <sys/un.h>

#include <fmt/format.h>
#include <CLI/CLI.hpp>
#include <cstdio>
#include <cstdlib>
#include <variant>

#include "engine/server/log.h"
#include "engine/server/protect.h"
#include "engine/server/signals.h"
#include "tools/snapctl/context.h"
#include "tools/snapctl/exit_code.h"
#include "tools/snapctl/interrupt.h"

namespace snap::cli {

namespace {

/// What fits into a sockaddr_un, without the zero at its end.
constexpr std::size_t kMaxSocketPath = sizeof(sockaddr_un::sun_path) - 1;

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

Result<server::UnixEndpoint> unix_endpoint(const ServingOptions& options) {
  if (options.socket.size() > kMaxSocketPath) {
    return Error(
        ErrorCode::kInvalidArgument,
        fmt::format("{}: clients can reach a unix socket by a path of at most {} "
                    "bytes, and --socket {} has {}; choose a shorter one",
                    options.command, kMaxSocketPath, options.socket, options.socket.size()));
  }
  server::UnixEndpoint endpoint;
  endpoint.path = options.socket;
  endpoint.group = options.socket_group;
  if (!options.socket_mode.empty()) {
    auto mode = parse_mode(options.socket_mode);
    if (!mode) return mode.error();
    endpoint.mode = *mode;
  }
  return endpoint;
}

int refuse(Context& context, const Error& error) {
  context.report(error);
  return exit_code_of(error.code());
}

/// Whoever was to read the URI may have gone; the volumes are served all the same. So that is no
/// failure in the end either.
std::optional<Error> lost_output(Context& context) {
  auto flushed = context.finish_output();
  if (flushed) return std::nullopt;
  __fpurge(stdout);
  std::clearerr(stdout);
  return flushed.error();
}

/// The exit code of the process that was started; none in the background process.
std::optional<int> go_to_background(Context& context, ServingOptions& options) {
  auto detached = server::detach(options.log.empty() ? "/dev/null" : options.log);
  if (!detached) return refuse(context, detached.error());
  if (auto* text = std::get_if<std::string>(&*detached)) {
    context.print(*text);
    if (auto lost = lost_output(context)) context.report(*lost);
    return kExitOk;
  }
  options.background =
      std::make_shared<server::Readiness>(std::move(std::get<server::Readiness>(*detached)));
  return std::nullopt;
}

}  // namespace

void add_serving_options(CLI::App& app, ServingOptions& options) {
  auto* socket = app.add_option("--socket", options.socket,
                                "Listen on this unix socket; else on one of our own")
                     ->type_name("PATH");
  app.add_option("--socket-mode", options.socket_mode, "Its mode; else 600")->type_name("MODE");
  app.add_option("--socket-group", options.socket_group, "Its group")->type_name("GROUP");
  app.add_option("--tcp", options.tcp, "Listen on this address; beyond loopback with TLS")
      ->type_name("HOST:PORT")
      ->excludes(socket);
  app.add_option("--metrics", options.metrics,
                 "Tell Prometheus, at http://HOST:PORT/metrics, how it goes")
      ->type_name("HOST:PORT");
  app.add_flag("--insecure", options.insecure,
               "Let --metrics, and --tcp without TLS, take addresses that other machines reach");
  add_tls_options(app, options.tls);
  app.add_flag("--read-only", options.read_only, "Refuse writes");
  app.add_flag("--detach", options.detach, "Return once clients can connect, and serve on");
  app.add_option("--threads", options.threads, "Worker threads; else one a core, at most 4")
      ->check(CLI::Range(1, 64))
      ->type_name("N");
  app.add_option("--log", options.log,
                 "Log to this file, which SIGHUP opens anew; else to standard error")
      ->type_name("FILE");
}

std::optional<int> prepare_serving(Context& context, ServingOptions& options) {
  const char* log = std::getenv("SNAPCTL_LOG");
  if (options.log.empty() && log != nullptr) options.log = log;
  options.manager = server::ServiceManager::from_environment();
  auto inherited = inherited_listeners();
  if (!inherited) return refuse(context, inherited.error());
  if (options.detach && !inherited->empty()) {
    return refuse(context, Error(ErrorCode::kInvalidArgument,
                                 options.command + ": leave out --detach where a service manager "
                                                   "passes sockets: it minds the process itself"));
  }
  options.inherited = std::make_shared<std::vector<Listener>>(std::move(*inherited));
  if (options.detach) {
    auto ended = go_to_background(context, options);
    if (ended) return ended;
  }
  if (!options.log.empty()) {
    auto logged = server::log_to_file(options.log);
    if (!logged) return refuse(context, logged.error());
  }
  // A server of volumes that were named here goes with the terminal that it was started from.
  struct sigaction hangup {};
  sigaction(SIGHUP, nullptr, &hangup);
  options.stop_on_hangup = options.command == "export" && !options.detach && options.log.empty() &&
                           hangup.sa_handler != SIG_IGN;
  server::become_io_flusher();
  auto blocked = server::block_stop_signals();
  if (!blocked) return refuse(context, blocked.error());
  // From here on they wait until the server looks; one that came before was noted, and nothing
  // else.
  if (!options.stop_on_hangup) forget_hangups();
  if (interrupted()) {
    const Error told(ErrorCode::kCancelled, options.command + ": told to stop before it served");
    report_failure(options, told);
    return refuse(context, told);
  }
  return std::nullopt;
}

Result<server::VolumeServer::Options> server_options(const ServingOptions& options) {
  server::VolumeServer::Options out;
  out.read_only = options.read_only;
  out.threads = options.threads;
  out.insecure = options.insecure;
  if (!options.socket.empty()) {
    auto endpoint = unix_endpoint(options);
    if (!endpoint) return endpoint.error();
    out.socket = std::move(*endpoint);
  } else if (!options.socket_mode.empty() || !options.socket_group.empty()) {
    return Error(
        ErrorCode::kInvalidArgument,
        fmt::format("{}: --socket-mode and --socket-group go with --socket PATH", options.command));
  }
  if (!options.tcp.empty()) {
    auto endpoint = server::parse_tcp_endpoint(options.tcp);
    if (!endpoint) return endpoint.error();
    out.tcp = *endpoint;
    out.tcp->insecure = options.insecure;
  }
  if (!options.metrics.empty()) {
    if (options.metrics.find(':') == std::string::npos) {
      return Error(ErrorCode::kInvalidArgument,
                   fmt::format("{}: --metrics takes HOST:PORT, such as 127.0.0.1:9100, not '{}'",
                               options.command, options.metrics));
    }
    auto endpoint = server::parse_tcp_endpoint(options.metrics);
    if (!endpoint) return endpoint.error();
    out.metrics = *endpoint;
    out.metrics->insecure = options.insecure;
  }
  out.inherited = std::move(*options.inherited);
  out.manager = options.manager;
  out.stop_on_hangup = options.stop_on_hangup;
  return out;
}

Task<Result<int>> run_server(Context& context, ServingOptions options,
                             server::VolumeServer::Options server_settings, ReadyText ready_text) {
  auto tls = co_await load_tls(options.tls);
  if (!tls) co_return tls.error();
  server_settings.tls = std::move(*tls);
  const bool announce = server_settings.inherited.empty();
  server::VolumeServer server(std::move(server_settings));
  auto on_ready = [&context, &options, &ready_text,
                   announce](const server::VolumeServer::Ready& ready) {
    if (!announce) return;
    const std::string text = ready_text(ready);
    if (options.background) {
      options.background->ready(text);
      return;
    }
    context.print(text);
    if (auto lost = lost_output(context)) server::log_warning(lost->message());
  };
  auto served = co_await server.run(on_ready);
  if (!served) co_return served.error();
  co_return kExitOk;
}

void report_failure(const ServingOptions& options, const Error& error) {
  if (options.background) options.background->failed(error);
}

}  // namespace snap::cli
