// What keeps a server that is behind a block device of its own machine out of a deadlock when
// memory is short: then the kernel writes dirty pages to that device to get memory back, and must
// not do so from within the server, nor kill it.
#pragma once

namespace snap::server {

/// PR_SET_IO_FLUSHER (prctl(2)): memory that the server asks for never waits for the writing of
/// pages, and its own writes are not throttled behind those of others. Inherited by threads: called
/// before the first. Nothing without CAP_SYS_RESOURCE: then the server can attach nothing either.
void become_io_flusher() noexcept;

/// Keeps the kernel from choosing this process when it has to kill one. Nothing where it may not.
void spare_from_oom_killer() noexcept;

}  // namespace snap::server
