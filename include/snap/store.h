// Store: a directory that holds images, layers and volumes (docs/format.md, Store). It is an OCI
// image layout with the volumes beside it: no database; every object is one file that is replaced
// whole, and a name is published only after everything that it names is durable
// (docs/durability.md, Publish).
//
// Many processes may use one store at once. A volume is open in one process at a time: a second
// gets Busy with the pid. All calls are made from one event loop of the process (the volumes that
// it opens may be used from any).
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "snap/digest.h"
#include "snap/file.h"
#include "snap/result.h"
#include "snap/task.h"
#include "snap/volume.h"

namespace snap {

/// SHA-256 of an image's config: its ID, as docker has it.
using ImageId = Digest<struct ImageIdTag>;

/// name[:tag] as in the OCI distribution spec (the name may hold slashes and a host); no tag:
/// latest.
struct Reference {
  std::string name;
  std::string tag = "latest";
  static Result<Reference> parse(std::string_view text);
  std::string str() const { return name + ":" + tag; }
  friend auto operator<=>(const Reference&, const Reference&) = default;
};

/// Checks a volume or snapshot name: [a-z0-9][a-z0-9_.-]*, at most kMaxVolumeName.
Result<void> check_volume_name(std::string_view name);

using Labels = std::map<std::string, std::string>;

struct HistoryEntry {
  std::string created;     ///< RFC 3339, UTC
  std::string created_by;  ///< the command
  std::string author;
  std::string comment;
  bool empty_layer = false;
};

struct LayerRef {
  BlobDigest blob;              ///< names the file
  ContentDigest content;        ///< diff id
  std::uint64_t file_size = 0;  ///< bytes of the file
};

struct Image {
  ImageId id;
  BlobDigest manifest;
  std::uint64_t size = 0;        ///< virtual size in bytes
  std::vector<LayerRef> layers;  ///< bottom first
  std::vector<HistoryEntry> history;
  Labels labels;
  std::string created;  ///< RFC 3339, UTC
  std::string author;
  std::vector<Reference> tags;  ///< in this store
  /// Bytes of its layer files.
  std::uint64_t stored_size() const;
};

/// A link of a chain: a sealed delta, and the smallest size the volume had while it was on top.
struct SealedLink {
  std::string delta;  ///< uuid
  std::uint64_t floor = 0;
};

struct SnapshotRecord {
  std::string name;
  std::string created;
  std::uint64_t size = 0;
  std::vector<SealedLink> sealed;      ///< top first
  std::optional<BlobDigest> manifest;  ///< of the image below
  std::optional<ImageId> image;        ///< as the volume's when it was taken
  std::string image_name;
  std::optional<BlobDigest> base_manifest;
};

struct VolumeRecord {
  std::string name;
  std::string id;       ///< uuid of the volume, for life
  std::string created;  ///< RFC 3339, UTC
  std::uint64_t size = 0;
  std::string delta;  ///< uuid of the writable layer
  std::uint64_t floor = 0;
  std::vector<SealedLink> sealed;      ///< top first
  std::optional<BlobDigest> manifest;  ///< of the image it reads through; none: it reads zero
  /// The image that it was created from or committed as: what `reset` goes back to. Older snapshots
  /// may have been packed on top of it into an image without a name: then `manifest` is of that
  /// one, and `base_manifest` is `image`'s.
  std::optional<ImageId> image;
  std::string image_name;  ///< the reference as given when it was created or committed; for people
  std::optional<BlobDigest> base_manifest;
  std::vector<SnapshotRecord> snapshots;
  Labels labels;
  std::optional<std::uint64_t> limit;  ///< bytes that the data blocks of `delta` may take
};

/// Who holds a volume open.
struct Holder {
  int pid = 0;
  std::string control_socket;  ///< path; empty: it takes no commands
};

/// What `ls` shows.
struct VolumeSummary {
  VolumeRecord record;
  std::uint64_t allocated = 0;  ///< bytes on disk of its own deltas
  std::optional<Holder> holder;
};

/// Told how long work comes along, from the loop's thread; and asked whether it is to be given up.
struct Progress {
  /// `stage` names the step ("import", "pack", "layer sha256:0123…"); total 0: not known.
  std::function<void(std::string_view stage, std::uint64_t done, std::uint64_t total)> report;
  std::function<bool()> cancelled;
  void tell(std::string_view stage, std::uint64_t done, std::uint64_t total) const {
    if (report) report(stage, done, total);
  }
  bool is_cancelled() const { return cancelled && cancelled(); }
};

/// Bytes to import, read in ascending order; holes are skipped. See make_import_source.
class ImportSource {
 public:
  virtual ~ImportSource() = default;
  /// Bytes, once known: streams learn it at their end.
  virtual std::optional<std::uint64_t> size() const = 0;
  /// Bytes in blocks that are not zero, or, once it is clear that they are more, any number above
  /// `enough`; nothing if only an import would tell. To be asked before next().
  virtual Task<Result<std::optional<std::uint64_t>>> data_bytes(std::uint64_t enough);
  struct Piece {
    std::uint64_t offset = 0;  ///< a multiple of 65536
    std::uint64_t length = 0;  ///< bytes that were filled; short only at the end or before a hole
  };
  /// Fills `buffer` (at least 1 MiB) with the next data; nothing at the end. A piece of length 0:
  /// nothing has come yet; call again with the same buffer, which holds what did come.
  virtual Task<Result<std::optional<Piece>>> next(std::span<std::byte> buffer) = 0;
};

/// Where to import from: a raw file or block device by path, "-" for standard input, a directory
/// (becomes an ext4 file system through mke2fs -d), a qcow2, vmdk, vhdx, ... image (through
/// qemu-nbd), or an NBD URI. `format` forces a kind ("raw", "qcow2", ...); empty: recognised by
/// content, but an image that names other files (a backing file) is then refused. A size that is
/// not a multiple of 512 is padded with zeros.
struct ImportFrom {
  std::string source;
  std::string format;
  std::optional<std::uint64_t> size;  ///< of the file system made from a directory, or to grow to
  /// Asked, before a file system is made from a directory, whether there is room in scratch for
  /// about `bytes` of data: an error ends the import. None: there is.
  std::function<Result<void>(std::uint64_t bytes)> room;
};
Task<Result<std::unique_ptr<ImportSource>>> make_import_source(ImportFrom from, Directory& scratch);

/// Something that happened to the store and that who runs it should know.
struct StoreEvent {
  std::string time;     ///< RFC 3339, UTC; filled in by who records it
  std::string kind;     ///< "low-water", "limit-reached", "store-normal", "volume-no-space", ...
  std::string volume;   ///< empty: it is about the store
  std::string message;  ///< one line, for people
  std::map<std::string, std::uint64_t> numbers;  ///< "left", "limit", ...: bytes
};

/// A volume that this process has open; closing it (or dying) gives the lock back.
class OpenVolume;

class Store {
 public:
  struct OpenOptions {
    bool create = true;  ///< make the store if it is not there
    bool force = false;  ///< use it on a network file system all the same
    bool sweep = true;   ///< remove what dead processes left in tmp/ and of replacing index.json
    bool unfinished_backup = false;  ///< open a backup that is not whole, to go on with it
    /// Where volumes that are open to write have their live maps (docs/durability.md), on tmpfs;
    /// empty: nowhere. None given: in /dev/shm for a store by its path, else nowhere.
    std::optional<std::string> live_folder;
  };
  /// Checks version and feature masks (Unsupported names the release that is needed), probes the
  /// file system, removes what dead processes left behind.
  static Task<Result<std::unique_ptr<Store>>> open(std::string path, OpenOptions options);
  /// On any Directory: for tests on the simulated disk.
  static Task<Result<std::unique_ptr<Store>>> open(std::unique_ptr<Directory> root,
                                                   OpenOptions options);
  ~Store();

