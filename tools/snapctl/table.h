// A table as docker prints them: a heading in capitals, columns apart by three spaces, no lines.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace snap::cli {

/// Text that is safe on a terminal: control characters, which may come from names and messages that
/// others made, become '?' and line breaks become spaces.
std::string printable(std::string_view text);

/// At most `width` characters; longer text ends in "...".
std::string shorten(std::string_view text, std::size_t width);

class Table {
 public:
  explicit Table(std::vector<std::string> heading);

  /// Columns, by their number from 0, whose text stands to the right.
  void align_right(std::vector<std::size_t> columns);
  /// A row; as many cells as the heading has.
  void add(std::vector<std::string> cells);
  /// Every line ends in a newline and has no spaces before it.
  std::string str() const;

 private:
  std::vector<std::vector<std::string>> rows_;  // rows_[0] is the heading
  std::vector<bool> right_;
};

}  // namespace snap::cli
