"""A full disk in every step: exit code 6, one line, nothing that was there is lost, and all works once there is room.

The store is on a small ext4 of its own, on a loop device (fixture small): needs root.
"""

import os
import subprocess

import pytest
from conftest import KIB, MIB, Client, Snap, blobs, changed_volumes, empty, fill, noise, tags, volumes


LEAVE = [0, 4 * KIB, 16 * KIB, 64 * KIB, 256 * KIB, MIB]


def tried(snap, leave, *args):
    """Runs a command on the full disk: it gets through, or fails with 6 and one line. True: it got through."""
    fill(snap, leave)
    try:
        done = snap.popen(*args, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        _, err = done.communicate(timeout=60)
    finally:
        empty(snap)
    assert done.returncode in (0, 6), f"{leave} left: {args}: {done.returncode} {err}"
    if done.returncode == 6:
        assert len(err.decode().splitlines()) == 1 and "space" in err.decode().lower(), err
    return done.returncode == 0


def test_import(small, tmp_path):
    disk = tmp_path / "disk.raw"
    disk.write_bytes(noise(2 * MIB, 5))
    before = small.state()
    for leave in LEAVE:
        assert not tried(small, leave, "import", disk, "new:1")
        assert small.state() == before
        assert os.listdir(small.store / "tmp") == []
    small("import", disk, "new:1")
    assert small.content("new:1") == disk.read_bytes()


def test_create(small):
    before = small.state()
    failed = 0
    for leave in LEAVE:
        if tried(small, leave, "create", "new", "--from", "base:1"):
            assert small.content("new") == small.base
            small("rm", "--yes", "new")
        else:
            failed += 1
        assert small.state() == before
    assert failed > 0
    small("create", "new", "--from", "base:1")


def test_commit(small):
    web = small.content("web")
    failed = 0
    for leave in LEAVE:
        if not tried(small, leave, "commit", "web", "new:1"):
            failed += 1
            assert "new:1" not in small.images()
        assert small.content("web") == web and small.content("base:1") == small.base
    assert failed >= len(LEAVE) - 1
    small("commit", "web", "new:1")
    assert small.content("new:1") == web and small.content("web") == web


def test_load(small, tmp_path):
    sockets = tmp_path / "friend-run"
    sockets.mkdir(mode=0o700)
    friend = Snap(tmp_path / "friend", sockets)
    friend.image("own:1", noise(2 * MIB, 7))
    friend("save", "-o", tmp_path / "own.tar", "own:1")
    before = small.state()
    for leave in LEAVE:
        assert not tried(small, leave, "load", "-i", tmp_path / "own.tar")
        assert small.state() == before
    small("load", "-i", tmp_path / "own.tar")
    assert small.content("own:1") == noise(2 * MIB, 7)


def test_clone_and_snapshot(small):
    before = small.state()
    for leave in LEAVE:
        if tried(small, leave, "clone", "web", "copy"):
            assert small.content("copy") == before[2]["web"]
            small("rm", "--yes", "copy")
        if tried(small, leave, "snapshot", "web", "s"):
            small("rm", "--yes", "web@s")
        assert small.state() == before


# ---- In every step: little to write, and a block or two more room each time, until it is enough


def level_by_level(snap, words, undo, step=4 * KIB):
    """Runs the command with more and more room until it gets through; gives how often it did not.

    `words` are the command's, or a function that gives them. What a failure leaves is all that was there before, and
    nothing under tmp. `undo` is called after the success, and the command must succeed once more with all the room.
    """
    before = tags(snap), volumes(snap), blobs(snap)
    failures = 0
    while not tried(snap, failures * step, *(args := words() if callable(words) else words)):
        assert (tags(snap), volumes(snap)) == before[:2], f"{failures * step} left"
        stored = blobs(snap)
        assert all(stored.get(name) == data for name, data in before[2].items()), f"{failures * step} left"
        assert os.listdir(snap.store / "tmp") == []
        failures += 1
        assert failures * step < 2 * MIB, f"{args} does not get through with {failures * step} bytes"
    undo()
    snap(*(words() if callable(words) else words))
    return failures


def test_every_step_of_import_and_load(small, tmp_path):
    web = small.content("web")
    disk = tmp_path / "disk.raw"
    disk.write_bytes(noise(64 * KIB, 5))
    assert level_by_level(small, ["import", disk, "new:1"], lambda: small("rmi", "--yes", "new:1")) >= 5
    assert small.content("new:1") == disk.read_bytes()
    small("save", "-o", tmp_path / "new.tar", "new:1")

    def forget():
        small("rmi", "--yes", "new:1")
        small("prune", "--yes")

    forget()
    assert level_by_level(small, ["load", "-i", tmp_path / "new.tar"], forget) >= 5
    assert small.content("new:1") == disk.read_bytes()
    assert small.content("web") == web and small.content("base:1") == small.base


def test_every_step_of_create_snapshot_and_clone(small):
    web = small.content("web")
    assert level_by_level(small, ["create", "new", "--from", "base:1"], lambda: small("rm", "--yes", "new")) >= 3
    assert small.content("new") == small.base
    assert level_by_level(small, ["snapshot", "web", "s"], lambda: small("rm", "--yes", "web@s")) >= 3
    assert small.content("web@s") == web and small.content("web") == web
    small.write("web", {3 * MIB: noise(4096, 3)})  # so that there is something to seal again
    web = small.content("web")
    assert level_by_level(small, ["clone", "web", "copy"], lambda: small("rm", "--yes", "copy")) >= 3
    assert small.content("copy") == web and small.content("web") == web


def test_every_step_of_commit(small):
    # A volume of its own each time: what a failed commit leaves of one is not what the next begins with.
    expected = changed_volumes(small, 0, 30)
    names = iter(expected)
    used = []

    def words():
        used.append(next(names))
        return ["commit", used[-1], f"new:{used[-1]}"]

    assert level_by_level(small, words, lambda: None, 8 * KIB) >= 5
    for name in used[-2:]:
        assert small.content(f"image:new:{name}") == expected[name]
    for name in used[:-2]:
        assert small.content(name) == expected[name]
    # One that failed early, and one that failed late.
    for name in (used[0], used[-3]):
        small("commit", name, f"late:{name}")
        assert small.content(f"image:late:{name}") == expected[name]


def test_writes_over_nbd_get_enospc_and_the_volume_goes_on(small):
    with small.export("web") as server, Client(server.uri) as h:
        h.pwrite(b"k" * 4096, 0)
        h.flush()
        fill(small, 64 * KIB)
        try:
            with pytest.raises(Exception, match="No space left"):
                for i in range(3):
                    h.pwrite(noise(MIB, i), (1 + i) * MIB)
            assert bytes(h.pread(4096, 0)) == b"k" * 4096
            h.pwrite(b"m" * 4096, 0)  # an overwrite needs no space
            h.flush()
        finally:
            empty(small)
        h.pwrite(b"n" * 4096, 2 * MIB)
        h.flush()
    content = small.content("web")
    assert content[:4096] == b"m" * 4096 and content[2 * MIB:2 * MIB + 4096] == b"n" * 4096


def test_dump_to_a_full_disk(small):
    fill(small, 256 * KIB)
    try:
        small.fails("dump", "web", small.point / "web.raw", code=6, says="web.raw")
        assert not (small.point / "web.raw").exists()
        small.fails("save", "-o", small.point / "web.tar", "base:1", code=6)
    finally:
        empty(small)


def test_a_volume_that_the_file_system_cannot_hold_is_refused_by_name(small):
    # No file of ext4 goes beyond 16 TiB.
    small.fails("create", "large", "--size", "100T", code=1, says=["ext4", "xfs", str(100 << 40)])
    small.fails("resize", "web", "100T", code=1, says=["ext4", "xfs"])
    assert set(small.volumes()) == {"web"}
    assert small.volumes()["web"]["size"] == 4 * MIB
    assert small.content("web")[:MIB] == noise(MIB, 2)
