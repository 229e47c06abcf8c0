// DeviceWish: which export is to become which block device, and how.
#pragma once

#include <chrono>
#include <string>

#include "engine/attach/attachment.h"

namespace snap::server {

/// What `attach` asks for.
struct DeviceWish {
  std::string name;  ///< of the export
  attach::Via via = attach::Via::kNbd;
  std::string device;  ///< "/dev/nbd3", "/dev/loop3"; empty: one that is free
  unsigned connections = 1;
  bool read_only = false;
  std::chrono::seconds timeout{0}, dead_timeout{0};  ///< of nbd: attach::NbdNetlink::Device
  bool own_server = false;                           ///< attach::Attachment
  bool for_mount = false;
};

}  // namespace snap::server
