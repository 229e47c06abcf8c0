// Exit codes of the program, and the one table that maps engine errors to them.
#pragma once

#include <string>
#include <string_view>

#include "snap/result.h"

namespace snap::cli {

inline constexpr int kExitOk = 0;
inline constexpr int kExitFailure = 1;      ///< it did not work; of `compare`: not the same
inline constexpr int kExitDamage = 2;       ///< stored bytes are damaged
inline constexpr int kExitLeaks = 3;        ///< of `check`: only harmless leaks were found
inline constexpr int kExitNotFound = 4;     ///< no such volume, image, layer or snapshot
inline constexpr int kExitBusy = 5;         ///< held by another process, or in use
inline constexpr int kExitNoSpace = 6;      ///< the file system or a limit is full
inline constexpr int kExitUsage = 64;       ///< the command line makes no sense
inline constexpr int kExitCancelled = 130;  ///< ended by Ctrl-C

/// The exit code that an error of the engine ends the program with.
int exit_code_of(ErrorCode code) noexcept;

/// "snapctl: <message>" on one line: line breaks and control characters, which may come from names
/// and files that others made, become spaces or '?', and endless words are cut in the middle.
std::string error_line(std::string_view message);

}  // namespace snap::cli
