// The JSON of the operations that engine/server/remote.h lists, for both ends.
#pragma once

#include <string>
#include <string_view>

#include "engine/server/remote.h"
#include "snap/result.h"
#include "snap/store.h"

namespace snap::server {

/// Which volume, and the one further argument that an operation may have.
struct VolumeArgs {
  std::string volume;
  std::string name;
  std::uint64_t size = 0;
};
std::string encode_volume_args(const VolumeArgs& args);
Result<VolumeArgs> decode_volume_args(std::string_view json);

std::string encode_commit_args(const std::string& volume, const Store::CommitOptions& options);
struct CommitArgs {
  std::string volume;
  Store::CommitOptions options;
};
/// InvalidArgument for a bad reference.
Result<CommitArgs> decode_commit_args(std::string_view json);

std::string encode_committed(const Store::Committed& committed);
Result<Store::Committed> decode_committed(std::string_view json);

std::string encode_pause(const Volume::Pause& pause);
Result<Volume::Pause> decode_pause(std::string_view json);

/// {"name","id","size"}
std::string encode_record(const VolumeRecord& record);
Result<VolumeRecord> decode_record(std::string_view json);

std::string encode_device_wish(const DeviceWish& wish);
Result<DeviceWish> decode_device_wish(std::string_view json);

std::string encode_uri(const std::string& uri);
Result<std::string> decode_uri(std::string_view json);

}  // namespace snap::server
