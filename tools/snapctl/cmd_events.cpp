// Command events: what happened to the store.
#include <fmt/format.h>
#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include <chrono>

#include "engine/store/event_log.h"
#include "tools/snapctl/commands.h"
#include "tools/snapctl/context.h"
#include "tools/snapctl/exit_code.h"
#include "tools/snapctl/interrupt.h"
#include "tools/snapctl/json_output.h"
#include "tools/snapctl/table.h"

namespace snap::cli {

namespace {

constexpr std::chrono::milliseconds kFollowPause{200};

struct EventsCommand {
  bool follow = false;
};

/// One line an event, so that a reader need not wait for the end.
std::string event_line(const StoreEvent& event, bool json) {
  if (!json) {
    return fmt::format("{} {} {} {}\n", printable(event.time), printable(event.kind),
                       event.volume.empty() ? "-" : printable(event.volume),
                       printable(event.message));
  }
  Json value{{"schema", kJsonSchema}, {"time", event.time}, {"event", event.kind}};
  value["volume"] = event.volume.empty() ? Json(nullptr) : Json(event.volume);
  value["message"] = event.message;
  for (const auto& [name, number] : event.numbers)
    value[name] = number;
  return value.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
}

Task<Result<int>> run_events(Context& context, EventsCommand command) {
  auto store = co_await context.store();
  if (!store) co_return store.error();
  EventReader reader((*store)->path());
  for (;;) {
    auto batch = co_await reader.next();
    if (!batch) co_return batch.error();
    for (const StoreEvent& event : batch->events)
      context.print(event_line(event, context.options().json));
    if (batch->passed_over != 0)
      context.note(fmt::format("{} lines that are no events were passed over", batch->passed_over));
    auto printed = context.finish_output();
    if (!printed) co_return printed.error();
    if (!command.follow || interrupted()) co_return kExitOk;
    Sleep pause(kFollowPause);
    co_await pause;
    if (interrupted()) co_return kExitOk;
  }
}

}  // namespace

void add_event_commands(CLI::App& app, Context& context) {
  auto command = std::make_shared<EventsCommand>();
  CLI::App* events =
      app.add_subcommand("events", "Show what happened: marks crossed, volumes without space")
          ->group(kStoreGroup);
  events->add_flag("-f,--follow", command->follow, "Go on with what comes, until Ctrl-C");
  events->footer(
      "One line an event, with --json one object a line: time, event, volume, message, and bytes.\n"
      "low-water, limit-reached, store-normal: the store's marks ('" SNAPCTL_PROGRAM_NAME
      " set').\n"
      "volume-no-space, volume-normal, volume-read-only: a volume that is served.");
  set_action(events, context, command, run_events);
}

}  // namespace snap::cli
