// Opening a store, and what concerns it as a whole.
#include "engine/store/store_impl.h"

#include <sys/resource.h>
#include <sys/stat.h>

#include <filesystem>

#include "engine/store/format_file.h"
#include "engine/store/names.h"
#include "engine/store/space.h"
#include "engine/store/sweep.h"
#include "snap/version.h"

namespace snap {

namespace {

/// A chain of a thousand layers needs as many descriptors.
void raise_descriptor_limit() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur >= limit.rlim_max) return;
  limit.rlim_cur = limit.rlim_max;
  // Where it is refused the old limit holds, and opening the layer beyond it says so.
  (void)::setrlimit(RLIMIT_NOFILE, &limit);
}

Task<Result<Probe>> probe_in_scratch(Directory& tmp, Random& random, std::string file_system) {
  auto scratch = co_await Scratch::make(tmp, random);
  if (!scratch) co_return scratch.error();
  auto probe = co_await probe_file_system(scratch->dir(), std::move(file_system));
  auto removed = co_await scratch->remove();
  if (!probe) co_return probe.error();
  if (!removed) co_return removed.error();
  co_return *probe;
}

Task<Result<std::unique_ptr<Directory>>> open_blobs(Directory& root) {
  auto blobs = co_await root.open_dir("blobs");
  if (!blobs) co_return blobs.error();
  auto sha256 = co_await (*blobs)->open_dir("sha256");
  co_return sha256;
}

/// The path by which a store is known to others (block devices, servers, backups): whatever it was
/// called, there is one, without links and without a slash at its end. It need not be there yet.
Result<std::string> own_path(const std::string& path) {
  namespace fs = std::filesystem;
  std::error_code failed;
  fs::path own = fs::absolute(path, failed);
  if (!failed) own = fs::weakly_canonical(own, failed);
  if (failed) return Error::from_errno(failed.value(), "find the directory " + shown(path));
  if (!own.has_filename()) own = own.parent_path();
  return own.string();
}

Error no_store(const Error& error, const std::string& path) {
  if (error.code() != ErrorCode::kNotFound) return error;
  return Error(ErrorCode::kNotFound, "there is no store at " + path + "; make one with init");
}

}  // namespace

Task<void> remove_root_temporaries(Directory& root) {
  auto entries = co_await root.list();
  if (!entries) co_return;
  std::vector<std::string> left;
  for (const DirEntry& entry : *entries) {
    if (is_temporary_name(entry.name)) left.push_back(entry.name);
  }
  if (left.empty()) co_return;
  auto lock = co_await lock_file(root, kIndexLockName, true, "clean up", std::chrono::seconds(0));
  if (!lock) co_return;
  for (const std::string& name : left) {
    auto removed = co_await root.unlink(name);
    (void)removed;  // of no harm where it stays
  }
}

Store::Impl::Impl(std::string store_path, std::unique_ptr<Directory> root_dir,
                  std::unique_ptr<Directory> tmp_dir, std::unique_ptr<Directory> blobs_dir,
                  std::unique_ptr<Directory> volumes_dir, std::unique_ptr<Directory> deltas_dir,
                  Probe probed)
    : path(std::move(store_path)),
      probe(std::move(probed)),
      root(std::move(root_dir)),
      tmp(std::move(tmp_dir)),
      lock(*root),
      blobs(std::move(blobs_dir), *tmp, random),
      images(*root, blobs),
      volumes(std::move(volumes_dir), std::move(deltas_dir), random),
      chains(blobs),
      events(*root) {
  volumes.share_quota(quota);
}

