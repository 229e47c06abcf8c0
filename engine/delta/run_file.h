// The file `run` of a delta (docs/format.md, Delta): a note for who opens it next on this boot, of
// who has it open to write, or that it was closed in order (docs/durability.md, Live, Recovery).
#pragma once

#include <optional>

#include "engine/base/uuid.h"
#include "engine/delta/identity.h"
#include "snap/file.h"
#include "snap/result.h"

namespace snap {

struct RunNote {
  /// Of the opening that has not ended, or whose process died.
  std::optional<Uuid> token;
  /// It ended in order on this boot, with this data file: the page cache has nothing of the data
  /// that the disk does not have.
  bool closed = false;
};

/// `data`: the delta's data file. A file that is not there or says nothing is an empty note.
Task<RunNote> read_run(Directory& dir, const File& data);

/// Durable when it returns, for a page that was lost, and then read from the disk as it was before,
/// would be believed. In place: on a full disk it still goes over the note before.
Task<Result<void>> note_open(Directory& dir, Uuid token);

/// Not durable: after a power cut it would mean nothing. Without space there is no note, which
/// costs time alone.
Task<void> note_closed(Directory& dir, const File& data);

Task<Result<void>> remove_run(Directory& dir);

}  // namespace snap
