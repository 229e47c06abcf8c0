// Commands on volumes that another process serves, with the types of the Store: what a command does
// to a volume at rest through Store, it does to a served one through these.
//
// Each sends one operation over the control socket (engine/server/control_protocol.h). Errors are
// those of the Store's call in the other process, or of the connection.
//
// The operations, their arguments and results, in JSON (sizes in bytes, times in microseconds):
//   ping      {}                                     {}
//   stop      {}                                     {}            the server drains and ends
//   stat      {"volume"} (empty: all, without       engine/server/server_stat.h
//             the counts of requests)
//   export    {"name"}                               {"uri"}       opens it, so that it can be had
//   release   {"volume"}                             {}            closes it; busy if it is in use
//   attach    engine/server/device_wish.h             engine/attach/attachment.h Attachment
//   detach    {"name"}  (the device)                 {}            does not look for its users
//   reconnect {"name"}  (the device)                 {}
//   commit    {"volume","name","comment","author","created_by","labels":{},"compress",
//             "zstd_level","rate_limit"}             {"image","manifest","size","created","author",
//             "tags":[],"layer":{"blob","content","file_size"},"pause","total","packed"}
//   snapshot  {"volume","name"}                      {"pause"}
//   make-room as commit                              {}
//   freeze    {"volume"}                             {"pause"}
//   clone     {"volume","name"}                      {"name","id","size"}
//   resize    {"volume","size"}                      {"size"}
//   limit     {"volume","size"}  (0: none)           {}
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "engine/attach/attachment.h"
#include "engine/server/control_client.h"
#include "engine/server/device_wish.h"
#include "engine/server/server_stat.h"
#include "snap/result.h"
#include "snap/store.h"
#include "snap/task.h"

namespace snap::server {

/// As Store::commit. The image has no layers and no history here: ask the store for these.
Task<Result<Store::Committed>> remote_commit(ControlClient& server, std::string volume,
                                             Store::CommitOptions options, Progress progress);
/// As Store::snapshot.
Task<Result<Volume::Pause>> remote_snapshot(ControlClient& server, std::string volume,
                                            std::string name);
/// As Store::make_room.
Task<Result<void>> remote_make_room(ControlClient& server, std::string volume,
                                    Store::CommitOptions how);
/// As Store::freeze.
Task<Result<Volume::Pause>> remote_freeze(ControlClient& server, std::string volume);
/// As Store::clone. The record has name, id and size only.
Task<Result<VolumeRecord>> remote_clone(ControlClient& server, std::string volume,
                                        std::string new_name);
/// As Store::resize.
Task<Result<void>> remote_resize(ControlClient& server, std::string volume, std::uint64_t size);
/// As Store::set_volume_limit.
Task<Result<void>> remote_set_limit(ControlClient& server, std::string volume,
                                    std::optional<std::uint64_t> bytes);

/// Of one export, with the counts of its requests; empty: of all, without. NotFound if it is not
/// served; Cancelled after `patience`.
Task<Result<ServerStat>> remote_stat(ControlClient& server, std::string volume,
                                     std::chrono::seconds patience = kControlPatience);

/// Has the server open an export: the URI that clients reach it by. Busy, NotFound and the like say
/// why they could not.
Task<Result<std::string>> remote_export(ControlClient& server, std::string name);

/// As Devices::attach(), detach() and reconnect() of the server.
Task<Result<attach::Attachment>> remote_attach(ControlClient& server, DeviceWish wish);
Task<Result<void>> remote_detach(ControlClient& server, std::string device);
Task<Result<void>> remote_reconnect(ControlClient& server, std::string device);

/// Has the server close a volume that it has open although no one uses it. Busy if someone does.
Task<Result<void>> remote_release(ControlClient& server, std::string volume);

/// Asks the server to drain and end, and waits until its process has gone.
Task<Result<void>> remote_stop(ControlClient& server);

}  // namespace snap::server
