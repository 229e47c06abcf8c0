// dump: a volume as a flat raw file, or as a stream of bytes.
#pragma once

#include "snap/file.h"
#include "snap/result.h"
#include "snap/store.h"
#include "snap/task.h"
#include "snap/volume.h"

namespace snap {

/// Makes `out`, open for writing, the volume's content: a regular file gets its size and holes
/// where the volume reads zero, a block device (at least as large; NoSpace otherwise) has them
/// zeroed. Synced when it returns. "dump" is the stage told.
Task<Result<void>> dump_to_file(Volume& volume, File& out, Progress progress);

/// Writes every byte of the volume to the pipe or socket `fd`, zeros too.
Task<Result<void>> dump_to_stream(Volume& volume, int fd, Progress progress);

}  // namespace snap
