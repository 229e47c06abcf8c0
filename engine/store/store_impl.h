// The inside of Store and OpenVolume, for the files of engine/store.
//
// Members are made in the order in which they are listed and borrow those above them. Everything
// runs on the loop that opened the store; only the volumes are used from other threads.
#pragma once

#include <array>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/base/uuid.h"
#include "engine/delta/block_quota.h"
#include "engine/io/sync.h"
#include "engine/store/blob_store.h"
#include "engine/store/chain.h"
#include "engine/store/event_log.h"
#include "engine/store/format_file.h"
#include "engine/store/image_store.h"
#include "engine/store/scratch.h"
#include "engine/store/store_lock.h"
#include "engine/store/volume_store.h"
#include "snap/file.h"
#include "snap/store.h"

namespace snap {

class Store::Impl {
 public:
  Impl(std::string store_path, std::unique_ptr<Directory> root_dir,
       std::unique_ptr<Directory> tmp_dir, std::unique_ptr<Directory> blobs_dir,
       std::unique_ptr<Directory> volumes_dir, std::unique_ptr<Directory> deltas_dir, Probe probed);

  std::string path;
  Probe probe;
  SystemRandom random;
  std::unique_ptr<Directory> root;
  std::unique_ptr<Directory> tmp;
  StoreLock lock;
  BlobStore blobs;
  ImageStore images;
  VolumeStore volumes;
  ChainCache chains;
  EventLog events;
  /// What of the store's limit the deltas that this process writes may take, all together.
  std::shared_ptr<BlockQuota> quota = std::make_shared<BlockQuota>();
  /// Whether a mark holds, as far as this process has looked.
  struct KnownMark {
    std::optional<bool> noted;  ///< what the store's events know
    std::optional<bool> told;   ///< what watch_room() gave since, which could not be added to them
  };
  std::array<KnownMark, 2> known_marks;
  /// What this process has found to be news of its store and watch_room() has not given yet.
  std::vector<StoreEvent> untold;

  /// Why the store may only be read, if so (a feature of a later release).
  std::optional<Error> denied;
  void deny_changes(Error why);
  /// The store lock, shared, for one who reads what a sweep may remove; none where there are no
  /// sweeps because the store may only be read.
  Task<Result<FileLock>> reading(std::string purpose);
  /// The same for what must see every name: none comes, goes or changes meanwhile.
  Task<Result<FileLock>> reading_all(std::string purpose);

  /// A folder of our own under tmp/; remove() it when done.
  Task<Result<Scratch>> scratch() { return Scratch::make(*tmp, random); }

  /// The layers under a chain (none: reads zero).
  Task<Result<std::shared_ptr<LayerStack>>> stack_of(std::optional<BlobDigest> manifest);
  /// The same for what relies on the image: one that is missing is Corrupt, naming `user`.
  Task<Result<std::shared_ptr<LayerStack>>> stack_behind(std::optional<BlobDigest> manifest,
                                                         std::string user);
  /// The whole chain of `record`, with its delta open for writing.
  Task<Result<Volume::Parts>> open_chain(VolumeRecord record);
  /// A read-only chain.
  Task<Result<std::shared_ptr<Volume>>> open_read_only(std::uint64_t size,
                                                       std::vector<SealedLink> sealed,
                                                       std::optional<BlobDigest> manifest);
  /// Removes those of `deltas` that no volume or snapshot names any more (a sweep: takes the store
  /// lock exclusive itself). `dry_run`: only says what it would free.
  Task<Result<Removed>> drop_deltas(std::vector<std::string> deltas, bool dry_run);
};

class OpenVolume::Impl {
 public:
  Store::Impl* store = nullptr;
  VolumeLock lock;
  StoredVolume stored;
  std::shared_ptr<Volume> volume;
  /// Held by who packs sealed deltas, from choosing them to putting the layer in their place. Taken
  /// before `changing`.
  AsyncMutex committing;
  /// Held by whoever changes the chain or the record (snapshot, clone, commit, resize), for
  /// moments: a commit takes it to seal and again to publish, not while it packs.
  AsyncMutex changing;

  /// Publishes `next` as the record and takes it over once it is durable.
  Task<Result<void>> publish(VolumeRecord next);
};

/// InvalidArgument for what no volume may have as its limit.
Result<void> check_volume_limit(std::optional<std::uint64_t> bytes);

/// The image that `manifest` names, for what relies on it: a missing or foreign one is Corrupt.
Task<Result<Image>> image_behind(ImageStore& images, BlobDigest manifest, std::string user);

}  // namespace snap
