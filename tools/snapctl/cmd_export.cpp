// Command export: serves volumes, images and snapshots over NBD until stopped, in the foreground or
// detached.
#include <unistd.h>

#include <fmt/format.h>
#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "tools/snapctl/commands.h"
#include "tools/snapctl/context.h"
#include "tools/snapctl/json_output.h"
#include "tools/snapctl/names.h"
#include "tools/snapctl/serving_options.h"
#include "tools/snapctl/volume_access.h"

namespace snap::cli {

namespace {

struct ExportCommand {
  std::vector<std::string> objects;
  ServingOptions serving;
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
    if (object->volume && object->snapshot.empty()) co_await release_idle(&*object->volume);
    items.push_back(item_of(*object, text));
  }
  co_return items;
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
  auto options = server_options(command.serving);
  if (!options) co_return options.error();
  auto items = co_await find_items(context, command);
  if (!items) co_return items.error();
  options->store = context.store_path();
  options->items = *items;
  auto text = [&context, &items](const server::VolumeServer::Ready& ready) {
    return ready_text(context, *items, ready);
  };
  auto serving = run_server(context, command.serving, std::move(*options), text);
  auto served = co_await std::move(serving);
  co_return served;
}

Task<Result<int>> run_export(Context& context, ExportCommand command) {
  auto served = co_await serve(context, command);
  if (!served) report_failure(command.serving, served.error());
  co_return served;
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
  command->serving.command = "export";
  add_serving_options(*serve, command->serving);
  serve->footer(
      "Stops on SIGTERM or SIGINT, after what is in flight is answered and all is durable.\n"
      "Images and snapshots are served read-only. --detach logs nowhere without --log.\n"
      "With TLS clients need a certificate signed by ca-cert.pem, or a name and key of the file.\n"
      "Sockets that are passed on (LISTEN_FDS) are used, and then nothing is printed.\n"
      "Examples:\n"
      "  " SNAPCTL_PROGRAM_NAME
      " export web\n"
      "  " SNAPCTL_PROGRAM_NAME
      " export web base:1 --socket /run/web.sock --detach\n"
      "  nbdcopy -- [ " SNAPCTL_PROGRAM_NAME
      " export web ] disk.raw\n"
      "  " SNAPCTL_PROGRAM_NAME
      " export web --tcp 127.0.0.1:10809 --read-only\n"
      "  " SNAPCTL_PROGRAM_NAME
      " export web --tcp 0.0.0.0:10809 --tls-certificates /etc/pki/snapctl");
  serve->callback([&context, command] {
    context.set_preparation([command](Context& c) { return prepare_serving(c, command->serving); });
    context.set_action([command](Context& c) { return run_export(c, *command); });
  });
}

}  // namespace snap::cli
