"""kill -9 in every step of import, commit, clone, load and snapshot: all is as before, or done.

strace (package strace) kills the program at the N-th call of one kind of system call that changes files, for
N = 1, 2, ... until the command gets through; on the thread-pool loop, whose I/O are system calls. Then the store
must have either exactly what it had, or the finished result besides; and the command must work again.
"""

import shutil
import subprocess

import pytest
from conftest import KIB, MIB, Snap, noise

CALLS = ["mkdirat", "pwrite64", "fdatasync", "fsync", "ftruncate", "renameat2", "renameat", "unlinkat", "fchmod", "flock"]


def kill_points(base, args):
    """Runs the command again and again, killed at another step each time; yields after each, with its name."""
    assert shutil.which("strace"), "strace is missing; it is in the package strace"
    killed = 0
    for call in CALLS:
        n, step = 1, 1
        while True:
            trace = ["strace", "-f", "-qq", "-o", "/dev/null", "--seccomp-bpf", "-e", f"trace={call}",
                     "-e", f"inject={call}:signal=SIGKILL:when={n}"]
            done = base.popen(*args, prefix=trace, env={"SNAPCTL_IO": "threads"}, stdin=subprocess.DEVNULL,
                              stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            _, err = done.communicate(timeout=60)
            assert done.returncode in (0, -9, 137), f"{call} {n}: {done.returncode} {err}"
            yield f"killed at {call} number {n}" if done.returncode else f"not killed at {call} number {n}"
            if done.returncode == 0:
                break
            killed += 1
            if n >= 8:
                step *= 2  # thousands of writes need not all be tried
            n += step
    assert killed >= 8, f"only {killed} steps were hit: the calls above are not the ones that it makes"


@pytest.fixture
def store(base):
    base("create", "web", "--from", "base:1")
    base.write("web", {MIB: noise(128 * KIB, 9), 5 * MIB: noise(4096, 10)})
    return base


def check(snap, before, where, new_images=(), new_volumes=()):
    """The state is `before`, but perhaps with some of the new names; gives those that are there."""
    images, volumes, content = snap.state()
    fresh = [n for n in new_images if n in images] + [n for n in new_volumes if n in volumes]
    for name in fresh:
        images.pop(name, None)
        volumes.pop(name, None)
    for name, data in before[2].items():
        assert content[name] == data, f"{where}: {name} is not what it was"
    assert images == before[0], where
    # A commit that got far enough gives the volume its new image.
    assert set(volumes) == set(before[1]), where
    return {name: content[name] for name in fresh}


def test_import(store, tmp_path):
    disk = tmp_path / "disk.raw"
    disk.write_bytes(noise(256 * KIB, 20) + bytes(MIB) + noise(64 * KIB, 21))
    before = store.state()
    for where in kill_points(store, ["import", disk, "new:1"]):
        for name, data in check(store, before, where, ["new:1"]).items():
            assert data == disk.read_bytes(), where
            store("rmi", "--yes", name)
    store("prune", "--yes")
    store("import", disk, "new:1")
    assert store.content("new:1") == disk.read_bytes()


def test_clone(store):
    before = store.state()
    for where in kill_points(store, ["clone", "web", "copy"]):
        for name, data in check(store, before, where, new_volumes=["copy"]).items():
            assert data == before[2]["web"], where
            store("rm", "--yes", name)
    store("prune", "--yes")
    store("clone", "web", "copy")
    assert store.content("copy") == before[2]["web"]


def test_commit(store):
    before = store.state()
    for where in kill_points(store, ["commit", "-m", "x", "web", "new:1"]):
        for name, data in check(store, before, where, ["new:1"]).items():
            assert data == before[2]["web"], where
        # So that the next round has something to commit; what is below stays.
        store.write("web", {5 * MIB: noise(4096, 10)})
    store("prune", "--yes")
    store("commit", "web", "new:2")
    assert store.content("new:2") == before[2]["web"]
    assert store.content("web") == before[2]["web"]


def test_load(store, tmp_path):
    sockets = tmp_path / "friend-run"
    sockets.mkdir(mode=0o700)
    friend = Snap(tmp_path / "friend", sockets)
    friend.image("own:1", noise(64 * KIB, 30))
    store("commit", "web", "base:2")
    store("save", "-o", tmp_path / "two.tar", "base:2")
    expected = store.content("base:2")
    before = friend.state()
    for where in kill_points(friend, ["load", "-i", tmp_path / "two.tar"]):
        for name, data in check(friend, before, where, ["base:2"]).items():
            assert data == expected, where
            friend("rmi", "--yes", name)
        friend("prune", "--yes")
    friend("load", "-i", tmp_path / "two.tar")
    assert friend.content("base:2") == expected


def test_snapshot(store):
    before = store.state()
    for where in kill_points(store, ["snapshot", "web", "s"]):
        after = store.state()
        assert after[0] == before[0] and after[2] == before[2], where
        names = [s["name"] for s in store.json("snapshots", "web")["snapshots"]]
        assert names in ([], ["s"]), where
        if names:
            assert store.content("web@s") == before[2]["web"], where
            store("rm", "--yes", "web@s")
