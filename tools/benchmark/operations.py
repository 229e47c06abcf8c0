"""The part `operations`: create, clone, snapshot, commit, import and dump against qemu-img, cp, and cp --reflink on btrfs.

Every side ends with its data on disk. snapctl syncs by itself; qemu-img and cp do not, or not all, so a sync of the file
(and of its folder, where it is new) is added to their time. Sides take turns; what a side needs is made before its time
begins. Before data is moved, as much memory as it takes is touched and given back, and what is to be read is read once,
so that no side pays for memory that the one before it found ready, or for a source that lay idle for longer
(docs/performance.md).
"""

import contextlib
import os
import shutil

from benchmark.peers import write_random
from benchmark.processes import GIB, MIB, SNAPCTL, Server, milliseconds, sh, touch_memory, write_back
from benchmark.turns import spread


def sync(path):
    """A file, and the folder that has its name."""
    for name in (path, path.parent):
        descriptor = os.open(name, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def read_through(path):
    with open(path, "rb", buffering=0) as f:
        while f.read(MIB):
            pass


class Side:
    """One way to do an operation. `work` is timed; `before` and `after` are not."""

    def __init__(self, name, work, before=None, after=None):
        self.name, self.work = name, work
        self.before, self.after = before or (lambda: None), after or (lambda: None)


def compare(bench, key, title, sides, rounds):
    """Times the sides in turns; prints and records the milliseconds. The ratio is the other's time over the first's."""
    bench.progress.row(title)
    times = {side.name: [] for side in sides}
    for round_number in range(rounds):
        for side in sides:
            bench.progress.turn(f"{title}: round {round_number + 1} of {rounds}, {side.name}")
            side.before()
            times[side.name].append(milliseconds(side.work))
            side.after()
    bench.record("operations", key, {"title": title, "rounds": rounds, "sides": times})
    bench.say(f"{title}, {rounds} rounds: medians; how many times as long as the first")
    first = times[sides[0].name]
    for side in sides:
        middle, low, high = spread(times[side.name])
        told = f"    {side.name:32} {middle:9.1f} ms ({low:.1f} to {high:.1f})"
        if side is not sides[0]:
            middle, low, high = spread([b / a for a, b in zip(first, times[side.name])])
            told += f"  {middle:.2f} ({low:.2f} to {high:.2f})"
        bench.say(told)


class Operations:
    def __init__(self, bench, btrfs):
        self.bench, self.size = bench, bench.size
        self.folder = bench.scratch / "operations"
        self.folder.mkdir()
        self.btrfs = btrfs  # a folder on btrfs, or None
        self.store = self.folder / "store"
        self.raw = self.folder / "base.raw"
        self.changed = self.folder / "changed.raw"  # other bytes than the image's, or a commit would find its layer there
        self.qcow2 = self.folder / "base.qcow2"
        self.copy = self.folder / "copy"
        self.data = f"{self.size // MIB} MiB"

    # -- what is there before

    def make_data(self):
        self.bench.progress.row("the data")
        write_random(self.raw, self.size)
        write_random(self.changed, self.size)
        self.snapctl("import", self.raw, "base:1")
        sh("qemu-img", "convert", "-f", "raw", "-O", "qcow2", self.raw, self.qcow2)
        self.written_volume("written")
        self.written_top(self.folder / "written.qcow2")
        if self.btrfs:
            sh("cp", self.raw, self.btrfs / "base.raw")
        write_back(self.folder)

    def snapctl(self, *argv):
        return sh(SNAPCTL, "--store", self.store, *argv)

    def written_volume(self, name):
        """A volume of the image whose every block was written."""
        self.snapctl("create", name, "--from", "base:1")
        socket = self.bench.sockets / "operations.sock"
        with Server("snapctl", [SNAPCTL, "--store", self.store, "export", name, "--socket", socket], socket, name) as server:
            sh("nbdcopy", "--flush", self.changed, server.uri)

    def written_top(self, path):
        """The same as qcow2 over the image."""
        self.new_top(path, self.qcow2)
        sh("qemu-img", "convert", "-n", "-f", "raw", "-O", "qcow2", self.changed, path)
        sync(path)

    @staticmethod
    def new_top(path, backing):
        sh("qemu-img", "create", "-q", "-f", "qcow2", "-b", backing, "-F", "qcow2", path)

    # -- sides

    def ready(self, *sources):
        """Nothing is left to write, memory for a copy is at hand, and the sources have just been read."""
        write_back(self.folder)
        touch_memory(self.folder, self.size)
        for source in sources:
            read_through(source)

    def large_files(self, part):
        """Of a part of the store: the files with the data."""
        return [path for path in (self.store / part).rglob("*") if path.is_file() and path.stat().st_size >= self.size // 2]

    def gone(self, *paths):
        for path in paths:
            path.unlink(missing_ok=True)

    def snapctl_side(self, *argv, before=None, undo=None):
        return Side(f"snapctl {argv[0]}", lambda: self.snapctl(*argv), before, undo)

    def qemu_side(self, name, work, path, before=None, keep=False):
        def synced():
            work()
            sync(path)
        return Side(name, synced, before, None if keep else lambda: self.gone(path))

    def cp_side(self):
        def work():
            sh("cp", "--reflink=never", self.raw, self.copy)
            sync(self.copy)
        return Side("cp and fsync", work, lambda: self.ready(self.raw), lambda: self.gone(self.copy))

    def reflink_sides(self):
        if not self.btrfs:
            return []
        copy = self.btrfs / "copy"

        def work():
            sh("cp", "--reflink=always", self.btrfs / "base.raw", copy)
            sync(copy)
        return [Side("cp --reflink and fsync, btrfs", work, None, lambda: self.gone(copy))]

    # -- operations

    def removed(self, volume):
        return lambda: self.snapctl("rm", "--yes", volume)

    def create(self, size):
        top = self.folder / "new.qcow2"
        compare(self.bench, f"create-{size}", f"create, empty, {size[:-1]} {size[-1]}iB", [
            self.snapctl_side("create", "new", "--size", size, undo=self.removed("new")),
            self.qemu_side("qemu-img create and fsync", lambda: sh("qemu-img", "create", "-q", "-f", "qcow2", top, size), top),
        ], 4 * self.bench.rounds)

    def create_from(self):
        top = self.folder / "new.qcow2"
        compare(self.bench, "create-from", f"create, from an image of {self.data}", [
            self.snapctl_side("create", "new", "--from", "base:1", undo=self.removed("new")),
            self.qemu_side("qemu-img create -b and fsync", lambda: self.new_top(top, self.qcow2), top),
            *self.reflink_sides(),
        ], 4 * self.bench.rounds)

    def clone(self):
        top = self.folder / "new.qcow2"
        compare(self.bench, "clone", f"clone, {self.data} written", [
            self.snapctl_side("clone", "written", "new", undo=self.removed("new")),
            self.qemu_side("qemu-img create -b and fsync", lambda: self.new_top(top, self.folder / "written.qcow2"), top),
            *self.reflink_sides(),
        ], 4 * self.bench.rounds)

    def snapshot(self):
        written = self.folder / "written.qcow2"
        compare(self.bench, "snapshot", f"snapshot, {self.data} written", [
            self.snapctl_side("snapshot", "written", "s", undo=self.removed("written@s")),
            Side("qemu-img snapshot -c and fsync",
                 lambda: (sh("qemu-img", "snapshot", "-c", "s", written), sync(written)),
                 None, lambda: sh("qemu-img", "snapshot", "-d", "s", written)),
        ], 4 * self.bench.rounds)

    def import_raw(self):
        new = self.folder / "new.qcow2"
        empty_store = self.folder / "empty-store"
        compare(self.bench, "import", f"import of a raw file, {self.data}", [
            Side("snapctl import", lambda: sh(SNAPCTL, "--store", empty_store, "import", self.raw, "new:1"),
                 lambda: self.ready(self.raw),
                 lambda: shutil.rmtree(empty_store)),
            self.qemu_side("qemu-img convert and fsync",
                           lambda: sh("qemu-img", "convert", "-f", "raw", "-O", "qcow2", self.raw, new), new,
                           lambda: self.ready(self.raw)),
            self.cp_side(),
            *self.reflink_sides(),
        ], self.bench.rounds)

    def commit(self):
        top = self.folder / "top.qcow2"

        def fresh_volume():
            known = set(self.large_files("deltas"))
            self.written_volume("top")
            # A commit leaves out what the image has already, so it reads that, too.
            self.ready(*self.large_files("blobs"), *set(self.large_files("deltas")) - known)

        def committed():
            self.snapctl("rm", "--yes", "top")
            self.snapctl("rmi", "--yes", "new:1")

        def fresh_top():
            sh("cp", "--reflink=never", self.folder / "written.qcow2", top)
            self.ready(self.qcow2, top)

        compare(self.bench, "commit", f"commit, {self.data} written", [
            self.snapctl_side("commit", "top", "new:1", before=fresh_volume, undo=committed),
            Side("qemu-img commit and fsync", lambda: (sh("qemu-img", "commit", "-q", top), sync(self.qcow2)),
                 fresh_top, lambda: self.gone(top)),
            self.cp_side(),
        ], self.bench.rounds)

    def dump(self):
        compare(self.bench, "dump", f"dump to a raw file, {self.data}", [
            self.snapctl_side("dump", "base:1", self.copy, before=lambda: self.ready(*self.large_files("blobs")),
                              undo=lambda: self.gone(self.copy)),
            self.qemu_side("qemu-img convert and fsync",
                           lambda: sh("qemu-img", "convert", "-f", "qcow2", "-O", "raw", self.qcow2, self.copy),
                           self.copy, lambda: self.ready(self.qcow2)),
            self.cp_side(),
        ], self.bench.rounds)

    def run(self):
        self.make_data()
        self.create("1G")
        self.create("1T")
        self.create_from()
        self.clone()
        self.snapshot()
        self.import_raw()
        self.dump()
        self.commit()


@contextlib.contextmanager
def btrfs_on_loop(bench):
    """A folder on btrfs in a loop device; None where that cannot be."""
    if os.getuid() != 0:
        bench.failure("cp --reflink needs root, for btrfs in a loop device: left out")
        yield None
        return
    image, folder = bench.scratch / "btrfs.img", bench.scratch / "btrfs"
    with open(image, "wb") as f:
        f.truncate(2 * bench.size + 2 * GIB)
    sh("mkfs.btrfs", "-q", image)
    folder.mkdir()
    sh("mount", "-o", "loop", image, folder)
    try:
        yield folder
    finally:
        sh("umount", folder)
        image.unlink()


def run(bench):
    with btrfs_on_loop(bench) as btrfs:
        Operations(bench, btrfs).run()
