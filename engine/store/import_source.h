// The kinds of source that import reads from; make_import_source (snap/store.h) chooses one.
//
// Every source yields pieces in ascending order that start on a chunk boundary and end on one, but
// for the last: so the importer never sees a chunk in two pieces. Sizes are padded with zeros to a
// multiple of 512, as qemu-img does, for a volume's size is one.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "snap/file.h"
#include "snap/store.h"

namespace snap {

/// A regular file, by its data extents, or a block device. `grow_to`: bytes that the image is to
/// have; InvalidArgument if the source is larger.
Task<Result<std::unique_ptr<ImportSource>>> make_raw_source(std::unique_ptr<File> file,
                                                            std::optional<std::uint64_t> grow_to);

/// A pipe, socket or character device: read once, its size is known at its end. `name` is for
/// messages. Owns `fd` if `close_fd`.
std::unique_ptr<ImportSource> make_stream_source(int fd, bool close_fd, std::string name,
                                                 std::optional<std::uint64_t> grow_to);

/// A directory as an ext4 file system, made by mke2fs in `scratch` (a real directory), where it
/// has no name any more when it is filled. Of `from` counts the path; the size, in bytes, of the
/// file system (none: what the tree needs and head room); and the room.
Task<Result<std::unique_ptr<ImportSource>>> make_directory_source(ImportFrom from,
                                                                  Directory& scratch);

/// An NBD server by its URI.
Task<Result<std::unique_ptr<ImportSource>>> make_nbd_source(std::string uri,
                                                            std::optional<std::uint64_t> grow_to);
/// A disk image in a format of qemu's ("qcow2", ...), served by a qemu-nbd of our own.
Task<Result<std::unique_ptr<ImportSource>>> make_qemu_source(std::string path, std::string format,
                                                             std::optional<std::uint64_t> grow_to);
bool is_nbd_uri(std::string_view source) noexcept;

/// What a disk image's first and last bytes say.
struct DetectedFormat {
  std::string name = "raw";  ///< as qemu calls it
  /// It names other files that would be read too (a backing file, a data file, extents).
  bool names_other_files = false;
};
/// `head`: the first 512 bytes or more, `tail`: the last 512, or fewer if the file has no more.
DetectedFormat detect_image_format(std::span<const std::byte> head,
                                   std::span<const std::byte> tail) noexcept;

/// The size that a source of `bytes` gives an image: padded to sectors, or `grow_to`.
Result<std::uint64_t> import_size(std::uint64_t bytes, std::optional<std::uint64_t> grow_to,
                                  std::string_view name);

}  // namespace snap
