"""A block that the kernel takes, cannot store and forgets: the next flush fails. On an ext4 whose medium has no place for it
(a file on a full tmpfs behind a loop device); needs root.
"""

import contextlib
import errno
import os
import re
import subprocess

import nbd
import pytest
from conftest import KIB, MIB, Client, Snap, noise, sh, wait_for


@contextlib.contextmanager
def mounted(point, *argv):
    point.mkdir()
    sh("mount", *argv, point)
    try:
        yield point
    finally:
        # What io_uring had open in a process that has ended is closed a moment later.
        wait_for(lambda: subprocess.run(["umount", point], capture_output=True, check=False).returncode == 0)


def lose(medium, disk, data):
    """Takes the place of the first block of `data`, a file on the file system on `disk`, away; none is left on `medium`."""
    listed = sh("filefrag", "-v", "-b4096", data).decode()
    first = int(re.search(r"^\s+0:\s+0\.\.\s+\d+:\s+(\d+)\.\.", listed, re.MULTILINE).group(1))
    sh("fallocate", "--punch-hole", "--offset", first * 4 * KIB, "--length", 4 * KIB, disk)
    with open(medium / "ballast", "wb", buffering=0) as ballast, contextlib.suppress(OSError):
        while True:
            ballast.write(bytes(4 * KIB))


def test_a_flush_fails_if_the_kernel_has_lost_what_it_is_for(tmp_path):
    assert os.geteuid() == 0, "only root may mount a file system: run the tests as root"
    with contextlib.ExitStack() as stack:
        medium = stack.enter_context(mounted(tmp_path / "medium", "-t", "tmpfs", "-o", "size=80m", "tmpfs"))
        disk = medium / "disk"
        sh("mkfs.ext4", "-q", "-E", "lazy_itable_init=0", disk, "64M")
        sh("fallocate", "--length", 64 * MIB, disk)
        point = stack.enter_context(mounted(tmp_path / "point", "-o", "loop", disk))
        (tmp_path / "run").mkdir(mode=0o700)
        snap = Snap(point / "store", tmp_path / "run")
        snap("create", "web", "--size", "1M")
        snap.write("web", {0: noise(64 * KIB, 1)})
        data = next((point / "store/deltas").glob("*/data"))
        with snap.export("web") as server, Client(server.uri) as client:
            os.sync()
            lose(medium, disk, data)
            client.pwrite(noise(4 * KIB, 2), 0)
            with open(data, "rb") as f:
                with pytest.raises(OSError) as told:
                    os.fsync(f.fileno())
                assert told.value.errno in (errno.EIO, errno.ENOSPC)
                os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                assert f.read(4 * KIB) != noise(4 * KIB, 2), "the kernel has not lost it"
            with pytest.raises(nbd.Error):
                client.flush()
            with pytest.raises(nbd.Error):
                client.pwrite(noise(4 * KIB, 3), 8 * KIB)
            assert client.pread(4 * KIB, 8 * KIB) == noise(64 * KIB, 1)[8 * KIB:12 * KIB]
            server.stop(code=6)  # as closing failed
            assert f"close volume web: write back {data}" in server.log
        (medium / "ballast").unlink()
        snap.write("web", {0: noise(4 * KIB, 4)})
        assert snap.content("web")[:64 * KIB] == noise(4 * KIB, 4) + noise(64 * KIB, 1)[4 * KIB:]
