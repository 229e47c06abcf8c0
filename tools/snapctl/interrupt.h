// Ctrl-C: the first one asks the work to stop and leave the store as it was; the second, or ten
// seconds of no answer, ends the process at once (which is safe too: whatever it was writing lies
// in the store's tmp/ and the next command removes it).
#pragma once

namespace snap::cli {

/// Installs the handlers of SIGINT, SIGTERM and SIGHUP, and ignores SIGPIPE.
void catch_interrupts();
/// While held they are noted, but end nothing.
void hold_interrupts(bool hold) noexcept;
/// True once one of them has arrived.
bool interrupted() noexcept;
/// As if no SIGHUP had arrived, unless another of them has, too: for servers, to which it means
/// something else. Once the signals are blocked.
void forget_hangups() noexcept;

}  // namespace snap::cli