  const std::string& path() const noexcept;
  struct Info {
    std::string path;
    std::uint32_t format_version = 0;
    std::string file_system;  ///< "ext4", ...
    bool direct_io = false, punch_hole = false, locks = false, rename_noreplace = false;
    std::uint64_t total = 0, available = 0;  ///< bytes of the file system
    std::size_t images = 0, volumes = 0;
  };
  Task<Result<Info>> info();

  // ---- Images

  /// All images. With `damaged` those that cannot be read are told there, one error each; without,
  /// the first of them is the result.
  Task<Result<std::vector<Image>>> images(std::vector<Error>* damaged = nullptr);
  /// By reference, or by a unique prefix of its ID. NotFound suggests the nearest name.
  Task<Result<Image>> image(std::string_view name_or_id);
  Task<Result<Image>> image_of_manifest(BlobDigest manifest);
  struct ImportOptions {
    Reference name;
    std::string comment, author, created_by;
    Labels labels;
    bool compress = false;
    int zstd_level = 3;
  };
  Task<Result<Image>> import(ImportSource& source, ImportOptions options, Progress progress);
  Task<Result<void>> tag(std::string_view source, Reference target);
  struct Removed {
    std::vector<std::string> untagged;  ///< references
    std::vector<std::string> deleted;   ///< digests of images and layers that are gone
    std::uint64_t freed = 0;            ///< bytes
    /// Why what nothing uses any more stays until prune, if it does.
    std::optional<Error> kept;
  };
  /// A reference: untags; the last one deletes the image and what nothing else uses. An ID: all of
  /// its tags if there is one, else Busy unless `force`. Busy, naming them, while volumes use the
  /// image.
  Task<Result<Removed>> remove_image(std::string_view name_or_id, bool force, bool dry_run);
  /// Writes an OCI image layout as a tar (docker save). To "-": standard output.
  Task<Result<void>> save(std::vector<std::string> images, std::string file, Progress progress);
  struct Loaded {
    std::vector<Image> images;
    std::vector<BlobDigest> layers_new, layers_existing;
  };
  /// Reads such a tar (or an OCI layout directory), checks every digest, skips layers that exist
  /// (`on_layer(digest, existed)` is told one by one).
  Task<Result<Loaded>> load(std::string file, Progress progress,
                            std::function<void(const BlobDigest&, bool existed)> on_layer);

