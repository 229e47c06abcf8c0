// Zstandard frames of chunks (docs/format.md, Layer file, Chunks). The contexts are kept per
// thread: making one costs more than a chunk.
#include <zstd.h>

#include <memory>

#include "engine/layer/layer_format.h"

namespace snap::layer_format {

namespace {
struct FreeContext {
  void operator()(ZSTD_DCtx* c) const { ZSTD_freeDCtx(c); }
  void operator()(ZSTD_CCtx* c) const { ZSTD_freeCCtx(c); }
};

Error bad_frame(std::string message) {
  return Error(ErrorCode::kCorrupt, std::move(message));
}
}  // namespace

Result<void> decompress_chunk(std::span<const std::byte> stored, std::span<std::byte> raw) {
  thread_local std::unique_ptr<ZSTD_DCtx, FreeContext> context(ZSTD_createDCtx());
  if (context == nullptr)
    return Error(ErrorCode::kOutOfMemory, "no memory for a zstd decompression context");
  if (ZSTD_getFrameContentSize(stored.data(), stored.size()) != raw.size())
    return bad_frame("the zstd frame does not say that it holds " + std::to_string(raw.size()) +
                     " bytes");
  std::size_t frame = ZSTD_findFrameCompressedSize(stored.data(), stored.size());
  if (ZSTD_isError(frame) || frame != stored.size())
    return bad_frame("the stored bytes are not one whole zstd frame");
  std::size_t n =
      ZSTD_decompressDCtx(context.get(), raw.data(), raw.size(), stored.data(), stored.size());
  if (ZSTD_isError(n))
    return bad_frame(std::string("zstd cannot decompress it: ") + ZSTD_getErrorName(n));
  if (n != raw.size())
    return bad_frame("the zstd frame holds " + std::to_string(n) + " bytes, expected " +
                     std::to_string(raw.size()));
  return {};
}

std::size_t compress_bound() noexcept {
  return ZSTD_compressBound(kChunkSize);
}

std::size_t compress_chunk(std::span<const std::byte> raw, int level, std::span<std::byte> out) {
  thread_local std::unique_ptr<ZSTD_CCtx, FreeContext> context(ZSTD_createCCtx());
  if (context == nullptr) return 0;
  std::size_t n =
      ZSTD_compressCCtx(context.get(), out.data(), out.size(), raw.data(), raw.size(), level);
  if (ZSTD_isError(n) || n + kBlockSize > raw.size()) return 0;
  return n;
}

}  // namespace snap::layer_format
