// Command serve: one server for the whole store.
#include <unistd.h>

#include <fmt/format.h>
#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "tools/snapctl/commands.h"
#include "tools/snapctl/context.h"
#include "tools/snapctl/json_output.h"
#include "tools/snapctl/serving_options.h"

namespace snap::cli {

namespace {

std::string ready_text(const Context& context, const server::VolumeServer::Ready& ready) {
  if (!context.options().json) return fmt::format("{}\n", fmt::join(ready.uris, "\n"));
  Json out{{"schema", kJsonSchema},
           {"uris", ready.uris},
           {"pid", getpid()},
           {"control_socket", ready.control_socket},
           {"metrics", ready.metrics.empty() ? Json(nullptr) : Json(ready.metrics)}};
  return out.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

Task<Result<int>> serve(Context& context, ServingOptions serving) {
  auto options = server_options(serving);
  if (!options) co_return options.error();
  options->store = context.store_path();
  auto text = [&context](const server::VolumeServer::Ready& ready) {
    return ready_text(context, ready);
  };
  auto running = run_server(context, serving, std::move(*options), text);
  auto served = co_await std::move(running);
  co_return served;
}

Task<Result<int>> run_serve(Context& context, ServingOptions serving) {
  auto served = co_await serve(context, serving);
  if (!served) report_failure(serving, served.error());
  co_return served;
}

}  // namespace

void add_serve_commands(CLI::App& app, Context& context) {
  auto options = std::make_shared<ServingOptions>();
  options->command = "serve";
  CLI::App* serve =
      app.add_subcommand("serve", "Serve every volume and image of the store, as they come and go")
          ->group(kAccessGroup);
  add_serving_options(*serve, *options);
  serve->footer(
      "A volume is served under its NAME, an image as NAME:TAG, a snapshot as VOL@SNAP, the "
      "latter\n"
      "two read-only; there is no default export. A volume is open while a client has it. Prints\n"
      "the URI without a name. Stops on SIGTERM or SIGINT, after what is in flight is answered "
      "and\n"
      "all is durable; SIGHUP opens the log anew.\n"
      "Examples:\n"
      "  " SNAPCTL_PROGRAM_NAME
      " serve --socket /run/snapctl.sock --socket-mode 660 --socket-group kvm\n"
      "  nbdinfo --list 'nbd+unix:///?socket=/run/snapctl.sock'\n"
      "  nbdcopy 'nbd+unix:///web?socket=/run/snapctl.sock' disk.raw");
  serve->callback([&context, options] {
    context.set_preparation([options](Context& c) { return prepare_serving(c, *options); });
    context.set_action([options](Context& c) { return run_serve(c, *options); });
  });
}

}  // namespace snap::cli
