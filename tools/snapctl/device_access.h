// Volumes and images as block devices, for the commands that need one (attach, mount, run): who
// serves it, and the way there and back.
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/attach/attachment.h"
#include "engine/server/control_client.h"
#include "snap/result.h"
#include "snap/task.h"
#include "tools/snapctl/context.h"
#include "tools/snapctl/names.h"

namespace snap::cli {

/// What a device's server is asked for by name.
struct Exported {
  std::string name;  ///< of the export: "web", "base:1", "web@monday"
  std::string text;  ///< an OBJ that means this and nothing else
  bool writable = false;
  bool listed = true;  ///< `serve` has it by this name; it does not have images without a tag
};
Task<Result<Exported>> find_exported(Store& store, std::string text);

/// A server that has the export, or takes it in.
struct DeviceServer {
  std::unique_ptr<server::ControlClient> client;
  std::string name;     ///< of the export there
  std::string control;  ///< path of its control socket, if it is `own`
  bool own = false;     ///< was started here, and is to go with the device
};
/// The one of the store where it runs, else the one that has the volume, else a new one, as
/// `export --detach` starts it, with a log of its own. Busy if a process has the volume that takes
/// no commands.
Task<Result<DeviceServer>> server_for(Context& context, Exported exported);
/// Ends one that was started for a device unless clients or other devices still use it.
Task<Result<void>> stop_unused(DeviceServer server);

struct AttachOptions {
  std::string via = "auto";  ///< or "nbd", "fuse"
  std::string device;        ///< "/dev/nbd3"; empty: one that is free
  unsigned connections = 0;  ///< 0: one a processor, at most 4
  bool read_only = false;
  std::chrono::seconds timeout{30}, dead_timeout{300};
  bool for_mount = false;
  bool if_needed = false;  ///< a volume that is attached already will do as it is
};
/// Returns once the device can be used. Busy if the volume is attached already; on failure nothing
/// of it is left.
Task<Result<attach::Attachment>> attach_object(Context& context, std::string text,
                                               AttachOptions options);

/// By device (of any store), or by what is attached. InvalidArgument if an image is attached more
/// than once.
enum class Wanted {
  kInPlace,  ///< the kernel has it, as ours; what it has given up is NotFound
  kAny,      ///< a record will do, where nothing better is there
};
Task<Result<attach::Attachment>> find_attachment(Context& context, std::string text,
                                                 Wanted wanted = Wanted::kInPlace);
/// Busy if the volume, or a snapshot of it, is attached. For commands that would put something else
/// under a device of which the server has died.
Task<Result<void>> refuse_attached(Store& store, std::string volume);
/// The same for an image, which its device goes on needing.
Task<Result<void>> refuse_attached_image(Store& store, ImageId image);
/// All of this user's, of every store.
Task<Result<std::vector<attach::Attachment>>> all_attachments();
/// Those of this store, by whatever path they were attached.
Task<Result<std::vector<attach::Attachment>>> attachments_of(Store& store);

/// Everything durable, then cut off, then its server stopped if it was started for it. Busy, with
/// the users, if it is in use and not `force`d; then they get I/O errors. Nor is a device taken
/// from a server that does not answer, unless `force`d; of one that has died what it had answered
/// is made durable, and that is said.
Task<Result<void>> detach_device(Context& context, attach::Attachment device, bool force);

/// What a server of the device has to have: the very thing that was attached, an image also if its
/// tag has moved on. Exists if its name has something else now, and this is nowhere.
Task<Result<Exported>> find_attached(Context& context, attach::Attachment device);
/// Gives an nbd device that has lost its server another.
Task<Result<void>> reconnect_device(Context& context, attach::Attachment device);

}  // namespace snap::cli
