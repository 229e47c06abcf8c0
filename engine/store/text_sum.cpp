#include "engine/store/text_sum.h"

#include <array>
#include <span>

#include "engine/base/checksum.h"
#include "engine/base/codec.h"
#include "snap/digest.h"

namespace snap {

std::string checksum_hex(std::string_view text) {
  std::array<std::uint8_t, 8> bytes{};
  store_be(reinterpret_cast<std::byte*>(bytes.data()),
           xxh3(std::as_bytes(std::span(text.data(), text.size()))));
  return to_hex(bytes);
}

}  // namespace snap
