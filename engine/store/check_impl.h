// StoreCheck: one run of check_store(). Its members are split over files by idea:
//
//   check.cpp         the order of it all, findings, leaks
//   check_layout.cpp  what lies in the store's folders that does not belong there
//   check_roots.cpp   index.json and the records, and what they reach
//   check_owners.cpp  the records of one moment, and which of them names a delta now
//   check_layers.cpp  blobs
//   check_deltas.cpp  deltas
//   check_lost.cpp    which bytes of which volume a damaged layer or delta stands for
//
// The store may be in use. No lock is held while bytes are read; what looks damaged and is named by
// nothing any more at the end was removed meanwhile, and is no finding. A volume is known by its
// id: its name may be another's by the time that its delta is looked at.
#pragma once

#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "engine/delta/delta_verify.h"
#include "engine/layer/layer.h"
#include "engine/store/pace.h"
#include "engine/store/store_impl.h"
#include "snap/check.h"

namespace snap {

/// Blocks of a layer or delta that cannot be had, in a chunk.
struct LostBlocks {
  ChunkIndex chunk;
  std::uint64_t chunks = 1;  ///< more than one: all blocks of each
  BlockMask blocks = kAllBlocks;
};

/// What an image, a volume or a snapshot reads through.
struct CheckedChain {
  std::string name;                   ///< "image base:1", ...
  std::optional<std::uint64_t> size;  ///< none: not known, for the image cannot be read
  std::vector<std::string> deltas;    ///< top first
  std::vector<LayerRef> layers;       ///< bottom first
  /// What says which layers these are. Where it cannot be read nothing of the chain can be had.
  std::optional<BlobDigest> manifest, config;
};

/// What is named and is not as it was written, and what the disk cannot read, is damage.
Finding::Kind kind_of(ErrorCode code);

class StoreCheck {
 public:
  StoreCheck(Store::Impl& store, CheckOptions options, const Progress& progress)
      : store_(store), options_(options), progress_(progress), pace_(options.rate) {}
  Task<Result<CheckReport>> run();

 private:
  /// An object that roots name, and who uses it.
  struct Named {
    std::optional<LayerRef> layer;  ///< a layer of ours
    /// What configs say of its content: one image for each thing that is said.
    std::map<ContentDigest, ImageId> claims;
    std::uint64_t size = 0;  ///< of another blob
    std::set<std::string> users;
  };
  struct NamedDelta {
    std::string volume;  ///< whose writable one it is; empty: sealed
    std::string volume_id;
    std::set<std::string> users;
  };
  /// An image, as far as it can be read.
  struct NamedImage {
    std::optional<ManifestParts> parts;  ///< none: the manifest cannot be read
    std::optional<Image> image;          ///< none: nor its config, or it is not of ours
  };
  struct Roots {
    std::map<BlobDigest, Named> blobs;
    std::map<std::string, NamedDelta> deltas;
    std::set<std::string> volumes;
    std::vector<CheckedChain> chains;
    std::map<BlobDigest, NamedImage> images;  ///< by manifest
    bool complete = true;                     ///< whatever names something could be read
    bool records_complete = true;             ///< of that the records, which alone name deltas
  };
  /// Every record, or why it cannot be read, by name.
  struct Records {
    std::map<std::string, Result<StoredVolume>> by_name;
    bool settled = false;  ///< no name came or went meanwhile: none was missed
  };
  /// Where a delta is to be looked at, and how.
  struct Standing {
    bool named = true;  ///< false: no volume has it any more
    DeltaUse use = DeltaUse::kSealed;
    std::unique_ptr<File> still;  ///< kAtRest: while it lives nobody begins to write to the delta
  };
  /// Which object a finding is about: once no root names it, it is no finding.
  struct Subject {
    std::optional<BlobDigest> blob;
    std::string delta;
    std::string volume;
    /// Without it what reads through it cannot be opened: all of that is lost.
    bool opener = false;
  };

  // check.cpp
  void add(Finding finding, Subject subject);
  /// By the kind of error: damage, or something that could not be checked.
  void add_error(std::string object, const Error& error, Subject subject);
  Task<void> drop_what_is_gone();
  Task<void> find_leaks();
  bool cancelled() const { return progress_.is_cancelled() || EventLoop::current()->stopping(); }

