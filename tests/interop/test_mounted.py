"""Real file systems on a volume: made, mounted, filled, checked, committed, and compared file by file.

The volume becomes a block device through nbdfuse and a loop device: needs root.
"""

import contextlib
import filecmp
import os
import pathlib
import random
import shutil
import subprocess
import time

import pytest
from conftest import MIB, SNAPCTL, sh
from file_systems import fill, mounted

FILESYSTEMS = {
    "ext4": (["mkfs.ext4", "-q", "-F"], "", ["e2fsck", "-f", "-n"]),
    "xfs": (["mkfs.xfs", "-q", "-f"], "nouuid", ["xfs_repair", "-n"]),
}


@contextlib.contextmanager
def device(name, tmp_path, read_only=False):
    """A loop device on a volume that is served to nbdfuse; all of it is gone afterwards."""
    socket, point = tmp_path / f"{name}.sock", tmp_path / f"{name}.fuse"
    point.mkdir(exist_ok=True)
    server = subprocess.Popen([SNAPCTL, "export", name, "--socket", str(socket)], stdout=subprocess.PIPE, text=True)
    uri = server.stdout.readline().strip()
    assert uri, "the export did not come up"
    fuse = subprocess.Popen(["nbdfuse", *(["-r"] if read_only else []), str(point / "disk"), uri])
    try:
        wait_for(lambda: (point / "disk").exists(), "nbdfuse to show the disk")
        loop = sh("losetup", "--find", "--show", *(["-r"] if read_only else []), point / "disk").strip()
        try:
            yield loop
        finally:
            sh("losetup", "-d", loop)
            wait_for(lambda: not sh("losetup", "-j", point / "disk").strip(), "the loop device to go")
    finally:
        wait_for(lambda: subprocess.run(["fusermount3", "-u", str(point)], capture_output=True,
                                        check=False).returncode == 0, "the FUSE mount to go")
        assert fuse.wait(timeout=30) == 0
        server.terminate()
        assert server.wait(timeout=30) == 0


def wait_for(condition, what):
    for _ in range(600):
        if condition():
            return
        time.sleep(0.05)
    pytest.fail(f"waited in vain for {what}")


def assert_same_tree(one, other):
    def files(top):
        return sorted(str(p.relative_to(top)) for p in pathlib.Path(top).rglob("*") if p.name != "lost+found")
    assert files(one) == files(other)
    for name in files(one):
        a, b = pathlib.Path(one) / name, pathlib.Path(other) / name
        if a.is_symlink():
            assert os.readlink(a) == os.readlink(b)
        elif a.is_file():
            assert filecmp.cmp(a, b, shallow=False), name


@pytest.mark.parametrize("kind", FILESYSTEMS)
def test_a_file_system_is_written_committed_and_found_again(tmp_path, monkeypatch, kind):
    assert os.geteuid() == 0 and os.path.exists("/dev/fuse"), "this test needs root, FUSE and loop devices"
    make, options, check = FILESYSTEMS[kind]
    monkeypatch.setenv("SNAPCTL_STORE", str(tmp_path / "store"))
    tree = tmp_path / "tree"
    tree.mkdir()
    fill(tree, seed=1, files=120)
    sh(SNAPCTL, "create", "disk", "--size", str(512 * MIB))
    with device("disk", tmp_path) as loop:
        sh(*make, loop)
        with mounted(loop, tmp_path / "mnt", options or "rw") as point:
            sh("cp", "-a", f"{tree}/.", point)
            assert_same_tree(tree, point)
            sh("fstrim", point)
    sh(SNAPCTL, "commit", "-m", f"{kind} with files", "disk", f"{kind}:1")

    # A second volume is changed and committed while it is mounted; the first image stays as it was.
    sh(SNAPCTL, "create", "second", "--from", f"{kind}:1")
    with device("second", tmp_path) as loop:
        with mounted(loop, tmp_path / "mnt", options or "rw") as point:
            assert_same_tree(tree, point)
            shutil.rmtree(point / "d3")
            (point / "new").write_bytes(random.Random(2).randbytes(3 * MIB))
            os.sync()
            sh(SNAPCTL, "commit", "-m", "while mounted", "second", f"{kind}:2")
            (point / "later").write_bytes(b"not in the image")
        sh(*check, loop)
    for image, changed in ((f"{kind}:1", False), (f"{kind}:2", True)):
        name = f"look{int(changed)}"
        sh(SNAPCTL, "create", name, "--from", image)
        with device(name, tmp_path) as loop:
            # Committed while mounted, an image is like a disk after a power cut: mounting replays its log.
            with mounted(loop, tmp_path / "mnt", options or "rw") as point:
                assert (point / "new").exists() == changed
                assert (point / "d3").exists() != changed
                assert not (point / "later").exists()
                if changed:
                    assert (point / "new").read_bytes() == random.Random(2).randbytes(3 * MIB)
                    shutil.rmtree(tree / "d3")
                    (tree / "new").write_bytes(random.Random(2).randbytes(3 * MIB))
                assert_same_tree(tree, point)
            sh(*check, loop)
