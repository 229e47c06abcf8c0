// Builds the reply of a Request: fills its `head` and `pieces`. Pure; no I/O.
#pragma once

#include <span>
#include <string_view>
#include <vector>

#include "engine/nbd/contexts.h"
#include "engine/nbd/request.h"
#include "snap/volume.h"

namespace snap::nbd {

/// Success without data, for every command but READ and BLOCK_STATUS.
void build_done(Request& request, Headers headers);

/// An error: with words, unless replies are simple.
void build_error(Request& request, WireError error, std::string_view words, Headers headers);

/// The data of a READ, all of it in request.data (nothing if it read no bytes). In chunks: runs of
/// zeros of 64 KiB and more go as holes; with DF there is one chunk.
void build_read(Request& request, Headers headers);

/// The extents of a BLOCK_STATUS, at least one, as each of the contexts has them. Neighbours with
/// equal flags are merged, then all but the first dropped if the request says REQ_ONE.
void build_block_status(Request& request, std::span<const Extent> extents, MetaContexts contexts,
                        Headers headers);

}  // namespace snap::nbd
