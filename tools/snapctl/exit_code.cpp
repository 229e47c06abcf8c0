// See exit_code.h.
#include "tools/snapctl/exit_code.h"

#include <cctype>

namespace snap::cli {

namespace {
// Longer words than this are no name or path that a person wants to read whole.
constexpr std::size_t kLongestWord = 300;
constexpr std::size_t kKeptEnds = 60;

std::string cut_in_the_middle(std::string_view word) {
  if (word.size() <= kLongestWord) return std::string(word);
  std::string out(word.substr(0, kKeptEnds));
  out += "...";
  out += word.substr(word.size() - kKeptEnds);
  return out;
}
}  // namespace

int exit_code_of(ErrorCode code) noexcept {
  switch (code) {
    case ErrorCode::kInvalidArgument:
      return kExitUsage;
    case ErrorCode::kNotFound:
      return kExitNotFound;
    case ErrorCode::kBusy:
      return kExitBusy;
    case ErrorCode::kNoSpace:
      return kExitNoSpace;
    case ErrorCode::kCorrupt:
      return kExitDamage;
    case ErrorCode::kCancelled:
      return kExitCancelled;
    case ErrorCode::kExists:
    case ErrorCode::kIo:
    case ErrorCode::kUnsupported:
    case ErrorCode::kPermission:
    case ErrorCode::kReadOnly:
    case ErrorCode::kTooLarge:
    case ErrorCode::kOutOfMemory:
    case ErrorCode::kProtocol:
      return kExitFailure;
  }
  return kExitFailure;
}

std::string error_line(std::string_view message) {
  std::string clean;
  clean.reserve(message.size());
  for (char c : message) {
    if (c == '\n' || c == '\r' || c == '\t') {
      clean += ' ';
    } else if (std::iscntrl(static_cast<unsigned char>(c)) != 0) {
      clean += '?';
    } else {
      clean += c;
    }
  }
  while (!clean.empty() && clean.back() == ' ')
    clean.pop_back();

  std::string line = SNAPCTL_PROGRAM_NAME ": ";
  std::size_t start = 0;
  while (start < clean.size()) {
    std::size_t end = clean.find(' ', start);
    if (end == std::string::npos) end = clean.size();
    line += cut_in_the_middle(std::string_view(clean).substr(start, end - start));
    if (end < clean.size()) line += ' ';
    start = end + 1;
  }
  return line;
}

}  // namespace snap::cli