  // ---- Volumes at rest

  struct CreateOptions {
    std::string name;
    std::optional<Image> image;
    std::string image_name;
    std::uint64_t size = 0;  ///< bytes, a multiple of 512; 0: the image's size
    Labels labels;
    std::optional<std::uint64_t> limit;  ///< as set_volume_limit() takes it
  };
  Task<Result<VolumeRecord>> create_volume(CreateOptions options);
  /// All volumes; `damaged` as for images().
  Task<Result<std::vector<VolumeSummary>>> volumes(std::vector<Error>* damaged = nullptr);
  /// By exact name, or a unique prefix of its id.
  Task<Result<VolumeSummary>> volume(std::string_view name_or_id);
  Task<Result<Removed>> remove_volume(std::string_view name, bool dry_run);
  Task<Result<void>> rename_volume(std::string_view name, std::string_view new_name);
  /// Back to a snapshot; what was written since is dropped. The volume must be at rest.
  Task<Result<void>> rollback(std::string_view name, std::string_view snapshot);
  /// Back to its image (or to zeros).
  Task<Result<void>> reset(std::string_view name);
  Task<Result<void>> remove_snapshot(std::string_view name, std::string_view snapshot);

  // ---- Open volumes

  /// Takes the volume's lock (Busy, with pid, if it is held) and recovers it.
  Task<Result<std::unique_ptr<OpenVolume>>> open_volume(std::string_view name, Holder holder);
  /// A read-only volume of an image. Layers and their resolved map are shared in this process.
  Task<Result<std::shared_ptr<Volume>>> open_image(const Image& image);
  /// A read-only volume of a snapshot, or of the whole chain of a volume at rest.
  Task<Result<std::shared_ptr<Volume>>> open_snapshot(std::string_view volume,
                                                      std::string_view snapshot);

