// The command groups: each adds its commands to the program, with their options, help and action.
#pragma once

#include <memory>
#include <utility>

#include "snap/result.h"
#include "snap/task.h"
#include "tools/snapctl/context.h"

namespace CLI {
class App;
}

namespace snap::cli {

void add_import_commands(CLI::App& app, Context& context);    // import
void add_image_commands(CLI::App& app, Context& context);     // images history tag rmi
void add_commit_commands(CLI::App& app, Context& context);    // commit
void add_inspect_commands(CLI::App& app, Context& context);   // inspect
void add_content_commands(CLI::App& app, Context& context);   // diff compare map
void add_dump_commands(CLI::App& app, Context& context);      // dump
void add_archive_commands(CLI::App& app, Context& context);   // save load
void add_volume_commands(CLI::App& app, Context& context);    // create clone ls rm rename resize
void add_snapshot_commands(CLI::App& app, Context& context);  // snapshot snapshots rollback reset
void add_export_commands(CLI::App& app, Context& context);    // export
void add_serve_commands(CLI::App& app, Context& context);     // serve
void add_attach_commands(CLI::App& app, Context& context);    // attach detach restart
void add_mount_commands(CLI::App& app, Context& context);     // mount umount
void add_run_commands(CLI::App& app, Context& context);       // run
void add_doctor_commands(CLI::App& app, Context& context);    // doctor
void add_stat_commands(CLI::App& app, Context& context);      // stat ps
void add_store_commands(CLI::App& app, Context& context);     // init df prune info version
void add_set_commands(CLI::App& app, Context& context);       // set
void add_event_commands(CLI::App& app, Context& context);     // events
void add_backup_commands(CLI::App& app, Context& context);    // backup
void add_bench_commands(CLI::App& app, Context& context);     // bench
void add_check_commands(CLI::App& app, Context& context);     // check scrub

inline constexpr const char* kImagesGroup = "IMAGES";
inline constexpr const char* kVolumesGroup = "VOLUMES";
inline constexpr const char* kAccessGroup = "ACCESS";
inline constexpr const char* kStoreGroup = "STORE";

/// Makes `action` what the program does when `command` is given.
void set_action(CLI::App* command, Context& context, Context::Action action);
/// The same for a coroutine that takes the command's options by value.
template <class Options>
void set_action(CLI::App* command, Context& context, std::shared_ptr<Options> options,
                Task<Result<int>> (*run)(Context&, Options)) {
  set_action(command, context,
             [options = std::move(options), run](Context& c) { return run(c, *options); });
}

}  // namespace snap::cli
