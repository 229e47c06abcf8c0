// The two rigs behind make_rig().
#pragma once

#include "tests/crash/rig.h"

namespace snap::crash {

std::unique_ptr<Rig> make_delta_rig(SimDisk& disk);
std::unique_ptr<Rig> make_store_rig(SimDisk& disk);

}  // namespace snap::crash