  // check_layout.cpp
  Task<void> check_folders();
  Task<void> check_root();
  Task<void> check_blob_folder();
  Task<void> check_volume_folders();
  Task<void> check_volume_folder(std::string name);
  Task<void> check_delta_folders();
  Task<void> check_delta_folder(std::string uuid);
  Task<std::vector<DirEntry>> list(Directory& dir, std::string path);
  void add_foreign(const std::string& path, FileStat::Type type);
  Task<void> check_oci_layout();
  Task<void> find_leftovers();
  Task<void> find_tmp_leftovers();
  Task<void> find_root_leftovers();
  Task<void> find_volume_leftovers();
  Task<void> find_leftovers_of(std::string name);
  /// Notes a leftover at `path`.
  void add_leftover(const std::string& path, const std::string& what, std::uint64_t bytes,
                    bool reclaimed);

  // check_roots.cpp
  Task<void> gather(Roots& roots);
  Task<void> find_lost_records();
  Task<void> gather_entry(Roots& roots, IndexEntry entry, int depth);
  Task<void> gather_nested(Roots& roots, IndexEntry entry, int depth);
  Task<void> gather_volume(Roots& roots, StoredVolume volume);
  Task<void> gather_image(Roots& roots, BlobDigest manifest, std::string user);
  static void add_user(Roots& roots, BlobDigest manifest, const std::string& user);
  static void lead_through(Roots& roots, BlobDigest manifest, CheckedChain& chain);
  Task<NamedImage> read_image(Roots& roots, BlobDigest manifest);

  // check_owners.cpp
  Task<std::vector<std::string>> volume_names();
  Task<Records> read_records();
  Task<Result<Standing>> where_is(std::string uuid);
  Task<Result<std::optional<Standing>>> stands_in(std::string uuid, std::string name,
                                                  std::string id);

  // check_layers.cpp
  Task<void> check_blobs();
  Task<void> check_layer(BlobDigest digest, const Named& named);
  /// Configs that say something else of the layer than it is; if all do, it is not what it was.
  Result<void> check_claims(const Layer& layer, const Named& named);
  Task<void> check_other_blob(BlobDigest digest, std::uint64_t size);
  Task<Result<void>> hash_blob(BlobDigest digest);
  void check_image_sizes();

  // check_deltas.cpp
  Task<void> check_deltas();
  Task<void> check_delta(std::string uuid);
  /// Nothing: no volume names it any more.
  Task<Result<std::optional<VerifiedDelta>>> look_at(std::string uuid);
  Task<Result<VerifiedDelta>> look_once(std::string uuid, DeltaUse use);
  Task<Result<VerifiedDelta>> look_while_serving(std::string uuid);
  Task<void> read_data(std::string uuid, const VerifiedDelta& delta);

  // check_lost.cpp
  /// Who uses what the finding is about and, of what can be told from the roots, what is lost.
  void name_users(Finding& finding, const Subject& subject);
  std::vector<Finding::Lost> lost_without(const Subject& subject) const;
  Task<std::vector<Finding::Lost>> lost_of_layer(BlobDigest layer, std::vector<LostBlocks> blocks);
  Task<std::vector<Finding::Lost>> lost_of_delta(std::string uuid, std::vector<LostBlocks> blocks);
  Task<void> hide_by_delta(std::string uuid, std::vector<LostBlocks>& blocks);
  Task<void> hide_by_layer(LayerRef ref, std::vector<LostBlocks>& blocks);

  /// Reads a file in aligned pieces, past the page cache where that is possible, at the pace.
  using Take = std::function<void(std::span<const std::byte>)>;
  Task<Result<void>> read_paced(File& file, std::uint64_t begin, std::uint64_t end,
                                const Take& take);

  Store::Impl& store_;
  const CheckOptions options_;
  const Progress& progress_;
  Pace pace_;
  std::uint64_t total_ = 0;  ///< bytes to read
  CheckReport report_;
  std::vector<Subject> subjects_;  ///< of the findings, one each
  std::set<std::string> seen_;     ///< objects that have a finding
  std::set<std::string> foreign_;  ///< names in blobs/ and deltas/ that do not belong there
  std::set<std::string> lost_;     ///< volumes that have lost their records
  Roots roots_;
  std::map<BlobDigest, std::uint64_t> layer_sizes_;  ///< virtual sizes
};

}  // namespace snap
