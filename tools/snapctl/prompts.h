// Questions before what cannot be undone.
#pragma once

#include <string>

#include "snap/result.h"

namespace snap::cli {

class Context;

/// Asks "<question> [y/N] " on the terminal. Nothing with --yes. Off a terminal without --yes:
/// InvalidArgument that says to give --yes. Cancelled if the answer is no. `what` names the command
/// for messages, e.g. "rm".
Result<void> confirm(const Context& context, const std::string& what, const std::string& question);

}  // namespace snap::cli
