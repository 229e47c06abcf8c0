// The control operations of a process that serves volumes (engine/server/remote.h lists them).
#pragma once

#include <functional>
#include <string>

#include "engine/server/catalogue.h"
#include "engine/server/control.h"
#include "engine/server/devices.h"
#include "engine/server/open_items.h"
#include "engine/server/server_stat.h"
#include "snap/store.h"

namespace snap::server {

/// What the operations work on. Outlives the control server's run().
struct Served {
  Store* store = nullptr;
  Catalogue* catalogue = nullptr;
  OpenItems* open = nullptr;
  Devices* devices = nullptr;
  /// Of the export of that name, with its counts; empty: of all, without.
  std::function<ServerStat(const std::string& volume)> stat;
  std::function<std::string(const std::string& name)> uri;
  std::function<void()> stop;
};

void add_volume_ops(ControlServer& control, Served& served);

}  // namespace snap::server
