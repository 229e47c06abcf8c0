// The examples of docs/format.md as bytes: what a test decodes is what a person reads.
#pragma once

#include <cstddef>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace snap {

/// The bytes of a block of the page at `path` that begins with "```" and `block`: `hexdump -C`, in
/// which "*" repeats the line above. Throws if the page has none.
inline std::vector<std::byte> docs_example(const char* path, const std::string& block) {
  std::ifstream page(path);
  std::vector<std::byte> bytes;
  std::string line;
  while (std::getline(page, line) && line != "```" + block) {
  }
  bool repeat = false;
  while (std::getline(page, line) && line != "```") {
    if (line == "*") {
      repeat = true;
      continue;
    }
    std::istringstream words(line.substr(0, line.find('|')));
    std::size_t offset = 0;
    words >> std::hex >> offset;
    while (repeat && bytes.size() < offset)
      bytes.push_back(bytes[bytes.size() - 16]);
    repeat = false;
    unsigned value = 0;
    while (words >> std::hex >> value)
      bytes.push_back(static_cast<std::byte>(value));
  }
  if (bytes.empty()) throw std::runtime_error(std::string(path) + " has no example " + block);
  return bytes;
}

}  // namespace snap
