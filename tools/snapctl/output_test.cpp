// What is printed: tables, error lines, progress lines.
#include <catch2/catch.hpp>

#include "tools/snapctl/exit_code.h"
#include "tools/snapctl/progress_bar.h"
#include "tools/snapctl/table.h"

using namespace snap;
using namespace snap::cli;

TEST_CASE("a table has its columns apart by three spaces and no spaces at the end of lines") {
  Table table({"NAME", "SIZE", "NOTE"});
  table.align_right({1});
  table.add({"web", "10GiB", ""});
  table.add({"database", "1KiB", "big"});
  CHECK(table.str() ==
        "NAME        SIZE   NOTE\n"
        "web        10GiB\n"
        "database    1KiB   big\n");
}

TEST_CASE("a table counts characters, not bytes, and shows no control characters") {
  Table table({"A", "B"});
  table.add({"\xc3\xa4\xc3\xa4", "x"});
  table.add({"a\x1b[31m", "line\nbreak"});
  CHECK(table.str() ==
        "A        B\n"
        "\xc3\xa4\xc3\xa4       x\n"
        "a?[31m   line break\n");
}

TEST_CASE("long text is cut at a character") {
  CHECK(shorten("short", 10) == "short");
  CHECK(shorten("0123456789", 10) == "0123456789");
  CHECK(shorten("0123456789a", 10) == "0123456...");
  CHECK(shorten("\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4", 4) == "\xc3\xa4...");
}

TEST_CASE("an error is one line whatever the message holds") {
  CHECK(error_line("cannot") == SNAPCTL_PROGRAM_NAME ": cannot");
  CHECK(error_line("a\nb\r\tc\n") == SNAPCTL_PROGRAM_NAME ": a b  c");
  CHECK(error_line("\x1b[2J") == SNAPCTL_PROGRAM_NAME ": ?[2J");
  std::string line = error_line("no volume '" + std::string(10000, 'x') + "'; see ls");
  CHECK(line.size() < 200);
  CHECK(line.find("...") != std::string::npos);
  CHECK(line.ends_with("see ls"));
}

TEST_CASE("every error code has the exit code that is documented") {
  CHECK(exit_code_of(ErrorCode::kInvalidArgument) == 64);
  CHECK(exit_code_of(ErrorCode::kNotFound) == 4);
  CHECK(exit_code_of(ErrorCode::kExists) == 1);
  CHECK(exit_code_of(ErrorCode::kBusy) == 5);
  CHECK(exit_code_of(ErrorCode::kNoSpace) == 6);
  CHECK(exit_code_of(ErrorCode::kIo) == 1);
  CHECK(exit_code_of(ErrorCode::kCorrupt) == 2);
  CHECK(exit_code_of(ErrorCode::kUnsupported) == 1);
  CHECK(exit_code_of(ErrorCode::kPermission) == 1);
  CHECK(exit_code_of(ErrorCode::kReadOnly) == 1);
  CHECK(exit_code_of(ErrorCode::kCancelled) == 130);
  CHECK(exit_code_of(ErrorCode::kTooLarge) == 1);
  CHECK(exit_code_of(ErrorCode::kOutOfMemory) == 1);
  CHECK(exit_code_of(ErrorCode::kProtocol) == 1);
}

TEST_CASE("a progress line has share, sums, rate and time left, and fits its terminal") {
  using Seconds = std::chrono::duration<double>;
  std::string line = progress_line("import", 1u << 30, std::uint64_t{2} << 30, Seconds(2), 100);
  CHECK(line.find("[====") != std::string::npos);
  CHECK(line.find("50%") != std::string::npos);
  CHECK(line.find("1GiB / 2GiB") != std::string::npos);
  CHECK(line.find("512MiB/s") != std::string::npos);
  CHECK(line.find("left") != std::string::npos);
  CHECK(line.size() <= 100);
  std::string plain = progress_line("import", 1u << 30, 0, Seconds(2), 0);
  CHECK(plain == "import  1GiB  512MiB/s");
  CHECK(progress_line("a", 5, 4, Seconds(0), 0).find("100%") != std::string::npos);
}

TEST_CASE("progress shows a bar on terminals alone, and nothing when it is not wanted") {
  using Mode = ProgressBar::Mode;
  CHECK(progress_mode("auto", false, true) == Mode::kBar);
  CHECK(progress_mode("auto", false, false) == Mode::kPlain);
  CHECK(progress_mode("auto", true, true) == Mode::kNone);
  CHECK(progress_mode("plain", false, true) == Mode::kPlain);
  CHECK(progress_mode("none", false, true) == Mode::kNone);
}
