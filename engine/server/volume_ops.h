// The control operations of a process that serves volumes (engine/server/remote.h lists them).
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "engine/server/control.h"
#include "engine/server/remote.h"
#include "snap/store.h"

namespace snap::server {

/// What the operations work on. Outlives the control server's run().
struct Served {
  std::unique_ptr<Store> store;
  std::map<std::string, std::unique_ptr<OpenVolume>> volumes;  ///< writable ones, by name
  struct View {
    std::string name;  ///< of the export
    std::shared_ptr<Volume> volume;
    bool read_only = false;
  };
  std::vector<View> views;  ///< everything that is exported, in order
  std::function<std::size_t()> connections;
  std::function<void()> stop;
};

void add_volume_ops(ControlServer& control, Served& served);

}  // namespace snap::server
