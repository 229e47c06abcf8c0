// Where load takes blobs from: an OCI image layout in a tar, or in a folder.
//
// A tar is read once, front to back: fetch_all() brings every blob that the store lacks into
// scratch. Of a folder each blob is brought when it is asked for. Either way a blob is in scratch
// only if its bytes have the digest that names it.
#pragma once

#include <memory>
#include <optional>
#include <set>
#include <string>

#include "engine/store/blob_store.h"
#include "engine/store/image_codec.h"
#include "engine/store/room_watch.h"
#include "engine/store/tar_file.h"
#include "snap/digest.h"
#include "snap/file.h"
#include "snap/store.h"

namespace snap {

class LoadSource {
 public:
  /// `path` is a tar file, a folder, or "-"; all is borrowed.
  LoadSource(Store& store, Directory& scratch, RoomWatch& watch, std::string path,
             const Progress& progress);

  Task<Result<void>> fetch_all();
  /// index.json, after fetch_all().
  const std::string& index() const noexcept { return index_; }

  enum class Where { kStore, kScratch };
  /// Sees to it that the blob is in the store or in scratch; Corrupt if the source lacks it.
  Task<Result<Where>> fetch(BlobDigest digest);
  /// The bytes of a config, manifest or nested index: at most kMaxJsonBytes.
  Task<Result<std::string>> json(BlobDigest digest);
  /// A blob that is in scratch.
  Task<Result<std::unique_ptr<File>>> open(BlobDigest digest);

 private:
  Error refusal(ErrorCode code, const std::string& why) const {
    return Error(code, "load " + path_ + ": " + why);
  }
  Task<Result<void>> fetch_tar();
  Task<Result<void>> take_entry(TarReader& tar, TarReader::Entry entry);
  Task<Result<std::string>> take_text(TarReader& tar, TarReader::Entry entry);
  Task<Result<void>> take_blob(TarReader& tar, BlobDigest digest, std::uint64_t size);
  Task<Result<void>> open_folder();
  /// NoSpace before anything is written if the blobs that the store lacks do not fit.
  Task<Result<void>> check_tar();
  /// Takes the room of a blob that is to be written; NoSpace if there is not so much.
  Result<void> take_room(std::uint64_t bytes);
  Task<Result<void>> copy_blob(BlobDigest digest);

  Store* whole_;
  BlobStore* store_;
  Directory* scratch_;
  RoomWatch* watch_;
  const std::string path_;
  const Progress* progress_;
  std::string index_;
  bool layout_seen_ = false;
  std::unique_ptr<Directory> folder_;  // blobs/sha256 of a folder; null for a tar
  std::set<BlobDigest> in_scratch_;
  Store::Room room_;         // when the loading began
  std::uint64_t taken_ = 0;  // of it
};

}  // namespace snap
