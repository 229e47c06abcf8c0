// See prompts.h.
#include "tools/snapctl/prompts.h"

#include <unistd.h>

#include <array>
#include <cstdio>

#include "tools/snapctl/context.h"
#include "tools/snapctl/table.h"

namespace snap::cli {

Result<void> confirm(const Context& context, const std::string& what, const std::string& question) {
  if (context.options().yes) return {};
  if (isatty(STDIN_FILENO) != 1 || isatty(STDERR_FILENO) != 1) {
    return Error(ErrorCode::kInvalidArgument,
                 what +
                     ": there is no terminal to ask on; give --yes to do it, or --dry-run to see "
                     "what it would do");
  }
  std::fprintf(stderr, "%s [y/N] ", printable(question).c_str());
  std::fflush(stderr);
  std::array<char, 64> answer{};
  if (std::fgets(answer.data(), answer.size(), stdin) != nullptr &&
      (answer[0] == 'y' || answer[0] == 'Y'))
    return {};
  return Error(ErrorCode::kCancelled, what + ": not done");
}

}  // namespace snap::cli