  /// Freezes the present state without a name: what was answered before is in the record's sealed
  /// deltas and layers when it returns. O(1).
  Task<Result<Volume::Pause>> freeze(OpenVolume& volume);
  /// Freezes the present state under a name; O(1).
  Task<Result<Volume::Pause>> snapshot(OpenVolume& volume, std::string name);
  /// A second volume with the same content; O(1).
  Task<Result<VolumeRecord>> clone(OpenVolume& volume, std::string new_name);
  Task<Result<void>> resize(OpenVolume& volume, std::uint64_t size);
  /// The most bytes that the data blocks of the writable layer may take (4096 to 256 TiB; none: as
  /// the disk has). Less than they take now: no new ones until it is more again.
  Task<Result<void>> set_volume_limit(OpenVolume& volume, std::optional<std::uint64_t> bytes);
  struct CommitOptions {
    std::optional<Reference> name;
    std::string comment, author, created_by;
    Labels labels;
    bool compress = false;
    int zstd_level = 3;
    std::uint64_t rate_limit = 0;  ///< bytes a second of packing; 0: none
  };
  /// Packs the older snapshots if there are so many that freeze(), snapshot() or clone() would have
  /// to do so first: for who wants the next of these to be quick, or a commit, which packs them as
  /// it packs the rest. Of `how` the compression counts.
  Task<Result<void>> make_room(OpenVolume& volume, CommitOptions how);
  struct Committed {
    Image image;
    LayerRef layer;
    std::chrono::microseconds pause{0};  ///< how long writes waited
    std::chrono::microseconds total{0};
    std::uint64_t packed = 0;  ///< bytes read from the delta
  };
  /// Packs what is above the image into a layer and publishes layer, config, manifest, tag, and
  /// last the volume's new chain. Killed on the way, it leaves the old state and perhaps a sealed
  /// delta that the next commit picks up.
  Task<Result<Committed>> commit(OpenVolume& volume, CommitOptions options, Progress progress);

  // ---- The store as a whole

  struct Usage {
    std::uint64_t layer_bytes = 0, delta_bytes = 0, other_bytes = 0;
    std::uint64_t reclaimable = 0;    ///< bytes that prune would free
    std::uint64_t shared_saving = 0;  ///< bytes that sharing of layers saves
    struct Row {
      std::string kind, name;
      std::uint64_t size = 0, shared = 0, unique = 0;
    };
    std::vector<Row> rows;
  };
  Task<Result<Usage>> usage();

  // ---- Space

  struct Limits {
    std::optional<std::uint64_t> limit;      ///< most bytes that the store may take on its disk
    std::optional<std::uint64_t> low_water;  ///< fewer bytes left than this: a warning
  };
  Task<Result<Limits>> limits();
  /// Every process that uses the store goes by them within seconds.
  Task<Result<void>> set_limits(Limits limits);
  struct Room {
    Limits limits;
    std::uint64_t used = 0;       ///< bytes on disk of layers, deltas and tmp; 0: there is no limit
    std::uint64_t available = 0;  ///< bytes that the file system has
    /// Bytes that may still be taken: of the limit (2^64-1 if there is none), and of the file
    /// system too.
    std::uint64_t left_of_limit() const noexcept;
    std::uint64_t left() const noexcept;
  };
  Task<Result<Room>> room();
  /// Measures the room and has what this process writes to its volumes keep to the limit; gives
  /// what was crossed and told by no one yet, or else why it cannot be added to the events.
  Task<Result<std::vector<StoreEvent>>> watch_room();
  /// Takes space for events, so that they are kept on a disk that is full by then. For servers.
  Task<Result<void>> prepare_events();
  /// Adds to the store's events. Kept: the last 1 to 2 MiB.
  Task<Result<void>> add_event(StoreEvent event);

  /// Mark and sweep from index.json and the volumes: removes blobs and deltas that nothing names,
  /// under the store lock that keeps out commands that add. Never what a volume uses.
  Task<Result<Removed>> prune(bool dry_run);

  class Impl;
  explicit Store(std::unique_ptr<Impl> impl);
  Impl& impl() noexcept { return *impl_; }

 private:
  std::unique_ptr<Impl> impl_;
};

class OpenVolume {
 public:
  ~OpenVolume();
  /// The record as it is now.
  const VolumeRecord& record() const noexcept;
  Volume& volume() noexcept;
  std::shared_ptr<Volume> shared_volume() noexcept;
  /// Closes the volume and gives the lock back. Call it once requests have ended.
  Task<Result<void>> close();

  class Impl;
  explicit OpenVolume(std::unique_ptr<Impl> impl);
  Impl& impl() noexcept { return *impl_; }

 private:
  std::unique_ptr<Impl> impl_;
};

}  // namespace snap