Store::Store(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Store::~Store() = default;

const std::string& Store::path() const noexcept {
  return impl_->path;
}

Task<Result<std::unique_ptr<Store>>> Store::open(std::string path, OpenOptions options) {
  auto find = [&path] { return own_path(path); };
  auto found = co_await offload(find);
  if (!found) co_return found.error();
  path = std::move(*found);
  raise_descriptor_limit();
  auto root = co_await open_directory(path, options.create);
  if (!root) co_return no_store(root.error(), path);
  if (!options.live_folder) options.live_folder = "/dev/shm/snapctl-" + std::to_string(::geteuid());
  auto known = co_await (*root)->stat("format");
  auto store = co_await open(std::move(*root), options);
  if (!store) co_return store.error();
  if (!known) {
    // The directory may have been there before, open to all.
    auto close_to_others = [&path] { return ::chmod(path.c_str(), 0700) == 0 ? 0 : errno; };
    const int err = co_await offload(close_to_others);
    if (err != 0) co_return Error::from_errno(err, "set the mode of " + path);
  }
  co_return std::move(*store);
}

Task<Result<std::unique_ptr<Store>>> Store::open(std::unique_ptr<Directory> root,
                                                 OpenOptions options) {
  const std::string path = root->path();
  auto space = co_await root->space();
  if (!space) co_return space.error();
  if (!options.force) {
    auto local = refuse_network(path, space->type);
    if (!local) co_return local.error();
  }
  auto features = co_await open_format(*root, options.create);
  if (!features) co_return features.error();
  auto writable = check_features(*features, "store " + path, kUnfinishedBackup);
  if (!writable) co_return writable.error();
  if ((features->incompat & kUnfinishedBackup) != 0 && !options.unfinished_backup) {
    co_return Error(ErrorCode::kUnsupported,
                    path +
                        " is a backup that is not whole: its first run was broken off; run it "
                        "again to go on");
  }
  auto tmp = co_await root->open_dir("tmp");
  if (!tmp) co_return tmp.error();
  auto blobs = co_await open_blobs(*root);
  if (!blobs) co_return blobs.error();
  auto volumes = co_await root->open_dir("volumes");
  if (!volumes) co_return volumes.error();
  auto deltas = co_await root->open_dir("deltas");
  if (!deltas) co_return deltas.error();
  Probe probe;
  probe.file_system = space->type;
  if (!*writable) {
    if (options.sweep) {
      auto swept = co_await sweep_scratch(**tmp);
      if (!swept) co_return swept.error();
      co_await remove_root_temporaries(*root);
    }
    SystemRandom random;
    auto probed = co_await probe_in_scratch(**tmp, random, space->type);
    if (!probed) co_return probed.error().with_context("store " + path);
    probe = *probed;
  }
  auto impl = std::make_unique<Impl>(path, std::move(root), std::move(*tmp), std::move(*blobs),
                                     std::move(*volumes), std::move(*deltas), std::move(probe));
  if (*writable) impl->deny_changes(**writable);
  if (options.live_folder) impl->volumes.set_live_folder(*options.live_folder);
  co_return std::make_unique<Store>(std::move(impl));
}

void Store::Impl::deny_changes(Error why) {
  lock.deny(why);
  images.deny(why);
  volumes.deny(why);
  denied = std::move(why);
}

Task<Result<FileLock>> Store::Impl::reading(std::string purpose) {
  if (denied) co_return FileLock();
  auto held = co_await lock.shared(std::move(purpose));
  co_return held;
}

Task<Result<FileLock>> Store::Impl::reading_all(std::string purpose) {
  if (denied) co_return FileLock();
  auto held = co_await lock.exclusive(std::move(purpose));
  co_return held;
}

Task<Result<Store::Info>> Store::info() {
  auto space = co_await impl_->root->space();
  if (!space) co_return space.error();
  auto images = co_await impl_->images.list();
  if (!images) co_return images.error();
  auto volumes = co_await impl_->volumes.names();
  if (!volumes) co_return volumes.error();
  const Probe& probe = impl_->probe;
  Info out;
  out.path = impl_->path;
  out.format_version = own_features().version;
  out.file_system = probe.file_system;
  out.direct_io = probe.direct_io;
  out.punch_hole = probe.punch_hole;
  out.locks = probe.locks;
  out.rename_noreplace = probe.rename_noreplace;
  out.total = space->total;
  out.available = space->available;
  out.images = images->size();
  out.volumes = volumes->size();
  co_return out;
}

Task<Result<void>> remove_empty_names(VolumeStore& volumes) {
  auto entries = co_await volumes.volumes_dir().list();
  if (!entries) co_return entries.error();
  auto names = co_await volumes.names();
  if (!names) co_return names.error();
  const std::set<std::string> known(names->begin(), names->end());
  for (const DirEntry& entry : *entries) {
    if (entry.type != FileStat::Type::kDirectory || known.contains(entry.name)) continue;
    Holder self = this_process();
    auto lock = co_await volumes.lock_new(entry.name, std::move(self));
    if (!lock) continue;  // someone is creating it
    co_await volumes.discard(std::move(*lock), entry.name);
  }
  co_return Result<void>();
}

Task<Result<Store::Removed>> Store::prune(bool dry_run) {
  auto held = co_await impl_->lock.exclusive("prune");
  if (!held) co_return held.error();
  auto entries = co_await impl_->images.read_index();
  if (!entries) co_return entries.error();
  auto marks = co_await mark_used(*impl_, std::move(*entries));
  if (!marks) co_return marks.error();
  Candidates everything;
  auto garbage = co_await find_garbage(*impl_, *marks, std::move(everything));
  if (!garbage) co_return garbage.error();
  if (dry_run) co_return describe(*garbage);
  auto emptied = co_await remove_empty_names(impl_->volumes);
  if (!emptied) co_return emptied.error();
  auto removed = co_await dispose(*impl_, std::move(*garbage), std::move(*held));
  if (!removed) co_return removed.error();
  auto swept = co_await sweep_scratch(*impl_->tmp);
  if (!swept) co_return swept.error();
  co_await note_room(*this);
  co_return removed;
}

}  // namespace snap
