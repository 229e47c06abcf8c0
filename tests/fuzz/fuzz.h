// What the fuzz targets share. A target is a source file NAME_fuzz.cpp that defines run() and
// seeds(); fuzz_main.cpp gives both to libFuzzer. README.md says how to run them.
//
// Formats with checksums: the first byte of an input holds flags, most of which ask the target to
// correct one kind of checksum before the engine sees the file. So the engine meets damage that it
// must find by a checksum, and lies that no checksum tells.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace snap::fuzz {

using Bytes = std::vector<std::byte>;

/// One input, from the first byte on. What is broken ends the process.
void run(std::span<const std::byte> input);

struct Seed {
  std::string name;
  Bytes bytes;
};
/// Inputs that reach the target's depths, from which its corpus was grown.
std::vector<Seed> seeds();

/// Ends the process: the engine broke a promise that no sanitizer knows of.
[[noreturn]] void broken(const std::string& promise);

/// Takes the first byte off; 0 of nothing.
std::uint8_t take_byte(std::span<const std::byte>& input);

/// A file of 4 KiB pages, most of them nearly empty, as few bytes: for each page a u16 with the
/// length of what it begins with, and that. At most `max_pages` come out.
Bytes unpack_pages(std::span<const std::byte> packed, std::size_t max_pages);
Bytes pack_pages(std::uint8_t flags, std::span<const std::byte> file);

Bytes bytes_of_text(std::string_view text);
std::string_view text_of(std::span<const std::byte> bytes);

}  // namespace snap::fuzz
