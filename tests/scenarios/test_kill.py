"""kill -9 in every step of import, commit, clone, load and snapshot: all is as before, or done.

The program is killed before its first, second, ... N-th change of a file or directory, until it gets through: by a
library that is preloaded and counts them over all threads (tests/support/kill_at.cpp), on the thread-pool loop, whose
I/O are calls. So every state that it leaves on the disk is met. Then the store must have either exactly what it had, or
the finished result besides; and the command must work again.
"""

import pathlib
import subprocess

import pytest
from conftest import KIB, MIB, PROGRAM, Snap, blobs, changed_volumes, noise, tags, volumes

KILL_AT = pathlib.Path(PROGRAM).parent.parent.parent / "tests/support/kill_at.so"


def kill_points(snap, args):
    """Runs the command again and again, killed one change later each time; yields after each, with its name.

    `args` are the command's words, or a function that prepares a round and gives them.
    """
    assert KILL_AT.exists(), f"{KILL_AT} is missing: it is built along with the program"
    n = through = 0
    # What a killed run left makes the next one a few changes longer or shorter: one success may be too early.
    while through < 3:
        n += 1
        words = args() if callable(args) else args
        done = snap.popen(*words, env={"SNAPCTL_IO": "threads", "LD_PRELOAD": str(KILL_AT), "SNAP_KILL_AT": str(n)},
                          stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        _, err = done.communicate(timeout=60)
        assert done.returncode in (0, -9), f"change {n}: {done.returncode} {err}"
        through = through + 1 if done.returncode == 0 else 0
        yield f"killed at change {n}" if done.returncode else f"not killed at change {n}"
    assert n > 40, f"only {n} changes were counted: the library does not know the calls that the program makes"


@pytest.fixture
def store(base):
    base("create", "web", "--from", "base:1")
    base.write("web", {MIB: noise(128 * KIB, 9), 5 * MIB: noise(4096, 10)})
    return base


class Before:
    """What a store holds before a command is killed: images by what they are made of, volumes by their content.

    What it says of itself is read from its files, so that two runs of the program a round are enough: the one that is
    killed, and one that reads a content.
    """

    def __init__(self, snap):
        self.snap = snap
        self.tags = tags(snap)
        self.blobs = blobs(snap)
        self.volumes = {name: snap.content("volume:" + name) for name in snap.volumes()}

    def check(self, where, new_images=(), new_volumes=()):
        """All is as before, but perhaps with some of the new names; gives these with their content."""
        now, there = tags(self.snap), volumes(self.snap)
        fresh = {name: self.snap.content("image:" + name) for name in new_images if now.pop(name, None)}
        fresh.update({name: self.snap.content("volume:" + name) for name in new_volumes if name in there})
        assert now == self.tags, where
        stored = blobs(self.snap)
        for name, data in self.blobs.items():
            assert stored.get(name) == data, f"{where}: blob {name} is gone or another"
        assert there - set(new_volumes) == set(self.volumes), where
        for name, data in self.volumes.items():
            assert self.snap.content("volume:" + name) == data, f"{where}: {name} is not what it was"
        return fresh


def test_import(store, tmp_path):
    disk = tmp_path / "disk.raw"
    disk.write_bytes(noise(256 * KIB, 20) + bytes(MIB) + noise(64 * KIB, 21))
    before = Before(store)
    for where in kill_points(store, ["import", disk, "new:1"]):
        for name, data in before.check(where, ["new:1"]).items():
            assert data == disk.read_bytes(), where
            store("rmi", "--yes", name)
    store("prune", "--yes")
    store("import", disk, "new:1")
    assert store.content("new:1") == disk.read_bytes()


def test_clone(store):
    before = Before(store)
    for where in kill_points(store, ["clone", "web", "copy"]):
        for name, data in before.check(where, new_volumes=["copy"]).items():
            assert data == before.volumes["web"], where
            store("rm", "--yes", name)
    store("prune", "--yes")
    store("clone", "web", "copy")
    assert store.content("copy") == before.volumes["web"]


def test_commit(base):
    # A volume of its own each time: what a killed commit leaves of one is not what the next begins with.
    expected, done = {}, []

    def words():
        if len(done) == len(expected):
            expected.update(changed_volumes(base, len(expected), 24))
        done.append(f"v{len(done)}")
        return ["commit", "-m", "x", done[-1], f"new:{done[-1]}"]

    images, killed = tags(base), []
    for where in kill_points(base, words):
        name = done[-1]
        assert base.content("volume:" + name) == expected[name], where
        now = tags(base)
        if f"new:{name}" in now:
            assert base.content("image:new:" + name) == expected[name], where
            images[f"new:{name}"] = now[f"new:{name}"]
        else:
            killed.append(name)
        assert now == images, where
        assert volumes(base) == set(expected), where
    # What was cut short early, halfway and late is done now.
    for name in killed[:1] + killed[len(killed) // 2:][:1] + killed[-1:]:
        base("commit", name, f"late:{name}")
        assert base.content(f"image:late:{name}") == expected[name]
    base("prune", "--yes")
    assert set(base.images()) == set(tags(base))
    assert base.content("image:base:1") == base.base


def test_load(store, tmp_path):
    sockets = tmp_path / "friend-run"
    sockets.mkdir(mode=0o700)
    friend = Snap(tmp_path / "friend", sockets)
    friend.image("own:1", noise(64 * KIB, 30))
    store("commit", "web", "base:2")
    store("save", "-o", tmp_path / "two.tar", "base:2")
    expected = store.content("base:2")
    before = Before(friend)
    for where in kill_points(friend, ["load", "-i", tmp_path / "two.tar"]):
        for name, data in before.check(where, ["base:2"]).items():
            assert data == expected, where
            friend("rmi", "--yes", name)
        # So that no layer of the round before exists already.
        friend("prune", "--yes")
    friend("load", "-i", tmp_path / "two.tar")
    assert friend.content("base:2") == expected


def test_dump(base, tmp_path):
    base("create", "web", "--size", "8M")
    base.write("web", {at: noise(4096, at) for at in range(0, 8 * MIB, 128 * KIB)})
    content = base.content("web")
    out = tmp_path / "out" / "web.raw"
    out.parent.mkdir()
    out.write_bytes(b"precious")
    for where in kill_points(base, ["dump", "web", out]):
        assert out.read_bytes() in (b"precious", content), f"{where}: half a disk"
        for partial in out.parent.iterdir():
            assert partial == out or partial.name.startswith("web.raw.partial-"), partial
            if partial != out:
                partial.unlink()
        if where.startswith("killed"):
            out.write_bytes(b"precious")
    assert out.read_bytes() == content


def test_snapshot(store):
    before = Before(store)
    for where in kill_points(store, ["snapshot", "web", "s"]):
        before.check(where)
        names = [s["name"] for s in store.json("snapshots", "web")["snapshots"]]
        assert names in ([], ["s"]), where
        if names:
            assert store.content("web@s") == before.volumes["web"], where
            store("rm", "--yes", "web@s")
