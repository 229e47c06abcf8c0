// Short options as docker takes them: `-a=pakho`, `-apakho` and `-a pakho` all mean pakho, where
// CLI11 reads the first as "=pakho". Done in two steps, so that a value that really begins with '='
// keeps it: words of the form -X=VALUE get a mark in place of the '=' before parsing, and every
// option drops the mark from its value. The mark also goes before a '[', which begins a list for
// CLI11 and a name for us.
#pragma once

#include <string>
#include <vector>

namespace CLI {
class App;
}

namespace snap::cli {

/// Replaces the '=' of each word -X=VALUE before "--" by the mark, and puts one before a '['.
void mark_values(std::vector<std::string>& words);
/// `value` without the mark.
std::string without_mark(std::string value);
/// Makes every option of `command` take its values as they are: the mark dropped, no lists in
/// brackets, no empty words for names.
void plain_values(CLI::App& command);

}  // namespace snap::cli
