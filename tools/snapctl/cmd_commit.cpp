// Command commit: a volume becomes an image, also while it is served.
#include <fmt/format.h>
#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "tools/snapctl/commands.h"
#include "tools/snapctl/compression.h"
#include "tools/snapctl/context.h"
#include "tools/snapctl/exit_code.h"
#include "tools/snapctl/file_system_pause.h"
#include "tools/snapctl/json_output.h"
#include "tools/snapctl/names.h"
#include "tools/snapctl/size_format.h"
#include "tools/snapctl/volume_access.h"

namespace snap::cli {

namespace {

struct CommitCommand {
  std::string volume, name, message, author, compress;
  std::vector<std::string> labels;
  bool pause = false;
};

Result<Store::CommitOptions> commit_options(const CommitCommand& command) {
  Store::CommitOptions out;
  if (!command.name.empty()) {
    auto name = Reference::parse(command.name);
    if (!name) return name.error();
    out.name = *name;
  }
  auto compression = parse_compression(command.compress);
  if (!compression) return compression.error();
  auto labels = parse_labels(command.labels);
  if (!labels) return labels.error();
  out.comment = command.message;
  out.author = command.author;
  out.created_by = command_line();
  out.labels = *labels;
  out.compress = compression->enabled;
  out.zstd_level = compression->zstd_level;
  return out;
}

void print_commit(Context& context, const VolumeAccess::Committed& committed) {
  if (context.options().json) {
    Json out = image_json(committed.image);
    out["pause_us"] = committed.pause.count();
    out["total_us"] = committed.total.count();
    out["packed"] = committed.packed;
    print_json(context, std::move(out));
    return;
  }
  context.note(fmt::format("committed {} in {}; writes were paused for {}",
                           print_size(committed.packed), print_elapsed(committed.total),
                           print_elapsed(committed.pause)));
  context.print(committed.image.id.str() + "\n");
}

Task<Result<int>> run_commit(Context& context, CommitCommand command) {
  auto options = commit_options(command);
  if (!options) co_return options.error();
  auto store = co_await context.store();
  if (!store) co_return store.error();
  auto access = co_await VolumeAccess::open(**store, command.volume);
  if (!access) co_return access.error();
  Store::CommitOptions packing = *options;
  auto pause = co_await FileSystemPause::begin(context, *access, command.pause, std::move(packing));
  if (!pause) co_return co_await given_back(std::move(*access), pause.error());
  Progress progress = context.progress();
  progress.report = [&pause, show = std::move(progress.report)](
                        std::string_view stage, std::uint64_t done, std::uint64_t total) {
    pause->end();  // a commit tells of nothing before its content is fixed
    if (show) show(stage, done, total);
  };
  bool too_long = false;
  progress.cancelled = [&pause, &too_long, ask = std::move(progress.cancelled)] {
    too_long = too_long || pause->too_long();
    return too_long || ask();
  };
  auto committed = co_await access->commit(*options, progress);
  pause->end();
  if (!committed && too_long)
    committed = Error(ErrorCode::kBusy,
                      "commit: file systems were frozen for too long, for another commit of the "
                      "volume is running; try again when that has ended");
  auto closed = co_await access->close();
  context.end_progress();
  if (!committed) co_return committed.error();
  if (!closed) co_return closed.error();
  print_commit(context, *committed);
  co_return kExitOk;
}

}  // namespace

void add_commit_commands(CLI::App& app, Context& context) {
  auto command = std::make_shared<CommitCommand>();
  CLI::App* commit = app.add_subcommand("commit", "Make an image of a volume, also of one in use")
                         ->group(kImagesGroup);
  commit->add_option("volume", command->volume, "The volume")->required()->type_name("VOL");
  commit->add_option("name", command->name, "Name of the image")->type_name("NAME[:TAG]");
  commit->add_option("-m,--message", command->message, "Comment for the history")
      ->type_name("TEXT");
  commit->add_option("-a,--author", command->author, "Author for the history")->type_name("NAME");
  commit->add_option("--compress", command->compress, "Compress the layer")
      ->type_name("zstd[:LEVEL]");
  commit->add_flag(
      "--pause", command->pause,
      "Freeze what is mounted of it for that moment, so that the image needs no repair");
  commit->add_option("--label", command->labels, "Label of the image; may be given again")
      ->type_name("KEY=VALUE");
  commit->footer(
      "The volume goes on with the new image below it. Prints the image id; the time it took and\n"
      "the pause of writes go to standard error.\n"
      "Example:\n"
      "  " SNAPCTL_PROGRAM_NAME " commit -a=\"pakho\" -m=\"add webapps app\" web tomcat02:1.0");
  set_action(commit, context, command, run_commit);
}

}  // namespace snap::cli
