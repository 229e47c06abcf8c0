// Attachment: what is known of a volume that is a block device of this machine, and the directory
// where it is written down, for the commands that come later (detach, ps, doctor) and for a server
// that takes the place of one that died.
//
// The directory is on tmpfs, for a record means nothing after a reboot: DIR/attached/nbd0.json, one
// file a device, replaced whole. The kernel's word counts for more: in_place() asks it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "engine/io/unique_fd.h"
#include "snap/result.h"

namespace snap::attach {

enum class Via { kNbd, kFuse };
/// "nbd", "fuse"
const char* via_name(Via via) noexcept;

struct Attachment {
  std::string device;  ///< "/dev/nbd0"
  Via via = Via::kNbd;
  std::string store;    ///< path
  std::string name;     ///< of the export
  std::string content;  ///< what it is, also once another has the name
  std::string backend;  ///< what the kernel knows it by: of nbd the backend, of loop the file
  std::string control;  ///< path of the control socket of its server
  std::uint64_t size = 0;
  bool read_only = false;
  unsigned connections = 1;
  bool own_server = false;  ///< its server was started for it and goes with it
  bool for_mount = false;   ///< it was attached to be mounted and goes with the mount
  std::string since;        ///< RFC 3339
};

/// As JSON: the fields by their names. Nothing if it is no such thing.
std::string encode_attachment(const Attachment& attachment);
std::optional<Attachment> decode_attachment(const std::string& json);

/// Blocking calls on small files.
class Attachments {
 public:
  /// `runtime_dir` is there.
  explicit Attachments(std::string runtime_dir) : dir_(std::move(runtime_dir) + "/attached") {}

  /// Ascending by device. Corrupt, with its path, if a file is no record.
  Result<std::vector<Attachment>> list() const;
  /// Those of the store at that path, by whatever path they were attached.
  Result<std::vector<Attachment>> list_of(const std::string& store) const;
  /// Paths of files that list() would choke on.
  std::vector<std::string> damaged() const;
  Result<void> put(const Attachment& attachment) const;
  Result<void> remove(const std::string& device) const;
  std::string path_of(const std::string& device) const;

  /// Excludes whoever else attaches or detaches while the descriptor is open. Waits for its turn.
  Result<UniqueFd> lock() const;

 private:
  struct Files {
    std::vector<Attachment> records;
    std::vector<std::string> damaged;  ///< paths
  };
  Result<Files> read_all() const;
  Result<void> make_dir() const;
  std::string dir_;
};

/// Whether the kernel still has the device, and as ours: by now it may be another program's.
bool in_place(const Attachment& attachment);

/// Whether it is of the store at that path, by whatever path it was attached.
bool is_of_store(const Attachment& attachment, const std::string& store);

/// N of "/dev/nbdN"; nothing if it is no such device.
std::optional<unsigned> nbd_index(const std::string& device);
/// What the kernel calls the server of a device; empty: none is connected.
std::string nbd_backend(unsigned index);

/// Devices of the kernel that look like ours and that no record tells of.
struct Orphan {
  std::string device;
  std::string backend;
};
std::vector<Orphan> find_orphans(const std::vector<Attachment>& known);

/// What begins every backend of ours.
inline constexpr const char* kBackendPrefix = "snapctl:";

}  // namespace snap::attach
